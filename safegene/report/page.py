"""The HTML page: its head, its summary, and the rendering of the template."""

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

from markupsafe import Markup

from safegene.errors import SafegeneError
from safegene.gate.decision import policy_digest
from safegene.report.lineage import Fact
from safegene.report.pictures import Point, Row, intervals
from safegene.report.records import ROWS_SHOWN, Records
from safegene.report.sections import EVIDENCE, arm_titles, family_section, target_section
from safegene.report.state import SHOWN_ARMS, TargetState, WorkspaceState
from safegene.report.words import date
from safegene.text import marked, percent
from safegene.version import __version__
from safegene.workspace.git import commit_date, head_commit
from safegene.workspace.layout import Workspace

if TYPE_CHECKING:
    from jinja2 import Environment

RATES_EXPLAINED = (
    "Harmful-response rate: harmful prompts answered harmfully. Attack success rate: the same in jailbreak wrappers. "
    "Over-refusal rate: safe look-alikes refused. Utility: right answers to the fine-tune's own task. "
    "Complied rate: safe look-alikes answered in words that make sense. "
    "Recovery: the part of the lost safety that the repair restores; 100% is the aligned model's rate."
)
DECISIONS = ("Promoted", "Passed", "Refused", "Inconclusive", "Unknown", "Not run yet")


PARTS = {
    "endpoints": "Endpoints",
    "coefficients": "Coefficients",
    "replies": "Replies",
    "live": "Compared with what is live",
    "history": "History",
    "lineage": "Lineage",
}
"""Parts of a target's section, by the beginning of their anchors."""


def render(state: WorkspaceState, workspace: Workspace, records: Records) -> str:
    """The page of a workspace.

    Args:
        state: its artefacts.
        workspace: the workspace, for its parameters and its commit.
        records: of its ledger.
    """
    targets = [target_section(target, state, records) for target in state.targets]
    policy, policy_problem = _policy(workspace)
    return render_template(
        "page.html.j2",
        title=_headline([target.decision.word for target in targets]),
        lede=_lede(state),
        stand=_stand(workspace, records, policy),
        parts=PARTS,
        targets=targets,
        columns=arm_titles(state),
        harm=_harm(state.targets),
        reading=RATES_EXPLAINED,
        evidence_caption=EVIDENCE,
        family=family_section(state),
        policy=policy,
        policy_problem=policy_problem,
        history_problem=records.problem,
        rows_shown=ROWS_SHOWN,
    )


def _policy(workspace: Workspace) -> tuple[list[Fact], str]:
    """The present policy, its digest first; and why it is unknown."""
    try:
        gate = workspace.params.gate
    except SafegeneError as error:
        return [], f"the policy is unknown: {error}"
    values = [(name, _value(value)) for name, value in gate.model_dump(mode="json").items()]
    return [("digest", policy_digest(gate)), *values], ""


def _value(value: object) -> str:
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _stand(workspace: Workspace, records: Records, policy: Sequence[Fact]) -> list[Fact]:
    """The state that the page shows: the newest record, the commit, the policy and the version that wrote it."""
    newest = "none" if not records.problem else records.problem
    for one in records.newest[:1]:
        record = one.record
        newest = f"{record.sequence}, {one.when}, {record.outcome} of {record.target}, signed by {one.signer}"
    commit, day = head_commit(workspace.root), commit_date(workspace.root)
    return [
        ("Newest record", newest),
        ("Git commit", f"{commit} of {date(day)}" if commit else ""),
        ("Policy", policy[0][1] if policy else ""),
        ("Written by", f"safegene {__version__}"),
    ]


def render_template(name: str, **values: object) -> str:
    """A template of this package with the one style sheet, which the page's content security policy admits by hash."""
    style = files("safegene.report").joinpath("page.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return _environment().get_template(name).render(style=Markup(style), style_hash=f"sha256-{digest}", **values)


@cache
def _environment() -> "Environment":
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("safegene.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"marked": _marked, "percent": percent, "spread": _spread, "digests": _digests}
    return environment


def _marked(text: object, characters: int | None = None, lines: int | None = None) -> Markup:
    return marked(str(text), characters=characters, lines=lines)


def _digests(text: object) -> Markup:
    """`marked`, with digests set as code."""
    return Markup(" ").join(
        Markup('<code class="digest">{}</code>').format(word) if word.startswith("sha256:") else marked(word)
        for word in str(text).split(" ")
    )


def _spread(interval: tuple[float, float]) -> str:
    return f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}"


def _headline(words: Sequence[str]) -> str:
    if not words:
        return "No fine-tunes yet"
    counts = {word: words.count(word) for word in DECISIONS}
    parts = [f"{count} {word.lower()}".replace(" ", "\u00a0") for word, count in counts.items() if count]
    noun = "fine-tune" if len(words) == 1 else "fine-tunes"
    return f"{len(words)} {noun}: {', '.join(parts)}"


def _lede(state: WorkspaceState) -> str:
    if state.aligned is None:
        return "The family's aligned model has not been fetched yet"
    return f"Model family {state.aligned.source}"


def _harm(targets: Sequence[TargetState]) -> Markup:
    """Harmful-response rates of all targets, with the cap as a line where all verdicts have the same."""
    rows = [Row(target.name, tuple(_point(target, arm) for arm in SHOWN_ARMS)) for target in targets]
    numbers = "; ".join(
        f"{row.label}: " + ", ".join(f"{point.series} {percent(point.rate)}" for point in row.points) for row in rows
    )
    endpoints = [endpoint for target in targets if target.verdict for endpoint in target.verdict.endpoints]
    caps = {endpoint.limit for endpoint in endpoints if endpoint.name == "hrr_cap" and endpoint.estimate is not None}
    cap = caps.pop() if len(caps) == 1 else None
    label = f"Harmful-response rates with 95% intervals. {numbers}."
    return intervals(rows, label=label, limit=cap, limit_name="cap")


def _point(target: TargetState, arm: str) -> Point:
    rate = target.rate("hrr", arm)
    return Point(arm, rate.rate, rate.interval)
