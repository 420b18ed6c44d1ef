"""SafeLoRA: where a fine-tune's change leaves the safety subspace, ``W <- W_a + C (W_t - W_a)``.

Hsu et al. 2024 (arXiv 2405.16833), see `baselines.subspace` for C. A matrix is projected if the cosine of
``C delta`` and delta is at most ``threshold`` (0.5), or if it is one of the ``number`` of the lowest cosine.

Ours differs from the public code: it pairs matrices by name, where that goes by order; it takes any fine-tune, not only
LoRA factors (for them it gives the same, since C acts from the left); W_unaligned is the degraded copy, as nobody
has the base of every model; and ``projector: true`` uses a real projector, where the paper's C shrinks a change by
whatever size V has. Matrices without a cosine are left alone, with a reason.
"""

from typing import Literal

from pydantic import model_validator

from safegene.repair.baselines.base import Candidate, Case, Method, exact
from safegene.repair.baselines.subspace import Cosine, SubspaceParams, cosines, project
from safegene.vectors.linalg import LowRank
from safegene.workspace.fields import Positive


class SafeLoraParams(SubspaceParams):
    """Which matrices are projected: those of a cosine up to ``threshold``, or the ``number`` of the lowest cosine."""

    method: Literal["safelora"] = "safelora"
    threshold: Cosine | None = 0.5
    number: Positive | None = None

    @model_validator(mode="after")
    def _one_criterion(self) -> "SafeLoraParams":
        if (self.threshold is None) == (self.number is None):
            raise ValueError("expected exactly one of threshold and number")
        return self


def repair(params: SafeLoraParams, case: Case) -> Candidate:
    """Project the changes of the chosen matrices."""
    found, skipped = cosines(case, params.projector, params.directions)
    if params.number is not None:
        names = sorted(sorted(found), key=found.__getitem__)[: params.number]
    else:
        names = [name for name, value in found.items() if params.threshold is not None and value <= params.threshold]
    patch = {name: _change(params, case, name) for name in case.names if name in names}
    return Candidate(patch, 0, {"projected": list(patch), "cosines": found, "skipped": skipped})


def _change(params: SafeLoraParams, case: Case, name: str) -> LowRank:
    delta = case.delta(name)
    return exact(project(case.change(name), delta, params.projector, params.directions) - delta)


METHOD = Method(SafeLoraParams, repair, "https://arxiv.org/abs/2405.16833")
