"""Wrappers: which templates a behaviour gets is decided by digests, and what a template does to a prompt is exact."""

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safegene.datasets.prompts import Kind, Prompt
from safegene.datasets.suites import LoadOptions, collect_rows
from safegene.datasets.suites.loading import SkippedRow
from safegene.datasets.suites.wrappers import (
    PLACEHOLDERS,
    Template,
    Templates,
    flatten_turns,
    parse_template,
    read_templates,
    translate,
    wrap,
)
from safegene.errors import EmptySample, FormatError, ParamsError, SafegeneError


def base(at: int, text: str = "", kind: Kind = "harmful") -> Prompt:
    said = text or f"do thing {at}"
    return Prompt(id=f"b{at}", prompt=said, kind=kind, category="c", behaviour=f"b{at}", split="test")


def pool(*names: str) -> Templates:
    return Templates(tuple(Template(name, f"{name} before ", f" after {name}") for name in names), {})


def chosen(rows: list[Prompt], names: list[str], per_behaviour: int) -> dict[str, set[str]]:
    """Behaviour -> the templates that it got."""
    found: dict[str, set[str]] = {row.behaviour: set() for row in rows}
    for row in wrap(rows, pool(*names), per_behaviour, LoadOptions())[0]:
        assert isinstance(row, Prompt)
        found[row.behaviour].add(row.id.partition("--")[2])
    return found


ROWS = [base(at) for at in range(12)]
NAMES = st.lists(st.from_regex(r"[a-z0-9]{1,6}", fullmatch=True), min_size=2, max_size=8, unique=True)


@given(NAMES, st.data())
def test_law_a_template_more_moves_only_the_behaviours_that_it_takes_over(
    names: list[str], data: st.DataObject
) -> None:
    count = data.draw(st.integers(1, len(names) - 1))
    before, after = chosen(ROWS, names[:-1], count), chosen(ROWS, names, count)
    for behaviour, got in after.items():
        taken = got - before[behaviour]
        assert taken <= {names[-1]}
        assert len(before[behaviour] - got) == len(taken)
        assert len(got) == count


@given(st.permutations(["s", "t", "u", "v"]), st.permutations(ROWS))
def test_law_the_order_of_templates_and_rows_decides_nothing(names: list[str], rows: list[Prompt]) -> None:
    assert chosen(rows, names, 2) == chosen(ROWS, ["s", "t", "u", "v"], 2)


def test_two_templates_a_behaviour_are_the_one_and_another() -> None:
    one, two, every = (chosen(ROWS, ["s", "t", "u"], count) for count in (1, 2, 3))
    assert all(one[behaviour] < two[behaviour] < every[behaviour] for behaviour in one)
    assert set.union(*one.values()) == {"s", "t", "u"}, "no template is left for nobody"


def test_templates_are_spread_evenly() -> None:
    rows = [base(at) for at in range(1000)]
    counts = Counter(name for got in chosen(rows, ["s", "t", "u", "v"], 1).values() for name in got)
    assert max(abs(count - 250) for count in counts.values()) < 60


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="{}[]\0"), max_size=20)


@given(st.sampled_from(PLACEHOLDERS), TEXT, TEXT, st.text(max_size=40))
def test_law_a_filled_template_is_what_stands_before_the_prompt_and_after(
    place: str, before: str, after: str, prompt: str
) -> None:
    if not (before + after).strip():
        with pytest.raises(FormatError, match="nothing around the prompt"):
            parse_template("n", before + place + after, "f")
        return
    made = parse_template("n", before + place + after, "f")
    assert made.fill(prompt) == before + prompt + after
    assert made.length == len(before) + len(after)


@pytest.mark.parametrize("place", PLACEHOLDERS)
@pytest.mark.parametrize("other", PLACEHOLDERS)
def test_two_places_are_one_too_many(place: str, other: str) -> None:
    with pytest.raises(FormatError, match=r"one of .* once, got several places for the prompt, in f"):
        parse_template("n", f"say {place} and {other}", "f")


def test_a_prompt_that_holds_a_place_is_not_filled_again() -> None:
    made, _ = wrap([base(0, "what does {prompt} or {} mean")], pool("s"), 1, LoadOptions())
    assert [row.prompt for row in made if isinstance(row, Prompt)] == ["s before what does {prompt} or {} mean after s"]


def test_a_wrapped_row_keeps_behaviour_category_and_split() -> None:
    (row,) = wrap([base(3)], pool("s"), 1, LoadOptions())[0]
    assert row == base(3).model_copy(update={"id": "b3--s", "kind": "wrapped", "prompt": "s before do thing 3 after s"})


def test_only_direct_harmful_rows_are_wrapped() -> None:
    rows = [base(0), base(1, kind="lookalike"), base(2, kind="wrapped"), base(3, kind="task")]
    assert set(chosen(rows[:1], ["s"], 1)) == {"b0"}
    made, _ = wrap(rows, pool("s"), 1, LoadOptions())
    assert [row.id for row in made if isinstance(row, Prompt)] == ["b0--s"]
    with pytest.raises(EmptySample, match="expected harmful prompts to wrap, got none"):
        wrap(rows[1:], pool("s"), 1, LoadOptions())


@pytest.mark.parametrize("count", [-1, 0, 3])
def test_more_templates_than_there_are_or_none_are_refused(count: int) -> None:
    with pytest.raises(ParamsError, match=f"expected 1 to 2 templates per behaviour, got {count}"):
        wrap(ROWS, pool("s", "t"), count, LoadOptions())


def test_a_template_too_long_for_the_longest_prompt_is_left_out_for_all_and_counted() -> None:
    long = Template("long", "x" * 90, "")
    made, left = wrap(
        [base(0), base(1, "y" * 20)], Templates((*pool("s").usable, long), {}), 1, LoadOptions(longest=100)
    )
    assert {row.id for row in made if isinstance(row, Prompt)} == {"b0--s", "b1--s"}
    assert left == {"too long for prompts of at most 100 characters": 1}
    assert collect_rows(made, LoadOptions(longest=100), "f").left_out == {}
    with pytest.raises(ParamsError, match="expected 1 to 0 templates"):
        wrap([base(0)], Templates((long,), {}), 1, LoadOptions(longest=95))


# Files of templates.


def test_the_three_shapes_of_a_file_of_templates() -> None:
    own = read_templates(b'\xef\xbb\xbf{"id": "s", "text": "say {goal} now"}\r\n', "f")
    assert own.usable == (Template("s", "say ", " now"),)
    texts = ["say [INSERT PROMPT HERE] now", "no place", "{prompt} {prompt}", "say [INSERT PROMPT HERE] now", "{}"]
    listed = read_templates(json.dumps(texts).encode(), "f")
    table = "id,text\r\n" + "".join(f'{at},"{text}"\r\n' for at, text in enumerate(texts))
    assert listed == read_templates(table.encode(), "f")
    assert [(one.before, one.after) for one in listed.usable] == [("say ", " now")]
    assert listed.left_out == {
        "no place for the prompt": 1,
        "nothing around the prompt": 1,
        "several places for the prompt": 1,
        "the same template twice": 1,
    }


def test_a_collections_templates_are_named_by_their_text_not_their_place() -> None:
    one, two = (json.dumps(texts).encode() for texts in (["a {goal}", "b {goal}"], ["b {goal}", "a {goal}"]))
    assert {t.id: t for t in read_templates(one, "f").usable} == {t.id: t for t in read_templates(two, "f").usable}


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b'{"id": "a", "text": "no place"}', "no place for the prompt"),
        (b'{"id": "a", "text": "{prompt} and {prompt}"}', "several places"),
        (b'{"id": "a", "text": " {prompt} "}', "nothing around"),
        (b'{"id": "A b", "text": "x {prompt}"}', "ids of lower-case letters"),
        (b'{"id": "a", "text": "x {prompt}"}\n{"id": "a", "text": "y {prompt}"}', "each once"),
        (b'{"id": "a", "text": "x {prompt}", "turns": ["a", "b"]}', "either text or turns"),
        (b'{"id": "a", "turns": ["only {prompt}"]}', "two turns or more"),
        (b'["no place at all"]', "at least one template"),
    ],
)
def test_a_template_that_wraps_nothing_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(SafegeneError, match=why):
        read_templates(data, "t")


@pytest.mark.parametrize(
    "turns", [[], ["a {goal}"], "a {goal}", ["", "a {goal}"], [" ", "a {goal}"], [1, "a {goal}"], ["a", "b"]]
)
def test_turns_that_are_none_are_refused(turns: object) -> None:
    with pytest.raises(FormatError, match=r"in f, line 1"):
        read_templates(json.dumps({"id": "s", "turns": turns}).encode(), "f")


@given(st.lists(TEXT.filter(str.strip), min_size=2, max_size=6))
def test_law_turns_stand_in_order_each_under_its_number(turns: list[str]) -> None:
    text = flatten_turns(turns)
    at = 0
    for number, turn in enumerate(turns, start=1):
        heading = f"Turn {number} of {len(turns)}:\n{turn}"
        assert heading in text[at:]
        at = text.index(heading, at) + len(heading)
    assert at == len(text)


# Translations.


def other(at: int, text: str, category: str = "c") -> Prompt:
    return base(at, text).model_copy(update={"category": category})


def test_a_translation_is_joined_by_id_and_what_has_no_partner_is_counted() -> None:
    rows = [base(0), base(1), base(2, kind="lookalike")]
    made = translate(rows, [other(1, "zwei"), other(2, "drei"), other(9, "neun"), SkippedRow("no text")], "de", "f")
    assert made == [
        base(1).model_copy(update={"id": "b1--de", "kind": "wrapped", "prompt": "zwei"}),
        SkippedRow("no direct row of that id"),
        SkippedRow("no direct row of that id"),
        SkippedRow("no text"),
    ]


def test_a_translation_of_another_category_is_refused() -> None:
    with pytest.raises(FormatError, match=r"expected b1 of category 'c', got 'd', in f") as refused:
        translate([base(0), base(1)], [other(0, "null"), other(1, "eins", "d")], "de", "f")
    assert "row by row" in refused.value.remedy


@pytest.mark.parametrize("tag", ["", "d", "DE", "de_DE", "deutsch", "de-", "../de", "de--x", "de\n"])
def test_what_is_no_language_tag_is_refused(tag: str) -> None:
    with pytest.raises(ParamsError, match="expected a language tag"):
        translate([base(0)], [other(0, "null")], tag, "f")


@pytest.mark.parametrize("tag", ["de", "zh", "pt-BR", "zh-Hant", "gsw"])
def test_a_language_tag_is_part_of_the_id(tag: str) -> None:
    (row,) = translate([base(0)], [other(0, "null")], tag, "f")
    assert isinstance(row, Prompt)
    assert row.id == f"b0--{tag}"
