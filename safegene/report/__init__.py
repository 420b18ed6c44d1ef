"""A run as one HTML page, and as a Markdown table, from its artefacts alone.

The page is self-contained: no script, no request to anywhere (its content security policy forbids both), one style
sheet admitted by its hash. It quotes models, so all text is escaped and what is invisible is named (`safegene.text`).
An artefact that is absent or unusable is said to be; it never shows as zero or as a pass.
"""

from collections.abc import Sequence
from pathlib import Path

from safegene.report.page import render
from safegene.report.status import ARMS, LiveReleases, TargetState, read_state
from safegene.report.words import describe_target, short
from safegene.text import cell, percent
from safegene.workspace.layout import Workspace

__all__ = ["write_markdown", "write_report"]

HEAD = ("target", "verdict", "HRR before", "after", "aligned", "ASR", "over-refusal", "utility", "live")


def write_report(
    workspace: Workspace,
    out: Path | None = None,
    *,
    targets: Sequence[str] | None = None,
    live: LiveReleases | None = None,
) -> Path:
    """Write the page of a run; the same artefacts give the same bytes.

    Args:
        workspace: the pipeline repository.
        out: the file; None for ``reports/index.html``.
        targets: which fine-tunes; None for all.
        live: as in `safegene.report.status.read_state`.

    Raises:
        ParamsError: ``data/targets.yaml`` is unusable.
    """
    page = render(read_state(workspace, targets=targets, live=live))
    path = out or workspace.reports / "index.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.draft")
    draft.write_text(page, encoding="utf-8")
    draft.replace(path)
    return path


def write_markdown(workspace: Workspace, *, live: LiveReleases | None = None) -> str:
    """The verdicts as one Markdown table and a sentence each, for Prefect's artifacts."""
    found = read_state(workspace, live=live).targets
    rows = [HEAD, ("---",) * len(HEAD), *(_row(target) for target in found)]
    table = [f"| {' | '.join(row)} |" for row in rows]
    reasons = [f"- **{cell(target.name)}**: {cell(describe_target(target).sentence)}" for target in found]
    return "\n".join([*table, "", *reasons]) + "\n"


def _row(target: TargetState) -> tuple[str, ...]:
    before_after = [
        " → ".join(_short_rate(target, name, arm) for arm in ("before", "after"))
        for name in ("asr", "over_refusal", "utility")
    ]
    harm = [_short_rate(target, "hrr", arm) for arm in ARMS]
    parts = (
        target.name,
        describe_target(target).word,
        *harm,
        *before_after,
        short(target.live.release) if target.live else "nothing",
    )
    return tuple(cell(part) for part in parts)


def _short_rate(target: TargetState, name: str, arm: str) -> str:
    rate, _ = target.rate(name, arm)
    return "–" if rate is None else percent(rate)
