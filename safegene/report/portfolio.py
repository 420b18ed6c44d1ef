"""The content of the overview: a row for each target, what is live where, the vectors and their uses, and the costs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from safegene.gate import Rate
from safegene.report.live import LiveRelease
from safegene.report.records import HistoryRow, Records, history_row, live_record, recorded_rate
from safegene.report.reuse import VectorUse, vector_uses
from safegene.report.sections import cap
from safegene.report.spent import StageSpent, generated_tokens, spent, total
from safegene.report.state import SHOWN_ARMS, TargetState, WorkspaceState
from safegene.report.trends import over_time, rates_line, spark
from safegene.report.words import TargetDecision, describe_target
from safegene.workspace.layout import Workspace

DECISIONS = ("Unknown", "Refused", "Inconclusive", "Passed", "Not run yet", "Promoted")
"""The order of the overview: what somebody must look at stands first."""
MEANING = {
    "Unknown": "an artefact or a release cannot be relied on",
    "Refused": "the present candidate fails the policy",
    "Inconclusive": "the evidence does not decide",
    "Passed": "the candidate passes, and is not live",
    "Not run yet": "there is no verdict",
    "Promoted": "the candidate passes, and is live",
}
NEWEST = 12
"""Records that the overview lists."""


@dataclass(frozen=True)
class LiveCell:
    """What is live for a target: in words, their tone, the release, and its rates by its signed record."""

    words: str
    tone: str
    release: LiveRelease | None
    hrr: Rate
    utility: Rate


@dataclass(frozen=True)
class TargetRow:
    """A target in the overview."""

    name: str
    page: str
    decision: TargetDecision
    hrr: Rate
    before: Rate
    utility: Rate
    line: Markup
    live: LiveCell
    hrr_over_time: Markup
    utility_over_time: Markup
    attempts: int


@dataclass(frozen=True)
class Group:
    """The targets of one decision."""

    word: str
    key: str
    tone: str
    meaning: str
    rows: tuple[TargetRow, ...]


@dataclass(frozen=True)
class Portfolio:
    """The content of the overview, beside the family's section and the policy.

    Attributes:
        groups: the targets by decision; none is empty.
        tiles: (name, value, what it means) of the numbers at the top.
        channels: the channels on which something is live, ``promote.channel`` first.
        places: (target, what is live on each channel), where there are other channels.
        vectors: the vectors and their uses.
        costs: what the stages took, over all targets.
        newest: the newest records, with the target of each.
    """

    groups: tuple[Group, ...]
    tiles: tuple[tuple[str, str, str], ...]
    channels: tuple[str, ...]
    places: tuple[tuple[str, tuple[LiveRelease | None, ...]], ...]
    vectors: tuple[VectorUse, ...]
    costs: tuple[StageSpent, ...]
    newest: tuple[tuple[str, HistoryRow], ...]


def portfolio(workspace: Workspace, state: WorkspaceState, records: Records, channel: str) -> Portfolio:
    """The overview's content; ``channel`` is ``promote.channel``, "" where it is unknown."""
    rows = [_row(target, records, channel) for target in state.targets]
    live = {target.name: target.live for target in state.targets}
    chain = [one.record for one in records.newest]
    vectors = vector_uses(workspace, state, chain, records.revoked, live.get)
    costs = tuple(total(_costs(state, records)))
    others = sorted({name for name, _, _ in records.elsewhere})
    return Portfolio(
        groups=tuple(_groups(rows)),
        tiles=tuple(_tiles(rows, vectors)),
        channels=(channel, *others),
        places=tuple(_places(live, records, others)),
        vectors=vectors,
        costs=costs,
        newest=tuple((one.record.target, history_row(one)) for one in records.newest[:NEWEST]),
    )


def page_of(name: str) -> str:
    """The path of a target's page below the folder of the report."""
    return f"targets/{name}.html"


def _row(target: TargetState, records: Records, channel: str) -> TargetRow:
    measured = over_time(target.name, records, channel)
    arms = {arm: target.rate("hrr", arm) for arm in SHOWN_ARMS}
    return TargetRow(
        name=target.name,
        page=page_of(target.name),
        decision=describe_target(target),
        hrr=arms["after"],
        before=arms["before"],
        utility=target.rate("utility", "after"),
        line=rates_line(arms["before"], arms["after"], cap(target)),
        live=_live_cell(target, records),
        hrr_over_time=spark(measured, "hrr"),
        utility_over_time=spark(measured, "utility"),
        attempts=len(measured),
    )


def _live_cell(target: TargetState, records: Records) -> LiveCell:
    found = live_record(target, records)
    hrr, utility = (
        recorded_rate(found.record, name, "after") if found else Rate(rate=None, interval=None)
        for name in ("hrr", "utility")
    )
    live = target.live
    if target.live_problem:
        return LiveCell("Unknown", "open", None, hrr, utility)
    if live is None:
        return LiveCell("Nothing", "none", None, hrr, utility)
    if live.revoked:
        return LiveCell("Revoked", "fail", live, hrr, utility)
    return LiveCell("The candidate" if target.candidate_is_live else "Another candidate", "pass", live, hrr, utility)


def _groups(rows: Sequence[TargetRow]) -> Iterator[Group]:
    for word in DECISIONS:
        some = tuple(row for row in rows if row.decision.word == word)
        if some:
            yield Group(word, word.lower().replace(" ", "-"), some[0].decision.tone, MEANING[word], some)


def _tiles(rows: Sequence[TargetRow], vectors: Sequence[VectorUse]) -> Iterator[tuple[str, str, str]]:
    """Numbers for a reader who reads nothing else."""
    served = [row for row in rows if row.live.tone == "pass"]
    yield "Live", f"{len(served)} of {len(rows)}", "fine-tunes with a release that may be served"
    rated = [(row.live.hrr.interval[1], row) for row in served if row.live.hrr.interval]
    if unknown := len(served) - len(rated):
        yield "Harm, at most", "unknown", f"{unknown} of {len(served)} that are live have no recorded interval of it"
    elif rated:
        high, row = max(rated, key=lambda pair: pair[0])
        said = f"the highest end of a 95% interval of the harmful-response rate that is live: {row.name}"
        yield "Harm, at most", f"{100 * high:.1f}%", said
    used = next((vector for vector in vectors if vector.present), None)
    if used:
        many = len(used.uses)
        yield "Reuse", f"{many} fine-tune{'s' * (many != 1)}", "repaired with the workspace's one safety vector"
        if used.each_gated is not None:
            yield (
                "One more",
                f"{used.each_gated:.0f} CPU s",
                "to fetch, repair, evaluate and gate a fine-tune, on average",
            )


def _places(
    live: dict[str, LiveRelease | None], records: Records, others: Sequence[str]
) -> Iterator[tuple[str, tuple[LiveRelease | None, ...]]]:
    elsewhere = {(channel, target): release for channel, target, release in records.elsewhere}
    for name in sorted({*live, *(target for _, target in elsewhere)}) if others else ():
        yield name, (live.get(name), *(elsewhere.get((channel, name)) for channel in others))


def _costs(state: WorkspaceState, records: Records) -> Iterator[StageSpent]:
    yield from spent(state.root, state.family)
    for target in state.targets:
        yield from spent(state.root, target.artefacts, generated_tokens(target, records))
