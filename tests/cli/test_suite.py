"""``safegene suite add|formats|list|validate|use``, as a person runs them."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from safegene.datasets.adding import add_suite
from safegene.datasets.suites import SUITE_FORMATS, read_suite
from safegene.workspace.digest import digest_bytes, digest_file
from safegene.workspace.layout import Workspace
from tests.factories.commands import run
from tests.factories.hub import HubStandIn
from tests.factories.library import OURS, advbench, change_card, change_rows, request, workspace

MIT = ("--format", "advbench", "--licence", "MIT")


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    (tmp_path / "goals.csv").write_bytes(advbench())
    return workspace(tmp_path)


@pytest.fixture
def hub() -> Iterator[HubStandIn]:
    stand_in = HubStandIn()
    yield stand_in
    stand_in.stop()


def listed(ws: Workspace, code: int = 0) -> tuple[dict[str, dict[str, object]], dict[str, str]]:
    """What ``list --json`` says: suites by name, and those that do not hold."""
    said = json.loads(run(ws.root, "suite", "list", "--json", code=code).stdout)
    return {one["name"]: one for one in said["suites"]}, said["broken"]


def test_a_set_is_added_with_everything_that_a_person_says_of_it(ws: Workspace) -> None:
    (ws.root / "zh.csv").write_bytes(advbench([f"zh thing {at}" for at in range(4)]))
    (ws.root / "t.jsonl").write_text('{"id": "s", "text": "story: {prompt}"}\n{"id": "p", "text": "play: {prompt}"}\n')
    more = ("--from", OURS, "--version", "of May", "--split", "validation", "--wrap", "t.jsonl", "--per-behaviour", "2")
    pin = ("--sha256", digest_bytes(advbench()), "--translation", "zh=zh.csv")
    done = run(ws.root, "suite", "add", "ours", "goals.csv", *MIT, *more, *pin)
    assert f"ours: 4 harmful, 12 wrapped, MIT, from {OURS}" in done.stdout
    card = read_suite(ws.suites / "ours").card
    assert (card.version, card.options["split"], card.rows) == ("of May", "validation", {"harmful": 4, "wrapped": 12})
    assert set(card.files) == {"goals.csv", "zh.csv", "t.jsonl"}


def test_a_folder_holds_the_file_under_its_published_name(ws: Workspace) -> None:
    (ws.root / "set").mkdir()
    (ws.root / "set" / "harmful_behaviors.csv").write_bytes(advbench())
    (ws.root / "set" / "README.md").write_text("not this")
    run(ws.root, "suite", "add", "ours", "set", *MIT, "--from", OURS)
    assert set(read_suite(ws.suites / "ours").card.files) == {"harmful_behaviors.csv"}


def test_what_is_left_out_is_said_with_its_reason(ws: Workspace) -> None:
    (ws.root / "goals.csv").write_bytes(advbench(["do thing a", "Do thing A", "x" * 9000]))
    (ws.root / "t.csv").write_text("id,text\n0,story: [INSERT PROMPT HERE]\n1,nothing here\n")
    done = run(ws.root, "suite", "add", "ours", "goals.csv", *MIT, "--from", OURS, "--wrap", "t.csv")
    for words in (
        "left out 1: more than 8000 characters",
        "left out 1: the same text as an earlier row",
        "wrap, left out 1: no place for the prompt",
    ):
        assert words in done.stdout


def test_a_data_set_of_the_hub_is_added_by_its_address(ws: Workspace, hub: HubStandIn) -> None:
    commit = hub.publish("datasets/org/goals", {"harmful_behaviors.csv": advbench()})
    place = "hf://datasets/org/goals/harmful_behaviors.csv"
    run(ws.root, "suite", "add", "ours", place, *MIT, HF_ENDPOINT=hub.endpoint)
    card = read_suite(ws.suites / "ours").card
    assert (card.source, card.revision) == (place, f"commit:{commit}")


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        (("goals.csv", "--format", "advbench", "--from", OURS), 2, "the authors of advbench state: MIT"),
        (("goals.csv", *MIT), 2, "say where the file comes from"),
        (("goals.csv", *MIT, "--from", OURS, "--split", "train"), 2, "expected a split of fit, validation, test"),
        (("goals.csv", *MIT, "--from", OURS, "--translation", "zh"), 2, "expected LANGUAGE=FILE"),
        (("goals.csv", *MIT, "--from", OURS, "--translation", "=x"), 2, "expected LANGUAGE=FILE"),
        (
            ("goals.csv", *MIT, "--from", OURS, "--translation", "a=x", "--translation", "a=y"),
            2,
            "each language once",
        ),
        (
            ("goals.csv", *MIT, "--from", OURS, "--per-behaviour", "0", "--wrap", "t.csv"),
            2,
            "expected 1 to 1 templates",
        ),
        (("goals.csv", *MIT, "--from", OURS, "--without", "advbnech"), 2, "expected categories of the set"),
        (("goals.csv", *MIT, "--from", OURS, "--language", "zh"), 2, "expected no languages for advbench"),
        (("goals.csv", *MIT, "--from", OURS, "--sha256", "sha256:00"), 1, "DigestMismatch"),
        (("goals.csv", *MIT[:3], "unknown", "--from", OURS), 2, "expected the suite's licence"),
        (("t.csv", *MIT, "--from", OURS), 1, "expected the columns goal, target"),
        (("absent.csv", *MIT, "--from", OURS), 1, "expected a file, got none at absent.csv"),
        (("s3://a:canary@b/c.csv", *MIT), 1, "without secrets"),
        (("goals.csv", "--licence", "MIT", "--from", OURS, "--format", "mine"), 2, ", ".join(SUITE_FORMATS)),
    ],
)
def test_what_cannot_be_added_is_said_in_one_sentence_and_nothing_is_left(
    ws: Workspace, command: tuple[str, ...], code: int, words: str
) -> None:
    (ws.root / "t.csv").write_text("id,text\n0,story: {goal}\n")
    done = run(ws.root, "suite", "add", "ours", *command, code=code)
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert "canary" not in done.stderr + done.stdout
    assert not ws.suites.exists() or list(ws.suites.iterdir()) == []


def test_formats_lists_every_format_with_its_licence(ws: Workspace) -> None:
    shown = run(ws.root, "suite", "formats").stdout
    assert all(name in shown and SUITE_FORMATS[name].licence[:12] in shown for name in SUITE_FORMATS)


def test_list_verifies_every_suite_and_exits_1_when_one_does_not_hold(ws: Workspace) -> None:
    assert "no suites; add one with `safegene suite add`" in run(ws.root, "suite", "list").stdout
    assert listed(ws) == ({}, {})
    one, two = add_suite(ws, request(ws, "one")), add_suite(ws, request(ws, "two", licence="[red]mine[/]"))
    (ws.suites / "notes.txt").write_text("a file is no suite")
    found, broken = listed(ws)
    assert (list(found), broken) == (["one", "two"], {})
    assert found["one"] == {
        "name": "one",
        "digest": one.digest,
        "rows": {"harmful": 4},
        "licence": "MIT",
        "source": OURS,
    }
    shown = run(ws.root, "suite", "list").stdout
    assert two.digest[:19] in shown
    assert "[red]mine[/]" in shown
    change_card(one.folder, lambda card: card.update(rows={"harmful": 5}))
    (ws.suites / "three").mkdir()
    (ws.suites / "Four").mkdir()
    found, broken = listed(ws, code=1)
    assert (list(found), sorted(broken)) == (["two"], ["Four", "one", "three"])
    shown = run(ws.root, "suite", "list", code=1).stdout
    assert "broken one: expected rows per kind {'harmful': 5}, got {'harmful': 4}" in shown


def test_a_shelf_of_broken_suites_only_is_not_called_empty(ws: Workspace) -> None:
    (ws.suites / "one").mkdir(parents=True)
    shown = run(ws.root, "suite", "list", code=1).stdout
    assert "broken one: expected a suite with suite.json and data.jsonl" in shown
    assert "no suites" not in shown


def test_validate_holds_all_suites_or_those_named(ws: Workspace) -> None:
    assert "at least one suite" in run(ws.root, "suite", "validate", code=1).stderr
    one, two = add_suite(ws, request(ws, "one")), add_suite(ws, request(ws, "two"))
    shown = run(ws.root, "suite", "validate").stdout
    for suite in (one, two):
        rules = len(suite.card.expectations)
        name = suite.card.name
        assert f"{name}: 4 harmful, {rules} expectations hold, unseen in fitting, {suite.digest}" in shown
    change_rows(two.folder, lambda rows: rows[0].update(prompt=rows[1]["prompt"]))
    refused = run(ws.root, "suite", "validate", code=1)
    assert "lines 1, 2 ('advbench-0'): expected every `prompt` once" in refused.stderr
    assert "two: " not in run(ws.root, "suite", "validate", "one").stdout
    assert "no such" in run(ws.root, "suite", "validate", "three", code=1).stderr


def test_use_writes_the_gate_and_says_what_comes_next(ws: Workspace) -> None:
    add_suite(ws, request(ws, "one"))
    (ws.root / "sr.csv").write_text(
        "category,source,forbidden_prompt\n" + f"a,b,{read_first(ws)} !\na,b,another thing\n"
    )
    strong = ("--format", "strongreject", "--licence", "MIT", "--from", OURS)
    run(ws.root, "suite", "add", "two", "sr.csv", *strong)
    done = run(ws.root, "suite", "use", "one", "two")
    assert "gate.jsonl: 5 prompts" in done.stdout
    assert "two: left out 1, asked in the same words by an earlier suite" in done.stdout
    assert "next: safegene validate" in done.stdout
    pins = json.loads((ws.suites / "gate.json").read_bytes())
    assert pins["gate"] == digest_file(ws.prompts / "gate.jsonl")
    assert pins["suites"] == {name: read_suite(ws.suites / name).digest for name in ("one", "two")}
    assert listed(ws)[1] == {}, "the pins beside the suites are no suite"


def read_first(ws: Workspace) -> str:
    return read_suite(ws.suites / "one").prompts.rows[0].prompt


@pytest.mark.parametrize("names", [(), ("absent",), ("one", "one"), ("bank",)], ids=repr)
def test_a_gate_that_cannot_be_is_not_written(ws: Workspace, names: tuple[str, ...]) -> None:
    add_suite(ws, request(ws, "one"))
    (ws.root / "bank.csv").write_text("text,category\nwhere is it,card_arrival\n")
    bank = ("--format", "banking77", "--licence", "CC-BY-4.0", "--from", OURS)
    run(ws.root, "suite", "add", "bank", "bank.csv", *bank)
    before = digest_file(ws.prompts / "gate.jsonl")
    done = run(ws.root, "suite", "use", *names, code=(1, 2))
    assert "Traceback" not in done.stderr
    assert digest_file(ws.prompts / "gate.jsonl") == before
    assert not (ws.suites / "gate.json").exists()


def test_a_gate_set_written_by_hand_is_kept_unless_asked(ws: Workspace) -> None:
    add_suite(ws, request(ws, "one"))
    gate = ws.prompts / "gate.jsonl"
    run(ws.root, "suite", "use", "one")
    run(ws.root, "suite", "use", "one")  # what a command wrote may be written again
    mine = gate.read_bytes() + b"\n"
    gate.write_bytes(mine)
    refused = run(ws.root, "suite", "use", "one", code=2)
    assert "got one that somebody wrote or changed by hand" in refused.stderr
    assert "--replace" in refused.stderr
    assert gate.read_bytes() == mine
    run(ws.root, "suite", "use", "one", "--replace")
    assert gate.read_bytes() != mine
