"""`safegene data ...` as a new user types it, from a csv of 200 prompts to sets that `safegene validate` takes."""

import csv
import json
import math
import re
import shlex
from pathlib import Path

import jsonschema
import pytest

from safegene.datasets.division import SplitOptions
from safegene.datasets.prompts import Prompt, read_prompts
from safegene.datasets.set_rules import RULES, row_schema
from safegene.gate.decision import level_share
from safegene.workspace.layout import Workspace
from safegene.workspace.manifest import read_manifest
from tests.factories.commands import call
from tests.factories.own_data import write_prompts, write_task

ROOT = Path(__file__).parents[2]


def chain() -> list[list[str]]:
    """The commands of the walk, as docs/data.md prints them."""
    text = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    block = text.split("<!-- walk -->")[1].split("```console\n")[1].split("```")[0]
    return [shlex.split(line.removeprefix("$ safegene ")) for line in block.splitlines()]


def data_rows(path: Path) -> int:
    with path.open(encoding="utf-8", newline="") as file:
        return sum(1 for _ in csv.reader(file)) - 1


def test_from_a_csv_of_200_prompts_to_sets_that_hold(tmp_path: Path) -> None:
    """The walk of docs/data.md: at most 300 rows come from a person, and every stage has its sets."""
    call(tmp_path, "init", "ws")
    ws = Workspace(tmp_path / "ws")
    for path in (*ws.prompts.glob("*.jsonl"), *ws.tasks.glob("*.jsonl")):
        path.unlink()
    files = [write_prompts(ws.root / "prompts.csv"), write_task(ws.root / "support.csv")]
    assert sum(map(data_rows, files)) <= 300
    shown = [call(ws.root, *command) for command in chain()]
    assert chain()[-1] == ["validate"]
    assert "next: safegene validate" in shown[-2].stdout
    assert "hrr_direct: a pass needs about 75, the sets hold 52 (harmful)" in shown[-2].stdout
    assert "about 23 more harmful prompts in the gate's set (hrr_direct, asr_wrapped, hrr_cap)" in shown[-2].stdout
    assert "more wrapped prompts" not in shown[-2].stdout, "they follow from the harmful ones"
    assert "about 36 harmful, 102 lookalike, 165 task rows more by" in shown[-2].stdout
    assert shown[-2].stdout.count("a pass needs about") == call(ws.root, "plan").stdout.count("a pass needs about")
    assert read_manifest(ws.validation).facts["sets"] == 5
    for name, path in {**dict.fromkeys(("degrade", "safety", "pool", "gate"), ws.prompts), "task": ws.tasks}.items():
        file = path / f"{'support' if name == 'task' else name}.jsonl"
        for row in read_prompts(file).rows:
            jsonschema.validate(row.model_dump(), row_schema(name))
    receipt = json.loads((ws.validation / "receipt.json").read_bytes())["sets"]
    assert receipt["gate"]["parts"] == {"harmful/test": 52, "wrapped/test": 52, "lookalike/test": 56}
    mine = (ws.prompts / "gate.jsonl").read_bytes() + b"\n"
    (ws.prompts / "gate.jsonl").write_bytes(mine)
    refused = call(ws.root, "data", "split", "--seed", "1", code=2).error
    assert refused is not None
    assert "--replace" in refused.remedy
    assert (ws.prompts / "gate.jsonl").read_bytes() == mine
    call(ws.root, "data", "split", "--seed", "1", "--replace")  # the remedy helps
    assert (ws.prompts / "gate.jsonl").read_bytes() != mine


def test_the_page_says_how_many_rows_can_give_a_pass() -> None:
    from safegene.gate.endpoints import MeasuredError
    from safegene.gate.further import units_for_pass
    from safegene.gate.types import ConfusionCounts
    from safegene.workspace.params import GateParams

    page = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    few, many = (
        [[int(number) for number in re.findall(r"\d+", cell)] for cell in line.split("|")[1:5]]
        for line in page.splitlines()
        if re.match(r"\| \d+ \|", line)
    )
    policy, options = GateParams(), SplitOptions()
    alpha = policy.alpha * level_share(1)
    counts = ConfusionCounts(95, 100, 95, 100)
    error = MeasuredError(counts.sensitivity(alpha / 4), counts.specificity(alpha / 4), sample_share=0.5)
    assert "right on 95 of 100" in page
    needed = [
        units_for_pass("hrr_direct", policy, alpha, error),
        units_for_pass("over_refusal", policy, alpha, error),
        units_for_pass("utility", policy, alpha),
    ]
    assert all(gate >= (need or math.inf) for gate, need in zip(many[3], needed, strict=True))
    assert not any(gate >= (need or 0) for gate, need in zip(few[3], needed, strict=True))
    rest = 1 - options.fit - options.validation - options.pool
    parts = (rest - options.degrade, rest, rest + options.pool)
    assert [round(part * count[0]) for part, count in zip(parts, many, strict=False)] == many[3]


def test_the_schema_is_the_models_and_holds_for_every_shipped_row() -> None:
    printed = json.loads(call(ROOT, "data", "schema").stdout)
    assert printed == {**Prompt.model_json_schema(), "$schema": printed["$schema"]}
    for path in sorted((ROOT / "data").glob("*/*.jsonl")):
        name = "task" if path.parent.name == "tasks" else path.stem
        validator = jsonschema.Draft202012Validator(row_schema(name))
        lines = path.read_text(encoding="utf-8").splitlines()
        assert not [error for line in lines[::20] for error in validator.iter_errors(json.loads(line))], path
        row = json.loads(lines[0])
        for wrong in ({"kind": "attack"}, {"split": "train"}, {"more": 1}, {RULES[name].filled[-1]: ""}):
            assert list(validator.iter_errors({**row, **wrong})), wrong


def test_a_schema_of_no_set_is_refused() -> None:
    error = call(ROOT, "data", "schema", "x", code=2).error
    assert "expected a set of degrade, safety, pool, gate, task, got 'x'" in str(error)


REFUSED: dict[str, tuple[list[str], str]] = {
    "no file": (["data", "add", "none.csv"], "none.csv"),
    "no suite": (["data", "split", "nothing"], "nothing"),
    "no suites": (["data", "split"], "expected at least one suite"),
    "no map": (["data", "add", "a.csv"], "expected a column for the prompt"),
    "a name that is none": (["data", "add", "a.csv", "--name", "A B"], "'A B'"),
    "a map that is none": (["data", "add", "a.csv", "--map", "prompt"], "--map FIELD=COLUMN"),
    "a licence that is none": (
        ["data", "add", "a.csv", "--map", "prompt=q", "--kind", "harmful", "--licence", "?"],
        "licence",
    ),
    "no wrappers": (["data", "split", "--wrap", "none.jsonl"], "none.jsonl"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_given_wrongly_is_one_sentence_with_a_remedy(tmp_path: Path, name: str) -> None:
    command, words = REFUSED[name]
    for file in ("params.yaml", "dvc.yaml"):
        (tmp_path / file).write_bytes((ROOT / file).read_bytes())
    (tmp_path / "a.csv").write_text("q\nhow ?\n")
    error = call(tmp_path, *command, code=(1, 2)).error
    assert error is not None
    assert words in error.message
    assert {"expected", "got"} <= set(error.message.split())
    assert error.remedy
    assert not (tmp_path / "data").exists()
