"""A target gets its safety back; what needs no repair, or cannot be repaired, keeps coefficients of 0 and says so."""

import csv
import json
import shutil

import pytest
import torch

from safegene.errors import CheckpointError, EmptySample, StaleArtifact
from safegene.fit import applied, make_shots, measure
from safegene.linalg import LowRank
from safegene.manifest import read_manifest, write_artefact
from safegene.params import CalibrateParams, CompressParams
from safegene.stages.calibrate import calibrate, selected, solve
from safegene.stages.compress import compress
from safegene.tensors.adapter import open_adapter
from safegene.tensors.models import add_patch, load_model
from safegene.tiny.build import build
from safegene.vector import read_vector
from tests.llamas import random_patch, save_llama
from tests.made import DATA, few, files, made, payload
from tests.test_fit import rows

FEW = CalibrateParams(safety_shots=48, benign_shots=32, task_shots=16, steps=16, batch_size=32, measure_every=8)


def run(name: str, out, params=FEW, **changed):
    ws = made()
    inputs = {
        "vector": ws.vector,
        "selection": ws.selection,
        "aligned": ws.aligned,
        "target": ws.target(name),
        "prompts": DATA / "prompts",
        "task": DATA / "tasks" / "group.jsonl",
    }
    return calibrate(params, **inputs | changed, out=out)


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    """The candidate of the target with 3% harmful rows."""
    out = tmp_path_factory.mktemp("group") / "candidate"
    run("group", out)
    return out


def test_the_target_comes_back_to_the_aligned_model_and_keeps_its_task(group):
    found = payload(group, "coefficients.json")
    assert found["repaired"]
    assert found["reason"] == ""
    assert found["before"]["changed"]["safety"] > 0.9
    assert found["after"]["loss"]["safety"] < 0.2 * found["before"]["loss"]["safety"]
    assert found["after"]["changed"]["task"] == 0.0
    assert found["after"]["changed"]["benign"] <= 0.1


def test_the_adapter_is_the_coefficients_times_the_vector(group):
    coefficients = payload(group, "coefficients.json")["coefficients"]
    vector, adapter = read_vector(made().vector), open_adapter(group).patch()
    assert adapter.keys() == vector.factors.keys()
    for name, one in applied(vector.factors, coefficients).items():
        torch.testing.assert_close(adapter[name].dense(), one.dense(), rtol=1e-4, atol=1e-7)
    config = json.loads((group / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tiny://group?seed=0", "for a full target it loads on the target"


def test_what_is_added_is_stated(group):
    found, vector = payload(group, "coefficients.json"), read_vector(made().vector)
    parameters = payload(made().target("group"), "checkpoint.json")["parameters"]
    assert found["extra_params"] == pytest.approx(vector.numel() / parameters)
    assert found["trained"] == sum(one.rank for one in vector.factors.values())
    assert read_manifest(group).facts["extra_params"] == found["extra_params"]
    table = list(csv.DictReader((group / "coefficients.csv").read_text().splitlines()))
    assert len(table) == found["trained"]
    for row in table:
        assert float(row["alpha"]) == found["coefficients"][row["matrix"]][int(row["direction"])]
    for name, own in found["coefficients"].items():
        assert found["alphas"][name] == pytest.approx(sum(own) / len(own))


def test_shots_come_from_their_splits_and_are_named(group):
    found = payload(group, "coefficients.json")["shots"]
    kept = {}
    for path in (DATA / "prompts" / "safety.jsonl", DATA / "tasks" / "group.jsonl"):
        kept |= {row["id"]: row["split"] for row in map(json.loads, path.read_text().splitlines())}
    for split in ("fit", "validation"):
        assert found[split]
        assert {kept[one] for one in found[split]} == {split}
    assert len(found["fit"]) == 96


def test_the_same_inputs_give_the_same_bytes(group, tmp_path):
    run("group", tmp_path / "again")
    one, two = files(group), files(tmp_path / "again")
    names = {"coefficients.json", "coefficients.csv", "adapter_model.safetensors", "adapter_config.json"}
    assert {name: one[name] for name in names} == {name: two[name] for name in names}


def test_the_adapter_of_a_lora_target_holds_its_own_lora_and_loads_on_the_base(tmp_path):
    params = FEW.model_copy(update={"steps": 8, "granularity": "matrix"})
    run("topic", tmp_path / "c", params, task=DATA / "tasks" / "topic.jsonl")
    found = payload(tmp_path / "c", "coefficients.json")
    assert found["trained"] == 28
    whole, own = open_adapter(tmp_path / "c").patch(), open_adapter(build("topic", 0)).patch()
    repair = applied(read_vector(made().vector).factors, found["coefficients"])
    for name, one in whole.items():
        torch.testing.assert_close(one.dense(), own[name].dense() + repair[name].dense(), rtol=1e-4, atol=1e-6)
    config = json.loads((tmp_path / "c" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tiny://aligned?seed=0"


def test_a_target_that_answers_like_the_aligned_model_is_left_alone(tmp_path):
    manifest = run("aligned", tmp_path / "c", target=made().aligned)
    found = payload(tmp_path / "c", "coefficients.json")
    assert not found["repaired"]
    assert "as the aligned model does" in found["reason"]
    assert set(found["alphas"].values()) == {0.0}
    assert found["extra_params"] == 0.0
    assert manifest.facts["repaired"] is False
    model = load_model(build("aligned", 0))
    before = {name: value.clone() for name, value in model.named_parameters()}
    add_patch(model, open_adapter(tmp_path / "c").patch())
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())


def test_coefficients_that_help_nothing_are_not_used(tmp_path):
    """The vector points nowhere: whatever was fitted is worse than the target as it is."""
    root = save_llama(tmp_path / "llama")
    aligned, patch = load_model(root, patch=random_patch(root, seed=8, size=0.2)), random_patch(root, size=0.5)
    shots = [
        *make_shots(aligned, rows(12, 1), kind="safety", response_tokens=4),
        *make_shots(load_model(root), rows(12, 2), kind="benign", response_tokens=4),
    ]
    params = CalibrateParams(task_weight=0.0, steps=2, learning_rate=1e-6, measure_every=1)
    outcome = solve(params, load_model(root), patch, {"fit": shots, "validation": shots})
    assert not outcome.repaired
    assert "no coefficients" in outcome.reason
    assert outcome.after == outcome.before
    weights = {"safety": 1.0, "benign": 1.0}
    with_patch = measure(load_model(root, patch=patch), shots).objective(weights)
    assert with_patch > outcome.before.objective(weights)


def test_only_the_layers_kept_are_used(tmp_path):
    with write_artefact(tmp_path / "s", stage="select", params={}, inputs={}) as draft:
        (draft.path / "selection.json").write_text('{"kept":[1,3],"scores":{}}')
    found = selected(read_vector(made().vector), tmp_path / "s")
    assert len(found) == 14
    assert {name.split(".")[2] for name in found} == {"1", "3"}


def test_a_selection_of_nothing_is_refused(tmp_path):
    with write_artefact(tmp_path / "s", stage="select", params={}, inputs={}) as draft:
        (draft.path / "selection.json").write_text('{"kept":[],"scores":{}}')
    with pytest.raises(CheckpointError, match="got none"):
        run("group", tmp_path / "c", selection=tmp_path / "s")


def test_a_vector_of_another_aligned_model_is_stale(tmp_path):
    delta = tmp_path / "delta"
    facts = payload(made().delta, "delta.json") | {"aligned": "sha256:" + "0" * 64}
    with write_artefact(delta, stage="extract", params={}, inputs={}) as draft:
        shutil.copy(made().delta / "delta.safetensors", draft.path)
        (draft.path / "delta.json").write_text(json.dumps(facts))
    compress(CompressParams(), delta=delta, out=tmp_path / "vector")
    with pytest.raises(StaleArtifact, match="another|got one of"):
        run("group", tmp_path / "c", vector=tmp_path / "vector")


def test_prompts_without_a_validation_split_are_refused(tmp_path):
    prompts = few(tmp_path / "prompts", "safety.jsonl", keep=lambda row: row["split"] == "fit")
    with pytest.raises(EmptySample, match="validation"):
        run("group", tmp_path / "c", prompts=prompts)
    assert not (tmp_path / "c").exists()


def test_a_repair_of_nothing_at_all_is_no_patch():
    one = LowRank(torch.ones(3, 1), torch.ones(1, 2))
    assert float(applied({"a": one}, {"a": (0.0,)})["a"].dense().abs().max()) == 0.0
