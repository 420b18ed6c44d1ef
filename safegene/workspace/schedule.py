"""Cron expressions: five fields (minute, hour, day of month, month, day of week), or a name such as ``@daily``.

A field is ``*`` or a list of numbers, names and ranges, each with a step: ``*/5``, ``1-5``, ``mon,thu``, ``0-30/10``.
What is accepted here is accepted by Prefect too; what has no date at all, such as 31 February, is refused.
"""

import re

NAMED = ("@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly")
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_FIELDS: tuple[tuple[str, int, int, tuple[str, ...]], ...] = (
    ("minute", 0, 59, ()),
    ("hour", 0, 23, ()),
    ("day of the month", 1, 31, ()),
    ("month", 1, 12, _MONTHS),
    ("day of the week", 0, 7, _DAYS),
)
_LONGEST = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)  # days of each month
_PART = re.compile(r"(?:(?P<first>\w+)(?:-(?P<last>\w+))?|(?P<any>\*))(?:/(?P<step>\d+))?")


def check_cron(text: str) -> str:
    """The expression, if it is one.

    Raises:
        ValueError: it is none, or names a day that does not exist; says which field is wrong.
    """
    if text.lower() in NAMED:
        return text
    fields = text.split()
    if len(fields) != len(_FIELDS):
        raise ValueError(f"expected a cron expression of {len(_FIELDS)} fields such as '0 3 * * *'")
    values = [_values(field, *form) for field, form in zip(fields, _FIELDS, strict=True)]
    days, months = values[2], values[3]
    if fields[4] == "*" and all(day > _LONGEST[month - 1] for day in days for month in months):
        raise ValueError(
            f"expected a day that exists, got day {min(days)} of month {min(months)}, in the cron expression"
        )
    return text


def _values(field: str, name: str, low: int, high: int, names: tuple[str, ...]) -> set[int]:
    """The numbers that a field stands for."""
    found = set[int]()
    for part in field.split(","):
        match = _PART.fullmatch(part)
        numbers = [] if match is None else [_number(match[key], low, names) for key in ("first", "last") if match[key]]
        step = int(match["step"]) if match and match["step"] else 1
        if match is None or None in numbers or step < 1 or step > high:
            raise ValueError(f"expected {low} to {high} as the {name} of the cron expression, got {part!r}")
        first, last = (low, high) if match["any"] else (numbers[0], numbers[-1])
        if match["step"] and len(numbers) == 1:
            last = high
        assert first is not None
        assert last is not None
        if not low <= first <= last <= high:
            raise ValueError(f"expected {low} to {high} as the {name} of the cron expression, got {part!r}")
        found |= set(range(first, last + 1, step))
    return found


def _number(text: str, low: int, names: tuple[str, ...]) -> int | None:
    if text.isascii() and text.isdecimal():
        return int(text)
    return names.index(text.lower()) + low if text.lower() in names else None
