"""Small real Llama checkpoints and adapters with random weights, for tests."""

import json
import shutil
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from safegene.checkpoints.checkpoint import open_checkpoint
from safegene.checkpoints.export.adapter import write_adapter
from safegene.checkpoints.record import CheckpointRecord
from safegene.models.structure import analyse
from safegene.vectors.linalg import LowRank

WORDS = 50
CHAT_TEMPLATE = "{{ messages[0]['content'] }}"
IDS = torch.randint(0, WORDS, (4, 9), generator=torch.Generator().manual_seed(5))


def save_llama(
    folder: Path, *, seed: int = 0, tied: bool = True, heads: int = 4, hidden: int = 64, shards: str = "1GB"
) -> Path:
    """A Llama with two layers and grouped-query attention; with a word-level tokenizer.json."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=WORDS,
            hidden_size=hidden,
            intermediate_size=hidden * 3 // 2,
            num_hidden_layers=2,
            num_attention_heads=heads,
            num_key_value_heads=2,
            tie_word_embeddings=tied,
        )
        LlamaForCausalLM(config).save_pretrained(folder, max_shard_size=shards)
    vocabulary = {f"w{i}": i for i in range(WORDS)}
    tokenizer = {
        "version": "1.0",
        "added_tokens": [],
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "w0"},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    return folder


def matrix_names(root: Path) -> tuple[str, ...]:
    """The checkpoint's matrices, by layer."""
    return analyse(open_checkpoint(root)).names


def random_patch(
    root: Path, *, seed: int = 1, size: float = 0.1, ranks: tuple[int, ...] = (2, 3)
) -> dict[str, LowRank]:
    """A change of every projection, ranks taking turns."""
    generator = torch.Generator().manual_seed(seed)
    checkpoint, patch = open_checkpoint(root), {}
    for i, name in enumerate(matrix_names(checkpoint.root)):
        (out, inner), rank = checkpoint.specs[name].shape, ranks[i % len(ranks)]
        up = torch.randn(out, rank, generator=generator) * size
        patch[name] = LowRank(up, torch.randn(rank, inner, generator=generator) * size)
    return patch


def save_adapter(folder: Path, base: Path, *, seed: int = 2) -> Path:
    """A LoRA of the base, as our writer writes it."""
    write_adapter(random_patch(base, seed=seed, ranks=(4,)), base_model=str(base), out=folder)
    return folder


def checkpoint_record(*, digest: str, architecture: str, base: str | None = None) -> CheckpointRecord:
    """The record of a checkpoint that exists nowhere: its digests matter, the rest is empty."""
    return CheckpointRecord(
        source="tiny://none",
        fingerprint="none",
        kind="lora" if base else "full",
        digest=digest,
        files={},
        vocabulary=None,
        architecture=architecture,
        config={},
        tensors={},
        parameters=1,
        adapter_parameters=0,
        base=base,
    )


def copy(folder: Path, to: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(folder, to))


def files_of(folder: Path, **more: bytes) -> dict[str, bytes]:
    """File name -> bytes of a folder, and more files."""
    return {path.name: path.read_bytes() for path in folder.iterdir()} | {
        name.replace("__", "."): data for name, data in more.items()
    }
