"""One record: a DSSE-signed in-toto Statement v1 in canonical JSON, addressed by the sha256 of its bytes.

The predicate holds ``outcome``, ``target``, ``reason``, ``artefacts`` (name -> digest), ``release`` (a digest or null),
``nonce``, and the twenty-three fields of `FIELDS`, each either its content or ``{"not_recorded": reason}``. The same
record never exists twice: the nonce tells two equal attempts apart and settles a write whose reply was lost.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args
from uuid import uuid4

from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import CryptoSigner, SSlibKey

from safegene.errors import FormatError, LedgerError
from safegene.workspace.digest import PREFIX, canonical_json, digest_bytes, digest_json, is_digest, strict_json

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://safegene.dev/record/v1"
PAYLOAD = "application/vnd.in-toto+json"

RecordOutcome = Literal["pass", "fail", "inconclusive", "error", "rollback", "revocation", "superseded"]
PUBLISHING: tuple[RecordOutcome, ...] = ("pass", "rollback")

FIELDS: Mapping[str, str] = {
    "model": "model id, version, digest of each shard, tokenizer and configuration",
    "base": "base model, revision, licence, fine-tune parent",
    "vector": "vector digest, extraction recipe, rank, layers, coefficients, calibration rationale",
    "datasets": "every dataset: digest, revision, licence, origin, size, selection, personal-data flag, split",
    "suite": "gate suite digest, prompts digest, seeds, decoding, number of prompts",
    "judge": "judge id, digest or endpoint revision, prompt digest, sensitivity, specificity, unparsable share",
    "rates": "harmful rate before, after and live, intervals, thresholds, utility, over-refusal, per category",
    "policy": "policy digest and the time it was fixed",
    "replies": "digest and place of the raw replies and judgements",
    "verdict": "verdict and the rules that failed",
    "responsible": "date and signature of the responsible person",
    "approval": "approver, who is not the author; override reason and expiry",
    "use": "intended use and limits",
    "change": "change class and changelog",
    "compute": "FLOPs of extraction, calibration and evaluation, and their running total",
    "risks": "risk ids mitigated",
    "code": "lock digest, git commit, DVC revision, hardware",
    "run": "run id, trigger, start, end, actor, host, attempt",
    "chain": "sequence, previous record, key id",
    "channel": "channel, what it replaces, what a rollback restores, what a revocation revokes",
    "security": "security checks passed",
    "incident": "incident link",
    "retention": "retention class",
}
_TOP = {"outcome", "target", "reason", "artefacts", "release", "nonce"}


@dataclass(frozen=True)
class RecordDraft:
    """What an attempt wants on record, before it has its place in the chain.

    Attributes:
        outcome: how the attempt ended.
        target: the target's name.
        channel: the channel's name.
        reason: one sentence.
        artefacts: artefact name -> digest, of everything that the attempt looked at.
        release: digest of the release that a publishing record puts live.
        fields: content of the fields of `FIELDS` (``chain`` and ``channel`` are filled in here).
        replaces: the record that was live before; of outcome ``superseded``, the record that did not go live.
        restores: the record that a rollback brings back.
        revokes: the digest that a revocation names.
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


@dataclass(frozen=True)
class Record:
    """A record that was read and verified: its address, and its predicate."""

    digest: str
    predicate: Mapping[str, Any]

    @property
    def outcome(self) -> RecordOutcome:
        """How the attempt ended."""
        return cast(RecordOutcome, self.predicate["outcome"])

    @property
    def target(self) -> str:
        """The target's name."""
        return str(self.predicate["target"])

    @property
    def reason(self) -> str:
        """One sentence."""
        return str(self.predicate["reason"])

    @property
    def artefacts(self) -> Mapping[str, str]:
        """Artefact name -> digest."""
        return cast(Mapping[str, str], self.predicate["artefacts"])

    @property
    def release(self) -> str | None:
        """Digest of the release that this record puts live, if it does."""
        return cast(str | None, self.predicate["release"])

    @property
    def sequence(self) -> int:
        """Place in the chain, from 0."""
        return int(self.predicate["chain"]["sequence"])

    @property
    def previous(self) -> str | None:
        """The record before it."""
        return cast(str | None, self.predicate["chain"]["previous"])

    @property
    def channel(self) -> str:
        """The channel's name."""
        return str(self.predicate["channel"]["name"])

    @property
    def replaces(self) -> str | None:
        """The record that was live before."""
        return cast(str | None, self.predicate["channel"]["replaces"])

    @property
    def restores(self) -> str | None:
        """The record that a rollback brings back."""
        return cast(str | None, self.predicate["channel"]["restores"])

    @property
    def revokes(self) -> str | None:
        """The digest that a revocation names."""
        return cast(str | None, self.predicate["channel"]["revokes"])


def seal(draft: RecordDraft, *, sequence: int, previous: str | None, signer: CryptoSigner) -> tuple[bytes, Record]:
    """Sign a draft at its place in the chain; the bytes to store, and the record that they are.

    Raises:
        LedgerError: the draft has a field that a record does not know.
    """
    if unknown := set(draft.fields) - set(FIELDS):
        raise LedgerError(f"expected only the record fields {sorted(FIELDS)}, got also {sorted(unknown)}")
    filled = {name: draft.fields.get(name) or {"not_recorded": "nobody gave it"} for name in FIELDS}
    filled["chain"] = {"sequence": sequence, "previous": previous, "key": signer.public_key.keyid}
    filled["channel"] = {
        "name": draft.channel,
        "replaces": draft.replaces,
        "restores": draft.restores,
        "revokes": draft.revokes,
    }
    predicate = {
        "outcome": draft.outcome,
        "target": draft.target,
        "reason": draft.reason,
        "artefacts": dict(draft.artefacts),
        "release": draft.release,
        "nonce": uuid4().hex,
        **filled,
    }
    statement = {
        "_type": STATEMENT,
        "subject": [{"name": draft.target, "digest": {"sha256": _subject(draft).removeprefix(PREFIX)}}],
        "predicateType": PREDICATE,
        "predicate": predicate,
    }
    envelope = Envelope(canonical_json(statement), PAYLOAD, {})
    envelope.sign(signer)
    data = canonical_json(envelope.to_dict())
    return data, Record(digest_bytes(data), predicate)


def _subject(draft: RecordDraft) -> str:
    """What the statement is about: the release, else the candidate, else (nothing could be read) the target's name."""
    return (
        draft.revokes
        or draft.release
        or draft.artefacts.get("candidate")
        or digest_json({"not_recorded": draft.target})
    )


def unseal(data: bytes, keys: Sequence[SSlibKey], *, where: str) -> Record:
    """Read a record's bytes: canonical, signed by one of ``keys``, and of our schema.

    Raises:
        LedgerError: they are not; ``where`` names the file.
    """
    try:
        raw = strict_json(data, where=where)
        if canonical_json(raw) != data:
            raise LedgerError(f"expected canonical JSON, got another spelling of it, in {where}")
        envelope = Envelope.from_dict(raw)
        signers = [f"{keyid[:12]}.." for keyid in envelope.signatures]
        envelope.verify(list(keys), 1)
        if envelope.payload_type != PAYLOAD:
            raise LedgerError(f"expected the payload type {PAYLOAD}, got {envelope.payload_type!r}, in {where}")
        statement = strict_json(envelope.payload, where=where)
    except VerificationError:
        pinned = [f"{key.keyid[:12]}.." for key in keys]
        got = f"{signers}, or bytes that it does not fit"
        raise LedgerError(f"expected a signature by a pinned key {pinned}, got {got}, in {where}") from None
    except (FormatError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise LedgerError(f"expected a signed record, got {error}, in {where}") from None
    _require_schema(statement, where)
    return Record(digest_bytes(data), statement["predicate"])


def _require_schema(statement: Any, where: str) -> None:
    if not isinstance(statement, dict) or statement.get("_type") != STATEMENT:
        raise LedgerError(f"expected an in-toto statement ({STATEMENT}), got another, in {where}")
    if statement.get("predicateType") != PREDICATE:
        raise LedgerError(f"expected the predicate {PREDICATE}, got {statement.get('predicateType')!r}, in {where}")
    predicate = statement.get("predicate")
    if not isinstance(predicate, dict) or set(predicate) != _TOP | set(FIELDS):
        raise LedgerError(f"expected exactly the fields of {PREDICATE}, got others, in {where}")
    chain, channel = predicate["chain"], predicate["channel"]
    sound = (
        predicate["outcome"] in get_args(RecordOutcome)
        and isinstance(predicate["target"], str)
        and isinstance(predicate["artefacts"], dict)
        and isinstance(chain, dict)
        and set(chain) == {"sequence", "previous", "key"}
        and type(chain["sequence"]) is int
        and chain["sequence"] >= 0
        and (chain["previous"] is None) == (chain["sequence"] == 0)
        and (chain["previous"] is None or is_digest(chain["previous"]))
        and isinstance(channel, dict)
        and set(channel) == {"name", "replaces", "restores", "revokes"}
        and (predicate["release"] is None or is_digest(predicate["release"]))
        and ((predicate["outcome"] in PUBLISHING) == (predicate["release"] is not None))
    )
    if not sound:
        raise LedgerError(
            f"expected a record's outcome, chain, channel and release to fit together, got others, in {where}"
        )
