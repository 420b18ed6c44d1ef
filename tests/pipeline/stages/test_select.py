"""Layers are scored by what moves on harmful prompts only."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from safegene.errors import CheckpointError
from safegene.models.loading import load_model
from safegene.pipeline.stages.select import select
from safegene.repair.selection import activation_shifts, keep_layers, layer_contributions
from safegene.vectors.linalg import LowRank
from safegene.workspace.manifest import write_artefact
from safegene.workspace.params import SelectParams
from tests.factories.artefacts import DATA, files, made, payload
from tests.factories.llamas import save_llama


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedModel:
    return load_model(save_llama(tmp_path_factory.mktemp("llama")))


ROWS = [[1, 2, 3], [4, 5, 6, 7, 8], [9]]


def test_contributions_are_what_a_layer_adds_at_the_last_token(model: PreTrainedModel) -> None:
    found = layer_contributions(model, ROWS)
    assert found.shape == (2, 3, 64)
    for at, row in enumerate(ROWS):
        hidden = model(torch.tensor([row]), output_hidden_states=True).hidden_states
        torch.testing.assert_close(found[0, at], (hidden[1] - hidden[0])[0, -1], rtol=1e-3, atol=1e-5)


def test_a_change_shifts_its_own_layer_and_the_model_is_given_back(model: PreTrainedModel) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    change = {"model.layers.1.mlp.down_proj.weight": LowRank(torch.ones(64, 1), torch.ones(1, 96) * 0.1)}
    found = activation_shifts(model, ROWS, {"one": change})
    assert found[0] == 0.0
    assert found[1] > 0.05
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=1e-4, atol=1e-6)


def test_the_mean_is_over_the_degraded_models(model: PreTrainedModel) -> None:
    change = {"model.layers.0.mlp.down_proj.weight": LowRank(torch.ones(64, 1), torch.ones(1, 96) * 0.1)}
    none = {"model.layers.0.mlp.down_proj.weight": LowRank(torch.zeros(64, 1), torch.zeros(1, 96))}
    alone, both = (
        activation_shifts(model, ROWS, {"a": change}),
        activation_shifts(model, ROWS, {"a": change, "b": none}),
    )
    assert both[0] == pytest.approx(alone[0] / 2, rel=1e-3)


SCORES = {0: 0.01, 1: 1.0, 2: 0.5, 3: 0.0}


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"threshold": 0.005, "depth": 1.0}, [0, 1, 2]),
        ({"threshold": 0.05, "depth": 1.0}, [1, 2]),
        ({"threshold": 1.0, "depth": 1.0}, [1]),
        ({"top_layers": 1, "depth": 1.0}, [1]),
        ({"top_layers": 3, "depth": 1.0}, [0, 1, 2]),
        ({"top_layers": 9, "depth": 1.0}, [0, 1, 2, 3]),
        ({"threshold": 0.005}, [0, 1]),  # by default the first half of the model
        ({"threshold": 0.005, "depth": 0.75}, [0, 1, 2]),
        ({"top_layers": 9, "depth": 0.25}, [0]),
        ({"threshold": 0.005, "depth": 0.01}, [0]),  # the first layer is always early
    ],
)
def test_layers_kept(params: dict[str, Any], expected: list[int]) -> None:
    assert keep_layers(SelectParams(**params), SCORES) == expected


def test_where_no_early_layer_has_enough_contrast_the_later_ones_are_kept_and_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert keep_layers(SelectParams(depth=0.25), SCORES) == [1, 2]
    assert "no layer in the first 25% reaches 5% of the largest contrast" in caplog.text


def test_layers_that_all_shift_on_benign_prompts_are_refused() -> None:
    with pytest.raises(CheckpointError, match="got none"):
        keep_layers(SelectParams(), {0: 0.0, 1: 0.0})


def test_the_artefact_holds_scores_a_table_and_a_picture() -> None:
    found = payload(made().selection, "selection.json")
    rows = list(csv.DictReader((made().selection / "scores.csv").read_text().splitlines()))
    assert [row["layer"] for row in rows] == ["0", "1", "2", "3"]
    assert found["kept"] == [int(row["layer"]) for row in rows if row["kept"] == "1"]
    for row in rows:
        difference = float(row["harmful_shift"]) - float(row["benign_shift"])
        assert found["scores"][row["layer"]] == pytest.approx(max(0.0, difference), abs=2e-6)
    assert (made().selection / "scores.png").read_bytes().startswith(b"\x89PNG")


def test_the_same_inputs_give_the_same_bytes(tmp_path: Path) -> None:
    ws, params = made(), SelectParams(prompts=48)
    inputs: dict[str, Any] = {
        "aligned": ws.aligned,
        "degraded": ws.degraded,
        "vector": ws.vector,
        "prompts": DATA / "prompts",
    }
    select(**inputs, out=tmp_path / "s", params=params)
    assert files(tmp_path / "s") == files(ws.selection)


def test_without_surrogates_the_vector_itself_tells_the_layers_apart(tmp_path: Path) -> None:
    ws = made()
    with write_artefact(tmp_path / "none", stage="degrade", params={}, inputs={}) as draft:
        (draft.path / "degraded.json").write_text('{"surrogates":{}}')
    inputs: dict[str, Any] = {
        "aligned": ws.aligned,
        "degraded": tmp_path / "none",
        "vector": ws.vector,
        "prompts": DATA / "prompts",
    }
    select(**inputs, out=tmp_path / "s", params=SelectParams(prompts=24))
    assert payload(tmp_path / "s", "selection.json")["kept"]
