"""SafeMERGE: where a fine-tune's change leaves the safety subspace, it is mixed with a safe change.

Djuhera et al. 2025 (arXiv 2503.17239). With SafeLoRA's cosine below ``threshold`` (0.35) a matrix becomes
``W_a + weight delta + (1 - weight) delta_safe``, weight 0.8.

In the paper delta_safe is a LoRA tuned on safety data from the aligned model. Here it is the safety vector
W_a - W_degraded: also the change that safety training makes, from a degraded model, and one that every case has, so no
method gets another's data. The public code merges factors by PEFT's ``linear``, which adds up and down apart (69%
relative error); ours adds the changes themselves: factors side by side, exact.
"""

from typing import Literal

from safegene.repair.baselines.base import Candidate, Case, Method, compose, exact
from safegene.repair.baselines.subspace import Cosine, SubspaceParams, cosines
from safegene.vectors.linalg import LowRank
from safegene.workspace.fields import Share


class SafeMergeParams(SubspaceParams):
    """Below ``threshold`` a matrix becomes ``weight`` of the target's change and the rest of the safe change."""

    method: Literal["safemerge"] = "safemerge"
    threshold: Cosine = 0.35
    weight: Share = 0.8


def repair(params: SafeMergeParams, case: Case) -> Candidate:
    """Mix the chosen matrices: the change to add is ``(1 - weight) (delta_safe - delta)``."""
    found, skipped = cosines(case, params.projector, params.directions)
    names = [name for name, value in found.items() if value < params.threshold]
    patch = {name: mix(case, name, params.weight) for name in names}
    return Candidate(patch, 0, {"merged": names, "cosines": found, "skipped": skipped})


def mix(case: Case, name: str, weight: float) -> LowRank:
    """What turns W_t into ``W_a + weight delta + (1 - weight) delta_safe``."""
    return compose([case.change(name).scaled(1.0 - weight), exact(case.delta(name)).scaled(weight - 1.0)])


METHOD = Method(SafeMergeParams, repair, "https://arxiv.org/abs/2503.17239")
