"""Signed, hash-chained records of every attempt, and the releases that they put live.

`keys`: who signs. `record`: what one record says. `chain`: how records are linked, and what is live. `release`: the
bytes that were promoted. `standing`: what is live, what was, what was revoked.
"""

from safegene.ledger.chain import (
    SEEN,
    Ledger,
    Pointer,
    channel_key,
    keep_seen,
    open_ledger,
    record_key,
    require_published,
)
from safegene.ledger.keys import (
    create_key,
    ensure_key,
    key_ids,
    keys_folder,
    load_signer,
    read_public_keys,
    write_public_key,
)
from safegene.ledger.live import (
    LiveRecord,
    digests_named,
    find_record,
    live_channels,
    live_record,
    records_resting_on,
    revocation,
    revocations,
)
from safegene.ledger.record import FIELDS, PUBLISHING, Record, RecordDraft, RecordOutcome
from safegene.ledger.release import (
    Release,
    open_release,
    plan_release,
    publish_release,
    read_release,
    release_files,
    release_uri,
    require_release_of,
    verify_release,
)

__all__ = [
    "FIELDS",
    "PUBLISHING",
    "SEEN",
    "RecordDraft",
    "Ledger",
    "LiveRecord",
    "RecordOutcome",
    "Pointer",
    "Record",
    "Release",
    "channel_key",
    "create_key",
    "ensure_key",
    "find_record",
    "keep_seen",
    "key_ids",
    "keys_folder",
    "live_record",
    "live_channels",
    "load_signer",
    "digests_named",
    "open_ledger",
    "open_release",
    "plan_release",
    "publish_release",
    "read_public_keys",
    "read_release",
    "record_key",
    "release_files",
    "release_uri",
    "require_published",
    "require_release_of",
    "records_resting_on",
    "revocation",
    "revocations",
    "verify_release",
    "write_public_key",
]
