"""Change the pinned keys by records: pin, rotate, revoke, and how many signatures a promotion needs.

Each change is a record signed by a key that was trusted before it. Its field ``change`` holds the whole content of
``ledger.pub`` before the change and the change itself, so that anybody can compute the content after it; the file is
written afterwards. A revocation is a record of outcome ``revocation``, the other changes are of outcome ``keys``.

Rules, which `verify_keys` checks on the whole chain: a change begins where the one before it ended; one of its signers
was trusted then; and the file says what the newest change says.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, JsonValue, NonNegativeInt
from securesystemslib.signer import Signer, SSlibKey

from safegene.errors import FormatError, LedgerError, PromotionRefused
from safegene.ledger.chain import Ledger
from safegene.ledger.live import find_record
from safegene.ledger.pins import (
    PinnedKeys,
    key_to_json,
    may_approve,
    owner_of,
    parse_key,
    parse_pinned_keys,
    person,
    read_pinned_keys,
    retired_from,
    with_extras,
    write_pinned_keys,
)
from safegene.ledger.record import EVERY, PUBLISHING, Record, RecordDraft
from safegene.ledger.snapshot import revoked_by
from safegene.ledger.trust import approval_of, key_digest, trusted_until, why_unapproved
from safegene.workspace.digest import strict_json
from safegene.workspace.parsing import Strict, parse

KeyAction = Literal["pin", "rotate", "require", "revoke"]


class KeyChange(Strict):
    """Field ``change`` of a record that changes the pinned keys.

    Attributes:
        action: what is done.
        key: id of the key that is retired or revoked; None where none is.
        entry: the entry of ``ledger.pub`` that is added, or that replaces the one of the same key id; None for none.
        signatures: how many signatures promotions need from the next record on; None for no change.
        since: number of the first record that the revoked key no longer signs for; None for the revocation itself.
        before: the content of ``ledger.pub`` before the change.
    """

    class_: Literal["keys"] = Field("keys", alias="class")
    action: KeyAction
    key: str | None = None
    entry: dict[str, JsonValue] | None = None
    signatures: int | None = None
    since: NonNegativeInt | None = None
    before: dict[str, JsonValue]

    def after(self, sequence: int) -> PinnedKeys:
        """The pinned keys after the change, by the record with that number.

        Raises:
            LedgerError: the change is malformed.
        """
        where = f"field change of record {sequence}"
        pinned = parse_pinned_keys(_plain(self.before), where=where)
        keys = {key.keyid: key for key in pinned.keys}
        if self.entry is not None:
            entry = parse_key(_plain(self.entry), where=where)
            keys.pop(entry.keyid, None)
            keys[entry.keyid] = entry
        if self.key is not None and self.key in keys:
            first = sequence + 1 if self.action == "rotate" else sequence if self.since is None else self.since
            until = retired_from(keys[self.key])
            keys[self.key] = with_extras(keys[self.key], until=first if until is None else min(first, until))
        signatures = pinned.signatures
        if self.signatures is not None:
            signatures = (*(each for each in signatures if each[0] <= sequence), (sequence + 1, self.signatures))
        content = PinnedKeys(tuple(keys.values()), signatures).to_json()
        return parse_pinned_keys(content, where=where)


def pin_key(ledger: Ledger, signer: Signer, path: Path, key: SSlibKey, *, fields: Mapping[str, Any]) -> Record:
    """Pin a key, or change the owner or the role of one that is pinned.

    Args:
        ledger: the ledger.
        signer: whose key is pinned already.
        path: ``ledger.pub``.
        key: the key, with its owner and its roles.
        fields: further fields of the record, such as ``run``.

    Raises:
        LedgerError: ``ledger.pub`` is not what the chain says, or the key was retired or revoked.
    """
    pinned = _agreed(ledger, path)
    old = next((each for each in pinned.keys if each.keyid == key.keyid), None)
    if old is not None and retired_from(old) is not None:
        raise LedgerError(
            f"expected a key that was not retired, got {key.keyid[:12]}..",
            remedy="make a new one: `safegene keys create`",
        )
    if old is not None and key_to_json(old) == key_to_json(key):
        raise LedgerError(f"expected a change of what is pinned, got the key {key.keyid[:12]}.. as it is, in {path}")
    whose = f" of {owner_of(key)}" if owner_of(key) else ""
    what = "may approve" if may_approve(key) else "signs"
    change = KeyChange(action="pin", entry=key_to_json(key), before=pinned.to_json())
    return _record(ledger, signer, path, change, f"key {key.keyid[:12]}..{whose} is pinned and {what}", fields)


def rotate_key(ledger: Ledger, signer: Signer, path: Path, new: SSlibKey, *, fields: Mapping[str, Any]) -> Record:
    """Pin a new key in the place of the signer's, with its owner and roles; the old one signs nothing after this.

    Raises:
        LedgerError: as `pin_key`, or the new key is pinned already.
    """
    pinned = _agreed(ledger, path)
    old = _named(pinned, signer.public_key.keyid)
    if any(each.keyid == new.keyid for each in pinned.keys):
        raise LedgerError(f"expected a new key, got {new.keyid[:12]}.., which is pinned, in {path}")
    entry = with_extras(new, **{name: value for name, value in old.unrecognized_fields.items() if name != "until"})
    change = KeyChange(action="rotate", key=old.keyid, entry=key_to_json(entry), before=pinned.to_json())
    reason = f"key {new.keyid[:12]}.. takes the place of {old.keyid[:12]}.."
    return _record(ledger, signer, path, change, reason, fields)


def require_signatures(ledger: Ledger, signer: Signer, path: Path, count: int, *, fields: Mapping[str, Any]) -> Record:
    """Pin how many signatures of different persons a promotion needs from the next record on.

    Raises:
        LedgerError: as `pin_key`, or fewer persons than that are pinned.
    """
    pinned = _agreed(ledger, path)
    active = [key for key in pinned.keys if retired_from(key) is None]
    persons, approvers = {person(key) for key in active} - {""}, {person(key) for key in active if may_approve(key)}
    if count > 1 and (len(persons) < count or len(approvers) < count - 1):
        raise LedgerError(
            f"expected the keys of at least {count} persons, {count - 1} of them approvers, got those of "
            f"{len(persons)}, {len(approvers)} of them approvers, in {path}",
            remedy="`safegene keys pin FILE --owner NAME --approver`",
        )
    change = KeyChange(action="require", signatures=count, before=pinned.to_json())
    reason = f"a promotion needs {count} {'signature' if count == 1 else 'signatures of different persons'}"
    return _record(ledger, signer, path, change, reason, fields)


def revoke_key(
    ledger: Ledger,
    signer: Signer,
    path: Path,
    keyid: str,
    reason: str,
    *,
    since: str | None = None,
    fields: Mapping[str, Any],
) -> Record:
    """Revoke a key: records that it signed from a number on are no longer trusted.

    Args:
        ledger: the ledger.
        signer: with another key.
        path: ``ledger.pub``.
        keyid: id of the key, or its first 8 characters or more.
        reason: one sentence.
        since: number or digest of the first record that is not trusted; default: the revocation itself.
        fields: further fields of the record, such as ``run``.

    Raises:
        LedgerError: as `pin_key`; or there is no such key or record; or the signer is the key.
    """
    pinned = _agreed(ledger, path)
    key = _named(pinned, keyid)
    if signer.public_key.keyid == key.keyid:
        raise LedgerError(
            f"expected another key to sign the revocation of {key.keyid[:12]}.., got this key",
            remedy="pin another key first (`safegene keys pin`), or use one on another machine",
        )
    first = find_record(since, tuple(ledger.walk())) if since else None
    if since and first is None:
        raise LedgerError(f"expected the number or the digest of a record, got {since!r}")
    number = first.sequence if first else None
    change = KeyChange(action="revoke", key=key.keyid, since=number, before=pinned.to_json())
    return _record(ledger, signer, path, change, reason, fields)


def touched_by(ledger: Ledger, keyid: str, since: int) -> list[Record]:
    """The records that a revoked key signed from a number on, newest first."""
    return [record for record in ledger.walk() if keyid in record.signers and record.sequence >= since]


def change_of(record: Record) -> KeyChange | None:
    """The change of the pinned keys that a record makes; None for another record.

    Raises:
        LedgerError: it is malformed.
    """
    content = record.predicate.change
    if record.outcome not in ("keys", "revocation") or not isinstance(content, dict) or content.get("class") != "keys":
        return None
    try:
        return parse(KeyChange, content, where=f"field change of record {record.sequence}")
    except FormatError as error:
        raise LedgerError(error.message) from None


def verify_keys(ledger: Ledger, chain: Iterable[Record]) -> tuple[list[str], list[str]]:
    """Check the changes of keys on a chain, and the signatures that its promotions need.

    Args:
        ledger: with the pinned keys of ``ledger.pub``.
        chain: all records, from the newest to the first.

    Returns:
        Problems, and notes on records whose key was revoked after they were written; a sentence each.
    """
    records = list(chain)
    problems = _verify_changes(ledger, list(reversed(records)))
    limits = trusted_until(ledger.keys, [revoked_by(record) for record in records if record.outcome == "revocation"])
    notes, waiting = list[str](), set[tuple[str, str]]()
    for record in records:
        if record.outcome == "pending" and (record.target, record.channel) not in waiting:
            notes.append(f"record {record.sequence} waits for approval: {record.target} on {record.channel}")
        waiting.add((record.target, record.channel))
        late = [keyid for keyid in record.signers if record.sequence >= limits.get(keyid, record.sequence + 1)]
        if late and len(late) == len(record.signers):
            keyid = late[0]
            notes.append(
                f"record {record.sequence} ({record.outcome} for {record.target}) is signed by the key {keyid[:12]}.., "
                f"which is not trusted from record {limits[keyid]} on"
            )
        try:
            promotes = record.outcome in PUBLISHING[:2]
            why = why_unapproved(ledger, record, {}) if promotes else ""
            if promotes and not why and not late and (later := why_unapproved(ledger, record, limits)):
                notes.append(f"{later}, since keys were revoked after it was written")
            approval = approval_of(record) if record.outcome == "override" else None
        except LedgerError as error:
            why, approval = error.message, None
        if why:
            problems.append(f"expected a promotion that others approved, got none: {why}")
        elif approval and approval.request.override:
            notes.append(
                f"record {record.sequence} is an override for {record.target} on {record.channel}, approved by "
                f"{', '.join(approval.approvers)}, until {approval.request.override.expires}"
            )
    return problems, notes


def require_recorded_change(ledger: Ledger, committed: bytes, path: Path) -> None:
    """Check that the pinned keys differ from those of Git's HEAD by changes on record only.

    Args:
        ledger: with the pinned keys of ``path``.
        committed: ``ledger.pub`` as HEAD has it.
        path: ``ledger.pub``.

    Raises:
        LedgerError: they differ otherwise: somebody edited the file, or exchanged it.
    """
    where = f"{path.name} at Git's HEAD"
    try:
        before = parse_pinned_keys(strict_json(committed, where=where), where=where)
    except FormatError as error:
        raise LedgerError(f"expected public keys, got {error.message}") from None
    present = PinnedKeys(ledger.keys, ledger.signatures)
    if present.to_json() == before.to_json():
        return
    problems = [_disagreement(before, present, where)]
    with suppress(LedgerError):  # then the chain vouches for nothing
        changes = [record for record in ledger.walk() if change_of(record)]
        for number, record in enumerate(changes):
            change = change_of(record)
            if change and parse_pinned_keys(_plain(change.before), where=where).to_json() == before.to_json():
                problems = _verify_changes(ledger, list(reversed(changes[: number + 1])))
    if problems:
        raise LedgerError(
            f"expected the public keys that Git's HEAD pins, got others that no record vouches for: {problems[0]}, in "
            f"{path}",
            remedy=f"if you meant this change, commit {path.name}; if not, `git checkout HEAD -- {path.name}`",
        )


def _verify_changes(ledger: Ledger, records: Sequence[Record]) -> list[str]:
    problems, known, newest = list[str](), None, 0
    for record in records:
        try:
            change = change_of(record)
            if change is None:
                continue
            before = parse_pinned_keys(_plain(change.before), where=f"field change of record {record.sequence}")
            after = change.after(record.sequence)
        except LedgerError as error:
            problems.append(error.message)
            continue
        limits = trusted_until(before.keys, ())
        trusted = {key.keyid for key in before.keys if record.sequence < limits.get(key.keyid, record.sequence + 1)}
        if not trusted & set(record.signers):
            problems.append(
                f"expected record {record.sequence}, which changes the pinned keys, to be signed by a key that was "
                f"pinned before it, got {record.predicate.chain.key[:12]}.."
            )
        if known is not None and before.to_json() != known.to_json():
            problems.append(
                f"expected record {record.sequence} to change the keys that record {newest} left, got others before it"
            )
        known, newest = after, record.sequence
    present = PinnedKeys(ledger.keys, ledger.signatures)
    if known is not None and known.to_json() != present.to_json():
        problems.append(_disagreement(known, present, f"record {newest}"))
    return problems


def _disagreement(known: PinnedKeys, present: PinnedKeys, source: str) -> str:
    expected = {key.keyid: key_to_json(key) for key in known.keys}
    got = {key.keyid: key_to_json(key) for key in present.keys}
    words = [f"{keyid[:12]}.. too many" for keyid in got if keyid not in expected]
    words += [f"{keyid[:12]}.. missing" for keyid in expected if keyid not in got]
    words += [f"{keyid[:12]}.. changed" for keyid in got if keyid in expected and got[keyid] != expected[keyid]]
    words += ["other numbers of signatures"] if known.signatures != present.signatures else []
    got_words = ", ".join(words) or "another order"
    return f"expected ledger.pub to pin what {source} says, got other content: {got_words}"


def _agreed(ledger: Ledger, path: Path) -> PinnedKeys:
    """The pinned keys, after a check that they are those of the newest change on the chain."""
    pinned = read_pinned_keys(path)
    for record in ledger.walk():
        if change := change_of(record):
            after = change.after(record.sequence)
            if after.to_json() != pinned.to_json():
                raise LedgerError(
                    f"{_disagreement(after, pinned, f'record {record.sequence}')}, in {path}",
                    remedy="get the newest version of the file (`git pull`)",
                )
            break
    return pinned


def _named(pinned: PinnedKeys, keyid: str) -> SSlibKey:
    found = [key for key in pinned.keys if len(keyid) >= 8 and key.keyid.startswith(keyid)]
    if len(found) != 1:
        raise LedgerError(
            f"expected the id of a pinned key (8 characters or more), got {keyid!r}",
            remedy=f"pinned are {', '.join(f'{key.keyid[:12]}..' for key in pinned.keys)}",
        )
    return found[0]


def _record(
    ledger: Ledger, signer: Signer, path: Path, change: KeyChange, reason: str, fields: Mapping[str, Any]
) -> Record:
    change.after(0)  # a malformed change is refused before it is on record
    revoked = change.action == "revoke"
    draft = RecordDraft(
        "revocation" if revoked else "keys",
        EVERY,
        EVERY,
        reason,
        {},
        {**fields, "change": change.model_dump(mode="json", by_alias=True)},
        revokes=key_digest(str(change.key)) if revoked else None,
        since=change.since,
    )
    record = ledger.append(draft, signer)
    try:
        write_pinned_keys(path, change.after(record.sequence))
    except OSError as error:
        raise PromotionRefused(
            f"record {record.sequence} changed the pinned keys, and {path} could not be written: {error.strerror}",
            remedy="make room, and write the file anew from field change of that record",
        ) from None
    return record


def _plain(value: Any) -> Any:
    """The value with lists and dicts of its own, which parsers of keys take apart."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
