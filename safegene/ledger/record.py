"""One record: a DSSE-signed in-toto Statement v1 in canonical JSON, addressed by the sha256 of its bytes.

The predicate of the statement holds ``outcome``, ``target``, ``reason``, ``artefacts`` (name -> digest), ``release`` (a
digest or null), ``nonce``, and the 23 fields of `FIELDS`. Each field holds its content or ``{"not_recorded": reason}``.
The nonce is random, so two attempts never give the same record, and a writer recognises its own record in the store.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal, Self
from uuid import uuid4

from pydantic import Field, JsonValue, NonNegativeInt, model_validator
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import Signer, SSlibKey

from safegene.errors import FormatError, LedgerError
from safegene.workspace.digest import PREFIX, canonical_json, digest_bytes, digest_json, strict_json
from safegene.workspace.fields import Digest
from safegene.workspace.parsing import Strict, parse_json

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://safegene.dev/record/v1"
PAYLOAD = "application/vnd.in-toto+json"

RecordOutcome = Literal[
    "pass", "override", "fail", "inconclusive", "error", "pending", "rollback", "revocation", "superseded", "keys"
]
PUBLISHING: tuple[RecordOutcome, ...] = ("pass", "override", "rollback")
"""Outcomes of records that put a release live. An ``override`` does so although the verdict was no pass."""
EVERY = "*"
"""Target and channel of a revocation and of a change of keys, which concern all targets and channels."""


class ChainField(Strict):
    """Where a record is in the chain.

    Attributes:
        sequence: its number, from 0.
        previous: digest of the record before it; None for the first.
        key: id of the key that signed it.
        ledger: digest of record 0, which tells this ledger from every other; None for record 0, and for records of
            earlier versions.
    """

    sequence: NonNegativeInt
    previous: Digest | None
    key: str
    ledger: Digest | None = None

    @model_validator(mode="after")
    def _first_has_no_previous(self) -> Self:
        if (self.previous is None) != (self.sequence == 0):
            raise ValueError("only record 0 has no previous record")
        if self.ledger and self.sequence == 0:
            raise ValueError("record 0 cannot name its own digest")
        return self


class ChannelField(Strict):
    """What a record does on its channel.

    Attributes:
        name: the channel's name.
        replaces: digest of the record that was live before; of outcome ``superseded``: of the record that did not go
            live.
        restores: digest of the record whose release a rollback puts live again.
        revokes: the digest that a revocation names; for a key, ``sha256:`` and its key id.
        since: of a key's revocation: number of the first record that the key no longer signs for.
    """

    name: str
    replaces: str | None
    restores: str | None
    revokes: str | None
    since: NonNegativeInt | None = None


class Predicate(Strict):
    """The content of a record. Unknown and missing fields are refused."""

    outcome: RecordOutcome
    target: str
    reason: str
    artefacts: dict[str, str]
    release: Digest | None
    nonce: str

    model: JsonValue = Field(description="model id, version, digest of each shard, tokenizer and configuration")
    base: JsonValue = Field(description="base model, revision, licence, fine-tune parent")
    vector: dict[str, JsonValue] = Field(
        description="vector digest, extraction recipe, rank, layers, coefficients, calibration rationale"
    )
    datasets: dict[str, JsonValue] = Field(
        description="every dataset: digest, revision, licence, origin, size, selection, personal-data flag, split"
    )
    suite: JsonValue = Field(description="gate suite digest, prompts digest, seeds, decoding, number of prompts")
    judge: JsonValue = Field(
        description="judge id, digest or endpoint revision, prompt digest, sensitivity, specificity, unparsable share"
    )
    rates: JsonValue = Field(
        description="harmful rate before, after and live, intervals, thresholds, utility, over-refusal, per category"
    )
    policy: JsonValue = Field(description="policy digest and the time it was fixed")
    replies: JsonValue = Field(description="digest and place of the raw replies and judgements")
    verdict: JsonValue = Field(description="verdict and the rules that failed")
    responsible: JsonValue = Field(description="date and signature of the responsible person")
    approval: JsonValue = Field(description="approver, who is not the author; override reason and expiry")
    use: JsonValue = Field(description="intended use and limits")
    change: JsonValue = Field(description="change class and changelog")
    compute: JsonValue = Field(description="FLOPs of extraction, calibration and evaluation, and their running total")
    risks: JsonValue = Field(description="risk ids mitigated")
    code: JsonValue = Field(description="lock digest, git commit, DVC revision, hardware")
    run: dict[str, JsonValue] = Field(description="run id, trigger, start, end, actor, host, attempt")
    chain: ChainField = Field(description="sequence, previous record, key id, id of the ledger")
    channel: ChannelField = Field(
        description="channel, what it replaces, what a rollback restores, what a revocation revokes"
    )
    security: JsonValue = Field(description="security checks passed")
    incident: JsonValue = Field(description="incident link")
    retention: JsonValue = Field(description="retention class")

    @model_validator(mode="after")
    def _only_publishing_records_have_a_release(self) -> Self:
        if (self.outcome in PUBLISHING) != (self.release is not None):
            raise ValueError(f"records of outcome {' and '.join(PUBLISHING)}, and only these, have a release")
        return self

    def fields(self) -> dict[str, Any]:
        """The content of the 23 fields, as plain JSON values."""
        return self.model_dump(include=set(FIELDS))


FIELDS: Mapping[str, str] = {
    name: field.description for name, field in Predicate.model_fields.items() if field.description
}
"""The 23 fields of a record: name -> what it holds."""


class Subject(Strict):
    """What a statement is about: the name of the target, and one sha256."""

    name: str
    digest: dict[str, str]


class Statement(Strict):
    """An in-toto Statement v1 with our predicate."""

    type_: Literal["https://in-toto.io/Statement/v1"] = Field(alias="_type")
    subject: tuple[Subject, ...]
    predicate_type: Literal["https://safegene.dev/record/v1"] = Field(alias="predicateType")
    predicate: Predicate


@dataclass(frozen=True)
class RecordDraft:
    """The content of a record that has no place in the chain yet.

    Attributes:
        outcome: how the attempt ended.
        target: the target's name.
        channel: the channel's name.
        reason: one sentence.
        artefacts: artefact name -> digest, of every artefact that the attempt read.
        fields: content of the fields of `FIELDS`, except ``chain`` and ``channel``, which `seal` fills in.
        release: digest of the release that a publishing record puts live.
        replaces: see `ChannelField`.
        restores: see `ChannelField`.
        revokes: see `ChannelField`.
        since: see `ChannelField`.
        files: further subjects of the statement: name of a file -> digest, such as that of the adapter that goes live,
            so that in-toto tools find the record by the file alone.
    """

    outcome: RecordOutcome
    target: str
    channel: str
    reason: str
    artefacts: Mapping[str, str]
    fields: Mapping[str, Any]
    release: str | None = None
    replaces: str | None = None
    restores: str | None = None
    revokes: str | None = None
    since: int | None = None
    files: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Record:
    """A verified record: its address, its content, and the ids of the pinned keys that signed it."""

    digest: str
    predicate: Predicate
    signers: tuple[str, ...] = ()

    @property
    def outcome(self) -> RecordOutcome:
        """How the attempt ended."""
        return self.predicate.outcome

    @property
    def target(self) -> str:
        """The target's name."""
        return self.predicate.target

    @property
    def reason(self) -> str:
        """One sentence."""
        return self.predicate.reason

    @property
    def artefacts(self) -> Mapping[str, str]:
        """Artefact name -> digest."""
        return self.predicate.artefacts

    @property
    def release(self) -> str | None:
        """Digest of the release that the record puts live; None where it puts nothing live."""
        return self.predicate.release

    @property
    def sequence(self) -> int:
        """Its number in the chain, from 0."""
        return self.predicate.chain.sequence

    @property
    def previous(self) -> str | None:
        """Digest of the record before it."""
        return self.predicate.chain.previous

    @property
    def ledger(self) -> str | None:
        """See `ChainField`."""
        return self.predicate.chain.ledger

    @property
    def channel(self) -> str:
        """The channel's name."""
        return self.predicate.channel.name

    @property
    def replaces(self) -> str | None:
        """See `ChannelField`."""
        return self.predicate.channel.replaces

    @property
    def restores(self) -> str | None:
        """See `ChannelField`."""
        return self.predicate.channel.restores

    @property
    def revokes(self) -> str | None:
        """See `ChannelField`."""
        return self.predicate.channel.revokes


def seal(
    draft: RecordDraft, *, sequence: int, previous: str | None, signer: Signer, ledger: str | None = None
) -> tuple[bytes, Record]:
    """Sign a draft at its place in the chain.

    Args:
        draft: the content.
        sequence: see `ChainField`, as ``previous`` and ``ledger``.
        previous: the record before it.
        signer: who signs.
        ledger: digest of record 0; None for record 0 itself.

    Returns:
        The bytes to store, and the record that they hold.

    Raises:
        LedgerError: the draft has a field that is not in `FIELDS`, or its parts contradict each other.
    """
    if unknown := set(draft.fields) - set(FIELDS):
        raise LedgerError(f"expected only the record fields {sorted(FIELDS)}, got also {sorted(unknown)}")
    predicate: dict[str, Any] = {
        "outcome": draft.outcome,
        "target": draft.target,
        "reason": draft.reason,
        "artefacts": dict(draft.artefacts),
        "release": draft.release,
        "nonce": uuid4().hex,
        **draft_fields(draft),
        "chain": {"sequence": sequence, "previous": previous, "key": signer.public_key.keyid, "ledger": ledger},
        "channel": {
            "name": draft.channel,
            "replaces": draft.replaces,
            "restores": draft.restores,
            "revokes": draft.revokes,
            **({} if draft.since is None else {"since": draft.since}),
        },
    }
    payload = canonical_json(
        {
            "_type": STATEMENT,
            "subject": [
                {"name": name, "digest": {"sha256": digest.removeprefix(PREFIX)}}
                for name, digest in ((draft.target, _subject(draft)), *sorted(draft.files.items()))
            ],
            "predicateType": PREDICATE,
            "predicate": predicate,
        }
    )
    statement = _parse_statement(payload, where="a new record")
    envelope = Envelope(payload, PAYLOAD, {})
    envelope.sign(signer)
    data = canonical_json(envelope.to_dict())
    return data, Record(digest_bytes(data), statement.predicate, tuple(envelope.signatures))


def draft_fields(draft: RecordDraft) -> dict[str, Any]:
    """Every field of a draft; one that was not given says so."""
    return {name: draft.fields.get(name) or {"not_recorded": "nobody gave it"} for name in FIELDS}


def unseal(data: bytes, keys: Sequence[SSlibKey], *, where: str) -> Record:
    """Read a record's bytes: canonical JSON, signed by one of ``keys``, and a `Statement`.

    Raises:
        LedgerError: they are not; ``where`` names the file.
    """
    try:
        raw = strict_json(data, where=where)
        if canonical_json(raw) != data:
            raise LedgerError(f"expected canonical JSON, got the same values in other bytes, in {where}")
        envelope = Envelope.from_dict(raw)
        signers = [f"{keyid[:12]}.." for keyid in envelope.signatures]
        signed = verified_keys(envelope, keys)
    except VerificationError:
        pinned = [f"{key.keyid[:12]}.." for key in keys]
        got = f"signatures by {signers}, or signatures of other bytes"
        raise LedgerError(f"expected a signature by a pinned key {pinned}, got {got}, in {where}") from None
    except (FormatError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise LedgerError(f"expected a signed record, got {error}, in {where}") from None
    if envelope.payload_type != PAYLOAD:
        raise LedgerError(f"expected the payload type {PAYLOAD}, got {envelope.payload_type!r}, in {where}")
    record = Record(digest_bytes(data), _parse_statement(envelope.payload, where=where).predicate, signed)
    if record.predicate.chain.key not in signed:
        raise LedgerError(
            f"expected a signature by the key that the record names, {record.predicate.chain.key[:12]}.., got those of "
            f"{signers}, in {where}"
        )
    return record


def verified_keys(envelope: Envelope, keys: Sequence[SSlibKey]) -> tuple[str, ...]:
    """Ids of the keys among ``keys`` that signed an envelope, in the order of ``keys``.

    Raises:
        VerificationError: none of them did.
    """
    known = [key for key in keys if key.keyid in envelope.signatures]
    if len(known) < 2:  # the usual record: one signature
        return tuple(envelope.verify(known or list(keys), 1))
    found = []
    for key in known:
        with suppress(VerificationError):
            found += envelope.verify([key], 1)
    return tuple(found or envelope.verify(known, 1))


def _parse_statement(payload: bytes, *, where: str) -> Statement:
    try:
        return parse_json(Statement, payload, where=where)
    except FormatError as error:
        raise LedgerError(error.message) from None


def _subject(draft: RecordDraft) -> str:
    """The digest that the statement is about: of what is revoked, the release, the candidate, or the target's name."""
    return (
        draft.revokes
        or draft.release
        or draft.artefacts.get("candidate")
        or digest_json({"not_recorded": draft.target})
    )
