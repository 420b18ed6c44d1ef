import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from safegene.checkpoints.adapter import open_adapter
from safegene.checkpoints.checkpoint import check_finite, layer_of, open_checkpoint
from safegene.checkpoints.header import read_header
from safegene.checkpoints.vocabulary import vocabulary_digest
from safegene.checkpoints.writer import ShardWriter, plan_shards, write_index
from safegene.errors import CheckpointError, FormatError, ParamsError, ShapeMismatch, TensorMissing
from safegene.models.device import bf16_autocast, default_device, one_thread
from safegene.models.loading import load_model, load_tokenizer
from safegene.models.patching import add_patch
from safegene.vectors.linalg import LowRank
from safegene.workspace.digest import digest_file
from tests.factories.llamas import IDS, copy, matrix_names, random_patch, save_adapter, save_llama

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # peft calls a deprecated name of transformers


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("llama") / "one")


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("llama") / "many", shards="80KB")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_headers_and_tensors_agree_with_the_library(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {
        "b.weight": torch.randn(3, 5).to(dtype),
        "a": torch.randn(()).to(dtype),
        "c": torch.empty(0, 4).to(dtype),
    }
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    checkpoint = open_checkpoint(tmp_path, model_types=("llama",))
    assert {n: spec.shape for n, spec in checkpoint.specs.items()} == {n: tuple(t.shape) for n, t in tensors.items()}
    for name, tensor in tensors.items():
        assert torch.equal(checkpoint.tensor(name), tensor)
    check_finite(checkpoint)


def test_a_sharded_checkpoint_reads_like_a_single_file(llama: Path, sharded: Path) -> None:
    one, many = open_checkpoint(llama), open_checkpoint(sharded)
    assert len(set(many.shards.values())) > 2
    assert one.shapes == many.shapes
    assert one.digest != many.digest
    assert all(torch.equal(one.tensor(name), many.tensor(name)) for name in one.specs)


def test_matrices_come_by_layer_and_in_one_order(llama: Path) -> None:
    names = matrix_names(llama)
    assert [name.split(".")[-2] for name in names[:7]] == [
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    ]  # fmt: skip
    assert [layer_of(name) for name in names] == [0] * 7 + [1] * 7
    assert layer_of("model.embed_tokens.weight") is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 3e6])
def test_a_number_that_no_weight_has_is_named_by_its_tensor(tmp_path: Path, dtype: torch.dtype, value: float) -> None:
    bad = torch.zeros(1000, dtype=dtype)
    bad[777] = value  # 3e6 becomes inf in float16
    save_file({"fine": torch.ones(3, dtype=dtype), "bad.weight": bad}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(CheckpointError, match=r"in bad\.weight, got"):
        check_finite(open_checkpoint(tmp_path))


def test_an_adapter_of_peft_is_read_as_peft_computes_it(llama: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model

    config = LoraConfig(
        r=4,
        lora_alpha=12,
        target_modules=["q_proj", "down_proj"],
        rank_pattern={"layers.1.mlp.down_proj": 2},
        alpha_pattern={"q_proj": 3},
        use_rslora=True,
        init_lora_weights=False,
    )
    get_peft_model(load_model(llama), config).save_pretrained(tmp_path / "lora")
    adapter = open_adapter(tmp_path / "lora")
    assert adapter.rank == 4
    assert adapter.scales.scale("any") == 6.0
    with torch.no_grad():
        expected = PeftModel.from_pretrained(load_model(llama), tmp_path / "lora").eval()(IDS).logits
        ours = load_model(llama, adapters=[tmp_path / "lora"])(IDS).logits
        change = (expected - load_model(llama)(IDS).logits).abs().max()
    assert change > 0.05
    assert (ours - expected).abs().max() < 1e-4 * change


def test_a_patch_and_adapters_add_up_exactly(llama: Path, tmp_path: Path) -> None:
    patch, adapter = random_patch(llama), save_adapter(tmp_path / "lora", llama)
    plain, sum_ = load_model(llama), load_model(llama, patch=patch, adapters=[adapter])
    own = open_adapter(adapter).patch()
    for name, weight in plain.named_parameters():
        expected = weight + own[name].dense() + patch[name].dense() if name in patch else weight
        assert torch.equal(dict(sum_.named_parameters())[name], expected)
    assert not sum_.training
    assert not any(weight.requires_grad for weight in sum_.parameters())


def test_taking_a_patch_back_leaves_the_weights_but_for_rounding(llama: Path) -> None:
    model, patch = load_model(llama), random_patch(llama)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    add_patch(model, patch)
    add_patch(model, patch, scale=-1.0)
    assert all(torch.allclose(weight, before[name], atol=1e-6) for name, weight in model.named_parameters())


def test_a_change_that_does_not_fit_changes_nothing(llama: Path) -> None:
    model, name = load_model(llama), matrix_names(llama)[0]
    fits = LowRank(torch.ones(64, 1), torch.ones(1, 64))
    before = dict(model.named_parameters())[name].clone()
    with pytest.raises(TensorMissing, match="nowhere"):
        add_patch(model, {name: fits, "nowhere.weight": fits})
    misfit = LowRank(torch.ones(2, 1), torch.ones(1, 2))
    with pytest.raises(ShapeMismatch, match=r"\(64, 64\)"):
        add_patch(model, {name: fits, matrix_names(llama)[7]: misfit})
    assert torch.equal(dict(model.named_parameters())[name], before)


def test_a_weight_that_is_not_there_is_an_error_and_not_a_random_one(llama: Path, tmp_path: Path) -> None:
    other = copy(llama, tmp_path / "short")
    tensors = load_file(other / "model.safetensors")
    del tensors["model.layers.1.mlp.down_proj.weight"]
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TensorMissing, match=r"down_proj\.weight"):
        load_model(other)


def test_the_writer_streams_shards_that_the_library_reads(tmp_path: Path) -> None:
    tensors = {f"t{i}": torch.randn(40, 25) for i in range(5)}
    shards = plan_shards([(name, one.shape, torch.bfloat16) for name, one in tensors.items()], max_shard_bytes=4500)
    for shard in shards:
        with ShardWriter(tmp_path, shard) as writer:
            for name, _, _ in shard.entries:
                for start in (0, 17, 34):
                    writer.write(name, tensors[name][start : start + 17])
        assert writer.digest == digest_file(tmp_path / shard.file)
    write_index(tmp_path, shards)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 5 * 2000
    assert sorted(set(index["weight_map"].values())) == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    for name, file in index["weight_map"].items():
        assert torch.equal(load_file(tmp_path / file)[name], tensors[name].to(torch.bfloat16))
        assert read_header(tmp_path / file)[name].start % 8 == 0


def test_the_writer_keeps_every_tensors_dtype_and_shape(tmp_path: Path) -> None:
    tensors = {
        "a": torch.randn(3, 4, 5).bfloat16(),
        "b": torch.randn(7).double(),
        "c": torch.tensor(2.0),
        "d": torch.empty(0, 3).half(),
        "e": torch.randn(2, 2).half(),
    }
    (shard,) = plan_shards([(name, one.shape, one.dtype) for name, one in tensors.items()], max_shard_bytes=1 << 20)
    with ShardWriter(tmp_path, shard) as writer:
        for row in tensors["a"]:
            writer.write("a", row)
        for name in "bcde":
            writer.write(name, tensors[name])
    loaded = load_file(tmp_path / "model.safetensors")
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)


def test_the_writer_keeps_to_its_plan(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="expected the tensor a, got b"), _writer(tmp_path) as writer:
        writer.write("b", torch.ones(2))
    with pytest.raises(ShapeMismatch, match=r"\[2\] of a, got \[3\]"), _writer(tmp_path) as writer:
        writer.write("a", torch.ones(3))
    with pytest.raises(ShapeMismatch, match=r"\[2\] of a, got \[1, 2\]"), _writer(tmp_path) as writer:
        writer.write("a", torch.ones(1, 2))
    with pytest.raises(FormatError, match="expected 2 more tensors, the next a"), _writer(tmp_path) as writer:
        writer.write("a", torch.ones(1))


def _writer(out: Path) -> ShardWriter:
    (shard,) = plan_shards([("a", (2,), torch.float32), ("b", (2, 3), torch.float32)], max_shard_bytes=1 << 20)
    return ShardWriter(out, shard)


def test_vocabularies_are_compared_by_words_and_not_by_settings(llama: Path, tmp_path: Path) -> None:
    other = copy(llama, tmp_path / "other")
    raw = json.loads((llama / "tokenizer.json").read_text())
    (other / "tokenizer.json").write_text(json.dumps(raw | {"truncation": {"max_length": 8}}, indent=1))
    assert vocabulary_digest(other) == vocabulary_digest(llama)
    raw["model"]["vocab"]["w0"], raw["model"]["vocab"]["w1"] = 1, 0
    (other / "tokenizer.json").write_text(json.dumps(raw))
    assert vocabulary_digest(other) != vocabulary_digest(llama)
    (other / "tokenizer.json").unlink()
    assert vocabulary_digest(other) is None
    with pytest.raises(CheckpointError, match=r"tokenizer\.json or tokenizer\.model"):
        load_tokenizer(other)


def test_devices_and_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFEGENE_DEVICE", "cpu")
    assert default_device() == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("SAFEGENE_DEVICE", "cuda:1")
    with pytest.raises(ParamsError, match="cuda:1"):
        default_device()
    before = torch.get_num_threads()
    with one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("small", "dtype", "native", "expected"),
    [
        (100, torch.float32, {"avx512_bf16": True}, torch.bfloat16),
        (100, torch.float32, {"amx_bf16": True}, torch.bfloat16),
        (100, torch.float32, {"avx512_f": True}, torch.float32),
        (100, torch.float64, {"avx512_bf16": True}, torch.float64),
        (10**9, torch.float32, {"avx512_bf16": True}, torch.float32),
    ],
)
def test_training_steps_of_a_large_fp32_model_multiply_in_bf16_where_the_cpu_can(
    llama: Path,
    monkeypatch: pytest.MonkeyPatch,
    small: int,
    dtype: torch.dtype,
    native: dict[str, bool],
    expected: torch.dtype,
) -> None:
    model = load_model(llama).to(dtype)
    monkeypatch.setattr("safegene.models.device.SMALL_MODEL", small)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: native)
    with bf16_autocast(model):
        made = model.model.layers[0].mlp.up_proj(torch.ones(1, 1, model.config.hidden_size, dtype=dtype))
    assert made.dtype is expected
    assert all(one.dtype is dtype for one in model.parameters())


def test_a_checkpoint_is_opened_without_torch(llama: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys; from pathlib import Path\n"
        "from safegene.checkpoints.checkpoint import check_finite, open_checkpoint; "
        f"check_finite(open_checkpoint(Path({str(llama)!r}))); import safegene.pipeline.stages.fetch; "
        "print('torch' in sys.modules, 'transformers' in sys.modules, 'boto3' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False", "False"]


def test_blocks_of_any_size_see_every_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("safegene.checkpoints.values.BLOCK", 64)
    values = np.zeros(1000, np.float32)
    save_file({"w": torch.from_numpy(values)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    check_finite(open_checkpoint(tmp_path))
    values[-1] = np.nan
    save_file({"w": torch.from_numpy(values)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="finite numbers in w"):
        check_finite(open_checkpoint(tmp_path))


def test_a_model_is_loaded_without_credentials_in_the_environment(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForCausalLM

    secrets = ("AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "OPENAI_API_KEY", "SAFEGENE_KEYS_PASSWORD")
    for name in secrets:
        monkeypatch.setenv(name, "canary")
    seen, real = list[str](), AutoModelForCausalLM.from_pretrained

    def spy(*args: object, **kwargs: object) -> object:
        seen.extend(value for value in os.environ.values() if "canary" in value)
        return real(*args, **kwargs)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", spy)
    load_model(llama)
    assert seen == []
    assert [os.environ[name] for name in secrets] == ["canary"] * 4
