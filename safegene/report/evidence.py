"""The evidence of a verdict over prompts: every endpoint's bound coming down to its limit, or harm showing first."""

from collections.abc import Sequence

from markupsafe import Markup

from safegene.gate.history import evidence_history
from safegene.gate.types import Judgement, Plan
from safegene.report.words import ENDPOINTS
from safegene.text import percent
from safegene.workspace.params import GateParams

WIDTH, HEIGHT, LEFT, TOP, STEP = 360, 120, 20, 34, 190
COLOURS = {"pass": "#1a7f37", "fail": "#cf222e", "inconclusive": "#9a6700"}


def draw(rows: Sequence[Judgement], plan: Plan, policy: GateParams) -> Markup:
    """An SVG of two columns: a panel an endpoint, its upper bound (solid) and estimate (dotted) over prompts asked.

    The dashed line is the limit: an endpoint passes at the first look whose bound is at or below it.
    """
    looks, panels = evidence_history(rows, plan, policy), list[Markup]()
    for at, (name, title) in enumerate(ENDPOINTS.items()):
        seen = [(asked, one) for asked, verdict in looks for one in verdict.endpoints if one.name == name]
        known = [(asked, one.bound, one.estimate, one.limit) for asked, one in seen if one.bound is not None]
        x, y = LEFT + (at % 2) * (WIDTH + 2 * LEFT), TOP + (at // 2) * STEP
        outcome = seen[-1][1].outcome if seen else "inconclusive"
        panels.append(_panel(x, y, f"{title}: {outcome}", COLOURS[outcome], known))
    box = {"w": 2 * WIDTH + 4 * LEFT, "h": TOP + 3 * STEP}
    said = Markup("Upper bounds of every endpoint over prompts asked, with limits")
    start = Markup('<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{said}" width="{w}" height="{h}"')
    start += Markup(' viewBox="0 0 {w} {h}" font-family="sans-serif" font-size="12">')
    paper = Markup('<rect width="{w}" height="{h}" fill="#fff"/>')
    return (start + paper).format(said=said, **box) + Markup("").join(panels) + Markup("</svg>\n")


def _panel(
    x: int, y: int, title: str, colour: str, known: Sequence[tuple[int, float | None, float | None, float]]
) -> Markup:
    head = Markup('<text x="{x}" y="{y}" fill="{colour}">{title}</text>').format(
        x=x, y=y - 8, colour=colour, title=title
    )
    frame = Markup('<rect x="{x}" y="{y}" width="{w}" height="{h}" fill="none" stroke="#d0d7de"/>')
    body = head + frame.format(x=x, y=y, w=WIDTH, h=HEIGHT)
    if not known:
        return body + Markup('<text x="{x}" y="{y}">no evidence</text>').format(x=x + 8, y=y + 20)
    last, limit = known[-1][0], known[-1][3]
    most = max(
        0.02, limit * 2, *(min(1.0, value) for _, bound, estimate, _ in known for value in (bound, estimate) if value)
    )

    def place(asked: int, value: float) -> str:
        down = y + HEIGHT - HEIGHT * min(1.0, max(0.0, value) / most)
        return f"{x + WIDTH * asked / last:.1f},{down:.1f}"

    bounds = " ".join(place(asked, bound) for asked, bound, _, _ in known if bound is not None)
    estimates = " ".join(place(asked, estimate) for asked, _, estimate, _ in known if estimate is not None)
    line = Markup('<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>')
    body += line.format(points=bounds, colour=colour, dash="")
    body += line.format(points=estimates, colour="#57606a", dash=Markup(' stroke-dasharray="1 4"'))
    level = f"{place(0, limit)} {place(last, limit)}"
    body += line.format(points=level, colour="#0969da", dash=Markup(' stroke-dasharray="6 4"'))
    dots = [place(asked, bound) for asked, bound, _, _ in known if bound is not None]
    for dot in dots:
        body += Markup('<circle cx="{0}" cy="{1}" r="2.5" fill="{2}"/>').format(*dot.split(","), colour)
    foot = f"0 to {last} prompts; limit {percent(limit, 1)}, last bound {percent(known[-1][1] or 0.0, 1)}"
    return body + Markup('<text x="{x}" y="{y}">{foot}</text>').format(x=x, y=y + HEIGHT + 16, foot=foot)
