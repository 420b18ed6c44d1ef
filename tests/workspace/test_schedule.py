"""Cron expressions: what is accepted is accepted by Prefect, and has a next date."""

import random
from datetime import datetime
from importlib import import_module
from typing import Any

import pytest

from safegene.workspace.schedule import check_cron

RANGES = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))


@pytest.mark.parametrize(
    "text",
    ["* * * * *", "*/5 * * * *", "0 3 * * mon", "0 0 29 2 *", "5/10 1-5 1,15 jan-mar 0-7/2", "@daily", "0 0 31 * *"],
)
def test_ordinary_expressions_are_accepted(text: str) -> None:
    assert check_cron(text) == text


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("0 99 * * *", "hour"),
        ("60 * * * *", "minute"),
        ("0 0 0 * *", "day of the month"),
        ("0 0 * 13 *", "month"),
        ("0 0 * * 8", "day of the week"),
        ("0 0 31 2 *", "day 31 of month 2"),
        ("0 0 31 4,6 *", "exists"),
        ("*/0 * * * *", "minute"),
        ("5-1 * * * *", "minute"),
        ("\u0663 * * * *", "minute"),
        ("0 3 * *", "5 fields"),
        ("@reboot", "5 fields"),
        ("", "5 fields"),
    ],
)
def test_others_are_refused_by_the_field_that_is_wrong(text: str, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        check_cron(text)


def test_what_is_accepted_prefect_can_schedule() -> None:
    croniter: Any = import_module("prefect._vendor.croniter").croniter
    draw, accepted = random.Random(0), 0
    for _ in range(300):
        fields = []
        for low, high in RANGES:
            first, last = draw.randint(low, high), draw.randint(low, high + 1)
            forms = ("*", str(last), f"{first}-{last}", f"*/{draw.randint(0, high)}", f"{first},{last}")
            fields.append(draw.choice(forms))
        text = " ".join(fields)
        try:
            check_cron(text)
        except ValueError:
            continue
        accepted += 1
        assert croniter.is_valid(text), text
        assert croniter(text, datetime(2026, 1, 1)).get_next(), text
    assert accepted > 50
