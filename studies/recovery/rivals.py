"""A LoRA on the same shots, with the same pool: with as many random prompts of it as mining may add, or with mining."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from safegene.datasets.prompts import PromptSet
from safegene.models.loading import load_tokenizer
from safegene.models.patching import forward_hooks
from safegene.repair.baselines.base import case_of, mean_change
from safegene.repair.coefficients import allocate_ranks
from safegene.repair.divergence import measure_shots
from safegene.repair.fitting import fit_coefficients
from safegene.repair.lora import lora
from safegene.repair.mining import Miner, mine, unused_tasks
from safegene.repair.pool import label_pool
from safegene.repair.shots import Shot, Shots, evenly_spaced
from safegene.repair.target import RepairResult, run_baseline
from safegene.tiny.build import build
from safegene.tiny.judge import GrammarJudge
from safegene.vectors.linalg import LowRank
from safegene.workspace.params import CalibrateParams
from studies.recovery.family import Family, prompts

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class LoraFactors:
    """Factors of a LoRA of rank 1 as coefficients, so that the same fit and the same mining train them."""

    def __init__(self, model: "PreTrainedModel", names: Sequence[str], seed: int) -> None:
        with lora(model, names, rank=1, seed=seed) as made:
            patch = made.patch()
        self._ups = {name: one.up.requires_grad_() for name, one in patch.items()}
        self._downs = {name: one.down.requires_grad_() for name, one in patch.items()}

    @property
    def parameters(self) -> list[Tensor]:
        """Every up and down."""
        return [*self._ups.values(), *self._downs.values()]

    @contextmanager
    def hooked(self, model: nn.Module, scales: Tensor | None = None) -> Iterator[None]:
        """The change beside the weights."""
        with forward_hooks(model, self._shapes, lambda name, _: (self._ups[name], self._downs[name]), scales):
            yield

    @property
    def _shapes(self) -> dict[str, LowRank]:
        return {name: LowRank(up, self._downs[name]) for name, up in self._ups.items()}

    def scale(self, factor: float) -> None:
        """Make the change ``factor`` times as large."""
        with torch.no_grad():
            for up in self._ups.values():
                up.mul_(factor)

    def patch(self) -> dict[str, LowRank]:
        """The change without gradient."""
        return {
            name: LowRank(up.detach().clone(), self._downs[name].detach().clone()) for name, up in self._ups.items()
        }

    def to_json(self) -> dict[str, Any]:
        """Nothing: the study keeps no numbers."""
        return {}

    def direction_sizes(self) -> dict[str, list[float]]:
        """One direction per matrix."""
        return {name: [1.0] for name in self._ups}

    def alphas(self) -> dict[str, float]:
        """There is no vector."""
        return dict.fromkeys(self._ups, 1.0)


def new_miner(seed: int, params: CalibrateParams, model: "PreTrainedModel", tasks: PromptSet, shots: Shots) -> Miner:
    """The miner of a target, with the pool that its aligned model labels."""
    aligned, judge = build("aligned", seed), GrammarJudge()
    tokenizer = load_tokenizer(aligned)
    pool = label_pool(
        params.mining,
        prompts("prompts/pool"),
        aligned,
        judge,
        digest=f"tiny://aligned?seed={seed}",
        student_tokenizer=tokenizer,
        response_tokens=params.response_tokens,
        dtype="float32",
    )
    return Miner(params, model, tokenizer, judge, pool, unused_tasks(tasks, shots))


def pooled_lora(
    params: CalibrateParams,
    model: "PreTrainedModel",
    numbers: float,
    made: Family,
    seed: int,
    shots: Shots,
    miner: Miner,
) -> RepairResult:
    """``lora-kl`` with further shots of the pool, evenly spaced, as many as mining may add."""
    count = params.mining.shots * POOLED_ROUNDS
    more = [
        *evenly_spaced(tuple(miner.pool.shots.values()), count),
        *evenly_spaced(miner.taught(miner.pool.answered), count),
    ]
    some: dict[Any, Sequence[Shot]] = {"fit": [*shots["fit"], *more], "validation": shots["validation"]}
    whole = mean_change(made.surrogates)
    change = {name: whole[name] for name in allocate_ranks(whole, numbers)}
    return run_baseline(params, case_of(params, build("aligned", seed), model, change, some))


POOLED_ROUNDS = 1  # of the mining that it is compared with


def mined_lora(
    params: CalibrateParams,
    model: "PreTrainedModel",
    numbers: float,
    made: Family,
    seed: int,
    shots: Shots,
    miner: Miner,
) -> RepairResult:
    """A LoRA of rank 1 trained by the loop of our fit, and then by the same mining."""
    names = [*allocate_ranks(mean_change(made.surrogates), numbers)]
    before, factors = measure_shots(model, shots["validation"]), LoraFactors(model, names, params.seed)
    fitted = fit_coefficients(params, model, factors, shots["fit"], shots["validation"])
    fitted, mining = mine(miner, factors, fitted, shots, doubtful=True)
    with torch.no_grad(), factors.hooked(model):
        after = measure_shots(model, shots["validation"])
    return RepairResult(fitted, before, after, "", mining=mining)


LORAS: Mapping[str, Callable[..., RepairResult]] = {"lora-kl+pool": pooled_lora, "lora-mined": mined_lora}
