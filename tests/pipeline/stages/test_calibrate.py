"""A target gets its safety back; what needs no repair, or cannot be repaired, is left as it is, and says so."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from safegene.checkpoints.adapter import open_adapter
from safegene.checkpoints.checkpoint import layer_of
from safegene.errors import CheckpointError, EmptySample, ParamsError, StaleArtifact
from safegene.models.loading import load_model
from safegene.models.patching import add_patch
from safegene.pipeline.stages.compress import compress
from safegene.repair.coefficients import (
    Core,
    allocate_ranks,
    fold_coefficients,
    new_coefficients,
    scalar_groups,
    top_directions,
)
from safegene.repair.divergence import measure_shots
from safegene.repair.selection import selected_matrices
from safegene.repair.shots import make_shots
from safegene.repair.target import fit_target
from safegene.report.files import CoefficientsView
from safegene.report.state import TargetState
from safegene.tiny.build import build
from safegene.vectors.vector import read_vector
from safegene.workspace.manifest import read_manifest, write_artefact
from safegene.workspace.params import CalibrateParams
from safegene.workspace.parsing import parse_json
from tests.factories.artefacts import DATA, FEW, LEAST, few, files, made, parameters, payload, run_calibrate
from tests.factories.llamas import random_patch, save_llama
from tests.factories.shots import random_replies

SCALARS: dict[str, Any] = {"granularity": "direction", "learning_rate": 0.1, "max_extra": 0.05}


def rebuilt(found: dict[str, Any], params: CalibrateParams = FEW, name: str = "group") -> Core:
    """The core that `coefficients.json` writes out, between the vector's factors."""
    factors = selected_matrices(read_vector(made().vector), made().selection)
    kept = allocate_ranks(factors, params.max_extra * parameters(name))
    core, written = Core(factors, kept, params.start), found["coefficients"]
    assert written.keys() == kept.keys()
    with torch.no_grad():
        halves = [written[matrix][half] for half in ("left", "right") for matrix in kept]
        for value, own in zip(core.parameters, halves, strict=True):
            value.copy_(torch.tensor(own))
    return core


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The candidate of the target with 3% harmful rows."""
    out = tmp_path_factory.mktemp("group") / "candidate"
    run_calibrate("group", out)
    return out


@pytest.fixture(scope="module")
def by_direction(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same target, repaired by the paper's scalars."""
    out = tmp_path_factory.mktemp("direction") / "candidate"
    run_calibrate("group", out, FEW.model_copy(update=SCALARS))
    return out


@pytest.mark.parametrize(("how", "left"), [("group", 0.2), ("by_direction", 0.5)])
def test_the_target_comes_back_to_the_aligned_model_and_keeps_its_task(
    how: str, left: float, request: pytest.FixtureRequest
) -> None:
    found = payload(request.getfixturevalue(how), "coefficients.json")
    assert found["method"] == "safegene"
    assert found["repaired"]
    assert found["reason"] == ""
    assert found["before"]["changed"]["safety"] > 0.9
    assert found["after"]["loss"]["safety"] < left * found["before"]["loss"]["safety"]
    assert found["after"]["changed"]["task"] == 0.0
    assert found["after"]["changed"]["benign"] <= 0.1


def test_the_adapter_is_the_core_between_the_vectors_factors(group: Path) -> None:
    core, adapter = rebuilt(payload(group, "coefficients.json")), open_adapter(group).patch()
    assert adapter.keys() == core.patch().keys()
    for name, one in core.patch().items():
        torch.testing.assert_close(adapter[name].dense(), one.dense(), rtol=1e-5, atol=1e-8)
    config = json.loads((group / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tiny://group?seed=0", "for a full target it loads on the target"


def test_the_adapter_is_the_coefficients_times_the_vector(by_direction: Path) -> None:
    coefficients = payload(by_direction, "coefficients.json")["coefficients"]
    factors, adapter = (
        selected_matrices(read_vector(made().vector), made().selection),
        open_adapter(by_direction).patch(),
    )
    assert adapter.keys() == factors.keys()
    for name, one in fold_coefficients(top_directions(factors), coefficients).items():
        torch.testing.assert_close(adapter[name].dense(), one.dense(), rtol=1e-4, atol=1e-7)


def test_what_is_added_is_stated_and_within_the_limit(group: Path) -> None:
    found, adapter = payload(group, "coefficients.json"), open_adapter(group).patch()
    numbers = read_manifest(group).facts["extra_parameters"]
    assert numbers <= sum(one.numel() for one in adapter.values()), "zeros pad the adapter to one rank"
    assert found["extra_params"] == pytest.approx(numbers / parameters("group"))
    assert 0.9 * FEW.max_extra < found["extra_params"] <= FEW.max_extra
    written = found["coefficients"].values()
    assert found["trained"] == sum(len(row) for own in written for half in own.values() for row in half)
    facts = read_manifest(group).facts
    assert [facts[key] for key in ("extra_params", "trained", "repaired")] == [
        found["extra_params"],
        found["trained"],
        True,
    ]
    assert facts["extra_parameters"] == numbers


def test_the_table_and_the_pictures_hold_the_sizes(group: Path) -> None:
    found = payload(group, "coefficients.json")
    sizes = rebuilt(found).direction_sizes()
    table = list(csv.DictReader((group / "coefficients.csv").read_text().splitlines()))
    assert len(table) == sum(map(len, sizes.values()))
    for row in table:
        assert float(row["alpha"]) == pytest.approx(sizes[row["matrix"]][int(row["direction"])], rel=1e-5, abs=1e-8)
        assert int(row["layer"]) == layer_of(row["matrix"])
    assert found["alphas"] == pytest.approx(rebuilt(found).alphas(), rel=1e-4, abs=1e-6)


def test_the_table_of_scalars_holds_the_scalars(by_direction: Path) -> None:
    found = payload(by_direction, "coefficients.json")
    table = list(csv.DictReader((by_direction / "coefficients.csv").read_text().splitlines()))
    assert (
        len(table)
        == found["trained"]
        == sum(one.rank for one in selected_matrices(read_vector(made().vector), made().selection).values())
    )
    for row in table:
        assert float(row["alpha"]) == found["coefficients"][row["matrix"]][int(row["direction"])]


def test_shots_come_from_their_splits_and_are_named(group: Path) -> None:
    found = payload(group, "coefficients.json")["shots"]
    kept = dict[str, str]()
    for path in (DATA / "prompts" / "safety.jsonl", DATA / "tasks" / "group.jsonl"):
        kept |= {row["id"]: row["split"] for row in map(json.loads, path.read_text().splitlines())}
    for split in ("fit", "validation"):
        assert found[split]
        assert {kept[one] for one in found[split]} == {split}
    assert len(found["fit"]) == 96


def test_the_same_inputs_give_the_same_bytes(group: Path, tmp_path: Path) -> None:
    run_calibrate("group", tmp_path / "again")
    one, two = files(group), files(tmp_path / "again")
    names = {"coefficients.json", "coefficients.csv", "adapter_model.safetensors", "adapter_config.json"}
    assert {name: one[name] for name in names} == {name: two[name] for name in names}


def test_the_adapter_of_a_lora_target_holds_its_own_lora_and_loads_on_the_base(tmp_path: Path) -> None:
    params = FEW.model_copy(update={"steps": 8})
    run_calibrate("topic", tmp_path / "c", params, task=DATA / "tasks" / "topic.jsonl")
    found = payload(tmp_path / "c", "coefficients.json")
    whole, own = open_adapter(tmp_path / "c").patch(), open_adapter(build("topic", 0)).patch()
    repair = rebuilt(found, params, "topic").patch()
    for name, one in whole.items():
        expected = own[name].dense() + (repair[name].dense() if name in repair else 0.0)
        torch.testing.assert_close(one.dense(), expected, rtol=1e-4, atol=1e-6)
    assert found["extra_params"] <= params.max_extra, "of the repair alone"
    config = json.loads((tmp_path / "c" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tiny://aligned?seed=0"


def test_a_target_that_answers_like_the_aligned_model_is_left_alone(tmp_path: Path) -> None:
    manifest = run_calibrate("aligned", tmp_path / "c", target=made().aligned)
    found = payload(tmp_path / "c", "coefficients.json")
    assert not found["repaired"]
    assert "as the aligned model does" in found["reason"]
    assert found["coefficients"] == {}
    assert (found["extra_params"], found["trained"], found["steps"]) == (0.0, 0, 0)
    assert manifest.facts["repaired"] is False
    model = load_model(build("aligned", 0))
    before = {name: value.clone() for name, value in model.named_parameters()}
    add_patch(model, open_adapter(tmp_path / "c").patch())
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())


def test_a_target_left_alone_is_called_unrepaired_by_reports(tmp_path: Path) -> None:
    run_calibrate("aligned", tmp_path / "c", LEAST, target=made().aligned)
    found = payload(tmp_path / "c", "coefficients.json")
    assert found["repaired"] is False
    content = (tmp_path / "c" / "coefficients.json").read_bytes()
    coefficients = parse_json(CoefficientsView, content, where="coefficients.json")
    assert TargetState("aligned", "", "", {}, coefficients).unrepaired


def test_a_fit_that_runs_away_keeps_its_start(tmp_path: Path) -> None:
    wild = LEAST.model_copy(update={"learning_rate": 1e30})
    run_calibrate("group", tmp_path / "c", wild)
    found = payload(tmp_path / "c", "coefficients.json")
    assert (found["repaired"], found["steps"]) == (True, 0)


def test_a_fit_that_led_away_only_is_repeated_with_a_lower_learning_rate(tmp_path: Path) -> None:
    run_calibrate("group", tmp_path / "c", LEAST.model_copy(update={"learning_rate": 6.0}))
    found = payload(tmp_path / "c", "coefficients.json")
    assert found["facts"]["learning_rate"] == pytest.approx(0.6)
    assert (found["repaired"], found["steps"]) == (True, 1)
    assert found["after"]["loss"]["safety"] < found["before"]["loss"]["safety"] / 2


def test_coefficients_that_help_nothing_are_not_used(tmp_path: Path) -> None:
    """The vector points nowhere: whatever was fitted is worse than the target as it is."""
    root = save_llama(tmp_path / "llama")
    aligned, patch = load_model(root, patch=random_patch(root, seed=8, size=0.2)), random_patch(root, size=0.5)
    shots = [
        *make_shots(aligned, random_replies(12, 1), kind="safety", response_tokens=4),
        *make_shots(load_model(root), random_replies(12, 2), kind="benign", response_tokens=4),
    ]
    params = CalibrateParams(task_weight=0.0, steps=2, learning_rate=1e-6, measure_every=1)
    outcome = fit_target(params, load_model(root), 1e9, patch, {"fit": shots, "validation": shots})
    assert outcome.fitted is None
    assert "no coefficients" in outcome.reason
    assert outcome.after == outcome.before
    weights = {"safety": 1.0, "benign": 1.0}
    with_patch = measure_shots(load_model(root, patch=patch), shots).weighted_objective(weights)
    assert with_patch > outcome.before.weighted_objective(weights)


def test_only_the_layers_kept_are_used(tmp_path: Path) -> None:
    with write_artefact(tmp_path / "s", stage="select", params={}, inputs={}) as draft:
        (draft.path / "selection.json").write_text('{"kept":[1,3],"scores":{}}')
    found = selected_matrices(read_vector(made().vector), tmp_path / "s")
    assert len(found) == 14
    assert {name.split(".")[2] for name in found} == {"1", "3"}


def test_a_selection_of_nothing_is_refused(tmp_path: Path) -> None:
    with write_artefact(tmp_path / "s", stage="select", params={}, inputs={}) as draft:
        (draft.path / "selection.json").write_text('{"kept":[],"scores":{}}')
    with pytest.raises(CheckpointError, match="got none"):
        run_calibrate("group", tmp_path / "c", selection=tmp_path / "s")


def test_a_vector_of_another_aligned_model_is_stale(tmp_path: Path) -> None:
    delta = tmp_path / "delta"
    facts = payload(made().delta, "delta.json") | {"aligned": "sha256:" + "0" * 64}
    with write_artefact(delta, stage="extract", params={}, inputs={}) as draft:
        shutil.copy(made().delta / "delta.safetensors", draft.path)
        (draft.path / "delta.json").write_text(json.dumps(facts))
    compress(delta=delta, out=tmp_path / "vector")
    with pytest.raises(StaleArtifact, match="another|got one of"):
        run_calibrate("group", tmp_path / "c", vector=tmp_path / "vector")


def test_prompts_without_a_validation_split_are_refused(tmp_path: Path) -> None:
    prompts = few(tmp_path / "prompts", "safety.jsonl", keep=lambda row: row["split"] == "fit")
    with pytest.raises(EmptySample, match="validation"):
        run_calibrate("group", tmp_path / "c", prompts=prompts)
    assert not (tmp_path / "c").exists()


def test_too_little_for_any_matrix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match="256 numbers, got 88"):
        run_calibrate("group", tmp_path / "c", LEAST.model_copy(update={"max_extra": 1e-4}))
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("numbers", [1e9, 4000, 1300, 700])
@pytest.mark.parametrize("granularity", ["core", "direction", "matrix", "layer", "global"])
def test_every_granularity_fits_the_numbers_allowed(tmp_path: Path, granularity: str, numbers: float) -> None:
    """96 x 64 matrices and their like: six of 160 numbers a column."""
    patch = {n: o for n, o in random_patch(save_llama(tmp_path), ranks=(4,)).items() if "mlp" in n}
    found = new_coefficients(CalibrateParams.model_validate({"granularity": granularity, "start": 0.5}), patch, numbers)
    ranks = allocate_ranks(patch, numbers)
    assert (
        sorted(ranks.values())
        == {
            1e9: [4] * 6,
            4000: [4] * 6,
            1300: [1, 1, 1, 1, 2, 2],
            700: [1] * 4,
        }[numbers]
    )
    assert sum(one.numel() for one in found.patch().values()) <= numbers
    assert found.patch().keys() == ranks.keys()
    for name, one in top_directions(patch, ranks).items():
        torch.testing.assert_close(found.patch()[name].dense(), 0.5 * one.dense(), rtol=1e-4, atol=1e-6)
    if granularity != "core":
        group = scalar_groups(top_directions(patch, ranks), granularity)
        assert sum(one.numel() for one in found.parameters) == len({at for own in group.values() for at in own})
