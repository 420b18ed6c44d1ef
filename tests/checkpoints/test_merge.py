"""Merged checkpoints: the sum rounded once, every tensor's own dtype, and what a kill leaves."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from safegene.checkpoints.checkpoint import open_checkpoint
from safegene.checkpoints.export.draft import resumable_draft
from safegene.checkpoints.export.merge import merge
from safegene.errors import CheckpointError, ParamsError, ShapeMismatch, TensorMissing
from safegene.vectors.linalg import LowRank
from safegene.vectors.vector import write_factors
from safegene.workspace.digest import digest_bytes, digest_tree
from tests.factories.llamas import matrix_names, random_patch, save_llama

ALPHAS = (1.5, -0.5, 3.0, 0.25)


@pytest.fixture(scope="module", params=["tied", "untied"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("base") / "base", tied=request.param == "tied")


@pytest.fixture(scope="module")
def repair(base: Path) -> dict[str, LowRank]:
    """A repair of every projection, each with a coefficient of its own, none zero."""
    patch = random_patch(base, seed=7)
    return {name: change.scaled(ALPHAS[i % 4]) for i, (name, change) in enumerate(patch.items())}


def test_a_merge_is_the_sum_rounded_once_in_shards(base: Path, repair: dict[str, LowRank], tmp_path: Path) -> None:
    checkpoint = open_checkpoint(base)
    facts = merge(checkpoint, repair, out=tmp_path / "out", dtype="bfloat16", max_shard_bytes=60_000)
    merged = open_checkpoint(tmp_path / "out", model_types=("llama",))
    assert len(set(merged.shards.values())) > 1
    assert merged.shapes == checkpoint.shapes
    assert merged.config["dtype"] == "bfloat16"
    for name in checkpoint.specs:
        weight = checkpoint.tensor(name)
        weight = weight + repair[name].dense() if name in repair else weight
        assert torch.equal(merged.tensor(name), weight.to(torch.bfloat16))
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
    assert set(facts.matrices) == set(repair)
    assert 0.9 < facts.least_survival <= min(facts.matrices.values())


def test_a_merge_that_rounding_would_undo_is_refused(base: Path, tmp_path: Path) -> None:
    rounded = merge(open_checkpoint(base), {}, out=tmp_path / "rounded", dtype="bfloat16")
    assert rounded.survival == 1.0
    small = {name: change.scaled(3e-4) for name, change in random_patch(base).items()}
    checkpoint = open_checkpoint(tmp_path / "rounded")
    with pytest.raises(CheckpointError, match="of the repair to survive in bfloat16") as refused:
        merge(checkpoint, small, out=tmp_path / "out", dtype="bfloat16")
    assert "--lossy" in refused.value.remedy
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rounded"]
    with pytest.raises(CheckpointError, match="of the repair to survive in bfloat16"):
        merge(checkpoint, small, out=tmp_path / "out")
    assert merge(checkpoint, small, out=tmp_path / "fp32", dtype="float32").survival > 0.99
    assert merge(checkpoint, small, out=tmp_path / "lossy", dtype="bfloat16", lossy=True).survival < 0.5


def test_a_merge_keeps_the_dtype_of_every_tensor(tmp_path: Path) -> None:
    """A bf16 model with an fp32 router bias and experts in one tensor, of which one slice is changed."""
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "model.layers.0.mlp.experts.gate_up_proj": torch.randn(3, 8, 5, generator=generator).bfloat16(),
        "model.layers.0.mlp.router.bias": torch.randn(3, generator=generator),
        "model.layers.0.mlp.router.weight": torch.randn(3, 8, generator=generator).bfloat16(),
        "model.norm.weight": torch.randn(8, generator=generator).bfloat16(),
        "model.layers.0.mlp.act_fn.beta": torch.tensor(0.5),  # a scalar, as in Apertus
    }
    folder = tmp_path / "base"
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"model_type": "x", "torch_dtype": "bfloat16"}))
    checkpoint = open_checkpoint(folder)
    patch = {
        "model.layers.0.mlp.experts.gate_up_proj.1": LowRank(torch.ones(8, 1), torch.ones(1, 5)),
        "model.layers.0.mlp.router.weight": LowRank(torch.ones(3, 1), torch.ones(1, 8)),
    }
    told = merge(checkpoint, patch, out=tmp_path / "auto", lossy=True)
    merged = load_file(tmp_path / "auto" / "model.safetensors")
    assert told.dtype == "bfloat16"
    assert set(told.matrices) == set(patch)
    assert {name: one.dtype for name, one in merged.items()} == {name: one.dtype for name, one in tensors.items()}
    experts, before = (one["model.layers.0.mlp.experts.gate_up_proj"] for one in (merged, tensors))
    assert torch.equal(experts[[0, 2]], before[[0, 2]])
    assert torch.equal(experts[1], (before[1].float() + 1.0).bfloat16())
    assert json.loads((tmp_path / "auto" / "config.json").read_text()) == dict(checkpoint.config)

    assert merge(checkpoint, patch, out=tmp_path / "wide", dtype="float32").survival > 0.999
    wide = open_checkpoint(tmp_path / "wide")
    assert {spec.dtype for spec in wide.specs.values()} == {"F32"}
    assert wide.config["dtype"] == "float32"
    assert torch.equal(wide.tensor("model.norm.weight"), tensors["model.norm.weight"].float())

    back = merge(wide, {}, out=tmp_path / "back", dtype="bfloat16")
    assert back.dtype == "bfloat16"
    tensors["model.layers.0.mlp.router.bias"] = tensors["model.layers.0.mlp.router.bias"].double()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    merge(open_checkpoint(folder), {}, out=tmp_path / "cast", dtype="float32")
    cast = load_file(tmp_path / "cast" / "model.safetensors")
    assert cast["model.layers.0.mlp.router.bias"].dtype == torch.float64


def test_a_merge_in_small_blocks_is_the_same(
    base: Path, repair: dict[str, LowRank], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge(open_checkpoint(base), repair, out=tmp_path / "one", dtype="bfloat16")
    monkeypatch.setattr("safegene.checkpoints.export.merge.NUMBERS", 300)
    merge(open_checkpoint(base), repair, out=tmp_path / "two", dtype="bfloat16")
    assert digest_tree(tmp_path / "one") == digest_tree(tmp_path / "two")


KILLED = """
import os, signal, sys
from pathlib import Path
from safegene.checkpoints import writer
from safegene.checkpoints.checkpoint import open_checkpoint
from safegene.checkpoints.export.draft import Draft
from safegene.checkpoints.export.draft import resumable_draft
from safegene.checkpoints.export.merge import merge
from safegene.vectors.vector import read_factors

base, factors, out, point, number = sys.argv[1:]
left = int(number)

def kill_at(owner, name):
    real = getattr(owner, name)
    def call(*args, **options):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **options)
    setattr(owner, name, call)

{"block": lambda: kill_at(writer.ShardWriter, "_write"), "shard": lambda: kill_at(Draft, "finish"),
 "rename": lambda: kill_at(Path, "rename"), "none": lambda: None}[point]()
written = 0
real = writer.ShardWriter.__enter__
def count(self):
    global written
    written += 1
    return real(self)
writer.ShardWriter.__enter__ = count
merge(open_checkpoint(Path(base)), read_factors(Path(factors)), out=Path(out), source="sha256:x", lossy=True,
      max_shard_bytes=60_000)
print(written)
"""


@pytest.mark.parametrize(
    ("point", "number", "finished"), [("block", 0, 0), ("block", 12, 2), ("shard", 3, 3), ("rename", 0, 6)]
)
def test_a_merge_that_is_killed_goes_on_with_the_shards_that_it_finished(
    base: Path, repair: dict[str, LowRank], tmp_path: Path, point: str, number: int, finished: int
) -> None:
    """Killed with SIGKILL: no output, and then the same bytes as without, only unfinished shards written again."""
    write_factors(repair, tmp_path / "factors")

    def run(out: str, *kill: str) -> subprocess.CompletedProcess[str]:
        arguments = [str(base), str(tmp_path / "factors"), str(tmp_path / out), *kill]
        return subprocess.run([sys.executable, "-c", KILLED, *arguments], capture_output=True, text=True, check=False)

    assert run("out", point, str(number)).returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    assert len(list(tmp_path.glob(".out.*.resume"))) == 1
    done = run("out", "none", "0")
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == 6 - finished
    whole = run("whole", "none", "0")
    assert int(whole.stdout) == 6
    assert digest_tree(tmp_path / "out") == digest_tree(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["factors", "out", "whole"]


def test_a_finished_shard_that_was_changed_or_is_of_another_merge_is_not_used(tmp_path: Path) -> None:
    def kill() -> None:
        with resumable_draft(tmp_path / "out", {"of": 1}) as draft:
            (draft.path / "a").write_bytes(b"a")
            (draft.path / "b").write_bytes(b"b")
            draft.finish("a", digest_bytes(b"a"), {"x": 1})
            draft.finish("b", digest_bytes(b"b"), {})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kill()
    (left,) = tmp_path.iterdir()
    (left / "files" / "b").write_bytes(b"c")
    with resumable_draft(tmp_path / "out", {"of": 1}) as draft:
        assert draft.finished("a") == {"x": 1}
        assert draft.finished("b") is None
        assert draft.finished("c") is None
        with pytest.raises(CheckpointError, match="only writer"), resumable_draft(tmp_path / "out", {"of": 1}):
            pass
    (tmp_path / "out").rename(tmp_path / "first")
    with pytest.raises(KeyboardInterrupt):
        kill()
    with resumable_draft(tmp_path / "out", {"of": 2}) as draft:
        assert draft.finished("a") is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "out"]
    assert not list((tmp_path / "out").iterdir())


def test_a_merge_refuses_what_does_not_fit(base: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(base)
    change = LowRank(torch.ones(2, 1), torch.ones(1, 2))
    with pytest.raises(TensorMissing, match="nowhere"):
        merge(checkpoint, {"nowhere.weight": change}, out=tmp_path / "out")
    with pytest.raises(ShapeMismatch, match=r"\(2, 2\)"):
        merge(checkpoint, {matrix_names(checkpoint.root)[0]: change}, out=tmp_path / "out")
    with pytest.raises(ParamsError, match="expected a dtype of auto"):
        merge(checkpoint, {}, out=tmp_path / "out", dtype="4bit")
    (tmp_path / "out").mkdir()
    with pytest.raises(CheckpointError, match="which exists"):
        merge(checkpoint, {}, out=tmp_path / "out")


@pytest.mark.parametrize("lossy", [False, True])
def test_a_sum_that_the_dtype_cannot_hold_is_refused(base: Path, tmp_path: Path, lossy: bool) -> None:
    checkpoint, name = open_checkpoint(base), matrix_names(base)[0]
    rows, columns = checkpoint.matrix_shape(name)
    change = {
        name: LowRank(torch.full((rows, 1), 1e3), torch.full((1, columns), 1e3))
    }  # 1e6, and float16 ends at 65504
    with pytest.raises(CheckpointError, match="finite weights in float16"):
        merge(checkpoint, change, out=tmp_path / "out", dtype="float16", lossy=lossy)
    assert not (tmp_path / "out").exists()


def test_a_zero_change_survives_whole(base: Path, repair: dict[str, LowRank], tmp_path: Path) -> None:
    zero = {name: change.scaled(0.0) for name, change in repair.items()}
    merged = merge(open_checkpoint(base), zero, out=tmp_path / "merged", dtype="bfloat16")
    assert (merged.survival, merged.least_survival) == (1.0, 1.0)
