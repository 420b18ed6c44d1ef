"""A rival method goes through the stage as ours does: its repair is an adapter that loads, and says what it is."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from safegene.checkpoints.adapter import open_adapter
from safegene.checkpoints.sources import local_checkpoint
from safegene.datasets.prompts import read_prompts
from safegene.models.loading import load_model
from safegene.repair.baselines.base import mean_change
from safegene.repair.divergence import measure_shots, term_weights
from safegene.repair.shots import Shots, build_shots
from safegene.repair.target import ALREADY_SAFE
from safegene.tiny.build import build
from safegene.vectors.linalg import LowRank, concat
from safegene.vectors.vector import read_surrogates, read_vector
from safegene.workspace.manifest import read_manifest, write_artefact
from safegene.workspace.params import CalibrateParams
from safegene.workspace.plugins import BASELINES
from tests.factories.artefacts import DATA, LEAST, files, made, parameters, payload, run_calibrate

QUICK: dict[str, dict[str, Any]] = {
    "resta": {},
    "safelora": {},
    "safemerge": {},
    "safedelta": {"shots": 8},
    "enchtable": {"beta": None, "betas": (0.1, 1.0)},
    "finetune": {"steps": 2, "measure_every": 1, "batch_size": 8},
    "one_shot": {"steps": 2, "measure_every": 1, "tries": 1, "trial_steps": 1},
}


def by(method: str, **changed: Any) -> CalibrateParams:
    return CalibrateParams.model_validate(
        LEAST.model_dump(exclude={"baseline"}) | {"baseline": {"method": method, **changed}}
    )


@pytest.fixture(scope="module")
def shots() -> Shots:
    """The shots that the stage makes of the target ``group``."""
    root, tuned = local_checkpoint(made().aligned).root, local_checkpoint(made().target("group"))
    tasks = read_prompts(DATA / "tasks" / "group.jsonl")
    return build_shots(LEAST, root, tuned, read_prompts(DATA / "prompts" / "safety.jsonl"), tasks)


@pytest.fixture(scope="module", params=list(QUICK))
def rival(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """(method, candidate of the target ``group``)."""
    out = tmp_path_factory.mktemp(request.param) / "candidate"
    run_calibrate("group", out, by(request.param, **QUICK[request.param]))
    return request.param, out


def test_every_method_is_tried_here() -> None:
    assert set(QUICK) == set(BASELINES)


def test_a_rivals_adapter_loads_and_is_what_was_measured(rival: tuple[str, Path], shots: Shots) -> None:
    method, out = rival
    found, before = payload(out, "coefficients.json"), load_model(build("group", 0)).state_dict()
    model = load_model(build("group", 0), adapters=(out,))
    assert any(not torch.equal(value, before[name]) for name, value in model.state_dict().items())
    now, weights = measure_shots(model, shots["validation"]), term_weights(LEAST)
    assert found["history"][1] == [1, pytest.approx(now.weighted_objective(weights), rel=0.01, abs=1e-3)]
    assert found["after"]["loss"] == pytest.approx(now.loss, rel=0.01, abs=1e-3)
    first = measure_shots(load_model(build("group", 0)), shots["validation"]).weighted_objective(weights)
    assert found["history"][0] == [0, pytest.approx(first, abs=1e-5)]
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tiny://group?seed=0"


def test_a_rival_says_what_it_is_and_chose(rival: tuple[str, Path]) -> None:
    method, out = rival
    found, manifest = payload(out, "coefficients.json"), read_manifest(out)
    assert (found["method"], found["repaired"], found["reason"]) == (method, True, "")
    assert manifest.params["baseline"]["method"] == method
    assert found["facts"], "what the method chose"
    assert found["coefficients"] == {}
    trained = {"finetune", "one_shot", "enchtable"}  # the last by its choice of beta
    assert (found["trained"] > 0) == (method in trained)
    adapter = open_adapter(out).patch()
    share = sum(one.numel() for one in adapter.values()) / parameters("group")
    assert found["extra_params"] == pytest.approx(share)
    assert manifest.facts["extra_params"] == found["extra_params"]
    assert found["alphas"] == dict.fromkeys(adapter, 1.0)


def test_a_rival_depends_on_the_surrogates(rival: tuple[str, Path], tmp_path: Path) -> None:
    method, out = rival
    digest = read_manifest(made().degraded).digest
    assert read_manifest(out).inputs["degraded"] == digest
    assert digest in (out / "README.md").read_text()


def test_ours_does_not(tmp_path: Path) -> None:
    run_calibrate("group", tmp_path / "c", LEAST, degraded=tmp_path / "nowhere")
    assert "degraded" not in read_manifest(tmp_path / "c").inputs


def test_a_rival_is_repeated_byte_for_byte(rival: tuple[str, Path], tmp_path: Path) -> None:
    method, out = rival
    run_calibrate("group", tmp_path / "again", by(method, **QUICK[method]))
    one, two = files(out), files(tmp_path / "again")
    names = {"coefficients.json", "coefficients.csv", "adapter_model.safetensors", "adapter_config.json"}
    assert {name: one[name] for name in names} == {name: two[name] for name in names}


def test_a_rival_gets_the_whole_delta_and_not_the_compressed_vector(tmp_path: Path) -> None:
    run_calibrate("group", tmp_path / "c", by("resta", gamma=1.0))
    adapter, whole = open_adapter(tmp_path / "c").patch(), mean_change(read_surrogates(made().degraded))
    assert adapter.keys() == whole.keys()
    assert sum(one.rank for one in whole.values()) > sum(
        one.rank for one in read_vector(made().vector).factors.values()
    )
    for name, one in whole.items():
        torch.testing.assert_close(adapter[name].dense(), one.dense(), rtol=1e-4, atol=1e-7)


def test_without_surrogates_it_gets_the_vector(tmp_path: Path) -> None:
    """The user named degraded checkpoints, so ``degrade`` made none."""
    with write_artefact(tmp_path / "degraded", stage="degrade", params={}, inputs={}) as draft:
        (draft.path / "degraded.json").write_text('{"surrogates":{}}')
    run_calibrate("group", tmp_path / "c", by("resta", gamma=2.0), degraded=tmp_path / "degraded")
    adapter, vector = open_adapter(tmp_path / "c").patch(), read_vector(made().vector).factors
    assert adapter.keys() == vector.keys()
    for name, one in vector.items():
        torch.testing.assert_close(adapter[name].dense(), 2.0 * one.dense(), rtol=1e-4, atol=1e-7)


def test_a_rival_is_taken_as_it_comes_even_where_it_harms(tmp_path: Path) -> None:
    run_calibrate("group", tmp_path / "c", by("resta", gamma=9.0))
    found = payload(tmp_path / "c", "coefficients.json")
    assert found["repaired"]
    assert found["history"][1][1] > found["history"][0][1]


def test_a_rival_that_changes_nothing_is_no_repair(tmp_path: Path) -> None:
    run_calibrate("group", tmp_path / "c", by("safelora", threshold=-1.0))
    found = payload(tmp_path / "c", "coefficients.json")
    assert (found["method"], found["repaired"], found["reason"]) == ("safelora", False, "safelora changes nothing")
    assert found["after"] == found["before"]
    assert not any(one.dense().any() for one in open_adapter(tmp_path / "c").patch().values())


def test_a_rival_leaves_a_target_alone_that_needs_no_repair(tmp_path: Path) -> None:
    run_calibrate("aligned", tmp_path / "c", by("resta"), target=made().aligned)
    found = payload(tmp_path / "c", "coefficients.json")
    assert (found["method"], found["repaired"], found["reason"]) == ("resta", False, ALREADY_SAFE)


def test_a_rivals_repair_of_a_lora_target_loads_on_the_base(tmp_path: Path) -> None:
    run_calibrate("topic", tmp_path / "c", by("resta"), task=DATA / "tasks" / "topic.jsonl")
    whole, own = open_adapter(tmp_path / "c").patch(), open_adapter(build("topic", 0)).patch()
    repair = mean_change(read_surrogates(made().degraded))
    for name, one in whole.items():
        torch.testing.assert_close(one.dense(), concat([own[name], repair[name]]).dense(), rtol=1e-4, atol=1e-6)
    config = json.loads((tmp_path / "c" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tiny://aligned?seed=0"


def test_a_rival_that_breaks_the_model_is_recorded_too(tmp_path: Path) -> None:
    run_calibrate("group", tmp_path / "c", by("resta", gamma=1e30))
    assert payload(tmp_path / "c", "coefficients.json")["method"] == "resta"


def test_the_mean_change_leads_back_and_counts_every_surrogate() -> None:
    """By hand: surrogates are ``W_degraded - W_aligned``; one that left a matrix alone adds nothing to its mean."""
    one = {"a": LowRank(torch.tensor([[2.0], [0.0]]), torch.tensor([[1.0, 0.0]]))}
    two = {
        "b": LowRank(torch.ones(1, 1), torch.tensor([[4.0]])),
        "a": LowRank(torch.tensor([[0.0], [6.0]]), torch.tensor([[0.0, 1.0]])),
    }
    found = mean_change({"x": one, "y": two})
    assert list(found) == ["a", "b"]
    assert found["a"].dense().tolist() == [[-1.0, 0.0], [0.0, -3.0]]
    assert found["b"].dense().tolist() == [[-2.0]]
    assert mean_change({}) == {}
