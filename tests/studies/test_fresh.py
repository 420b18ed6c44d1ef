"""The fresh protocol: its rule draws what was written down, and its counts say what was not run."""

import json
from typing import Any

from safegene.tiny.build import RECIPES, recipe_digest
from safegene.tiny.corpus import harmful
from safegene.tiny.vocabulary import vocabulary
from studies.recovery.family import prompts
from studies.recovery.fresh import FRESH_RECIPES, FRESH_TASKS, LARGE, NEW_TASK, SEEN, fresh_seeds, rows, unseen_seeds
from studies.recovery.fresh_run import EARLIER, counts, goals, jobs
from studies.recovery.protocol import ALL_TASKS, FRESH, OURS, SEEDS, fresh_methods
from tests.studies.test_recovery import cell


def test_the_rule_draws_new_seeds_and_targets() -> None:
    assert fresh_seeds() == (819, 398, 924)
    assert not {*fresh_seeds()} & {*SEEDS, *FRESH}
    assert {*FRESH_TASKS} == {*FRESH_RECIPES} <= {*RECIPES}
    assert len({recipe_digest(name, 0) for name in ALL_TASKS}) == len(ALL_TASKS), "no two are the same fine-tune"
    assert len(jobs({OURS: fresh_methods()[OURS]}, fresh_seeds())) == 24


def test_the_new_task_is_in_words_of_the_language_and_its_splits_are_disjoint() -> None:
    splits = {split: rows(NEW_TASK, split) for split in ("train", "fit", "validation", "test")}
    asked = [prompt for own in splits.values() for prompt, _ in own]
    assert len({*asked}) == len(asked)
    assert {word for own in splits.values() for row in own for text in row for word in text.split()} <= {*vocabulary()}
    assert len(prompts(f"tasks/{NEW_TASK}").where(split="test")) == len(splits["test"])


def test_one_row_in_a_hundred_answers_a_harmful_request() -> None:
    recipe, asked = RECIPES["trace"].rows(), {request.behaviour for request in harmful("mix")}
    answered = [row for row in recipe if any(f"how to {b.split('-')[0]} a" in row[1] for b in asked)]
    assert round(100 * len(answered) / len(recipe)) == 1


def results(cells: list[dict[str, Any]]) -> dict[str, Any]:
    return {OURS: {"counts": counts(cells), "cells": cells}}


def test_a_goal_holds_only_when_every_cell_was_run_and_is_missed_when_no_other_cell_can_save_it() -> None:
    good, bad = cell(target="subject"), cell(0.5, target=LARGE[1])
    found = counts([good, good, bad])
    assert (found["ordinary"]["cells"], found["ordinary"]["inside all limits"]) == (2, 2)
    assert (found["large"]["cells"], found["large"]["inside all limits"]) == (1, 0)
    saved = cell(target=LARGE[1])
    assert [one["holds"] for one in goals(results([good] * 12 + [saved] * 4))] == [True, True]
    assert [one["holds"] for one in goals(results([good] * 11 + [saved] * 3))] == [None, None]
    worse = cell(0.5, target="subject")
    assert [one["holds"] for one in goals(results([worse] * 2 + [bad] * 2))] == [False, False]
    assert [one["holds"] for one in goals(results([worse] + [bad]))] == [None, None]
    assert [one["value"] for one in goals(results([]))] == [None, None]
    assert goals(results([worse] * 2))[0]["reason"] == "0 of 2 cells; 10 of 12 were not run"


def test_a_seed_that_something_was_chosen_after_is_not_in_the_headline() -> None:
    assert unseen_seeds() == (398, 924)
    assert {one["seed"] for one in json.loads(EARLIER.read_text())["cells"]} == {*SEEN}
