"""Shots of random tokens, taught by a small model."""

import torch
from transformers import PreTrainedModel

from safegene.repair.shots import Shot, ShotKind, make_shots
from tests.factories.llamas import WORDS

EncodedReply = tuple[str, list[int], list[int]]


def random_replies(count: int, seed: int, *, longest: int = 9, prefix: str = "p") -> list[EncodedReply]:
    """(id, prompt, reply) of random tokens, each of 3 to ``longest`` - 1."""
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, longest, (count, 2), generator=draw).tolist()
    words = torch.randint(0, WORDS, (count, 16), generator=draw).tolist()
    return [(f"{prefix}{i}", w[:a], w[a : a + b]) for i, (w, (a, b)) in enumerate(zip(words, lengths, strict=True))]


def taught(model: PreTrainedModel, count: int = 24, seed: int = 3, kind: ShotKind = "safety") -> list[Shot]:
    """Shots of five response tokens, predicted by the model."""
    return make_shots(model, random_replies(count, seed), kind=kind, response_tokens=5)
