"""A picture of the evidence of a verdict: each endpoint's bound and estimate over the prompts asked, and its limit."""

from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

from safegene.gate.history import evidence_history
from safegene.gate.types import Judgement, Plan
from safegene.report.words import ENDPOINTS
from safegene.text import percent
from safegene.workspace.params import GateParams

WIDTH, HEIGHT, LEFT, TOP, STEP = 360, 120, 20, 34, 190
COLOURS = {"pass": "#1a7f37", "fail": "#cf222e", "inconclusive": "#9a6700"}


class Look(NamedTuple):
    """What the gate knew of an endpoint after ``asked`` prompts: bound, estimate and limit as shares."""

    asked: int
    bound: float
    estimate: float | None
    limit: float


def draw(rows: Sequence[Judgement], plan: Plan, policy: GateParams) -> Markup:
    """An SVG with one panel for each endpoint: its upper bound (solid) and estimate (dotted) over prompts asked.

    The dashed line is the limit: an endpoint passes at the first look whose bound is at or below it.
    """
    looks, panels = evidence_history(rows, plan, policy), list[Markup]()
    for index, (name, title) in enumerate(ENDPOINTS.items()):
        results = [(asked, end) for asked, verdict in looks for end in verdict.endpoints if end.name == name]
        looked = [Look(asked, end.bound, end.estimate, end.limit) for asked, end in results if end.bound is not None]
        x, y = LEFT + (index % 2) * (WIDTH + 2 * LEFT), TOP + (index // 2) * STEP
        outcome = results[-1][1].outcome if results else "inconclusive"
        panels.append(_panel(x, y, f"{title}: {outcome}", COLOURS[outcome], looked))
    box = {"w": 2 * WIDTH + 4 * LEFT, "h": TOP + 3 * STEP}
    label = "Upper bounds of every endpoint over prompts asked, with limits"
    start = Markup('<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{label}" width="{w}" height="{h}"')
    start += Markup(' viewBox="0 0 {w} {h}" font-family="sans-serif" font-size="12">')
    paper = Markup('<rect width="{w}" height="{h}" fill="#fff"/>')
    return (start + paper).format(label=label, **box) + Markup("").join(panels) + Markup("</svg>\n")


def _panel(x: int, y: int, title: str, colour: str, looks: Sequence[Look]) -> Markup:
    heading = Markup('<text x="{x}" y="{y}" fill="{colour}">{title}</text>')
    frame = Markup('<rect x="{x}" y="{y}" width="{w}" height="{h}" fill="none" stroke="#d0d7de"/>')
    body = heading.format(x=x, y=y - 8, colour=colour, title=title) + frame.format(x=x, y=y, w=WIDTH, h=HEIGHT)
    if not looks:
        return body + Markup('<text x="{x}" y="{y}">no evidence</text>').format(x=x + 8, y=y + 20)
    last, limit = looks[-1].asked, looks[-1].limit
    estimates = [(look.asked, look.estimate) for look in looks if look.estimate is not None]
    highest = max(0.02, limit * 2, *(min(1.0, share) for _, share in (*_bounds(looks), *estimates)))

    def place(asked: int, share: float) -> str:
        down = y + HEIGHT - HEIGHT * min(1.0, max(0.0, share) / highest)
        return f"{x + WIDTH * asked / last:.1f},{down:.1f}"

    line = Markup('<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>')
    dotted, dashed = Markup(' stroke-dasharray="1 4"'), Markup(' stroke-dasharray="6 4"')
    bounds = [place(*point) for point in _bounds(looks)]
    body += line.format(points=" ".join(bounds), colour=colour, dash="")
    body += line.format(points=" ".join(place(*point) for point in estimates), colour="#57606a", dash=dotted)
    body += line.format(points=f"{place(0, limit)} {place(last, limit)}", colour="#0969da", dash=dashed)
    for point in bounds:
        body += Markup('<circle cx="{0}" cy="{1}" r="2.5" fill="{2}"/>').format(*point.split(","), colour)
    foot = f"0 to {last} prompts; limit {percent(limit, 1)}, last bound {percent(looks[-1].bound, 1)}"
    return body + Markup('<text x="{x}" y="{y}">{foot}</text>').format(x=x, y=y + HEIGHT + 16, foot=foot)


def _bounds(looks: Sequence[Look]) -> list[tuple[int, float]]:
    return [(look.asked, look.bound) for look in looks]
