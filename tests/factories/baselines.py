"""Cases to repair: from matrices written out by hand, and of small real Llamas."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from safegene.models.loading import load_model
from safegene.repair.baselines import Case
from safegene.repair.shots import Shot, ShotKind, make_shots
from safegene.vectors.linalg import LowRank
from tests.factories.shots import random_replies

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
        model=cast(PreTrainedModel, None),
        anchor=lambda: cast(PreTrainedModel, None),
        shots={},
        weights=WEIGHTS,
        seed=0,
    )


def low(up: Sequence[Any], down: Sequence[Any]) -> LowRank:
    return LowRank(torch.tensor(up), torch.tensor(down))


def of_models(aligned: PreTrainedModel, target: PreTrainedModel, safety: Mapping[str, LowRank]) -> Case:
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


def shots(aligned: PreTrainedModel, target: PreTrainedModel, count: int, seed: int) -> list[Shot]:
    """Shots of four response tokens, ``count`` of each kind."""
    kinds: tuple[tuple[PreTrainedModel, ShotKind], ...] = ((aligned, "safety"), (target, "benign"), (target, "task"))
    return [
        shot
        for at, (teacher, kind) in enumerate(kinds, start=seed)
        for shot in make_shots(
            teacher, random_replies(count, at, longest=7, prefix=f"p{at}-"), kind=kind, response_tokens=4
        )
    ]


def small(root: Path, safety: Mapping[str, LowRank]) -> Case:
    """The target is the aligned model less the safety vector: adding the vector repairs it wholly."""
    broken = {name: one.scaled(-1.0) for name, one in safety.items()}
    return of_models(load_model(root), load_model(root, patch=broken), safety)


def state(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def unchanged(model: PreTrainedModel, before: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
