"""Pictures as inline SVG: no file, no script, and colours by class, so that one style sheet serves light and dark mode.

Every picture is one ``<svg role="img">`` with a label that says in words what it shows. All text is escaped.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from safegene.gate import Rate
from safegene.text import percent

WIDTH = 760
PLOT, END, NUMBERS = 84, 556, 576  # where the axis starts and ends, and where the numbers stand
LANE, TOP = 21, 22


@dataclass(frozen=True)
class Point:
    """A rate, and ``before``, ``after`` or ``aligned``: its class and its label."""

    series: str
    rate: Rate


def intervals(points: Sequence[Point], *, label: str, limit: float | None = None, limit_name: str = "limit") -> Markup:
    """Dots with their intervals on one axis of 0 to 100%, the numbers beside them, and a dashed line at ``limit``."""
    body = [_lane(point, TOP + LANE * (at + 0.7)) for at, point in enumerate(points)]
    bottom = TOP + LANE * len(points) + 10
    grid = [_tick(share / 100, bottom) for share in range(0, 101, 20)]
    if limit is not None:
        x = _x(limit)
        grid.append(
            _svg('<line class="limit" x1="{x}" x2="{x}" y1="{top}" y2="{bottom}"/>', x=x, top=TOP, bottom=bottom)
        )
        grid.append(text(x, TOP - 8, f"{limit_name} {percent(limit, 0)}", "limitname", "middle"))
    return svg(label, WIDTH, bottom + 22, [*grid, *body])


@dataclass(frozen=True)
class Bar:
    """One upright bar: its name below it, its value of 0 or more, its class, and the reason for the class."""

    name: str
    value: float
    kind: str
    reason: str


def bars(
    values: Sequence[Bar], *, label: str, axis: str, limit: tuple[float, str] | None = None, shade: str = ""
) -> Markup:
    """Upright bars.

    Args:
        values: the bars.
        label: what the picture shows.
        axis: name of the values.
        limit: a value to draw as a dashed line, and its name.
        shade: what the grey ground behind bars of the class ``deep`` means.
    """
    height, floor, left = 150, 196, 44
    top = max((bar.value for bar in values), default=0.0) or 1.0
    slot = (WIDTH - left) / max(1, len(values))
    width = min(44.0, slot * 0.68)
    every = math.ceil(len(values) / 24)
    body = [text(0, 14, axis, "axisname"), text(0, floor + 17, "layer", "tick")]
    deep = [index for index, bar in enumerate(values) if "deep" in bar.kind]
    if deep:
        x = left + slot * deep[0]
        body.append(_bar(x, 22, slot * (deep[-1] + 1) - slot * deep[0], floor - 22, "shade", shade))
        body.append(text(WIDTH, 14, shade, "tick", "end"))
    for share in (0.0, 0.5, 1.0):
        y = floor - height * share
        body.append(line("grid", left, y, WIDTH, y))
        body.append(text(left - 8, y + 4, f"{top * share:.2g}", "tick", "end"))
    for index, bar in enumerate(values):
        x, tall = left + slot * (index + 0.5), max(1.0, height * max(0.0, bar.value) / top)
        said = f"layer {bar.name}: {bar.value:.4g}, {bar.reason}"
        body.append(_bar(x - width / 2, floor - tall, width, tall, bar.kind, said))
        if index % every == 0:
            body.append(text(x, floor + 17, bar.name, "tick", "middle"))
    if limit is not None:
        y, end = floor - height * limit[0] / top, left + slot * (deep[0] if deep else len(values))
        body += [line("limit", left, y, end, y), text(left + 16, 14, f"dashed: {limit[1]}", "limitname")]
    return svg(label, WIDTH, floor + 26, body)


def lanes(values: Mapping[str, Mapping[int, float]], *, label: str) -> Markup:
    """One lane of bars around zero for each kind of matrix, layers from left to right, all lanes on one scale."""
    layers = sorted({layer for row in values.values() for layer in row})
    numbers = [value for row in values.values() for value in row.values()]
    up, down = max([*numbers, 0.0]), min([*numbers, 0.0])
    left, tall, step = 104, 24, 38
    slot = min(164.0, (WIDTH - left) / max(1, len(layers)))
    width, scale, end = min(28.0, slot * 0.68), tall / ((up - down) or 1.0), left + slot * len(layers)
    roomy, every = slot >= 60, math.ceil(len(layers) / 24)
    body = []
    for at, (kind, row) in enumerate(values.items()):
        zero = 10 + at * step + scale * up
        body += [text(0, zero - 3, kind, "rowname"), line("zero", left, zero, end, zero)]
        for index, layer in enumerate(layers):
            if layer in row:
                value, x = row[layer], left + slot * index + (6 if roomy else (slot - width) / 2)
                high, shape = max(1.0, scale * abs(value)), "bar kept" if value >= 0 else "bar negative"
                edge = zero - high if value >= 0 else zero
                body.append(_bar(x, edge, width, high, shape, f"layer {layer}, {kind}: {value:+.3f}"))
                if roomy:
                    body.append(text(x + width + 6, zero - 4 if value >= 0 else zero + 12, f"{value:.2f}", "spread"))
    floor = 10 + len(values) * step + 8
    body.append(text(0, floor, "layer", "tick"))
    for index, layer in enumerate(layers):
        if index % every == 0:
            x = left + slot * index + (6 + width / 2 if roomy else slot / 2)
            body.append(text(x, floor, str(layer), "tick", "middle"))
    return svg(label, WIDTH, floor + 8, body)


def _lane(point: Point, y: float) -> Markup:
    rate, interval = point.rate.rate, point.rate.interval
    parts = [text(0, y + 4, point.series, "series")]
    if rate is None:
        return parts[0] + text(NUMBERS, y + 4, "not measured", "none")
    if interval:
        a, b = (number(_x(end)) for end in interval)
        path = f"M{a} {number(y)}H{b}M{a} {number(y - 4)}V{number(y + 4)}M{b} {number(y - 4)}V{number(y + 4)}"
        parts.append(_svg('<path class="whisker {c}" d="{path}"/>', c=point.series, path=path))
    x = number(_x(rate))
    if point.series == "aligned":
        parts.append(_svg('<path class="dot aligned" d="M{x} {y}l5.5 5.5-5.5 5.5-5.5-5.5Z"/>', x=x, y=number(y - 5.5)))
    else:
        parts.append(_svg('<circle class="dot {c}" cx="{x}" cy="{y}" r="4.75"/>', c=point.series, x=x, y=number(y)))
    spread = " to ".join(f"{100 * end:.1f}" for end in interval or ()) or "no interval"
    parts.append(text(NUMBERS + 48, y + 4, percent(rate), "number", "end"))
    return Markup("").join([*parts, text(NUMBERS + 62, y + 4, spread, "spread")])


def _tick(share: float, bottom: float) -> Markup:
    return line("grid", _x(share), TOP, _x(share), bottom) + text(
        _x(share), bottom + 16, percent(share, 0), "tick", "middle"
    )


def _bar(x: float, y: float, width: float, height: float, kind: str, name: str) -> Markup:
    return _svg(
        '<rect class="{c}" x="{x}" y="{y}" width="{w}" height="{h}" rx="1.5"><title>{name}</title></rect>',
        c=kind, x=number(x), y=number(y), w=number(width), h=number(height), name=name,
    )  # fmt: skip


def text(x: float, y: float, words: str, kind: str, anchor: str = "start") -> Markup:
    """A line of text; ``kind`` is its class."""
    at = '<text class="{c}" x="{x}" y="{y}" text-anchor="{a}">{text}</text>'
    return _svg(at, c=kind, x=number(x), y=number(y), a=anchor, text=words)


def line(kind: str, x1: float, y1: float, x2: float, y2: float) -> Markup:
    """A straight line; ``kind`` is its class."""
    at = '<line class="{c}" x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}"/>'
    return _svg(at, c=kind, x1=number(x1), y1=number(y1), x2=number(x2), y2=number(y2))


def svg(
    label: str, width: float, height: float, body: Sequence[Markup], *, role: str = "img", kind: str = ""
) -> Markup:
    """A picture, with what it shows in words.

    Args:
        label: the words.
        width: of the drawing, as ``height`` in its own units.
        height: see ``width``.
        body: what is drawn.
        role: ``group`` for a picture that has links.
        kind: its class.
    """
    size = {"w": number(width), "h": number(height), "role": role}
    size |= {"kind": Markup(' class="{}"').format(kind) if kind else ""}
    head = _svg('<svg role="{role}"{kind} aria-label="{label}" viewBox="0 0 {w} {h}">', label=label, **size)
    return head + Markup("").join(body) + Markup("</svg>")


def _svg(template: str, **values: object) -> Markup:
    return Markup(template).format(**values)


def _x(share: float) -> float:
    return PLOT + (END - PLOT) * min(1.0, max(0.0, share))


def number(value: float) -> str:
    """A coordinate with at most two decimals."""
    return f"{value:.2f}".rstrip("0").rstrip(".")
