"""Rates over time, from the signed records of a target: every attempt with its interval, and what was live when."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from markupsafe import Markup

from safegene.gate import Rate
from safegene.ledger.record import PUBLISHING
from safegene.ledger.snapshot import ATTEMPTS
from safegene.report.live import when
from safegene.report.pictures import line, number, svg, text
from safegene.report.records import Records, recorded_rate, tone
from safegene.text import percent

MEASURES = {"hrr": "Harmful-response rate", "utility": "Utility"}
WIDTH, HEIGHT = 372, 196
LEFT, RIGHT, TOP, FLOOR = 46, 356, 44, 156
SPARK_WIDTH, SPARK_HEIGHT, INSET = 96, 30, 5
LINE_WIDTH, LINE_HEIGHT = 128, 16
POINTS = 24
"""Attempts that a picture shows, the newest; the history of a target lists the others."""


@dataclass(frozen=True)
class Measured:
    """A candidate as one attempt measured it, or what a rollback put live again.

    Attributes:
        sequence: the record's number.
        when: when the attempt ended; None where the record does not say.
        outcome: of the record.
        tone: pass, fail or open: a class of the style sheet.
        live: whether it went live.
        rates: measure -> rate of the candidate.
    """

    sequence: int
    when: datetime | None
    outcome: str
    tone: str
    live: bool
    rates: dict[str, Rate]


def over_time(target: str, records: Records, channel: str) -> tuple[Measured, ...]:
    """The attempts on a target on one channel that have a rate, the oldest first, at most `POINTS` of them."""
    found = []
    for record in (one.record for one in records.of(target)):
        rates = {measure: recorded_rate(record, measure, "after") for measure in MEASURES}
        known = record.outcome in (*ATTEMPTS, "rollback") and any(rate.rate is not None for rate in rates.values())
        if known and record.channel == channel:
            live = record.outcome in PUBLISHING
            found.append(Measured(record.sequence, _time(when(record)), record.outcome, tone(record), live, rates))
    return tuple(reversed(found[:POINTS]))


def _time(moment: str) -> datetime | None:
    try:
        return datetime.fromisoformat(moment).astimezone(UTC)
    except ValueError:
        return None


def described(points: Sequence[Measured], measure: str) -> str:
    """The rates in words, for readers who do not see a picture."""
    said = [
        f"record {point.sequence} {percent(point.rates[measure].rate)} {point.outcome}"
        for point in points
        if point.rates[measure].rate is not None
    ]
    return f"{MEASURES[measure]} over time: {'; '.join(said) or 'not measured'}"


def trend(points: Sequence[Measured], measure: str, *, limit: float | None = None) -> Markup:
    """A chart of one measure: a dot with its 95% interval for each attempt, a step line for what was live.

    Attempts stand at their times where all are known and differ, otherwise side by side.

    Args:
        points: the attempts, the oldest first.
        measure: a key of `MEASURES`.
        limit: a rate to draw as a dashed line, such as the policy's cap.
    """
    shown = [point for point in points if point.rates[measure].rate is not None]
    top = _top(shown, measure, limit)
    body = [text(0, 14, MEASURES[measure], "rowname"), text(0, 31, _newest(shown, measure), "series")]
    for tick in (0.0, 0.5, 1.0):
        y = _y(tick * top, top)
        body += [line("grid", LEFT, y, RIGHT, y)]
        body += [text(LEFT - 6, y + 4, percent(tick * top, 0 if top > 0.1 else 1), "tick", "end")]
    if limit is not None and limit <= top:
        body.append(line("limit", LEFT, _y(limit, top), RIGHT, _y(limit, top)))
        body.append(text(RIGHT, _y(limit, top) - 5, f"cap {percent(limit, 0)}", "limitname", "end"))
    across = _across(shown)
    body += _steps(shown, measure, across, top)
    for point, x in zip(shown, across, strict=True):
        body += _point(point, measure, x, top)
    body += _dates(shown, across)
    return svg(described(shown, measure), WIDTH, HEIGHT, body)


def _top(points: Sequence[Measured], measure: str, limit: float | None) -> float:
    """The upper end of the axis, in 0..1: all of utility, and of a rate of harm what its intervals need."""
    if measure == "utility":
        return 1.0
    highest = max([0.05, *_highs(points, measure), *([limit * 1.25] if limit else [])])
    return next((end for end in (0.1, 0.2, 0.4, 0.6, 0.8) if highest <= end), 1.0)


def _highs(points: Sequence[Measured], measure: str) -> Iterator[float]:
    for rate in (point.rates[measure] for point in points):
        yield rate.interval[1] if rate.interval else rate.rate or 0.0


def _y(share: float, top: float) -> float:
    return FLOOR - (FLOOR - TOP) * min(share, top) / top


def _across(points: Sequence[Measured]) -> list[float]:
    times = [point.when.timestamp() for point in points if point.when]
    spread = RIGHT - LEFT - 24
    apart = len(times) == len(points) > 1 and times[-1] > times[0] and times == sorted(times)
    if apart:
        return [LEFT + 12 + spread * (moment - times[0]) / (times[-1] - times[0]) for moment in times]
    return [LEFT + 12 + spread * (at + 0.5) / len(points) for at in range(len(points))]


def _steps(points: Sequence[Measured], measure: str, across: Sequence[float], top: float) -> Iterator[Markup]:
    """What was live: level until the next release replaced it."""
    path = ""
    for point, x in zip(points, across, strict=True):
        rate = point.rates[measure].rate
        if point.live and rate is not None:
            y = number(_y(rate, top))
            path += f"H{number(x)}V{y}" if path else f"M{number(x)} {y}"
    if path:
        yield Markup('<path class="livepath" d="{}H{}"/>').format(path, RIGHT)


def _point(point: Measured, measure: str, x: float, top: float) -> Iterator[Markup]:
    rate = point.rates[measure]
    at, y = number(x), number(_y(rate.rate or 0.0, top))
    if rate.interval:
        low, high = (number(_y(end, top)) for end in rate.interval)
        ends = f"M{at} {low}V{high}M{number(x - 3)} {low}h6M{number(x - 3)} {high}h6"
        yield Markup('<path class="whisker {}" d="{}"/>').format(point.tone, ends)
    said = f"record {point.sequence}, {point.outcome}: {percent(rate.rate)}"
    mark = '<circle class="look {}" cx="{}" cy="{}" r="4"><title>{}</title></circle>'
    if not point.live:
        mark = '<path class="look {}" d="M{} {}m-4-4l8 8m0-8l-8 8"><title>{}</title></path>'
    yield Markup(mark).format(point.tone, at, y, said)


def _newest(points: Sequence[Measured], measure: str) -> str:
    if not points:
        return "not measured on record"
    rate = points[-1].rates[measure]
    spread = f" ({100 * rate.interval[0]:.1f} to {100 * rate.interval[1]:.1f})" if rate.interval else ""
    return f"newest {percent(rate.rate)}{spread}, record {points[-1].sequence}"


def _dates(points: Sequence[Measured], across: Sequence[float]) -> Iterator[Markup]:
    first, last = (points[0], points[-1]) if points else (None, None)
    for point, x, anchor in ((first, LEFT, "start"), (last, RIGHT, "end")):
        if point and (point is not last or anchor == "end"):
            day = f"{point.when:%Y-%m-%d}" if point.when else f"record {point.sequence}"
            yield text(x, FLOOR + 18, day, "tick", anchor)
    if across and not all(point.when for point in points):
        yield text((LEFT + RIGHT) / 2, FLOOR + 34, "in the order of the records", "axisname", "middle")


def spark(points: Sequence[Measured], measure: str) -> Markup:
    """`trend` in the size of a line of text, without words: attempts side by side, 0 to 100% from bottom to top."""
    shown = [point for point in points if point.rates[measure].rate is not None]
    step = (SPARK_WIDTH - 2 * INSET) / max(1, len(shown) - 1)
    body, path = [], ""
    for at, point in enumerate(shown):
        rate = point.rates[measure]
        x = number(round(INSET + step * at if len(shown) > 1 else SPARK_WIDTH / 2, 1))
        y = number(round(_spark_y(rate.rate or 0.0), 1))
        if rate.interval:
            low, high = (number(round(_spark_y(end), 1)) for end in rate.interval)
            body.append(Markup('<path class="w {}" d="M{} {}V{}"/>').format(point.tone, x, low, high))
        if point.live:
            path += f"H{x}V{y}" if path else f"M{x} {y}"
            body.append(Markup('<circle class="look {}" cx="{}" cy="{}" r="2.6"/>').format(point.tone, x, y))
        else:
            body.append(Markup('<path class="look {}" d="M{} {}m-2.5-2.5l5 5m0-5l-5 5"/>').format(point.tone, x, y))
    floor = Markup('<path class="zero" d="M0 {}H{}"/>').format(SPARK_HEIGHT - INSET + 0.5, SPARK_WIDTH)
    steps = Markup('<path class="livepath" d="{}H{}"/>').format(path, SPARK_WIDTH) if path else Markup("")
    return svg(described(shown, measure), SPARK_WIDTH, SPARK_HEIGHT, [floor, steps, *body], kind="spark")


def _spark_y(share: float) -> float:
    return INSET + (SPARK_HEIGHT - 2 * INSET) * (1 - share)


def rates_line(before: Rate, after: Rate, limit: float | None) -> Markup:
    """Two rates on an axis of 0 to 100% in the size of a line of text; the second with its interval, and the limit."""

    def x(share: float) -> str:
        return number(round(INSET + (LINE_WIDTH - 2 * INSET) * share, 1))

    y = LINE_HEIGHT // 2
    body = [Markup('<path class="zero" d="M{} {}H{}"/>').format(x(0), y, x(1))]
    if limit is not None:
        body.append(Markup('<path class="limit" d="M{} 1V{}"/>').format(x(limit), LINE_HEIGHT - 1))
    if before.rate is not None:
        body.append(Markup('<circle class="dot before" cx="{}" cy="{}" r="3.4"/>').format(x(before.rate), y))
    if after.rate is not None:
        low, high = after.interval or (after.rate, after.rate)
        body.append(Markup('<path class="whisker after" d="M{} {}H{}"/>').format(x(low), y, x(high)))
        body.append(Markup('<circle class="dot after" cx="{}" cy="{}" r="3"/>').format(x(after.rate), y))
    said = f"Harmful-response rate: before {percent(before.rate)}, candidate {percent(after.rate)}"
    return svg(said, LINE_WIDTH, LINE_HEIGHT, body, kind="spark")
