from pathlib import Path
from typing import Any

import pytest

from safegene.errors import ParamsError
from safegene.pipeline.runner import run_stage
from safegene.pipeline.table import PIPELINE, Stage, pipeline_of, stage_named
from safegene.workspace.layout import Workspace
from safegene.workspace.params import Params, load_params, load_targets
from safegene.workspace.plain_yaml import load_yaml

ROOT = Path(__file__).parents[2]
WORKSPACE = Workspace(ROOT)
TRACKED = [stage for stage in pipeline_of(load_params(ROOT / "params.yaml")) if stage.tracked]
DVC = load_yaml(ROOT / "dvc.yaml")


def in_dvc(path: str) -> str:
    return path.replace("{target}", "${key}").replace("{task}", "${item.task}")


def params_of(entry: dict[str, Any]) -> list[str]:
    flat = []
    for item in entry.get("params", []):
        flat += [f"{file}:{key}" for file, keys in item.items() for key in keys] if isinstance(item, dict) else [item]
    return flat


def views_of(entry: dict[str, Any], kind: str) -> list[str]:
    views = entry.get(kind, [])
    assert all(options["cache"] is False for view in views for options in view.values())
    return [path for view in views for path in view]


def test_dvc_runs_the_stages_of_the_table_in_its_order() -> None:
    assert list(DVC["stages"]) == [stage.name for stage in TRACKED]


@pytest.mark.parametrize("stage", TRACKED, ids=lambda s: s.name)
def test_dvc_entry_equals_the_table(stage: Stage) -> None:
    entry = DVC["stages"][stage.name]
    if stage.per_target:
        assert entry["foreach"] == "${targets}"
        entry = entry["do"]
    assert entry["cmd"] == f"exec safegene {stage.name}" + (" ${key}" if stage.per_target else "")
    assert entry.get("deps", []) == [in_dvc(path) for path in stage.inputs]
    assert entry["outs"] == [in_dvc(stage.output)]
    assert params_of(entry) == [in_dvc(key) for key in stage.params]
    assert views_of(entry, "metrics") == [in_dvc(place) for place, _ in stage.metrics]
    assert views_of(entry, "plots") == [in_dvc(place) for place, _ in stage.plots]


def test_outputs_lie_where_the_workspace_says() -> None:
    ws = WORKSPACE
    named = {
        "validate": ws.validation,
        "fetch": ws.aligned,
        "degrade": ws.degraded,
        "extract": ws.delta,
        "compress": ws.vector,
        "select": ws.selection,
        "fetch-target": ws.checkpoint("{target}"),
        "calibrate": ws.candidate("{target}"),
        "evaluate": ws.judgements("{target}"),
        "gate": ws.verdict("{target}"),
    }
    assert {stage.name: ws.root / stage.output for stage in TRACKED} == named


def test_every_parameter_section_is_some_stages_or_the_flows() -> None:
    sections = {field.alias or name for name, field in Params.model_fields.items()}
    read = {key.split(".")[0] for stage in PIPELINE for key in stage.params if ":" not in key}
    assert sections - read == {"watch", "flow", "notify", "record"}


def test_every_input_is_an_output_before_or_data_of_people() -> None:
    made: set[str] = set()
    for stage in PIPELINE:
        for path in stage.inputs:
            own = path.startswith(("data/prompts", "data/tasks", "data/judges")) or path.endswith("incumbent.json")
            assert own or any(path == out or path.startswith(out + "/") for out in made), (stage.name, path)
        made |= {stage.output, *stage.others}


def runs_after(changed: str, task: str = "own") -> set[str]:
    """The stages that ``dvc.yaml`` runs when one file of a person changes, for a target of that task."""
    paths, ran = {changed}, set[str]()
    for name, entry in DVC["stages"].items():
        entry = entry.get("do", entry)
        reads = [dep.replace("${item.task}", task) for dep in entry.get("deps", [])]
        if any(
            path == dep or path.startswith(dep + "/") or dep.startswith(path + "/") for path in paths for dep in reads
        ):
            ran.add(name)
            paths |= (
                {*entry["outs"]} if name != "validate" else {f"data/validation/receipts/{receipt_of(changed)}.json"}
            )
    return ran


def receipt_of(path: str) -> str:
    """The set whose receipt changes with the file; tests/pipeline/stages/test_validate.py shows that no other does."""
    return f"task-{Path(path).stem}" if path.startswith("data/tasks") else Path(path).stem


FAMILY = {"validate", "extract", "compress", "select", "calibrate", "evaluate", "gate"}


@pytest.mark.parametrize(
    ("changed", "stages"),
    [
        ("data/tasks/new.jsonl", {"validate"}),
        ("data/tasks/own.jsonl", {"validate", "calibrate", "evaluate", "gate"}),
        ("data/prompts/gate.jsonl", {"validate", "evaluate", "gate"}),
        ("data/prompts/degrade.jsonl", FAMILY | {"degrade"}),
        ("data/prompts/safety.jsonl", FAMILY | {"degrade"}),
        ("data/judges/mine.json", {"evaluate", "gate"}),
        ("data/suites/mine/data.jsonl", set()),
    ],
)
def test_a_changed_set_runs_only_what_reads_it(changed: str, stages: set[str]) -> None:
    assert runs_after(changed) == stages


def test_the_template_is_valid() -> None:
    load_params(ROOT / "params.yaml")
    assert load_targets(ROOT / "data" / "targets.yaml").targets == {}


def test_unknown_stage_and_target_are_refused_by_name() -> None:
    with pytest.raises(ParamsError, match="'nothing'"):
        stage_named("nothing")
    with pytest.raises(ParamsError, match="'nobody'"):
        run_stage(stage_named("gate"), WORKSPACE, "nobody")
    with pytest.raises(ParamsError, match="no target"):
        run_stage(stage_named("select"), WORKSPACE, "nobody")
