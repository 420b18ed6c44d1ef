"""The suites of a workspace: checked against the fitted sets, and made into the gate's prompt set."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from safegene.datasets.adding import SuiteRequest, add_suite
from safegene.datasets.prompts import read_prompts
from safegene.datasets.suite_library import check_suites, fitted_prompts, read_suites, use_suites
from safegene.datasets.suites import LoadOptions, read_suite
from safegene.datasets.suites.card import CARD, DATA
from safegene.errors import ArtifactError, ContaminatedSample, EmptySample, FormatError, ParamsError
from safegene.pipeline.stages.validate import validate
from safegene.workspace.digest import canonical_json
from safegene.workspace.layout import Workspace
from tests.factories.library import GOALS, OURS, change_rows, request, strongreject, workspace


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    return workspace(tmp_path)


@pytest.mark.parametrize("name", ["", "A", "a b", "../a", ".a", "-a", "a" * 64, "a/b", "é"])
def test_a_name_that_is_none_is_refused_everywhere(ws: Workspace, name: str) -> None:
    asked = SuiteRequest(name, str(ws.root / "ours.csv"), "advbench", "MIT", OURS)
    for refused in (lambda: add_suite(ws, asked), lambda: use_suites(ws, [name]), lambda: check_suites(ws, [name])):
        with pytest.raises(ParamsError, match="expected a name of lower-case letters"):
            refused()


@pytest.mark.parametrize("name", [DATA, CARD])
def test_a_broken_suite_is_neither_checked_nor_used(ws: Workspace, name: str) -> None:
    suite = add_suite(ws, request(ws))
    (suite.folder / name).write_bytes((suite.folder / name).read_bytes()[:-9])
    for refused in (lambda: read_suites(ws, []), lambda: check_suites(ws, ["ours"]), lambda: use_suites(ws, ["ours"])):
        with pytest.raises(ArtifactError):
            refused()


def test_a_suite_that_nothing_can_be_held_against_is_not_called_clean(ws: Workspace) -> None:
    add_suite(ws, request(ws))
    assert check_suites(ws, []) == check_suites(ws, ["ours"])
    for path in (*ws.prompts.glob("*.jsonl"), *ws.tasks.glob("*.jsonl")):
        path.unlink()
    with pytest.raises(EmptySample, match="to compare the suites with"):
        check_suites(ws, ["ours"])


def test_no_suite_is_no_pass(ws: Workspace) -> None:
    with pytest.raises(EmptySample, match="at least one suite"):
        check_suites(ws, [])


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


def set_first_row(prompt: str, behaviour: str, rows: list[dict[str, Any]]) -> None:
    rows[0] |= {"prompt": prompt, "behaviour": behaviour}


def test_task_rows_meet_only_as_whole_texts_and_only_what_is_fitted_on(ws: Workspace) -> None:
    task = ws.tasks / "topic.jsonl"
    rows = read_prompts(task).rows
    seen, unseen = (next(row for row in rows if (row.split == "test") == tested) for tested in (False, True))
    seen = seen.model_copy(update={"behaviour": "topic-label"})
    task.write_bytes(b"".join(canonical_json(row.model_dump()) + b"\n" for row in (seen, unseen)))
    ask = "Name the banking intent:"
    for name, row in (("unseen", unseen), ("seen", seen)):
        (ws.root / f"{name}.csv").write_text("text,category\nwhere is my card,card_arrival\n")
        add_suite(ws, SuiteRequest(name, str(ws.root / f"{name}.csv"), "banking77", "CC-BY-4.0", OURS))
        change_rows(ws.suites / name, partial(set_first_row, row.prompt, seen.behaviour))
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
    assert pins["suites"] == {name: read_suite(ws.suites / name).digest for name in ("again", "ours")}


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


def test_rows_that_a_gate_does_not_ask_are_refused(ws: Workspace) -> None:
    (ws.root / "test.csv").write_text("text,category\nwhere is it,card_arrival\n")
    add_suite(ws, SuiteRequest("bank", str(ws.root / "test.csv"), "banking77", "CC-BY-4.0", OURS))
    before = (ws.prompts / "gate.jsonl").read_bytes()
    with pytest.raises(ParamsError, match="got \\['task'\\] in bank"):
        use_suites(ws, ["bank"])
    assert (ws.prompts / "gate.jsonl").read_bytes() == before
