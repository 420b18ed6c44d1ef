"""The HTML pages: the overview, a page for each target, and the rendering of the templates."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

from markupsafe import Markup

from safegene.errors import SafegeneError
from safegene.gate.decision import policy_digest
from safegene.report.lineage import Fact
from safegene.report.portfolio import portfolio
from safegene.report.records import ROWS_SHOWN, Records
from safegene.report.sections import EVIDENCE, family_section, target_section
from safegene.report.state import TargetState, WorkspaceState
from safegene.report.words import date, short
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
    "rates": "Rates",
    "time": "Over time",
    "endpoints": "Endpoints",
    "coefficients": "Coefficients",
    "replies": "Replies",
    "live": "Compared with what is live",
    "history": "History",
    "costs": "Costs",
    "lineage": "Lineage",
}
"""Parts of a target's page, by the beginning of their anchors."""
CONTENTS = {
    "targets": "Fine-tunes",
    "records": "Newest records",
    "where": "What is live where",
    "vectors": "Safety vectors",
    "costs": "Costs",
    "family": "The family",
    "policy": "The policy",
    "stand": "The state shown here",
}
"""Parts of the overview, by their anchors."""


def render_index(state: WorkspaceState, workspace: Workspace, records: Records, data: Mapping[str, str]) -> str:
    """The overview of a workspace.

    Args:
        state: its artefacts.
        workspace: the workspace, for its parameters, costs and commit.
        records: of its ledger.
        data: path of a prompt or task set below ``data`` -> digest.
    """
    shown = portfolio(workspace, state, records, channel_of(workspace))
    policy, policy_problem = _policy(workspace)
    return render_template(
        "index.html.j2",
        title=_headline({group.word: len(group.rows) for group in shown.groups}),
        lede=_lede(state),
        stand=_stand(workspace, records, policy),
        contents={key: name for key, name in CONTENTS.items() if shown.groups or key != "targets"},
        shown=shown,
        family=family_section(state, data),
        policy=policy,
        policy_problem=policy_problem,
        history_problem=records.problem,
    )


def render_target(
    target: TargetState, state: WorkspaceState, records: Records, data: Mapping[str, str], channel: str
) -> str:
    """The page of a target; arguments as of `safegene.report.sections.target_section`."""
    section = target_section(target, state, records, data, channel)
    return render_template(
        "target.html.j2",
        target=section,
        parts=PARTS,
        reading=RATES_EXPLAINED,
        evidence_caption=EVIDENCE,
        history=[(target.name, row) for row in section.history[:ROWS_SHOWN]],
        history_problem=records.problem,
        rows_shown=ROWS_SHOWN,
    )


def channel_of(workspace: Workspace) -> str:
    """``promote.channel``; "" where ``params.yaml`` is unusable."""
    try:
        return workspace.params.promote.channel
    except SafegeneError:
        return ""


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
    """The state that the pages show: the newest record, the commit, the policy and the version that wrote them."""
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
    style = _style()
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return _environment().get_template(name).render(style=Markup(style), style_hash=f"sha256-{digest}", **values)


@cache
def _style() -> str:
    return files("safegene.report").joinpath("page.css").read_text(encoding="utf-8")


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
    environment.filters |= {"short": short, "date": date}
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


def _headline(counts: Mapping[str, int]) -> str:
    if not counts:
        return "No fine-tunes yet"
    parts = [f"{counts[word]} {word.lower()}".replace(" ", "\u00a0") for word in DECISIONS if word in counts]
    many = sum(counts.values())
    return f"{many} {'fine-tune' if many == 1 else 'fine-tunes'}: {', '.join(parts)}"


def _lede(state: WorkspaceState) -> str:
    if state.aligned is None:
        return "The family's aligned model has not been fetched yet"
    return f"Model family {state.aligned.source}"
