"""``safegene status``: every target's candidate, what is live, and their rates, for a terminal or as JSON."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from safegene.report.live import LiveLookup
from safegene.report.state import SHOWN_ARMS, TargetState, read_state
from safegene.report.words import STAGES, date, reason, short
from safegene.text import percent, visible
from safegene.workspace.layout import Workspace

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.table import Table

RATES = {"hrr": "HRR %", "asr": "ASR %", "over_refusal": "over-ref. %", "utility": "utility %"}
ROWS = {"before": "before", "after": "candidate", "aligned": "aligned", "incumbent": "live"}
"""Arm -> its row; the last one only where something was live when the candidate was evaluated."""
COLOURS = {"pass": "green", "fail": "red"}
READING = (
    "shares in percent, of n prompts or behaviours; HRR with its 95% interval; HRR, ASR and over-refusal: lower is "
    "better; before: the fine-tune without the repair; live: what was live at the evaluation"
)


def summary(workspace: Workspace, *, live: LiveLookup | None = None) -> list[dict[str, Any]]:
    """The ``targets`` of ``safegene status --json``: one object of plain JSON values per target.

    Rates are shares in 0..1 with ``<arm>_interval`` and ``<arm>_n`` beside them; ``extra_params`` is a share of all
    parameters and ``live`` a digest. What is not known is None. ``candidate`` and ``release`` tell what was evaluated
    from what is live; ``problems`` says why an artefact that exists is unusable.
    """
    return [to_json(target) for target in read_state(workspace, live=live).targets]


def to_json(target: TargetState) -> dict[str, Any]:
    """One target's entry of `summary`."""
    entry: dict[str, Any] = {"name": target.name}
    for measure in RATES:
        entry[measure] = {}
        for arm in (*SHOWN_ARMS, "incumbent"):
            rate = target.rate(measure, arm)
            interval = None if rate.interval is None else list(rate.interval)
            n = None if rate.rate is None else rate.n
            entry[measure] |= {arm: rate.rate, f"{arm}_interval": interval, f"{arm}_n": n}
    return entry | {
        "extra_params": target.verdict.extra_params if target.verdict else None,
        "outcome": target.outcome,
        "live": target.live.release if target.live else None,
        "problems": _problems(target),
        "reason": reason(target),
        "candidate": {
            "digest": target.artefacts["candidate"].digest,
            "is_live": target.candidate_is_live,
            "refused_because": target.blocked or None,
            "decided": asdict(target.decided) if target.decided else None,
            "verdict_written": target.artefacts["verdict"].written or None,
        },
        "release": asdict(target.live) if target.live else None,
        "last_attempt": asdict(target.attempt) if target.attempt else None,
        "drift": target.drift or None,
    }


def table(targets: Sequence[TargetState]) -> "StatusTable":
    """The targets for people: what was evaluated, what is live, why, and a line of rates for each arm."""
    return StatusTable(targets)


class StatusTable:
    """The targets one below the other; a narrow terminal gets fewer rates, never a name or a digest cut off."""

    def __init__(self, targets: Sequence[TargetState]) -> None:
        self.targets = targets

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "RenderResult":
        """Each target's heading, facts and rates."""
        from rich.text import Text

        if not self.targets:
            yield Text("no targets; add one with `safegene target add NAME SOURCE --task TASK`")
        for target in self.targets:
            yield Text(target.name, style="bold", overflow="fold")
            yield _facts_table(target)
            shown = _fitting(target, console, options)
            yield _rates(target, shown)
            if left := [RATES[name].removesuffix(" %") for name in RATES if name not in shown]:
                yield Text(f"  not shown at this width: {', '.join(left)} (--json)", style="dim")
            yield Text("")
        if self.targets:
            yield Text(READING, style="dim")


def _fitting(target: TargetState, console: "Console", options: "ConsoleOptions") -> list[str]:
    """The rates for which the width suffices, at least one."""
    from rich.measure import Measurement

    shown, unlimited = list(RATES), options.update(width=10_000)
    while len(shown) > 1 and Measurement.get(console, unlimited, _rates(target, shown)).maximum > options.max_width:
        shown.pop()
    return shown


def _facts_table(target: TargetState) -> "Table":
    from rich.table import Table
    from rich.text import Text

    drawn = Table.grid(padding=(0, 1))
    drawn.add_column(min_width=9, no_wrap=True)
    drawn.add_column(overflow="fold")
    for label, text in _facts(target):
        style = COLOURS.get(target.outcome or "", "yellow") if label == "candidate" else ""
        drawn.add_row(f" {label}", Text(visible(text), style=style))
    return drawn


def _facts(target: TargetState) -> Iterator[tuple[str, str]]:
    yield "candidate", _candidate(target)
    yield "live", _live(target)
    if target.verdict and target.outcome != "pass" or target.blocked or target.verdict is None:
        yield "reason", reason(target)
    for problem in _problems(target)[1 if target.problems else 0 :]:  # the first is the reason
        yield "problem", problem
    if target.drift:
        yield "drift", target.drift
    last, live = target.attempt, target.live
    if last and last != target.decided and not (live and live.record == last.record):
        yield "last try", f"{last.outcome}, {date(last.when)}, record {last.record}: {last.reason}"


def _candidate(target: TargetState) -> str:
    digest, decided = target.artefacts["candidate"].digest, target.decided
    if digest is None:
        absent = next((name for name, artefact in target.artefacts.items() if artefact.manifest is None), "candidate")
        return f"none; the next stage is {STAGES[absent]}"
    words = [f"{short(digest)}: {target.outcome or 'not run'}"]
    if target.candidate_is_live:
        words.append("live")
    elif target.outcome == "pass":
        words.append("would be refused" if target.blocked else "not promoted yet")
    if decided:
        words.append(f"decided {date(decided.when)}, record {decided.record}")
    elif target.verdict:
        words.append(f"not on record, verdict of {date(target.artefacts['verdict'].written)}")
    if target.verdict and target.verdict.extra_params is not None:
        added = percent(target.verdict.extra_params, 2)
        words.append(f"adds {added} of parameters" if target.verdict.extra_params else "not repaired, adds nothing")
    return ", ".join(words)


def _live(target: TargetState) -> str:
    live = target.live
    if target.live_problem:
        return "unknown"
    if live is None:
        return "nothing"
    which = "the candidate" if live.candidate == target.artefacts["candidate"].digest else "another candidate"
    since = f" since {date(live.since)}" if live.since else ""
    since += f" by record {live.record}" if live.record is not None else ""
    how = f", {live.outcome}" if live.outcome not in ("", "pass") else ""
    return f"{short(live.release)}{since}{how}, {'revoked, not served' if live.revoked else which}"


def _rates(target: TargetState, shown: Sequence[str]) -> "Table":
    from rich import box
    from rich.table import Table

    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    for name in ("", *(RATES[name] for name in shown)):
        drawn.add_column(f" {name}", justify="right" if name else "left", overflow="fold")
    for arm, row in ROWS.items():
        rates = {name: target.rate(name, arm) for name in shown}
        if arm in SHOWN_ARMS or any(rate.n for rate in rates.values()):
            cells = [_cell(rate.rate, rate.n, rate.interval if name == "hrr" else None) for name, rate in rates.items()]
            drawn.add_row(f" {row}", *cells)
    return drawn


def _cell(rate: float | None, n: int, interval: tuple[float, float] | None) -> str:
    if rate is None:
        return "-"
    spread = f" ({100 * interval[0]:.1f}-{100 * interval[1]:.1f})" if interval else ""
    return f"{100 * rate:.1f}{spread} of {n}"


def _problems(target: TargetState) -> list[str]:
    return [*target.problems, *([target.live_problem] if target.live_problem else [])]
