"""What a signed record needs before anybody relies on it: trusted keys, approvals by other persons, and no expiry.

Rules:

1. A record is trusted while one of its signers is: a key that ``ledger.pub`` pins, and that neither ``ledger.pub``
   (``until``) nor a revocation on the chain takes back for the record's number. Only ``ledger.pub`` makes a key trusted
   again, so that whoever stole a key can take trust away, and can restore none.
2. A promotion that needs one signature is one record. A promotion that needs k is two: the author's, of outcome
   ``pending``, and one of outcome ``pass`` or ``override`` that says the same and holds k - 1 signatures (a DSSE
   envelope) of an `approval_statement`, which names the digest of the first. The k persons are different ones, the
   author among them; keys without an owner count for nobody.
3. An ``override`` needs at least two signatures, and is relied on up to its date of expiry, by this machine's clock or
   the newest record's, whichever is later. No other rule depends on a clock.
4. A rollback rests on the promotion that it restores: the same release, target and channel.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Literal, TypeVar

from pydantic import Field, JsonValue
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import SSlibKey

from safegene.errors import FormatError, LedgerError, ParamsError
from safegene.ledger.chain import Ledger
from safegene.ledger.memory import RevokedDigest
from safegene.ledger.pins import MAX_SIGNATURES, may_approve, person, retired_from, signatures_needed
from safegene.ledger.record import PAYLOAD, PUBLISHING, STATEMENT, Record, verified_keys
from safegene.workspace.digest import PREFIX, canonical_json
from safegene.workspace.fields import Digest
from safegene.workspace.parsing import Strict, parse

APPROVAL = "https://safegene.dev/approval/v1"
MAX_OVERRIDE_DAYS = 90
"""An override expires after so many days at the latest."""
OVERRIDABLE = ("fail", "inconclusive")
"""Verdicts that an override can pass over. Nothing passes over broken evidence, a revocation or a rollback."""
ModelT = TypeVar("ModelT")
Signatures = Annotated[int, Field(ge=1, le=MAX_SIGNATURES)]


class Override(Strict):
    """Why a release goes live although its verdict is no pass.

    Attributes:
        reason: one sentence.
        expires: the last day (UTC) on which it is relied on, as YYYY-MM-DD.
        verdict: the verdict that it passes over.
    """

    reason: str
    expires: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\d$")]
    verdict: Literal["fail", "inconclusive"]


class ApprovalRequest(Strict):
    """Field ``approval`` of a ``pending`` record: what approvers are asked for.

    Attributes:
        required: how many signatures of different persons the promotion needs, the author's among them.
        release: digest of the release that would go live.
        measured_against: digest of the release that was live when the verdict was measured; None for none.
        override: set where the verdict is no pass.
    """

    required: Signatures
    release: Digest
    measured_against: Digest | None
    override: Override | None = None


class Approval(Strict):
    """Field ``approval`` of a promotion that others approved.

    Attributes:
        pending: digest of the ``pending`` record.
        request: what that record asks for.
        author: owner of the key that signed that record.
        approvers: owners of the keys that signed the envelope.
        envelope: the DSSE envelope of the `approval_statement`.
    """

    pending: Digest
    request: ApprovalRequest
    author: str
    approvers: tuple[str, ...]
    envelope: dict[str, JsonValue]


def request_of(pending: Record) -> ApprovalRequest:
    """What a ``pending`` record asks approvers for.

    Raises:
        LedgerError: the record asks for nothing.
    """
    return _parse_approval(ApprovalRequest, pending)


def approval_of(record: Record) -> Approval | None:
    """The approval that a promotion holds; None where it says ``not_recorded``.

    Raises:
        LedgerError: it is malformed.
    """
    content = record.predicate.approval
    if isinstance(content, dict) and "not_recorded" in content:
        return None
    return _parse_approval(Approval, record)


def approval_statement(pending: Record) -> bytes:
    """What approvers sign: an in-toto statement about the digest of a ``pending`` record, in canonical JSON."""
    request = request_of(pending)
    return canonical_json(
        {
            "_type": STATEMENT,
            "subject": [{"name": pending.target, "digest": {"sha256": pending.digest.removeprefix(PREFIX)}}],
            "predicateType": APPROVAL,
            "predicate": {
                "target": pending.target,
                "channel": pending.channel,
                "outcome": "override" if request.override else "pass",
                **request.model_dump(),
            },
        }
    )


def key_digest(keyid: str) -> str:
    """A key as the digest that its revocation names."""
    return PREFIX + keyid


def trusted_until(keys: Sequence[SSlibKey], revoked: Iterable[RevokedDigest]) -> dict[str, int]:
    """Key id -> number of the first record that the key is not trusted for, of keys that were retired or revoked.

    Args:
        keys: the pinned keys.
        revoked: the revocations, from `safegene.ledger.live.revocations`.
    """
    limits = {key.keyid: until for key in keys if (until := retired_from(key)) is not None}
    pinned = dict(limits)
    for entry in revoked:
        keyid = entry.revokes.removeprefix(PREFIX)
        if _signers(entry, pinned):
            since = entry.sequence if entry.since is None else entry.since
            limits[keyid] = min(since, limits.get(keyid, since))
    return {key.keyid: limits[key.keyid] for key in keys if key.keyid in limits}


def why_untrusted(
    ledger: Ledger, record: Record, revoked: Iterable[RevokedDigest], *, today: date | None = None
) -> str:
    """Why a record must not be relied on by the rules above, as one sentence; empty where nothing speaks against it.

    Args:
        ledger: whose pinned keys decide, and that holds the records on which this one rests.
        record: the record.
        revoked: the revocations in the store.
        today: the day on which it would be relied on; default: `ledger_day`.

    Raises:
        LedgerError: a record on which it rests is missing or malformed.
    """
    limits = trusted_until(ledger.keys, revoked)
    step = record
    while True:
        if not _signers(step, limits):
            keyid = step.predicate.chain.key
            return (
                f"record {step.sequence} is signed by the key {keyid[:12]}.., which is not trusted from record "
                f"{limits.get(keyid, 0)} on"
            )
        if step.outcome not in PUBLISHING:
            return ""
        if step.outcome != "rollback":
            unapproved = why_unapproved(ledger, step, limits)
            if step.outcome == "override":
                today = today or ledger_day(ledger)
            return unapproved or why_expired(step, today)
        restored = ledger.read(str(step.restores))
        if restored.sequence >= step.sequence or _published(restored) != _published(step):
            return f"record {step.sequence} rolls back to what record {restored.sequence} did not put live"
        step = restored


def signed_in_time(record: RevokedDigest, keys: Sequence[SSlibKey]) -> bool:
    """Whether one of the signers was not retired by ``ledger.pub``; only that takes a revocation back."""
    return bool(_signers(record, trusted_until(keys, ())))


def ledger_day(ledger: Ledger) -> date:
    """Today in UTC, or the day of the newest record where that is later: a clock set back revives no override."""
    tip = ledger.tip()
    return max(datetime.now(UTC).date(), (written_on(ledger.read(tip.content.record)) if tip else None) or date.min)


def written_on(record: Record) -> date | None:
    """The day (UTC) on which the machine that wrote a record says that it did; None where the record does not say."""
    end = record.predicate.run.get("end") if isinstance(record.predicate.run, Mapping) else None
    try:
        return date.fromisoformat(str(end)[:10])
    except ValueError:
        return None


def why_expired(record: Record, today: date | None = None) -> str:
    """Why an override is no longer relied on; empty for other records and before its expiry."""
    approval = approval_of(record) if record.outcome == "override" else None
    override = approval.request.override if approval else None
    if override and (today or datetime.now(UTC).date()) > date.fromisoformat(override.expires):
        return f"record {record.sequence} is an override that expired on {override.expires}"
    return ""


def parse_override(reason: str, expires: str, verdict: str) -> Override:
    """An override as a person gives it.

    Raises:
        ParamsError: the reason is empty or unprintable; the date is none, past, or too far off; or the verdict is none
            that can be passed over.
    """
    if not reason.strip() or not reason.isprintable():
        raise ParamsError(f"expected the override's reason in printable words, got {reason.encode(errors='replace')!r}")
    if verdict not in OVERRIDABLE:
        raise ParamsError(f"expected a verdict to override, {' or '.join(OVERRIDABLE)}, got {verdict}")
    today = datetime.now(UTC).date()
    last = today + timedelta(days=MAX_OVERRIDE_DAYS)
    try:
        day = date.fromisoformat(expires)
    except ValueError:
        day = date.min
    if not today <= day <= last or expires != day.isoformat():
        raise ParamsError(
            f"expected the override's expiry as YYYY-MM-DD, from {today} to {last} ({MAX_OVERRIDE_DAYS} days), "
            f"got {expires!r}"
        )
    return Override(reason=reason, expires=expires, verdict="fail" if verdict == "fail" else "inconclusive")


def approving_keys(
    ledger: Ledger, pending: Record, envelope: Envelope, limits: Mapping[str, int], *, sequence: int
) -> list[SSlibKey]:
    """The keys that approve a ``pending`` record by an envelope: one for each person who is not its author.

    Args:
        ledger: whose pinned keys decide.
        pending: the record.
        envelope: what they signed.
        limits: from `trusted_until`.
        sequence: number of the record that the approval is for.
    """
    authors = {person(key) for key in ledger.keys if key.keyid in _signers(pending, limits)}
    try:
        signed = verified_keys(envelope, ledger.keys)
    except VerificationError:
        return []
    found = dict[str, SSlibKey]()
    for key in ledger.keys:
        trusted = key.keyid in signed and may_approve(key) and sequence < limits.get(key.keyid, sequence + 1)
        if trusted and person(key) not in authors:
            found.setdefault(person(key), key)
    return list(found.values()) if authors and "" not in authors else []


def why_unapproved(ledger: Ledger, record: Record, limits: Mapping[str, int]) -> str:
    """Why a promotion lacks the signatures that it needs, as one sentence; empty where it has them.

    Args:
        ledger: whose pinned keys decide, and that holds the ``pending`` record.
        record: of outcome ``pass`` or ``override``.
        limits: from `trusted_until`.

    Raises:
        LedgerError: the ``pending`` record is missing or malformed.
    """
    needed = max(signatures_needed(ledger.signatures, record.sequence), 2 if record.outcome == "override" else 1)
    approval = approval_of(record)
    if approval is None:
        one = f"record {record.sequence} has one signature, where {needed} of different persons are needed"
        return one if needed > 1 else ""
    pending = ledger.read(approval.pending)
    needed = max(needed, approval.request.required)
    if not _says_the_same(record, pending, approval):
        return f"record {record.sequence} says something else than record {pending.sequence}, which was approved"
    envelope = _envelope(approval, record)
    if envelope.payload != approval_statement(pending) or envelope.payload_type != PAYLOAD:
        return f"record {record.sequence} holds the approval of something else"
    keys = approving_keys(ledger, pending, envelope, limits, sequence=record.sequence)
    try:
        envelope.verify(keys, needed - 1)
    except (ValueError, VerificationError):
        return (
            f"record {record.sequence} has {len(keys) + 1} trusted signatures of different persons, where {needed} are "
            "needed"
        )
    return ""


def _says_the_same(record: Record, pending: Record, approval: Approval) -> bool:
    request = request_of(pending)
    own, asked = (
        {name: value for name, value in each.predicate.fields().items() if name not in ("approval", "chain", "channel")}
        for each in (record, pending)
    )
    return (
        pending.outcome == "pending"
        and pending.sequence < record.sequence
        and (record.target, record.channel) == (pending.target, pending.channel)
        and record.outcome == ("override" if request.override else "pass")
        and record.release == request.release
        and dict(record.artefacts) == dict(pending.artefacts)
        and approval.request == request
        and own == asked
    )


def _signers(record: Record | RevokedDigest, limits: Mapping[str, int]) -> list[str]:
    """The signers of a record that are trusted for it."""
    return [keyid for keyid in record.signers if record.sequence < limits.get(keyid, record.sequence + 1)]


def _published(record: Record) -> tuple[str, str, str | None]:
    return record.target, record.channel, record.release


def _envelope(approval: Approval, record: Record) -> Envelope:
    try:
        return Envelope.from_dict(approval.model_dump()["envelope"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise LedgerError(
            f"expected a DSSE envelope as the approval of record {record.sequence}, got {error}"
        ) from None


def _parse_approval(model: type[ModelT], record: Record) -> ModelT:
    try:
        return parse(model, record.predicate.approval, where=f"field approval of record {record.sequence}")
    except FormatError as error:
        raise LedgerError(error.message) from None
