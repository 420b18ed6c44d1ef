"""Pictures as inline SVG: no file, no script, and colours by class, so that one style sheet serves light and dark mode.

Every picture is one ``<svg role="img">`` with a label that says in words what it shows. All text is escaped.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from safegene.text import percent

WIDTH = 760
PLOT, END, NUMBERS = 84, 556, 576  # where the axis starts and ends, and where the numbers stand
LANE, HEAD, GAP, TOP = 21, 24, 12, 22


@dataclass(frozen=True)
class Point:
    """One measured rate.

    Attributes:
        series: ``before``, ``after`` or ``aligned``: its class and its label.
        rate: share in 0..1; None when it was not measured.
        interval: its 95% interval, when there is one.
    """

    series: str
    rate: float | None
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Row:
    """One target: its points, drawn below one another."""

    label: str
    points: tuple[Point, ...]


def intervals(rows: Sequence[Row], *, label: str, limit: float | None = None, limit_name: str = "limit") -> Markup:
    """Dots with their intervals on one axis of 0 to 100%, the numbers beside them, and a dashed line at ``limit``."""
    body, y = [], TOP
    for row in rows:
        body.append(_text(0, y + 15, row.label, "rowname"))
        y += HEAD
        for point in row.points:
            body.append(_lane(point, y + LANE / 2))
            y += LANE
        y += GAP
    bottom = y - GAP + 6
    grid = [_tick(share / 100, bottom) for share in range(0, 101, 20)]
    if limit is not None:
        x = _x(limit)
        grid.append(
            _svg('<line class="limit" x1="{x}" x2="{x}" y1="{top}" y2="{bottom}"/>', x=x, top=TOP, bottom=bottom)
        )
        grid.append(_text(x, TOP - 8, f"{limit_name} {percent(limit, 0)}", "limitname", "middle"))
    return _picture(label, bottom + 22, [*grid, *body])


def bars(values: Sequence[tuple[str, float, bool]], *, label: str, axis: str) -> Markup:
    """Upright bars.

    Args:
        values: (name, value of 0 or more, whether the bar is filled).
        label: what the picture shows.
        axis: name of the values.
    """
    height, floor, left = 150, 186, 44
    top = max((value for _, value, _ in values), default=0.0) or 1.0
    slot = (WIDTH - left) / max(1, len(values))
    width = min(44.0, slot * 0.68)
    every = math.ceil(len(values) / 24)
    body = [_text(0, 14, axis, "axisname"), _text(0, floor + 17, "layer", "tick")]
    for share in (0.0, 0.5, 1.0):
        y = floor - height * share
        body.append(_line("grid", left, y, WIDTH, y))
        body.append(_text(left - 8, y + 4, f"{top * share:.2g}", "tick", "end"))
    for index, (name, value, kept) in enumerate(values):
        x, tall = left + slot * (index + 0.5), max(1.0, height * max(0.0, value) / top)
        body.append(
            _bar(x - width / 2, floor - tall, width, tall, "bar kept" if kept else "bar", f"{name}: {value:.4g}")
        )
        if index % every == 0:
            body.append(_text(x, floor + 17, name, "tick", "middle"))
    return _picture(label, floor + 26, body)


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
    for number, (kind, row) in enumerate(values.items()):
        zero = 10 + number * step + scale * up
        body += [_text(0, zero - 3, kind, "rowname"), _line("zero", left, zero, end, zero)]
        for index, layer in enumerate(layers):
            if layer in row:
                value, x = row[layer], left + slot * index + (6 if roomy else (slot - width) / 2)
                high, shape = max(1.0, scale * abs(value)), "bar kept" if value >= 0 else "bar negative"
                at = zero - high if value >= 0 else zero
                body.append(_bar(x, at, width, high, shape, f"layer {layer}, {kind}: {value:+.3f}"))
                if roomy:
                    body.append(_text(x + width + 6, zero - 4 if value >= 0 else zero + 12, f"{value:.2f}", "spread"))
    floor = 10 + len(values) * step + 8
    body.append(_text(0, floor, "layer", "tick"))
    for index, layer in enumerate(layers):
        if index % every == 0:
            x = left + slot * index + (6 + width / 2 if roomy else slot / 2)
            body.append(_text(x, floor, str(layer), "tick", "middle"))
    return _picture(label, floor + 8, body)


def _lane(point: Point, y: float) -> Markup:
    parts = [_text(0, y + 4, point.series, "series")]
    if point.rate is None:
        return parts[0] + _text(NUMBERS, y + 4, "not measured", "none")
    if point.interval:
        a, b = (_n(_x(end)) for end in point.interval)
        path = f"M{a} {_n(y)}H{b}M{a} {_n(y - 4)}V{_n(y + 4)}M{b} {_n(y - 4)}V{_n(y + 4)}"
        parts.append(_svg('<path class="whisker {c}" d="{path}"/>', c=point.series, path=path))
    x = _n(_x(point.rate))
    if point.series == "aligned":
        parts.append(_svg('<path class="dot aligned" d="M{x} {y}l5.5 5.5-5.5 5.5-5.5-5.5Z"/>', x=x, y=_n(y - 5.5)))
    else:
        parts.append(_svg('<circle class="dot {c}" cx="{x}" cy="{y}" r="4.75"/>', c=point.series, x=x, y=_n(y)))
    spread = " to ".join(f"{100 * end:.1f}" for end in point.interval or ()) or "no interval"
    parts.append(_text(NUMBERS + 48, y + 4, percent(point.rate), "number", "end"))
    return Markup("").join([*parts, _text(NUMBERS + 62, y + 4, spread, "spread")])


def _tick(share: float, bottom: float) -> Markup:
    line = _line("grid", _x(share), TOP, _x(share), bottom)
    return line + _text(_x(share), bottom + 16, percent(share, 0), "tick", "middle")


def _bar(x: float, y: float, width: float, height: float, kind: str, name: str) -> Markup:
    return _svg(
        '<rect class="{c}" x="{x}" y="{y}" width="{w}" height="{h}" rx="1.5"><title>{name}</title></rect>',
        c=kind, x=_n(x), y=_n(y), w=_n(width), h=_n(height), name=name,
    )  # fmt: skip


def _text(x: float, y: float, text: str, kind: str, anchor: str = "start") -> Markup:
    at = '<text class="{c}" x="{x}" y="{y}" text-anchor="{a}">{text}</text>'
    return _svg(at, c=kind, x=_n(x), y=_n(y), a=anchor, text=text)


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> Markup:
    at = '<line class="{c}" x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}"/>'
    return _svg(at, c=kind, x1=_n(x1), y1=_n(y1), x2=_n(x2), y2=_n(y2))


def _picture(label: str, height: float, body: Sequence[Markup]) -> Markup:
    head = _svg('<svg role="img" aria-label="{label}" viewBox="0 0 {w} {h}">', label=label, w=WIDTH, h=_n(height))
    return head + Markup("").join(body) + Markup("</svg>")


def _svg(template: str, **values: object) -> Markup:
    return Markup(template).format(**values)


def _x(share: float) -> float:
    return PLOT + (END - PLOT) * min(1.0, max(0.0, share))


def _n(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
