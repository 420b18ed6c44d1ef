"""Cases to repair: from matrices written out by hand, and of small real Llamas."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from safegene.models.loading import load_model
from safegene.repair.baselines import Case
from safegene.repair.fitting import Shot, make_shots
from safegene.vectors.linalg import LowRank
from tests.factories.llamas import WORDS

WEIGHTS = {"safety": 1.0, "benign": 1.0, "task": 4.0}
NAME = "model.layers.0.mlp.up_proj.weight"


def by_hand(
    aligned: Mapping[str, Sequence[Any]], target: Mapping[str, Sequence[Any]], safety: Mapping[str, LowRank]
) -> Case:
    """A case of literal matrices without a model, for methods that need none."""
    return Case(
        names=tuple(aligned),
        aligned=lambda name: torch.tensor(aligned[name]),
        target=lambda name: torch.tensor(target[name]),
        safety=safety,
        model=None,
        anchor=lambda: None,
        shots={},
        weights=WEIGHTS,
        seed=0,
    )


def low(up: Sequence[Any], down: Sequence[Any]) -> LowRank:
    return LowRank(torch.tensor(up), torch.tensor(down))


def asked(count: int, seed: int) -> list[tuple[str, list[int], list[int]]]:
    """(id, prompt, reply) of random tokens and differing lengths."""
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, 7, (count, 2), generator=draw).tolist()
    words = torch.randint(0, WORDS, (count, 16), generator=draw).tolist()
    return [(f"p{seed}-{i}", w[:a], w[a : a + b]) for i, (w, (a, b)) in enumerate(zip(words, lengths, strict=True))]


def of_models(aligned, target, safety: Mapping[str, LowRank]) -> Case:
    """A case of two real models; the safety vector's matrices are those that may be changed."""
    before, after = dict(aligned.named_parameters()), dict(target.named_parameters())
    return Case(
        names=tuple(safety),
        aligned=lambda name: before[name].detach(),
        target=lambda name: after[name].detach(),
        safety=safety,
        model=target,
        anchor=lambda: aligned,
        shots={"fit": shots(aligned, target, 8, 1), "validation": shots(aligned, target, 6, 50)},
        weights=WEIGHTS,
        seed=0,
    )


def shots(aligned, target, count: int, seed: int) -> list[Shot]:
    found = make_shots(aligned, asked(count, seed), kind="safety", response_tokens=4)
    for at, kind in enumerate(("benign", "task"), start=1):
        found += make_shots(target, asked(count, seed + at), kind=kind, response_tokens=4)
    return found


def small(root, safety: Mapping[str, LowRank]) -> Case:
    """The target is the aligned model less the safety vector: adding the vector repairs it wholly."""
    broken = {name: one.scaled(-1.0) for name, one in safety.items()}
    return of_models(load_model(root), load_model(root, patch=broken), safety)


def state(model) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def unchanged(model, before: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
