"""Signed, hash-chained records of every attempt, and the releases that they put live.

`keys`: who signs. `record`: what one record says. `chain`: how records are linked, and the pointers to what is live.
`release`: the bytes that were promoted. `store`: where all of it is kept. `live`: what is live, what was, what is
revoked. `promotion`, `rollback`, `revocation`: what changes that. `incumbent`: what a candidate is compared with.
`evidence`: what a verdict rests on. `audit`: verify all of it.
"""

from safegene.ledger.chain import SEEN, Ledger, channel_key, keep_seen, open_ledger, record_key
from safegene.ledger.keys import create_key, ensure_key, key_ids, load_signer, read_public_keys, write_public_key
from safegene.ledger.live import LiveRecord, follow_pointer, live_record, revocations, why_revoked
from safegene.ledger.record import FIELDS, PUBLISHING, Record, RecordDraft, RecordOutcome
from safegene.ledger.release import release_files, release_uri, require_release_of

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
    "follow_pointer",
    "keep_seen",
    "key_ids",
    "live_record",
    "load_signer",
    "open_ledger",
    "read_public_keys",
    "record_key",
    "release_files",
    "release_uri",
    "require_release_of",
    "revocations",
    "why_revoked",
    "write_public_key",
]
