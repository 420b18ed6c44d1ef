"""Pictures of the evidence of a verdict: each endpoint's bound and estimate over the prompts asked, and its limit.

One panel for each endpoint. Colours come by class from the page's style sheet; `draw`, for a file of its own, brings
those that it needs, for light and for dark paper.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from markupsafe import Markup

from safegene.gate.history import evidence_history
from safegene.gate.types import Judgement, Plan, VerdictOutcome
from safegene.report.pictures import line, number, svg, text
from safegene.report.words import ENDPOINTS, TONES
from safegene.text import percent
from safegene.workspace.params import GateParams

WIDTH, HEIGHT, GAP = 372, 216, 24
LEFT, RIGHT, TOP, FLOOR = 46, 364, 50, 168
STEPS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.25, 0.5)
STYLE = Markup("""<style>
svg { --paper: #fff; --ink: #15191e; --soft: #59636f; --rule: #dfe3e8; --limit: #1f4fa8;
--pass: #17693b; --fail: #b3261e; --open: #7a5200; }
@media (prefers-color-scheme: dark) { svg { --paper: #101419; --ink: #e6e9ed; --soft: #a2acb8; --rule: #2a323b;
--limit: #7fabf5; --pass: #63cd90; --fail: #ff8f85; --open: #edbd5c; } }
.paper { fill: var(--paper); } text { font: 12px sans-serif; fill: var(--ink); } .rowname { font-weight: 600; }
.tick, .axisname { fill: var(--soft); font-size: 11px; } .grid { stroke: var(--rule); }
.bound, .guess, .allowed { fill: none; stroke-width: 2; }
.guess { stroke: var(--soft); stroke-dasharray: 1 4; stroke-linecap: round; }
.allowed { stroke: var(--limit); stroke-dasharray: 6 4; } .limitname { fill: var(--limit); font-size: 11px; }
.bound.pass { stroke: var(--pass); } .bound.fail { stroke: var(--fail); } .bound.open { stroke: var(--open); }
.look.pass { fill: var(--pass); } .look.fail { fill: var(--fail); } .look.open { fill: var(--open); }
text.pass { fill: var(--pass); } text.fail { fill: var(--fail); } text.open { fill: var(--open); }
</style>""")


class Look(NamedTuple):
    """What the gate knew of an endpoint after ``asked`` prompts: bound, estimate and limit as shares."""

    asked: int
    bound: float
    estimate: float | None
    limit: float


def panels(rows: Sequence[Judgement], plan: Plan, policy: GateParams) -> list[Markup]:
    """An SVG for each endpoint: its upper bound (solid) and estimate (dotted) over the prompts asked.

    The dashed line is the limit: an endpoint passes at the first look whose bound is at or below it.
    """
    return [svg(label, WIDTH, HEIGHT, body) for label, body in _drawn(rows, plan, policy)]


def draw(rows: Sequence[Judgement], plan: Plan, policy: GateParams) -> Markup:
    """All panels as one SVG with its own colours, for a file."""
    drawn = list(_drawn(rows, plan, policy))
    width, height = 2 * WIDTH + 3 * GAP, GAP + math.ceil(len(drawn) / 2) * (HEIGHT + GAP)
    start = Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{label}" width="{w}" height="{h}" '
        'viewBox="0 0 {w} {h}">'
    ).format(label="; ".join(label for label, _ in drawn), w=width, h=height)
    placed = [
        Markup('<svg x="{}" y="{}" width="{}" height="{}">').format(
            GAP + (at % 2) * (WIDTH + GAP), GAP + (at // 2) * (HEIGHT + GAP), WIDTH, HEIGHT
        )
        + Markup("").join(body)
        + Markup("</svg>")
        for at, (_, body) in enumerate(drawn)
    ]
    paper = Markup('<rect width="100%" height="100%" class="paper"/>')
    return start + STYLE + paper + Markup("\n").join(placed) + Markup("</svg>\n")


def _drawn(rows: Sequence[Judgement], plan: Plan, policy: GateParams) -> Iterator[tuple[str, list[Markup]]]:
    """(what a panel shows, its content) for each endpoint."""
    looks = evidence_history(rows, plan, policy)
    for name, title in ENDPOINTS.items():
        results = [(asked, end) for asked, verdict in looks for end in verdict.endpoints if end.name == name]
        known = [Look(asked, end.bound, end.estimate, end.limit) for asked, end in results if end.bound is not None]
        outcome: VerdictOutcome = results[-1][1].outcome if results else "inconclusive"
        words = f"{outcome}, no evidence"
        if known:
            words = f"{outcome}: bound {percent(known[-1].bound)}, limit {percent(known[-1].limit)}"
        label = f"{title}, {words}" + (f", after {known[-1].asked:,} prompts" if known else "")
        heading = [text(0, 14, title, "rowname"), text(0, 33, words, TONES[outcome])]
        yield label, [*heading, *(_plot(known, TONES[outcome]) if known else ())]


def _plot(looks: Sequence[Look], tone: str) -> Iterator[Markup]:
    last, limit = looks[-1].asked, looks[-1].limit
    estimates = [(look.asked, look.estimate) for look in looks if look.estimate is not None]
    shares = [min(1.0, look.bound) for look in looks] + [share for _, share in estimates] + [limit * 1.5]
    step = next((step for step in STEPS if (max(shares) - min(0.0, *shares)) / step <= 4.5), STEPS[-1])
    low, high = math.floor(min(0.0, *shares) / step), max(1, math.ceil(max(shares) / step))

    def x(asked: float) -> float:
        return LEFT + (RIGHT - LEFT) * asked / last

    def y(share: float) -> float:
        return FLOOR - (FLOOR - TOP) * (min(share, high * step) - low * step) / ((high - low) * step)

    for tick in range(low, high + 1):
        yield line("grid", LEFT, y(tick * step), RIGHT, y(tick * step))
        yield text(LEFT - 6, y(tick * step) + 4, percent(tick * step, 0 if step >= 0.01 else 1), "tick", "end")
    for asked, anchor in ((0, "start"), (last // 2, "middle"), (last, "end")):
        yield text(x(asked), FLOOR + 16, f"{asked:,}", "tick", anchor)
    yield text((LEFT + RIGHT) / 2, FLOOR + 33, "prompts asked", "axisname", "middle")
    yield _path("allowed", [(x(0), y(limit)), (x(last), y(limit))])
    yield text(LEFT + 4, y(limit) - 5, "limit", "limitname")
    yield _path("guess", [(x(asked), y(share)) for asked, share in estimates])
    for asked, share in estimates[-1:]:  # seen where there is one look only
        yield _path("guess", [(x(asked) - 6, y(share)), (x(asked), y(share))])
    bounds = [(x(look.asked), y(look.bound)) for look in looks]
    yield _path(f"bound {tone}", bounds)
    for at, (across, down) in enumerate(bounds):
        dot = '<circle class="look {}" cx="{}" cy="{}" r="2.5"><title>{}</title></circle>'
        said = f"after {looks[at].asked:,} prompts: bound {percent(looks[at].bound)}"
        yield Markup(dot).format(tone, number(across), number(down), said)


def _path(kind: str, points: Sequence[tuple[float, float]]) -> Markup:
    joined = " ".join(f"{number(across)},{number(down)}" for across, down in points)
    return Markup('<polyline class="{}" points="{}"/>').format(kind, joined)
