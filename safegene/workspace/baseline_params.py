"""Parameters of the rival repair methods in `safegene.repair.baselines`; ``method`` tells them apart.

A parameter that may be null is then chosen on the validation shots, among the values of its plural.
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from safegene.workspace.fields import Frozen, Positive, Rate, Share

Factor = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Cosine = Annotated[float, Field(ge=-1.0, le=1.0, allow_inf_nan=False)]
Projector = Literal["paper", "true"]


class RestaParams(Frozen):
    """``W_t + gamma S``; ``drop`` is DARE's rate, on the safety vector or on the target's own change."""

    method: Literal["resta"] = "resta"
    gamma: Factor | None = 1.0
    gammas: tuple[Factor, ...] = Field(default=(0.5, 1.0, 1.5, 2.0, 3.0), min_length=1)
    drop: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    drop_from: Literal["safety", "task"] = "safety"


class Subspace(Frozen):
    """The safety subspace: by the paper's C, or by the true projector onto V's leading ``directions`` (all if null)."""

    projector: Projector = "paper"
    directions: Positive | None = None

    @model_validator(mode="after")
    def _directions_of_a_projector(self) -> "Subspace":
        if self.directions is not None and self.projector != "true":
            raise ValueError("expected directions with the projector 'true' only")
        return self


class SafeLoraParams(Subspace):
    """Which matrices are projected: those of a cosine up to ``threshold``, or the ``number`` of the lowest cosine."""

    method: Literal["safelora"] = "safelora"
    threshold: Cosine | None = 0.5
    number: Positive | None = None

    @model_validator(mode="after")
    def _one_criterion(self) -> "SafeLoraParams":
        if (self.threshold is None) == (self.number is None):
            raise ValueError("expected exactly one of threshold and number")
        return self


class SafeMergeParams(Subspace):
    """Below ``threshold`` a matrix becomes ``weight`` of the target's change and the rest of the safe change."""

    method: Literal["safemerge"] = "safemerge"
    threshold: Cosine = 0.35
    weight: Share = 0.8


class SafeDeltaParams(Frozen):
    """How much safety loss the kept entries may cost, as a share of the whole change's, or on the public code's scale.

    ``damping`` is added to the Hessian's diagonal, as a share of its mean.
    """

    method: Literal["safedelta"] = "safedelta"
    budget: Factor | None = 0.1
    budgets: tuple[Factor, ...] = Field(default=(0.03, 0.1, 0.3), min_length=1)
    scale: Literal["total", "absolute"] = "total"
    shots: Positive = 128
    damping: Rate = 0.01
    compensate: bool = True


class EnchTableParams(Frozen):
    """``beta``: norm of the safety change over that of the target's; ``sharpness``: how fast interference lowers it."""

    method: Literal["enchtable"] = "enchtable"
    beta: Factor | None = 0.1
    betas: tuple[Factor, ...] = Field(default=(0.05, 0.1, 0.2, 0.5, 1.0), min_length=1)
    share: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5  # of each change's singular directions that are compared
    sharpness: Factor = 200.0


class LoraTraining(Frozen):
    """A LoRA fine-tune with early stop on the validation shots."""

    rank: Positive = 1
    learning_rate: Rate = 2e-3
    steps: Positive = 60
    loss: Literal["kl", "ce"] = "kl"
    measure_every: Positive = 10
    patience: Positive = 3


class FinetuneParams(LoraTraining):
    """A LoRA fine-tune on every kind of shot."""

    method: Literal["finetune"] = "finetune"
    batch_size: Positive = 64


class OneShotParams(LoraTraining):
    """A LoRA fine-tune on one safety shot: the best, after ``trial_steps``, of ``tries``."""

    method: Literal["one_shot"] = "one_shot"
    rank: Positive = 8
    learning_rate: Rate = 1e-3
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


BaselineParams = Annotated[
    RestaParams | SafeLoraParams | SafeMergeParams | SafeDeltaParams | EnchTableParams | FinetuneParams | OneShotParams,
    Field(discriminator="method"),
]
