"""Methods that act before or during a fine-tune: targets are trained again with the same rows, steps and seeds."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from safegene.models.loading import load_model, load_tokenizer
from safegene.models.patching import add_patch
from safegene.repair.baselines.base import exact
from safegene.repair.lora import lora
from safegene.repair.training import supervised
from safegene.tiny.build import RECIPES, build
from safegene.tiny.corpus import stable
from safegene.tiny.model import matrices
from studies.recovery.family import load, shots
from studies.recovery.lox import lox
from studies.recovery.protocol import Method
from studies.recovery.salora import constrain, directions

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SALORA_RANK, SALORA_RATE = 16, 2e-3


def retrained(target: str, seed: int, method: Method) -> tuple["PreTrainedModel", int, float]:
    """The target trained with ``salora`` or ``lox``, the number of trained values, and the CPU seconds."""
    start = time.process_time()
    model, trained = {"salora": _salora, "lox": _lox}[method.name](target, seed)
    return model, trained, time.process_time() - start


def _salora(target: str, seed: int) -> tuple["PreTrainedModel", int]:
    parent = RECIPES[target].parent
    assert parent is not None
    model = load("aligned", seed) if parent == "aligned" else _salora(parent, seed)[0]
    some, _ = shots("topic", seed, Method("", {}, {}).params())
    bases = directions(load("aligned", seed), matrices(model), [one for one in some["fit"] if one.kind == "safety"])
    with lora(model, matrices(model), rank=SALORA_RANK, seed=_shuffle(target, seed)) as factors:
        _train(model, target, seed, SALORA_RATE, factors.parameters, lambda *_: constrain(factors, bases))
        patch = factors.patch()
    add_patch(model, patch)
    return model, sum(one.numel() for one in patch.values())


def _lox(target: str, seed: int) -> tuple["PreTrainedModel", int]:
    recipe = RECIPES[target]
    assert recipe.parent is not None
    if recipe.parent == "aligned":
        model, base = load("aligned", seed), dict(load_model(build("base", seed)).named_parameters())
        own = dict(model.named_parameters())
        add_patch(model, lox({name: exact(own[name].detach() - base[name]) for name in matrices(model)}))
    else:
        model = _lox(recipe.parent, seed)[0]
    if not recipe.rank:
        _train(model, target, seed, recipe.learning_rate, None, None)
        return model, sum(one.numel() for one in model.parameters())
    with lora(model, matrices(model), rank=recipe.rank, seed=_shuffle(target, seed)) as factors:
        _train(model, target, seed, recipe.learning_rate, factors.parameters, None)
        patch = factors.patch()
    add_patch(model, patch)
    return model, sum(one.numel() for one in patch.values())


def _shuffle(target: str, seed: int) -> int:
    return stable("train", target, str(seed)) % 2**31


def _train(
    model: "PreTrainedModel",
    target: str,
    seed: int,
    rate: float,
    parameters: list[torch.Tensor] | None,
    after: Callable[..., None] | None,
) -> None:
    recipe = RECIPES[target]
    supervised(
        model,
        load_tokenizer(build("aligned", seed)),
        recipe.rows(),
        steps=recipe.steps,
        batch_size=recipe.batch_size,
        learning_rate=rate,
        seed=_shuffle(target, seed),
        parameters=parameters,
        on_step=after,
    )
