"""Loading: weights in their dtype, never a second copy, and changes beside weights that would round them away."""

import gc
import hashlib
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from safegene.checkpoints.checkpoint import open_checkpoint
from safegene.checkpoints.dtypes import bytes_in_memory, dtype_named, resolve_dtype
from safegene.checkpoints.header import TensorSpec
from safegene.errors import CheckpointError, ParamsError, ShapeMismatch
from safegene.models import loading
from safegene.models.device import GPU_SHARE, place_weights
from safegene.models.loading import held_changes, load_model
from safegene.models.patching import low_rank_hooks, matrix_weight
from safegene.models.structure import structure_of
from safegene.vectors.linalg import LowRank
from tests.factories.llamas import IDS, matrix_names, random_patch, save_adapter, save_llama

NARROW = ("bfloat16", "float16")


def spec(name: str, dtype: str, *shape: int) -> TensorSpec:
    return TensorSpec(name, dtype, shape, 0, 0)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def narrow(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model, stored in bfloat16."""
    folder = tmp_path_factory.mktemp("narrow")
    load_model(llama).to(torch.bfloat16).save_pretrained(folder)
    return folder


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        out: torch.Tensor = model(IDS).logits.float()
    return out


def test_auto_is_the_dtype_in_which_most_numbers_are_stored() -> None:
    bf16 = [spec("w", "BF16", 10, 10), spec("router.bias", "F32", 10)]
    assert resolve_dtype("auto", bf16) == "bfloat16"
    assert resolve_dtype("auto", [spec("w", "F64", 2, 2)]) == "float32"
    assert resolve_dtype("float16", bf16) == "float16"
    with pytest.raises(ParamsError, match="int8"):
        resolve_dtype("int8", bf16)
    with pytest.raises(ParamsError, match="expected a dtype of auto, float32"):
        dtype_named("int8")


def test_bytes_in_memory_follow_the_dtype() -> None:
    specs = [spec("model.embed_tokens.weight", "BF16", 100, 64), spec("mlp.up_proj.weight", "BF16", 64, 64)]
    assert bytes_in_memory("float32", specs) == 4 * (6400 + 4096)
    assert bytes_in_memory("bfloat16", specs) == 2 * (6400 + 4096)
    assert bytes_in_memory("4bit", specs) == 2 * 6400 + 4096 * 9 // 16


@pytest.mark.parametrize(
    ("stored", "setting", "expected"),
    [
        ("float32", "auto", torch.float32),
        ("bfloat16", "auto", torch.bfloat16),
        ("bfloat16", "float32", torch.float32),
        ("float32", "bfloat16", torch.bfloat16),
        ("float32", "float16", torch.float16),
    ],
)
def test_every_parameter_has_the_dtype_that_was_asked_for(
    llama: Path, narrow: Path, stored: str, setting: str, expected: torch.dtype
) -> None:
    model = load_model(narrow if stored == "bfloat16" else llama, dtype=setting)
    assert {weight.dtype for weight in model.parameters()} == {expected}
    assert not model.training
    assert not any(weight.requires_grad for weight in model.parameters())


def test_a_change_too_small_for_bf16_is_not_lost(llama: Path, narrow: Path) -> None:
    name = matrix_names(narrow)[0]
    rows, columns = open_checkpoint(narrow).matrix_shape(name)
    small = {name: LowRank(torch.full((rows, 1), 1e-2), torch.full((1, columns), 1e-3))}
    weight = open_checkpoint(narrow).tensor(name)
    lost = (weight.float() + 1e-5).to(torch.bfloat16) == weight
    assert lost.float().mean() > 0.8  # in the weights it would be gone
    plain, model = load_model(narrow), load_model(narrow, patch=small)
    seen: dict[str, torch.Tensor] = {}
    for key, one in (("plain", plain), ("changed", model)):
        layer = one.get_submodule(name.removesuffix(".weight"))
        inputs = torch.ones(1, columns, dtype=torch.bfloat16)
        seen[key] = layer(inputs)
        assert torch.equal(one.get_parameter(name), weight)
    expected = seen["plain"] + torch.full((1, rows), columns * 1e-5).to(torch.bfloat16)
    assert torch.equal(seen["changed"], expected)
    assert not torch.equal(expected, seen["plain"])


@pytest.mark.parametrize("dtype", NARROW)
def test_adapters_and_patch_beside_narrow_weights_are_the_sum_in_float32(
    llama: Path, tmp_path: Path, dtype: str
) -> None:
    patch, adapter = random_patch(llama, size=0.3), save_adapter(tmp_path / "lora", llama)
    exact = logits(load_model(llama, patch=patch, adapters=[adapter]))
    model = load_model(llama, patch=patch, adapters=[adapter], dtype=dtype)
    before = logits(load_model(llama, dtype=dtype))
    assert (exact - before).abs().max() > 1.0
    assert (exact - logits(model)).abs().max() < 0.05 * (exact - before).abs().max()
    assert set(held_changes(model)) == set(patch)
    assert held_changes(load_model(llama, patch=patch)) == {}


def test_a_changed_model_is_freed_with_its_hooks(llama: Path) -> None:
    model = load_model(llama, patch=random_patch(llama), dtype="bfloat16")
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_nested_changes_of_one_parameter_add_up(tmp_path: Path) -> None:
    config = Qwen3MoeConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=24,
        moe_intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        num_experts=4,
        num_experts_per_tok=2,
    )
    torch.manual_seed(0)
    Qwen3MoeForCausalLM(config).save_pretrained(tmp_path)
    model = load_model(tmp_path)
    inside = [name for name, one in structure_of(model).matrices.items() if one.kind == "expert"]
    shapes = {name: structure_of(model).matrices[name].shape for name in inside}
    change = {name: LowRank(torch.randn(r, 1) * 0.3, torch.randn(1, c) * 0.3) for name, (r, c) in shapes.items()}
    whole = dict.fromkeys(change, torch.ones(()))
    twice = {name: one.scaled(2.0) for name, one in change.items()}
    before = logits(model)
    with low_rank_hooks(model, change, whole), low_rank_hooks(model, change, whole):
        nested = logits(model)
    torch.testing.assert_close(nested, logits(load_model(tmp_path, patch=twice)), rtol=1e-4, atol=1e-5)
    assert torch.equal(logits(model), before)
    assert (nested - before).abs().max() > 0.01


def test_weights_in_memory_are_private_to_the_process(llama: Path, tmp_path: Path) -> None:
    model = load_model(llama, patch=random_patch(llama, size=1.0))  # added in place
    digest = hashlib.sha256((llama / "model.safetensors").read_bytes()).hexdigest()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(1.0)
    assert hashlib.sha256((llama / "model.safetensors").read_bytes()).hexdigest() == digest


PEAK = """
import sys
from pathlib import Path
from safegene.models.loading import load_model
import transformers.models.llama.modeling_llama, safetensors.torch, torch
def peak(key="VmHWM"):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key)) * 1024
before = peak("VmRSS")
model = load_model(Path(sys.argv[1]), dtype=sys.argv[2])
total = sum(float(weight.sum()) for weight in model.parameters())  # touches every page
print((peak() - before) / sum(weight.numel() for weight in model.parameters()))
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="reads Linux's /proc")
@pytest.mark.parametrize(("stored", "most"), [("bfloat16", 2.3), ("float32", 4.3)])
def test_the_peak_of_loading_is_the_weights_themselves(tmp_path: Path, stored: str, most: float) -> None:
    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=10,
        num_attention_heads=8,
        num_key_value_heads=8,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model = model.to(dtype_named(stored)).to_empty(device="cpu")
    with torch.no_grad():
        for weight in model.parameters():
            weight.fill_(0.01)
    model.save_pretrained(tmp_path)
    del model
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(tmp_path), "auto"], capture_output=True, text=True, check=True
    )
    assert 0.9 * dtype_named(stored).itemsize < float(done.stdout) < most  # 200 million parameters


def test_a_cpu_needs_no_device_map_and_a_named_gpu_is_used_alone() -> None:
    assert place_weights("cpu", 10**12) == {}
    assert place_weights("cpu", 10**12, quantised=True) == {"device_map": {"": "cpu"}}
    assert place_weights("cuda:1", 10**12) == {"device_map": {"": "cuda:1"}}


def test_a_model_that_one_gpu_does_not_hold_is_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    free = {0: 10 << 30, 1: 20 << 30}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda gpu: (free[gpu], 1 << 40))
    assert place_weights("cuda", int(GPU_SHARE * free[0])) == {"device_map": {"": 0}}
    spread = place_weights("cuda", int(GPU_SHARE * free[0]) + 1)
    assert spread["device_map"] == "auto"
    assert spread["max_memory"][1] == int(GPU_SHARE * free[1])
    assert 0 < spread["max_memory"]["cpu"] <= psutil.virtual_memory().total


def test_layers_that_are_offloaded_are_changed_where_they_compute(
    narrow: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    places = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk"}
    places |= {"model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    placed = {"device_map": places, "offload_folder": str(tmp_path)}
    patch = random_patch(narrow, size=0.3)
    expected = logits(load_model(narrow, patch=patch))
    monkeypatch.setattr(loading, "place_weights", lambda *_, **__: dict(placed))
    model = load_model(narrow, patch=patch)
    assert model.get_parameter("model.layers.1.mlp.up_proj.weight").is_meta
    assert torch.equal(logits(model), expected)


def test_a_4bit_model_without_bitsandbytes_is_refused_with_the_way_out(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "find_spec", lambda name: None)
    with pytest.raises(ParamsError, match="expected bitsandbytes") as caught:
        load_model(llama, dtype="4bit")
    assert "family.dtype" in str(caught.value.remedy)


def test_a_4bit_model_is_near_the_model_and_takes_changes(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    root, sizes = tmp_path, {"hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=50, num_attention_heads=4, **sizes)).save_pretrained(root)
    patch, plain = random_patch(root, size=0.3), logits(load_model(root))
    model, changed = load_model(root, dtype="4bit"), load_model(root, dtype="4bit", patch=patch)
    name = next(iter(patch))
    assert model.get_parameter(name).dtype is torch.uint8
    exact = logits(load_model(root, patch=patch))
    assert (logits(model) - plain).norm() < 0.5 * (exact - plain).norm()
    assert (logits(changed) - exact).norm() < 0.5 * (exact - plain).norm()
    with pytest.raises(ShapeMismatch, match="quantised"):
        matrix_weight(model, name)


def test_a_parameter_that_is_offloaded_cannot_be_changed_in_place(tmp_path: Path) -> None:
    root = save_llama(tmp_path)
    model = load_model(root)
    matrix = next(iter(structure_of(model).matrices))
    held = structure_of(model).matrices[matrix]
    structure_of(model).matrices[matrix] = held.model_copy(update={"apply": "parameter"})
    layer = model.get_submodule(held.parameter.removesuffix(".weight"))
    layer.weight = torch.nn.Parameter(layer.weight.to("meta"))
    rows, columns = held.shape
    change = {matrix: LowRank(torch.ones(rows, 1), torch.ones(1, columns))}
    with (
        pytest.raises(CheckpointError, match="offloaded"),
        low_rank_hooks(model, change, {matrix: torch.ones(())}),
    ):
        pass
