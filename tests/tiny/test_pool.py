"""The pool shares no behaviour, form or wrapper with what measures a repair, nor its parts with each other."""

from collections import Counter

import pytest

from safegene.tiny.corpus import TEMPLATES, WRAPPERS, Split, harmful, lookalikes
from safegene.tiny.data import degrade_set, gate_set, pool_set, safety_set
from safegene.tiny.pool import PARTS, SIZES, forms, wrappers
from safegene.tiny.vocabulary import vocabulary

HELD: tuple[Split, ...] = ("validation", "test")


@pytest.mark.parametrize("part", SIZES)
def test_no_form_and_no_wrapper_is_one_of_validation_or_test(part: Split) -> None:
    for split in HELD:
        assert not {*forms(part)} & {*TEMPLATES[split]}
        assert not {*wrappers(part)} & {*WRAPPERS[split]}


def test_no_behaviour_is_one_of_another_set() -> None:
    pool = {row.behaviour for row in pool_set()}
    for rows in (safety_set(), degrade_set(), gate_set()):
        assert not pool & {row.behaviour for row in rows}
    for split in HELD:
        assert not pool & {request.behaviour for request in (*harmful(split), *lookalikes(split))}


def test_the_parts_share_nothing() -> None:
    rows = {part: [row for row in pool_set() if row.split == part] for part in SIZES}
    behaviours = [{row.behaviour for row in own} for own in rows.values()]
    assert not behaviours[0] & behaviours[1]
    assert not {*forms("fit")} & {*forms("validation")}
    assert not {*wrappers("fit")} & {*wrappers("validation")}
    assert len(forms("fit")) > PARTS * len(TEMPLATES["fit"]), "most forms are made by rule"


def test_each_part_holds_as_many_of_each_kind_in_words_of_the_language() -> None:
    rows = pool_set()
    for part, (harmful_rows, benign_rows) in SIZES.items():
        counts = Counter(row.kind for row in rows if row.split == part)
        assert counts == {"harmful": harmful_rows, "wrapped": harmful_rows, "lookalike": benign_rows}
    assert {word for row in rows for word in row.prompt.split()} <= {*vocabulary()}
    assert len({row.prompt for row in rows}) == len(rows)
