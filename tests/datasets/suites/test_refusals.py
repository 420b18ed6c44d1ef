"""What the shelf refuses to take, or to give to a gate; each refusal leaves everything as it was."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from safegene.datasets.adding import SuiteRequest, add_suite
from safegene.datasets.library import check_suites, fitted_prompts, suite_names, use_suites
from safegene.datasets.prompts import read_prompts
from safegene.datasets.suites import LoadOptions
from safegene.errors import ContaminatedSample, EmptySample, FormatError, ParamsError, SourceError
from safegene.pipeline.stages.validate import validate
from safegene.workspace.digest import canonical_json
from safegene.workspace.layout import Workspace
from tests.factories.library import GOALS, OURS, advbench, change_rows, request, workspace


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    return workspace(tmp_path)


def strongreject(ws: Workspace, name: str, *rows: tuple[str, str]) -> SuiteRequest:
    """A request for a suite of StrongREJECT's shape: (category, prompt)."""
    path = ws.root / f"{name}.csv"
    path.write_text("category,source,forbidden_prompt\n" + "".join(f'"{kind}",ours,"{text}"\n' for kind, text in rows))
    return SuiteRequest(name, str(path), "strongreject", "MIT", OURS)


# Adding.


@pytest.mark.parametrize(
    "origin", ["https://user:canary@host/x", "https://host/x?token=canary", "s3://b/x?X-Amz-Signature=canary"]
)
def test_an_origin_with_a_secret_never_gets_into_a_card(ws: Workspace, origin: str) -> None:
    with pytest.raises(ParamsError, match=r"expected --from without secrets") as refused:
        add_suite(ws, request(ws, origin=origin))
    assert "canary" not in refused.value.message + refused.value.remedy
    assert suite_names(ws) == []


@pytest.mark.parametrize("field", ["licence", "origin", "version"])
@pytest.mark.parametrize("value", ["", "x" * 1001, "1\n2", "unknown"], ids=["nothing", "long", "two lines", "unknown"])
def test_what_a_card_cannot_say_is_refused(ws: Workspace, field: str, value: str) -> None:
    with pytest.raises(ParamsError, match=f"expected the suite's {'source' if field == 'origin' else field}"):
        add_suite(ws, request(ws, **{field: value}))
    assert suite_names(ws) == []


def test_a_category_without_end_is_refused(ws: Workspace) -> None:
    add_suite(ws, strongreject(ws, "fine", ("c" * 200, "do thing a")))
    with pytest.raises(FormatError, match=r"a category of at most 200 characters, got 201, in long\.csv, line 2"):
        add_suite(ws, strongreject(ws, "long", ("c" * 201, "do thing a")))


def test_an_option_that_means_nothing_for_the_set_is_refused(ws: Workspace) -> None:
    with pytest.raises(ParamsError, match=r"expected categories of the set \(advbench\), got 'advbnech'"):
        add_suite(ws, request(ws, options=LoadOptions(without=("advbnech",))))
    with pytest.raises(ParamsError, match=r"expected no languages for advbench, got zh"):
        add_suite(ws, request(ws, options=LoadOptions(languages=("zh",))))
    assert suite_names(ws) == []


def test_leaving_out_every_category_leaves_no_suite(ws: Workspace) -> None:
    with pytest.raises(EmptySample, match=r"got none \(4 left out: category advbench\)"):
        add_suite(ws, request(ws, options=LoadOptions(without=("advbench",))))
    assert suite_names(ws) == []


def test_an_origin_is_for_files_of_this_machine_only(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    from safegene.checkpoints.sources.files import PlainFile
    from safegene.datasets import adding

    found = PlainFile("a.csv", advbench(), "s3://bucket/a.csv")
    monkeypatch.setattr(adding, "read_file", lambda *_: found)
    with pytest.raises(ParamsError, match="expected --from for files on this machine only, got it for s3://bucket"):
        add_suite(ws, request(ws))


def test_a_card_names_every_file_that_it_was_made_from_and_all_that_was_asked(ws: Workspace) -> None:
    tree = {"One": {"Part": list(GOALS)}, "Two": {"Part": ["leave me out", "and me"]}}
    other = {"One": {"Part": [f"zh {goal}" for goal in GOALS]}, "Two": {"Part": ["zh out", "zh me"]}}
    (ws.root / "en.json").write_text(json.dumps(tree))
    (ws.root / "zh.json").write_text(json.dumps(other))
    (ws.root / "t.jsonl").write_text('{"id": "s", "text": "story: {prompt}"}\n{"id": "p", "text": "play: {prompt}"}\n')
    asked = SuiteRequest(
        "ours",
        str(ws.root / "en.json"),
        "catqa",
        "Apache-2.0",
        OURS,
        version="of May",
        options=LoadOptions(split="validation", without=("Two",)),
        templates=str(ws.root / "t.jsonl"),
        per_behaviour=2,
        translations={"zh": str(ws.root / "zh.json")},
    )
    card = add_suite(ws, asked).card
    assert set(card.files) == {"en.json", "zh.json", "t.jsonl"}
    assert (card.version, card.licence, card.source) == ("of May", "Apache-2.0", OURS)
    assert card.options == {"split": "validation", "languages": (), "without": ("Two",)}
    assert [(one.kind, one.said, one.made) for one in card.transforms] == [
        ("translate", "zh", 4),
        ("wrap", "2 per behaviour", 8),
    ]
    assert card.rows == {"harmful": 4, "wrapped": 12}
    assert card.left_out == {"category Two": 2, "no direct row of that id": 2}


# Contamination.


def fit_on(ws: Workspace, **changes: Any) -> None:
    """A row more in what is fitted on."""
    path = ws.prompts / "safety.jsonl"
    known = next(row for row in read_prompts(path).rows if row.kind == "harmful")
    more = known.model_copy(update={"id": "more", "behaviour": "more", "prompt": "something else"} | changes)
    path.write_bytes(path.read_bytes() + canonical_json(more.model_dump()) + b"\n")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"prompt": GOALS[1].upper() + "?"}, "the same text in advbench-1 = more"),
        ({"behaviour": "advbench-2"}, "the same behaviour in advbench-2 ~ more"),
        ({"prompt": f"well , {GOALS[3]} , now"}, r"more than 0\.5 of the 8-grams in advbench-3 \(6 of 6\)"),
    ],
    ids=["text", "behaviour", "n-grams"],
)
def test_contamination_is_refused_with_rows_rule_and_set(ws: Workspace, changes: dict[str, Any], why: str) -> None:
    add_suite(ws, request(ws))
    check_suites(ws, ["ours"])
    fit_on(ws, **changes)
    before = (ws.prompts / "gate.jsonl").read_bytes()
    for refused in (lambda: check_suites(ws, []), lambda: use_suites(ws, ["ours"])):
        with pytest.raises(ContaminatedSample, match=rf"{why}, in .*ours and .*safety\.jsonl"):
            refused()
    assert (ws.prompts / "gate.jsonl").read_bytes() == before


def set_first_prompt(prompt: str, rows: list[dict[str, Any]]) -> None:
    rows[0]["prompt"] = prompt


def test_task_rows_meet_only_as_whole_texts_and_only_what_is_fitted_on(ws: Workspace) -> None:
    task = ws.tasks / "topic.jsonl"
    rows = read_prompts(task).rows
    seen, unseen = (next(row for row in rows if (row.split == "test") == tested) for tested in (False, True))
    ask = "Name the banking intent:"
    for name, row in (("unseen", unseen), ("seen", seen)):
        (ws.root / f"{name}.csv").write_text("text,category\nwhere is my card,card_arrival\n")
        add_suite(ws, SuiteRequest(name, str(ws.root / f"{name}.csv"), "banking77", "CC-BY-4.0", OURS))
        change_rows(ws.suites / name, partial(set_first_prompt, row.prompt))
    assert ask not in unseen.prompt
    check_suites(ws, ["unseen"])
    with pytest.raises(ContaminatedSample, match=rf"the same text in banking77-0 = {seen.id}"):
        check_suites(ws, ["seen"])


def test_what_is_fitted_on_is_everything_but_the_gate_and_the_tests(ws: Workspace) -> None:
    found = {path.name: rows for path, rows in fitted_prompts(ws).items()}
    assert "gate.jsonl" not in found
    assert {"safety.jsonl", "degrade.jsonl", "topic.jsonl"} <= set(found)
    assert all(row.split != "test" for name, rows in found.items() if name == "topic.jsonl" for row in rows)


# The gate.


def test_a_suite_named_twice_is_refused(ws: Workspace) -> None:
    add_suite(ws, request(ws))
    with pytest.raises(ParamsError, match="expected every suite once, got ours twice"):
        use_suites(ws, ["ours", "ours"])


def test_one_id_for_two_rows_is_refused(ws: Workspace) -> None:
    add_suite(ws, request(ws))
    add_suite(ws, request(ws, "more", ["another question of ours altogether"]))
    with pytest.raises(FormatError, match=r"expected every id in one suite, got \['advbench-0'\] again in more"):
        use_suites(ws, ["ours", "more"])


def test_prompts_of_signs_only_are_not_taken_for_the_same_words(ws: Workspace) -> None:
    add_suite(ws, request(ws, goals=["\U0001f600", *GOALS]))
    add_suite(ws, strongreject(ws, "signs", ("c", "\U0001f602"), ("c", "\U0001f600")))
    assert use_suites(ws, ["ours", "signs"]).left_out == {"ours": 0, "signs": 1}


def test_a_behaviour_asked_in_the_same_words_goes_with_its_wrapped_rows(ws: Workspace) -> None:
    (ws.root / "t.jsonl").write_text('{"id": "s", "text": "story: {prompt}"}\n')
    add_suite(ws, request(ws))
    again = strongreject(ws, "again", ("c", GOALS[0].title() + " !"), ("c", "another thing"))
    add_suite(ws, SuiteRequest(**{**vars(again), "templates": str(ws.root / "t.jsonl")}))
    used = use_suites(ws, ["ours", "again"])
    assert used.left_out == {"ours": 0, "again": 2}
    assert [row.id for row in used.rows[-2:]] == ["strongreject-1", "strongreject-1--s"]
    assert read_prompts(used.path).rows == used.rows
    backwards = use_suites(ws, ["again", "ours"])
    assert backwards.left_out == {"again": 0, "ours": 1}
    assert [row.id for row in backwards.rows[:2]] == ["strongreject-0", "strongreject-1"]
    pins = json.loads((ws.suites / "gate.json").read_bytes())
    assert pins["left_out"] == backwards.left_out
    assert pins["gate"] == read_prompts(backwards.path).digest


def test_only_test_rows_are_asked(ws: Workspace) -> None:
    add_suite(ws, request(ws, options=LoadOptions(split="validation")))
    before = (ws.prompts / "gate.jsonl").read_bytes()
    with pytest.raises(EmptySample, match="split test"):
        use_suites(ws, ["ours"])
    assert (ws.prompts / "gate.jsonl").read_bytes() == before


def test_a_gate_made_of_suites_passes_the_stage_that_validates(ws: Workspace, tmp_path: Path) -> None:
    goals = [f"tell me how thing {at} of the old house could be moved without anyone" for at in range(40)]
    (ws.root / "t.jsonl").write_text('{"id": "s", "text": "story: {prompt}"}\n')
    add_suite(ws, request(ws, goals=goals, templates=str(ws.root / "t.jsonl")))
    rows = "".join(f"{at},how do i end thing number {at} of mine,homonyms,safe,end,\n" for at in range(40))
    (ws.root / "x.csv").write_text("id,prompt,type,label,focus,note\n" + rows)
    add_suite(ws, SuiteRequest("safe", str(ws.root / "x.csv"), "xstest", "CC-BY-4.0", OURS))
    used = use_suites(ws, ["ours", "safe"])
    kinds = {kind: sum(row.kind == kind for row in used.rows) for kind in ("harmful", "wrapped", "lookalike")}
    assert kinds == {"harmful": 40, "wrapped": 40, "lookalike": 40}
    validate(prompts=ws.prompts, tasks=ws.tasks, out=tmp_path / "validation", params=ws.params.validate_)
    receipt = json.loads((tmp_path / "validation" / "receipt.json").read_bytes())
    assert receipt["sets"]["gate"]["digest"] == read_prompts(used.path).digest


@pytest.mark.parametrize("name", ["", "A", "a b", "../a", ".a", "-a", "a" * 64, "a/b", "é"])
def test_a_name_that_is_none_is_refused_everywhere(ws: Workspace, name: str) -> None:
    asked = SuiteRequest(name, str(ws.root / "ours.csv"), "advbench", "MIT", OURS)
    for refused in (lambda: add_suite(ws, asked), lambda: use_suites(ws, [name]), lambda: check_suites(ws, [name])):
        with pytest.raises(ParamsError, match="expected a name of lower-case letters"):
            refused()


def test_a_source_whose_name_is_too_long_is_refused(ws: Workspace) -> None:
    with pytest.raises(SourceError, match="expected a file"):
        add_suite(ws, request(ws, source="x" * 5000))
