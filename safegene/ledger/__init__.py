"""Signed, hash-chained records of every attempt, and the releases that they put live.

`keys`: who signs. `record`: what one record says. `chain`: how records are linked, and what is live. `release`: the
bytes that were promoted.
"""

from safegene.ledger.chain import Ledger, Pointer, channel_key, record_key, require_published
from safegene.ledger.keys import create_key, keys_folder, load_signer, read_public_keys
from safegene.ledger.record import FIELDS, PUBLISHING, Draft, Outcome, Record
from safegene.ledger.release import (
    Release,
    open_release,
    plan_release,
    publish_release,
    read_release,
    release_files,
    release_uri,
    verify_release,
)

__all__ = [
    "FIELDS",
    "PUBLISHING",
    "Draft",
    "Ledger",
    "Outcome",
    "Pointer",
    "Record",
    "Release",
    "channel_key",
    "create_key",
    "keys_folder",
    "load_signer",
    "open_release",
    "plan_release",
    "publish_release",
    "read_public_keys",
    "read_release",
    "record_key",
    "release_files",
    "release_uri",
    "require_published",
    "verify_release",
]
