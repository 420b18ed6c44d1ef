"""``safegene status``: every target's rates, its outcome and what is live, as a table or as JSON."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from safegene.report.live import LiveLookup
from safegene.report.state import SHOWN_ARMS, TargetState, read_state
from safegene.text import visible
from safegene.workspace.layout import Workspace

if TYPE_CHECKING:
    from rich.table import Table

RATES = ("hrr", "asr", "over_refusal", "utility")
COLOURS = {"pass": "green", "fail": "red"}


def summary(workspace: Workspace, *, live: LiveLookup | None = None) -> list[dict[str, Any]]:
    """The ``targets`` of ``safegene status --json``: one object of plain JSON values per target.

    Rates are shares in 0..1 with ``<arm>_interval`` beside them; ``extra_params`` is a share of all parameters and
    ``live`` a digest. What is not known is None. ``problems`` says why an artefact that exists is unusable.
    """
    return [to_json(target) for target in read_state(workspace, live=live).targets]


def to_json(target: TargetState) -> dict[str, Any]:
    """One target's entry of `summary`."""
    entry: dict[str, Any] = {"name": target.name}
    for measure in RATES:
        entry[measure] = {}
        for arm in SHOWN_ARMS:
            rate = target.rate(measure, arm)
            interval = None if rate.interval is None else list(rate.interval)
            entry[measure] |= {arm: rate.rate, f"{arm}_interval": interval}
    return entry | {
        "extra_params": target.verdict.extra_params if target.verdict else None,
        "outcome": target.outcome,
        "live": target.live.release if target.live else None,
        "problems": _problems(target),
    }


def table(targets: Sequence[TargetState]) -> "Table":
    """The targets as a table for people: rates in percent, one line per arm, "-" for what was not measured."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False, caption_justify="left")
    for name in ("target", "", "HRR %", "ASR %", "over-ref. %", "utility %", "extra %", "verdict", "live"):
        drawn.add_column(name, justify="right" if name.endswith("%") else "left", no_wrap=name != "target")
    for target in targets:
        name, *facts = _facts(target)
        for arm in SHOWN_ARMS:
            first, last = arm == SHOWN_ARMS[0], arm == SHOWN_ARMS[-1]
            others = (_percent(target.rate(measure, arm).rate) for measure in RATES[1:])
            shown = facts if first else [""] * len(facts)
            drawn.add_row(name if first else "", arm, _harm(target, arm), *others, *shown, end_section=last)
    notes = [f"{target.name}: {escape(visible(problem))}" for target in targets for problem in _problems(target)]
    drawn.caption = "\n".join(["HRR with 95% intervals; HRR, ASR and over-refusal: lower is better", *notes])
    return drawn


def _problems(target: TargetState) -> list[str]:
    return [*target.problems, *([target.live_problem] if target.live_problem else [])]


def _facts(target: TargetState) -> tuple[str, str, str, str]:
    """Name, extra parameters, outcome and what is live, as the first line of a target shows them."""
    extra = _percent(target.verdict.extra_params if target.verdict else None, 2)
    colour = COLOURS.get(target.outcome or "", "yellow")
    live = target.live.release.removeprefix("sha256:")[:12] if target.live else "nothing"
    return target.name, extra, f"[{colour}]{target.outcome or 'not run'}[/]", live


def _harm(target: TargetState, arm: str) -> str:
    rate = target.rate("hrr", arm)
    spread = f" ({100 * rate.interval[0]:.1f}-{100 * rate.interval[1]:.1f})" if rate.interval else ""
    return _percent(rate.rate) + spread


def _percent(share: float | None, digits: int = 1) -> str:
    return "-" if share is None else f"{100 * share:.{digits}f}"
