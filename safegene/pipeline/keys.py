"""Changes of the pinned keys of a workspace's ledger; see `safegene.ledger.key_changes`."""

from pathlib import Path
from typing import Any

from safegene.ledger.chain import open_ledger
from safegene.ledger.key_changes import pin_key, require_signatures, revoke_key, rotate_key, touched_by
from safegene.ledger.keys import create_key, load_signer, public_key
from safegene.ledger.pins import APPROVE, PinnedKeys, read_pinned_keys, with_extras
from safegene.ledger.record import Record
from safegene.ledger.record_fields import Run, run_field
from safegene.ledger.snapshot import keep_seen
from safegene.workspace.layout import Workspace


def pinned_keys(workspace: Workspace) -> PinnedKeys:
    """The content of ``ledger.pub``."""
    return read_pinned_keys(workspace.root / workspace.params.promote.public_key)


def pin(
    workspace: Workspace, name: str, *, owner: str | None = None, approver: bool = False, run: Run | None = None
) -> Record:
    """Pin a key, or name the owner or the role of a pinned one, by a record.

    Args:
        workspace: whose ledger it is.
        name: id of a key of this user or of a pinned key, or a file with a public key.
        owner: the person whose key it is; None keeps what is pinned.
        approver: whether the key may approve what others promote; False keeps what is pinned.
        run: what is known of the run.
    """
    ledger = open_ledger(workspace.params.promote, workspace.root)
    known = [key for key in ledger.keys if len(name) >= 8 and key.keyid.startswith(name)]
    key = known[0] if len(known) == 1 else public_key(name)
    old = next((each for each in ledger.keys if each.keyid == key.keyid), key)
    extras: dict[str, Any] = {"owner": owner} if owner else {}
    extras |= {"roles": [APPROVE]} if approver else {}
    record = pin_key(
        ledger, load_signer(ledger.keys), _file(workspace), with_extras(old, **extras), fields={"run": run_field(run)}
    )
    keep_seen(ledger, workspace.root)
    return record


def rotate(workspace: Workspace, *, to: str | None = None, run: Run | None = None) -> Record:
    """Pin a new key in the place of the one that signs here, by a record.

    Args:
        workspace: whose ledger it is.
        to: id of a key of this user, or a file with a public key; default: a new key of the same scheme.
        run: what is known of the run.
    """
    ledger = open_ledger(workspace.params.promote, workspace.root)
    signer = load_signer(ledger.keys)
    new = public_key(to or create_key(scheme=signer.public_key.scheme))
    record = rotate_key(ledger, signer, _file(workspace), new, fields={"run": run_field(run)})
    keep_seen(ledger, workspace.root)
    return record


def require(workspace: Workspace, count: int, *, run: Run | None = None) -> Record:
    """Pin how many signatures of different persons a promotion needs, by a record."""
    ledger = open_ledger(workspace.params.promote, workspace.root)
    signer, fields = load_signer(ledger.keys), {"run": run_field(run)}
    record = require_signatures(ledger, signer, _file(workspace), count, fields=fields)
    keep_seen(ledger, workspace.root)
    return record


def revoke(
    workspace: Workspace, keyid: str, reason: str, *, since: str | None = None, run: Run | None = None
) -> tuple[Record, list[Record]]:
    """Revoke a pinned key by a record that another key signs.

    Returns:
        The record, and the earlier records that are no longer trusted.
    """
    ledger = open_ledger(workspace.params.promote, workspace.root)
    others = [key for key in ledger.keys if len(keyid) < 8 or not key.keyid.startswith(keyid)]
    signer, fields = load_signer(others or ledger.keys), {"run": run_field(run)}
    record = revoke_key(ledger, signer, _file(workspace), keyid, reason, since=since, fields=fields)
    first = record.sequence if record.predicate.channel.since is None else record.predicate.channel.since
    keep_seen(ledger, workspace.root)
    return record, touched_by(ledger, str(record.revokes).removeprefix("sha256:"), first)


def _file(workspace: Workspace) -> Path:
    return workspace.root / workspace.params.promote.public_key
