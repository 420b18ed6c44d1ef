"""Safety at One Shot: a LoRA fine-tune of the target on a single safety example.

Zhang et al. 2026 (ICLR, arXiv 2601.01887): one well chosen safety example and a few epochs bring safety back, because
safety gradients are of low rank. The example is the one whose fine-tune does best (the paper's outer problem).

Ours tries a few safety shots, spread over the fit split, for the first steps of the whole schedule, trains on the best
of them from the start again, and stops early, all by the validation shots and weights that every method is chosen with;
the loss is cross-entropy on the aligned model's refusal by default. Rank, rate and steps are our defaults for small
models, not the paper's.
"""

from typing import Literal

from pydantic import model_validator

from safegene.repair.baselines.base import Candidate, Case, Method
from safegene.repair.baselines.finetune import LoraParams, train
from safegene.repair.shots import evenly_spaced
from safegene.repair.training import nan_last
from safegene.workspace.fields import Positive, PositiveFloat

SAFETY_ONLY = {"safety": 1.0}  # the training loss has no other term


class OneShotParams(LoraParams):
    """A LoRA fine-tune on one safety shot: the best, after ``trial_steps``, of ``tries``."""

    method: Literal["one_shot"] = "one_shot"
    rank: Positive = 8
    learning_rate: PositiveFloat = 1e-3
    steps: Positive = 20
    loss: Literal["kl", "ce"] = "ce"
    measure_every: Positive = 2
    tries: Positive = 6
    trial_steps: Positive = 4

    @model_validator(mode="after")
    def _trials_are_shorter(self) -> "OneShotParams":
        if self.trial_steps > self.steps:
            raise ValueError(f"expected at most {self.steps} trial_steps, as many as steps, got {self.trial_steps}")
        return self


def repair(params: OneShotParams, case: Case) -> Candidate:
    """Choose an example by short trials, then fine-tune on it.

    Raises:
        EmptySample: there are no safety shots, or none to choose by.
    """
    tried = evenly_spaced(case.taught("fit", "safety"), params.tries)
    objectives = [
        train(params, case, [shot], weights=SAFETY_ONLY, batch_size=1, stop_after=params.trial_steps).objective
        for shot in tried
    ]
    best = min(range(len(tried)), key=lambda at: nan_last(objectives[at]))
    trials = {shot.id: value for shot, value in zip(tried, objectives, strict=True)}
    trained = train(params, case, [tried[best]], weights=SAFETY_ONLY, batch_size=1)
    return trained.candidate(shot=tried[best].id, trials=trials)


METHOD = Method(OneShotParams, repair, "https://arxiv.org/abs/2601.01887")
