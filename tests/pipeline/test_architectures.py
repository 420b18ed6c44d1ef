"""One architecture of each kind through every stage: what public tools load is what was calibrated, none left out."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from benchmarks.engine.architectures import ACCOUNTED, HERE, TOLERANCE, Row, measure, save_changed, table
from safegene.workspace.model_types import MODEL_TYPES
from tests.factories.architectures import save_architecture

EIGHT = ("llama", "gpt2", "gemma3", "qwen3_moe", "deepseek_v3", "qwen3_next", "falcon_h1", "mamba")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Row]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAFEGENE_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("SAFEGENE_DEVICE", "cpu")
        return {row.name: row for row in measure(EIGHT, tmp_path_factory.mktemp("rows"))}


@pytest.mark.parametrize("name", EIGHT)
def test_an_architecture_goes_through_every_stage(rows: dict[str, Row], name: str) -> None:
    row = rows[name]
    assert row.refused == ""
    assert row.batched
    assert abs(row.silent) <= ACCOUNTED
    assert row.merged is not None
    assert row.merged <= TOLERANCE
    assert row.peft is not None or row.not_carried
    assert row.peft is None or row.peft <= TOLERANCE
    assert row.holds


def test_most_repairs_change_something(rows: dict[str, Row]) -> None:
    assert sum(row.repaired for row in rows.values()) >= 6


def test_experts_state_spaces_and_attention_are_carried(rows: dict[str, Row]) -> None:
    assert {"expert", "attention", "router"} <= set(rows["qwen3_moe"].carried)
    assert {"mixer", "attention"} <= set(rows["falcon_h1"].carried)
    assert "mixer" in rows["mamba"].carried
    assert "vision" in rows["gemma3"].missed


def test_every_floating_tensor_of_the_degraded_model_differs(tmp_path: Path) -> None:
    first = save_architecture(tmp_path / "a", "qwen3_next")
    second = save_changed(first, tmp_path / "b", {"model.layers.1.self_attn.q_proj.weight"}, seed=1)
    before, after = (load_file(folder / "model.safetensors") for folder in (first, second))
    assert before.keys() == after.keys()
    assert all((before[name] != after[name]).any() for name in before if before[name].is_floating_point())


def test_a_row_that_misses_a_goal_is_said() -> None:
    good = Row("a", "dense", 1, peft=1e-9, merged=1e-9, batched=True)
    assert good.holds
    for bad in (
        Row("b", "dense", 1, peft=0.5, merged=1e-9, batched=True),
        Row("b", "dense", 1, peft=1e-9, merged=0.5, batched=True),
        Row("b", "dense", 1, peft=1e-9, merged=1e-9, batched=False),
        Row("b", "dense", 1, peft=1e-9, merged=1e-9, batched=True, silent=0.1),
        Row("b", "dense", 1, merged=1e-9, batched=True),
        Row("b", "dense", refused="TypeError", raw=True),
    ):
        assert not bad.holds
    assert Row("c", "dense", refused="a reason").holds
    assert "refused: a reason" in table([Row("c", "dense", refused="a reason")])
    assert "merged only: why" in table([Row("d", "moe", 1, not_carried="why", merged=1e-9, batched=True)])


def test_the_default_model_types_are_those_that_the_table_shows() -> None:
    shown = [Row(**row) for row in json.loads((HERE / "architectures_table.json").read_text())]
    assert set(MODEL_TYPES) == {row.name for row in shown if row.holds and not row.refused}
    assert len(MODEL_TYPES) >= 40
