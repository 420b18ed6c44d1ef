"""An adapter is read as PEFT reads it, or refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from safegene.checkpoints.adapter import open_adapter
from safegene.checkpoints.record import read_record
from safegene.checkpoints.sources import local_checkpoint
from safegene.errors import CheckpointError, SafegeneError, TensorMissing, UnsafeCheckpoint
from safegene.evaluation.shared_bases import load_adapter
from safegene.models.loading import load_model
from safegene.pipeline.stages.fetch import fetch
from tests.factories.hostile import edit
from tests.factories.llamas import IDS, copy, save_llama

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # peft calls a deprecated name of transformers
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("base") / "llama", tied=False)


@pytest.fixture
def aligned(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SAFEGENE_CACHE", str(tmp_path / "cache"))
    fetch(f"file://{base}", out=tmp_path / "aligned")
    return tmp_path / "aligned"


def trained(base: Path, out: Path, **config: Any) -> Path:
    """A random adapter that PEFT itself wrote."""
    from peft import LoraConfig, get_peft_model

    settings: dict[str, Any] = {"r": 4, "lora_alpha": 12, "init_lora_weights": False, "target_modules": ["q_proj"]}
    with torch.random.fork_rng():
        torch.manual_seed(3)
        get_peft_model(load_model(base), LoraConfig(**(settings | config))).save_pretrained(out)
    return out


@pytest.fixture(scope="module")
def lora(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(base, tmp_path_factory.mktemp("lora") / "lora", target_modules=["q_proj", "down_proj"])


def respell(folder: Path, change: Callable[[str], str]) -> Path:
    tensors = {change(name): tensor for name, tensor in load_file(folder / WEIGHTS).items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    return folder


def target(folder: Path, aligned: Path) -> Path:
    out = folder.parent / f"{folder.name}-artefact"
    fetch(f"file://{folder}", out=out, family=aligned)
    return out


def logits_of_peft(base: Path, folder: Path) -> torch.Tensor:
    """As PEFT computes them; it must take every factor."""
    model = load_adapter(load_model(base), None, folder, "default")
    with torch.no_grad():
        return torch.as_tensor(model(IDS).logits)


SPELLINGS: dict[str, Callable[[str], str]] = {
    "the adapter's name": lambda name: name.replace(".weight", ".default.weight"),
    "another adapter's name": lambda name: name.replace(".weight", ".sft-v2.weight"),
    "without prefix": lambda name: name.removeprefix("base_model.model."),
    "the prefix twice": lambda name: f"base_model.model.{name}",
    "a compiled model": lambda name: name.replace("base_model.model.", "base_model.model._orig_mod."),
    "a compiled adapter": lambda name: f"_orig_mod.{name}",
    "compiled layers": lambda name: name.replace(".layers.0.", ".layers.0._orig_mod."),
    "sharded training": lambda name: name.replace("model.layers", "_fsdp_wrapped_module.model.layers"),
    "several at once": lambda name: f"_orig_mod.{name.removeprefix('base_model.model.')}".replace(".we", ".default.we"),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_an_unambiguous_spelling_is_read_and_loaded_by_peft(
    spelling: str, base: Path, lora: Path, aligned: Path, tmp_path: Path
) -> None:
    other = respell(copy(lora, tmp_path / "other"), SPELLINGS[spelling])
    expected, got = open_adapter(lora).patch(), open_adapter(other).patch()
    assert list(got) == list(expected)
    assert all(torch.equal(got[name].up, expected[name].up) for name in expected)
    files = local_checkpoint(target(other, aligned), family=aligned)
    assert not open_adapter(files.adapters[0]).is_plain
    torch.testing.assert_close(logits_of_peft(base, files.adapters[0]), logits_of_peft(base, lora))


TARGETS: dict[str, dict[str, Any]] = {
    "a list": {"target_modules": ["q_proj", "up_proj"]},
    "a regular expression": {"target_modules": r".*layers\.(0|1)\.(self_attn\.[qk]|mlp\.up)_proj"},
    "all linear layers": {"target_modules": "all-linear"},
    "some left out": {"target_modules": "all-linear", "exclude_modules": ["o_proj", "down_proj"]},
    "left out by pattern": {"target_modules": ["q_proj", "k_proj"], "exclude_modules": r".*layers\.0\..*"},
    "one layer": {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": 1},
    "layers by pattern": {"target_modules": ["q_proj"], "layers_to_transform": [0], "layers_pattern": "layers"},
    "whole paths": {"target_modules": ["model.layers.1.mlp.up_proj"]},
    "patterns": {
        "target_modules": ["q_proj", "up_proj"],
        "rank_pattern": {"layers.0.self_attn.q_proj": 3, "q_proj": 2},
        "alpha_pattern": {"^model.layers.0.self_attn.q_proj": 7, "layers.1.mlp.up_proj": 9, "up_proj": 5},
        "use_rslora": True,
    },
}


@pytest.mark.parametrize("case", TARGETS)
def test_modules_ranks_and_scales_are_those_of_peft(case: str, base: Path, aligned: Path, tmp_path: Path) -> None:
    lora = trained(base, tmp_path / "lora", **TARGETS[case])
    files = local_checkpoint(target(lora, aligned), family=aligned)
    expected = logits_of_peft(base, lora)
    with torch.no_grad():
        plain, ours = load_model(base)(IDS).logits, load_model(base, adapters=files.adapters)(IDS).logits
    change = (expected - plain).abs().max()
    assert change > 0.01
    assert (ours - expected).abs().max() < 1e-4 * change


def test_the_first_key_of_a_pattern_counts_as_in_peft(base: Path, lora: Path, aligned: Path, tmp_path: Path) -> None:
    other = copy(lora, tmp_path / "other")
    order = {"q_proj": 5, "layers.1.self_attn.q_proj": 50}
    edit(other / CONFIG, lambda config: config.update(alpha_pattern=order))
    expected = logits_of_peft(base, other)
    with torch.no_grad():
        ours = load_model(base, adapters=[other])(IDS).logits
    assert (ours - expected).abs().max() < 1e-4
    assert open_adapter(other).scales.scale("model.layers.1.self_attn.q_proj") == 5 / 4


OTHERWISE: dict[str, tuple[dict[str, Any], type[SafegeneError], str]] = {
    "layers left out": ({"layers_to_transform": [0]}, CheckpointError, r"got also model\.layers\.1\.mlp\.down_proj"),
    "a module left out": ({"target_modules": ["q_proj"]}, CheckpointError, r"got also .*down_proj.*PEFT would not use"),
    "excluded": ({"exclude_modules": ["q_proj"]}, CheckpointError, r"got also model\.layers\.0\.self_attn\.q_proj"),
    "a narrow pattern": ({"target_modules": r".*\.q_proj"}, CheckpointError, "got also"),
    "a module too many": (
        {"target_modules": ["q_proj", "down_proj", "o_proj"]},
        TensorMissing,
        r"got none for model\.layers\.0\.self_attn\.o_proj",
    ),
    "another block": ({"target_modules": ["q_proj", "down_proj", "mlp"]}, TensorMissing, r"got none for .*\.mlp"),
    "no pattern": ({"target_modules": "(q_proj"}, SafegeneError, "a regular expression"),
    "an endless pattern": ({"target_modules": "(.|..|...)+[!-&]"}, UnsafeCheckpoint, "within 1 s"),
}


@pytest.mark.parametrize("case", OTHERWISE)
def test_an_adapter_that_peft_would_read_otherwise_is_refused(
    case: str, lora: Path, aligned: Path, tmp_path: Path
) -> None:
    change, error, match = OTHERWISE[case]
    other = copy(lora, tmp_path / "other")
    edit(other / CONFIG, lambda config: config.update(change))
    with pytest.raises(error, match=match):
        target(other, aligned)
    assert not (tmp_path / "other-artefact").exists()


@pytest.mark.parametrize(
    "name",
    [
        "base_model.model.lm_head.lora_A.weight",
        "base_model.model.model.embed_tokens.lora_embedding_A",
        "base_model.model.model.embed_tokens.lora_A.weight",
        "base_model.model.model.layers.0.mlp.up_proj.lora_magnitude_vector.weight",
    ],
)
def test_what_is_no_factor_of_a_linear_layer_is_refused_with_a_way_out(name: str, lora: Path, tmp_path: Path) -> None:
    other = copy(lora, tmp_path / "other")
    save_file(load_file(other / WEIGHTS) | {name: torch.ones(4, 64)}, other / WEIGHTS)
    with pytest.raises(CheckpointError, match=name) as raised:
        open_adapter(other)
    assert raised.value.remedy.startswith("merge the adapter into its base where you trained it")


def test_several_adapters_in_one_file_are_refused(lora: Path, tmp_path: Path) -> None:
    tensors = load_file(lora / WEIGHTS)
    for name, match in ((".weight", "two tensors for"), (".other.weight", "several: , other")):
        other = copy(lora, tmp_path / f"other{len(name)}")
        more = {f"_orig_mod.{key}".replace(".weight", name): one.clone() for key, one in tensors.items()}
        save_file(tensors | more, other / WEIGHTS)
        with pytest.raises(CheckpointError, match=f"expected one adapter, got {match}"):
            open_adapter(other)


def test_the_record_of_an_adapter_names_stored_matrices(lora: Path, aligned: Path, tmp_path: Path) -> None:
    record = read_record(target(copy(lora, tmp_path / "other"), aligned))
    assert record.tensors["model.layers.0.self_attn.q_proj.weight"] == (64, 4, 64)
    assert len(record.tensors) == 4
    assert json.loads((lora / CONFIG).read_text())["r"] == 4
