"""The state of a workspace as HTML pages, and as a Markdown table, from its artefacts and its ledger.

There is an overview and a page for each target (`safegene.report.site`). A page is self-contained: it has no script and
requests nothing (its content security policy forbids both), and its one style sheet is admitted by hash. It quotes
models, so all text is escaped and invisible characters are shown by name (`safegene.text`). The pages say which
artefacts are absent or unusable; these never show as zero or as a pass.
"""

from safegene.report.live import LiveLookup
from safegene.report.site import write_report
from safegene.report.state import SHOWN_ARMS, TargetState, read_state
from safegene.report.words import describe_target, short
from safegene.text import cell, percent
from safegene.workspace.layout import Workspace

__all__ = ["rates_markdown", "write_markdown", "write_report"]

HEAD = ("target", "verdict", "HRR before", "after", "aligned", "ASR", "over-refusal", "utility", "live")


def write_markdown(workspace: Workspace, *, live: LiveLookup | None = None) -> str:
    """The verdicts as one Markdown table and one sentence for each, for Prefect's artifacts."""
    targets = read_state(workspace, live=live).targets
    rows = [HEAD, ("---",) * len(HEAD), *(_row(target) for target in targets)]
    table = [f"| {' | '.join(row)} |" for row in rows]
    reasons = [f"- **{cell(target.name)}**: {cell(describe_target(target).sentence)}" for target in targets]
    return "\n".join([*table, "", *reasons]) + "\n"


def rates_markdown(target: TargetState) -> list[str]:
    """A target's rates as lines of a Markdown table: each with its 95% interval and n; "–" for what is not known."""
    arms = (*SHOWN_ARMS, "incumbent")
    lines = [
        f"| rate | {' | '.join(('live' if arm == 'incumbent' else arm) for arm in arms)} |",
        "|---|---|---|---|---|",
    ]
    for measure in ("hrr", "asr", "over_refusal", "utility"):
        cells = []
        for rate in (target.rate(measure, arm) for arm in arms):
            spread = f" ({percent(rate.interval[0])} to {percent(rate.interval[1])})" if rate.interval else ""
            cells.append("–" if rate.rate is None else f"{percent(rate.rate)}{spread}, n = {rate.n}")
        lines.append(f"| {cell(measure)} | {' | '.join(cells)} |")
    return lines


def _row(target: TargetState) -> tuple[str, ...]:
    before_after = [
        " → ".join(_short_rate(target, name, arm) for arm in ("before", "after"))
        for name in ("asr", "over_refusal", "utility")
    ]
    harm = [_short_rate(target, "hrr", arm) for arm in SHOWN_ARMS]
    parts = (
        target.name,
        describe_target(target).word,
        *harm,
        *before_after,
        short(target.live.release) if target.live else "nothing",
    )
    return tuple(cell(part) for part in parts)


def _short_rate(target: TargetState, name: str, arm: str) -> str:
    rate = target.rate(name, arm).rate
    return "–" if rate is None else percent(rate)
