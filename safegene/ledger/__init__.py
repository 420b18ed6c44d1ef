"""Signed, hash-chained records of every attempt, and the releases that they put live.

`keys`: who signs. `record`: what one record says. `pointers`: the unsigned pointers to records. `chain`: how records
are linked. `snapshot`: the state of a chain. `anchors`, `memory`: what workspace and machine remember of it.
`release`: the bytes that were promoted. `store`: where all of it is kept. `live`: what is live, what was, what is
revoked. `promotion`, `rollback`, `revocation`: what changes that. `incumbent`: what a candidate is compared with.
`evidence`: what a verdict rests on. `audit`: verify all of it.
"""

from safegene.ledger.chain import Ledger, open_ledger
from safegene.ledger.keys import create_key, ensure_key, key_ids, load_signer, read_public_keys, write_public_key
from safegene.ledger.live import LiveRecord, live_in, live_record, revocations, why_revoked
from safegene.ledger.memory import open_memory
from safegene.ledger.pointers import SEEN, channel_key, is_ledger_key, record_key
from safegene.ledger.record import FIELDS, PUBLISHING, Record, RecordDraft, RecordOutcome
from safegene.ledger.release import release_files, release_uri, require_release_of
from safegene.ledger.snapshot import keep_seen, read_state
from safegene.ledger.store import open_store

__all__ = [
    "FIELDS",
    "PUBLISHING",
    "SEEN",
    "Ledger",
    "LiveRecord",
    "Record",
    "RecordDraft",
    "RecordOutcome",
    "channel_key",
    "create_key",
    "ensure_key",
    "is_ledger_key",
    "keep_seen",
    "key_ids",
    "live_in",
    "live_record",
    "load_signer",
    "open_ledger",
    "open_memory",
    "open_store",
    "read_public_keys",
    "read_state",
    "record_key",
    "release_files",
    "release_uri",
    "require_release_of",
    "revocations",
    "why_revoked",
    "write_public_key",
]
