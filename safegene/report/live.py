"""What the ledger says of each target: what is live, how the last attempt ended, and what the rules say now."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from safegene.errors import LedgerError, SafegeneError
from safegene.gate import VerdictFile
from safegene.workspace.layout import Workspace, cache_folder

if TYPE_CHECKING:
    from safegene.ledger.chain import Ledger
    from safegene.ledger.live import LiveRecord
    from safegene.ledger.record import Record


@dataclass(frozen=True)
class LiveRelease:
    """What is live for a target.

    Attributes:
        release: the release's digest.
        candidate: digest of the candidate in it; None when its record names none.
        revoked: why the release is revoked; "" when it is not.
        record: number of the record that put it live; None when unknown.
        since: when that was, in ISO 8601; "" when the record does not say.
        outcome: of that record: ``pass``, ``override`` or ``rollback``; "" when unknown.
    """

    release: str
    candidate: str | None
    revoked: str = ""
    record: int | None = None
    since: str = ""
    outcome: str = ""


@dataclass(frozen=True)
class LastAttempt:
    """The newest record of a target on ``promote.channel``.

    Attributes:
        outcome: how the attempt ended.
        reason: one sentence.
        record: the record's number.
        when: when it was, in ISO 8601; "" when the record does not say.
        verdict: digest of the verdict that it was about; None when the record names none.
    """

    outcome: str
    reason: str
    record: int
    when: str
    verdict: str | None


LiveLookup = Callable[[str], LiveRelease | None]
"""A target's name -> what is live for it."""


@dataclass(frozen=True)
class LedgerView:
    """The ledger as a report reads it, each record verified once.

    Attributes:
        live: a target's name -> what is live for it.
        last: a target's name -> its last attempt.
        blocked: a target's name and its verdict -> why its candidate would be refused now; "" when it would not be.
        problem: why nothing is known; "" when it is known.
    """

    live: LiveLookup
    last: Callable[[str], LastAttempt | None] = lambda _: None
    blocked: Callable[[str, VerdictFile], str] = lambda *_: ""
    problem: str = ""


def read_ledger(workspace: Workspace) -> LedgerView:
    """What the ledger says on ``promote.channel``; a ledger that does not verify says nothing but why."""
    from safegene.ledger import live_in, open_ledger, read_state, revocations
    from safegene.ledger.pointers import channel_name

    records: dict[str, LiveRecord] = {}
    attempts: dict[str, LastAttempt] = {}
    try:
        params = workspace.params.promote
        ledger = open_ledger(params, workspace.root, cache=cache_folder() / "records")
        pointers = {
            target: ledger.pointer(channel, target)
            for channel, target in ledger.channels()
            if channel == params.channel
        }
        reading = read_state(ledger)
        revoked = revocations(ledger, reading)
        here = [target for channel, target in (reading.channels if reading else ()) if channel == params.channel]
        for target in sorted({*here, *pointers}):
            now = live_in(ledger, reading, revoked, pointers.get(target), channel=params.channel, target=target)
            if now and now.unsettled:
                raise LedgerError(now.unsettled)
            if now:
                records[target] = now
        for name, digest in (reading.now.last if reading else {}).items():
            if name.startswith(channel_name(params.channel, "")):
                record = ledger.read(digest)
                attempts[record.target] = _attempt(record)
    except (SafegeneError, OSError) as error:
        return LedgerView(lambda _: None, problem=f"what is live is unknown: {error}")

    def live(target: str) -> LiveRelease | None:
        return live_release(records[target]) if target in records else None

    def blocked(target: str, verdict: VerdictFile) -> str:
        return _why_blocked(workspace, ledger, target, verdict, records.get(target))

    return LedgerView(live, attempts.get, blocked)


def live_release(live: "LiveRecord") -> LiveRelease:
    """What a live record says; a pointer that its writer did not move yet is a reason not to serve it."""
    record = live.record
    candidate = record.artefacts.get("candidate")
    return LiveRelease(
        live.release, candidate, live.revoked or live.unsettled, record.sequence, when(record), record.outcome
    )


def _attempt(record: "Record") -> LastAttempt:
    verdict = record.artefacts.get("verdict")
    return LastAttempt(record.outcome, record.reason, record.sequence, when(record), verdict)


def when(record: "Record") -> str:
    """When a record was made, as its run says; "" when it does not."""
    run = record.predicate.run
    return str(run.get("end") or run.get("start") or "")


def _why_blocked(
    workspace: Workspace, ledger: "Ledger", target: str, verdict: VerdictFile, live: "LiveRecord | None"
) -> str:
    """The first rule by which the present candidate would be refused; the evidence itself is not verified here."""
    from safegene.ledger.attempts import present_attempt
    from safegene.ledger.evidence import present_artefacts
    from safegene.ledger.incumbent import read_incumbent
    from safegene.ledger.rules import PromotionClaim, ruling_on

    try:
        claim = PromotionClaim(
            target,
            verdict.outcome,
            verdict.reason,
            present_artefacts(workspace, target),
            {},
            measured_against=read_incumbent(workspace.incumbent(target)).live,
            attempt=present_attempt(workspace, target),
            attempt_number=verdict.attempt.number if verdict.attempt else 1,
        )
        ruling = ruling_on(claim, workspace.params.promote.channel, live, ledger, release="")
    except SafegeneError as error:
        return error.message
    return "" if ruling.outcome == "pass" else ruling.reason
