"""Progress: a bar on a terminal, few lines in a log."""

import io
import logging
from collections.abc import Iterator

import pytest

from safegene.pipeline.progress import ProgressHandler, time_left
from safegene.workspace.progress import log_progress

TOKEN = "hf_" + "a" * 34


@pytest.fixture
def log() -> Iterator[logging.Logger]:
    log = logging.Logger("safegene.test", logging.INFO)
    yield log
    for handler in log.handlers:
        handler.close()


class Clock:
    """Seconds that a test moves on."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_log_gets_a_line_of_progress_every_half_minute_and_every_other_line_at_once(log: logging.Logger) -> None:
    out, clock = io.StringIO(), Clock()
    log.addHandler(ProgressHandler(out, clock=clock))
    for step in range(101):
        clock.now = 1.0 * step
        log_progress(log, "fit, steps", step, 100, "objective 0.5")
    log.info("done with %s", "it")
    assert out.getvalue().splitlines() == [
        "       fit, steps: 30 of 100, objective 0.5, about 70 s left",
        "       fit, steps: 60 of 100, objective 0.5, about 40 s left",
        "       fit, steps: 90 of 100, objective 0.5, about 10 s left",
        "       done with it",
    ]


def test_short_loops_in_turn_do_not_hide_a_long_one(log: logging.Logger) -> None:
    out, clock = io.StringIO(), Clock()
    log.addHandler(ProgressHandler(out, clock=clock))
    for block in range(10):
        log_progress(log, "prompts asked", block * 10, 100, overall=True)
        for batch in range(4):
            clock.now += 2.0
            log_progress(log, "candidate, harmful, batches", batch, 3)
    (first, second) = out.getvalue().splitlines()
    assert first.startswith("       prompts asked: 30 of 100, about 50 s left; candidate, harmful, batches: ")
    assert second.startswith("       prompts asked: 70 of 100, about 20 s left; ")


def test_a_terminal_gets_one_line_that_is_drawn_again_and_leaves_its_cursor(
    log: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    out, clock = io.StringIO(), Clock()
    log.addHandler(ProgressHandler(out, live=True, clock=clock))
    for step in range(5):
        clock.now = 10.0 * step
        log_progress(log, "fit, steps", step, 4)
    log.info("[a line]")
    log.handlers[0].close()
    text = out.getvalue()
    assert "2/4" in text
    assert "about 20 s left" in text
    assert "[a line]" in text
    assert text.count("\n") == 2, "the bar's own line, and the line that was logged"
    assert "\x1b[?25l" not in text, "a process that is killed would leave the cursor hidden"


@pytest.mark.parametrize("live", [False, True])
def test_neither_secrets_nor_control_characters_are_shown(log: logging.Logger, live: bool) -> None:
    out, clock = io.StringIO(), Clock()
    log.addHandler(ProgressHandler(out, live=live, clock=clock))
    for step in range(2):
        clock.now = 40.0 * step
        log_progress(log, f"file \u202e{TOKEN}, MB", step, 2, f"note {TOKEN}\x07")
    assert out.getvalue()
    assert not [one for one in (TOKEN, "\u202e", "\x07") if one in out.getvalue()]


def test_a_loop_that_starts_again_has_a_new_time_left(log: logging.Logger) -> None:
    out, clock = io.StringIO(), Clock()
    log.addHandler(ProgressHandler(out, clock=clock))
    for now, done in ((0, 0), (31, 9), (62, 0), (93, 1), (124, 10)):
        clock.now = float(now)
        log_progress(log, "batches", done, 10)
    assert [line.split(", ")[1:] for line in out.getvalue().splitlines()] == [
        ["about 3 s left"],
        [],
        ["about 5 min left"],
        [],
    ]


def test_a_step_that_takes_longer_than_those_before_it_raises_the_time_left(log: logging.Logger) -> None:
    out, clock = io.StringIO(), Clock()
    log.addHandler(ProgressHandler(out, clock=clock))
    for now, done in ((0, 0), (40, 1), (75, 1), (120, 1), (200, 1), (240, 2), (300, 3), (500, 3)):
        clock.now = float(now)
        log_progress(log, "surrogates", done, 4, overall=True)
    assert [line.split(", ")[1:] for line in out.getvalue().splitlines()] == [
        ["about 2 min left"],
        ["about 85 s left"],
        ["about 2 min left"],  # the second has taken 80 s
        ["about 3 min left"],
        ["about 4 min left"],
        ["about 2 min left"],
        [],  # the last one overran: its end is not known
    ]


def test_times_are_said_in_the_unit_that_fits() -> None:
    assert [time_left(seconds) for seconds in (None, 0.2, 89, 200, 7200)] == [
        "",
        "about 1 s left",
        "about 89 s left",
        "about 3 min left",
        "about 2.0 h left",
    ]


def test_a_copy_of_the_log_names_the_level_and_is_as_short(log: logging.Logger) -> None:
    out, clock = io.StringIO(), Clock()
    log.addHandler(ProgressHandler(out, layout="%(levelname)s %(message)s", clock=clock))
    for step in range(50):
        clock.now = 1.0 * step
        log_progress(log, "fit, steps", step, 50)
    log.warning("careful")
    assert out.getvalue().splitlines() == ["INFO fit, steps: 30 of 50, about 20 s left", "WARNING careful"]
