"""What `benchmarks.engine.streams` measures, one task per process.

A task imports only what it needs, so that its process costs what a user's does.
"""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from safegene.checkpoints.checkpoint import Checkpoint, open_checkpoint
from safegene.checkpoints.structure import Structure
from safegene.checkpoints.writer import ShardWriter, plan_shards, write_index
from safegene.cli.entry import keep_freed_memory
from safegene.vectors.linalg import LowRank

SHAPES: dict[str, dict[str, int]] = {
    "0.5B": {"hidden": 1280, "mlp": 3456, "layers": 24, "heads": 20, "kv": 20, "vocab": 32000},
    "1B": {"hidden": 1600, "mlp": 4320, "layers": 31, "heads": 25, "kv": 25, "vocab": 32000},
    "8B layer": {"hidden": 4096, "mlp": 14336, "layers": 1, "heads": 32, "kv": 8, "vocab": 256},
    "8B": {"hidden": 4096, "mlp": 14336, "layers": 32, "heads": 32, "kv": 8, "vocab": 128256},
}
TILE = 1 << 22  # random numbers that are drawn for one matrix; larger ones repeat them, shifted


def build(folder: str, name: str) -> None:
    """Two Llama checkpoints in bf16, ``base`` and ``tuned``, that differ in every matrix, and ``structure.json``.

    The difference of a matrix has 2% of its norm: half of its energy in rank 32 with singular values as i^-1/2, half in
    a flat rest.
    """
    shape, root = SHAPES[name], Path(folder)
    entries = [(key, size, torch.bfloat16) for key, size in _tensors(shape)]
    shards = plan_shards(entries, max_shard_bytes=4 << 30)
    folders = [root / "base", root / "tuned"]
    for at in folders:
        at.mkdir(parents=True)
        _config(at, shape)
    generator = torch.Generator().manual_seed(0)
    for shard in shards:
        with ShardWriter(folders[0], shard) as base, ShardWriter(folders[1], shard) as tuned:
            for key, size, _ in shard.entries:
                weight = _random(tuple(size), generator) * 0.02 if len(size) == 2 else torch.ones(*size)
                stored = weight.bfloat16()
                base.write(key, stored)
                tuned.write(key, _changed(stored, generator) if key.startswith("model.layers") else stored)
    from benchmarks.engine.memory import tokenizer
    from safegene.models.structure import analyse

    for at in folders:
        write_index(at, shards)
        tokenizer().save_pretrained(at)

    (root / "structure.json").write_bytes(analyse(open_checkpoint(folders[0])).content)


def _tensors(shape: dict[str, int]) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, mlp, kv = shape["hidden"], shape["mlp"], shape["hidden"] * shape["kv"] // shape["heads"]
    yield "model.embed_tokens.weight", (shape["vocab"], hidden)
    for i in range(shape["layers"]):
        for part, size in (("q", (hidden, hidden)), ("k", (kv, hidden)), ("v", (kv, hidden)), ("o", (hidden, hidden))):
            yield f"model.layers.{i}.self_attn.{part}_proj.weight", size
        for part, size in (("gate", (mlp, hidden)), ("up", (mlp, hidden)), ("down", (hidden, mlp))):
            yield f"model.layers.{i}.mlp.{part}_proj.weight", size
        yield f"model.layers.{i}.input_layernorm.weight", (hidden,)
        yield f"model.layers.{i}.post_attention_layernorm.weight", (hidden,)
    yield "model.norm.weight", (hidden,)


def _config(folder: Path, shape: dict[str, int]) -> None:
    from transformers import LlamaConfig

    LlamaConfig(
        vocab_size=shape["vocab"],
        hidden_size=shape["hidden"],
        intermediate_size=shape["mlp"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"],
        num_key_value_heads=shape["kv"],
        tie_word_embeddings=True,
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
    ).save_pretrained(folder)


def _random(size: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    count = torch.Size(size).numel()
    drawn = torch.randn(min(count, TILE + 1), generator=generator)
    tiled: torch.Tensor = drawn.repeat(-(-count // len(drawn)))[:count].view(size)
    return tiled


def _changed(stored: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    rows, columns = stored.shape if stored.ndim == 2 else (1, 0)
    if not columns:
        return stored
    values = torch.arange(1, 33).float().pow(-0.5)
    change = (torch.randn(rows, 32, generator=generator) * values) @ torch.randn(32, columns, generator=generator)
    change /= change.norm()
    rest = _random((rows, columns), generator)
    change += rest / rest.norm()
    change *= 0.02 / 2**0.5 * float(stored.float().norm())
    return (stored.float() + change).bfloat16()


def _both(folder: Path) -> tuple[Checkpoint, Checkpoint]:
    return open_checkpoint(folder / "base"), open_checkpoint(folder / "tuned")


def read(folder: str) -> None:
    """Read every tensor of both checkpoints."""
    for checkpoint in _both(Path(folder)):
        for name in checkpoint.specs:
            checkpoint.tensor(name)


def read_write(folder: str, out: str) -> None:
    """Read every tensor of the base and write it."""
    base = open_checkpoint(Path(folder) / "base")
    Path(out).mkdir()
    with (Path(out) / "bytes").open("wb", buffering=0) as file:
        for name in base.specs:
            base.tensor(name).view(torch.uint8).numpy().tofile(file)


def extract(folder: str, rank: str) -> None:
    """The delta of both checkpoints, written as ``delta.safetensors``."""
    from safegene.repair.checkpoint_delta import delta_of_checkpoints
    from safegene.vectors.vector import write_factors
    from safegene.workspace.params import ExtractParams
    from safegene.workspace.parsing import parse_json

    root = Path(folder)
    structure = parse_json(Structure, (root / "structure.json").read_bytes(), where="structure.json")
    base, tuned = _both(root)
    delta = delta_of_checkpoints(ExtractParams(max_rank=int(rank)), base, structure, [tuned])
    write_factors(delta.factors, root / f"delta-{rank}.safetensors")


def fetch(folder: str) -> None:
    """Stages ``fetch`` and ``fetch-target`` of both checkpoints."""
    import safegene

    root = Path(folder)
    safegene.fetch((root / "base").as_uri(), out=root / "aligned")
    safegene.fetch((root / "tuned").as_uri(), out=root / "target", family=root / "aligned")


def extract_stage(folder: str, rank: str) -> None:
    """Stage ``extract`` of the fetched base and the tuned checkpoint as its degraded copy."""
    import safegene
    from safegene.workspace.params import ExtractParams

    root = Path(folder)
    (root / "prompts").mkdir()
    (root / "prompts" / "safety.jsonl").touch()
    safegene.extract(
        aligned=root / "aligned",
        degraded=root / "degraded",
        prompts=root / "prompts",
        out=root / "delta",
        checkpoints=[(root / "tuned").as_uri()],
        params=ExtractParams(max_rank=int(rank)),
    )


def compress(folder: str) -> None:
    """Stage ``compress``, and its vector as the factors that the other tasks read."""
    import safegene

    root = Path(folder)
    safegene.compress(delta=root / "delta", out=root / "vector")
    (root / "delta-16.safetensors").symlink_to(root / "delta" / "delta.safetensors")


def error(folder: str, rank: str, out: str) -> None:
    """The largest ratio of the factors' Frobenius error to the optimum's, over the matrices of two layers."""
    from safegene.vectors.linalg import residual
    from safegene.vectors.vector import read_factors

    root, kept = Path(folder), int(rank)
    factors, (base, tuned) = read_factors(root / f"delta-{rank}.safetensors"), _both(root)
    ratios = []
    for name in (one for one in factors if one.startswith(("model.layers.0.", "model.layers.11."))):
        delta = base.matrix(name).float() - tuned.matrix(name).float()
        squares = torch.linalg.eigvalsh(
            (delta.T @ delta if delta.shape[0] > delta.shape[1] else delta @ delta.T).double()
        )
        optimum = float(squares.flip(0)[kept:].clamp_min(0.0).sum())
        ratios.append((residual(delta, factors[name]) / optimum) ** 0.5)
    Path(out).write_text(json.dumps(max(ratios)))


def adapter(folder: str) -> None:
    """Write the delta as a PEFT adapter that turns the base into nearly the tuned model."""
    from safegene.checkpoints.export.adapter import write_adapter
    from safegene.vectors.vector import read_factors

    root = Path(folder)
    patch = {name: change.scaled(-1.0) for name, change in read_factors(root / "delta-16.safetensors").items()}
    write_adapter(patch, base_model=str(root / "base"), out=root / "adapter")


def merge(folder: str, out: str) -> None:
    """Our merge of the base and that change, in bf16."""
    from safegene.checkpoints.export.merge import merge as write
    from safegene.vectors.vector import read_factors

    root = Path(folder)
    patch = {name: LowRank(-one.up, one.down) for name, one in read_factors(root / "delta-16.safetensors").items()}
    write(open_checkpoint(root / "base"), patch, out=Path(out), lossy=True, source="sha256:benchmark")


def peft(folder: str, out: str) -> None:
    """PEFT's merge of the base and the adapter, in bf16."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(Path(folder) / "base", dtype=torch.bfloat16)
    merged: Any = PeftModel.from_pretrained(model, Path(folder) / "adapter")
    merged.merge_and_unload().save_pretrained(out)


TASKS: dict[str, Callable[..., None]] = {
    one.__name__: one
    for one in (build, read, read_write, fetch, extract, extract_stage, compress, error, adapter, merge, peft)
}

if __name__ == "__main__":
    keep_freed_memory()
    TASKS[sys.argv[1]](*sys.argv[2:])
