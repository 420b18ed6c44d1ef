"""What the weights tell: the fine-tune's change D = W_target - W_aligned beside the safety vector V, per matrix.

Energies are squared Frobenius norms. Matrices are read and measured one after the other; nothing dense is kept.
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from safegene.checkpoints.adapter import open_adapter
from safegene.checkpoints.checkpoint import Checkpoint, layer_of, open_checkpoint
from safegene.checkpoints.sources import ModelFiles
from safegene.checkpoints.structure import Structure, by_stored_name
from safegene.vectors.linalg import LowRank, energy, randomised_svd
from safegene.vectors.vector import SafetyVector

DIRECTIONS = 8  # of the task's change, whose share of the vector's space is measured
TINY = 1e-30  # in the place of a whole of 0, so that a share of nothing is 0


@dataclass(frozen=True)
class Matrix:
    """What one weight matrix tells.

    Attributes:
        name: its full name.
        weight: energy of W_aligned.
        change: energy of D = W_target - W_aligned.
        vector: energy of the safety vector V; 0 where it has no factors.
        whole: energy of the delta that V was compressed from.
        along: the inner product of D and V.
        taken: energy of V within the leading directions of D, the mean over columns and rows.
        by_chance: what ``taken`` would be for directions that have nothing to do with V.
        used: whether the repair changes it.
        kind: what it belongs to.
    """

    name: str
    weight: float
    change: float
    vector: float
    whole: float
    along: float
    taken: float
    by_chance: float
    used: bool
    kind: str = "mlp"


def measure_matrices(
    root: Path, target: ModelFiles, structure: Structure, vector: SafetyVector, used: Collection[str]
) -> Iterator[Matrix]:
    """Every matrix of the family, read and measured one after the other; peak memory is three matrices."""
    base = open_checkpoint(root)
    change = change_of(base, target, structure)
    for name in structure.names:
        factors, kept = vector.factors.get(name), vector.energy.get(name, 0.0)
        measured = measure_matrix(name, base.matrix(name).float(), change(name), factors, kept=kept, used=name in used)
        yield replace(measured, kind=structure.matrices[name].kind)


def changes_elsewhere(root: Path, target: ModelFiles, structure: Structure) -> dict[str, float]:
    """Kind of tensor that holds no matrix -> energy of what fine-tuning changed there; a LoRA changes nothing there.

    Of an embedding that grew, the rows that the family has.
    """
    base, energies = open_checkpoint(root), dict[str, float]()
    tuned = None if target.adapters else open_checkpoint(target.root)
    for name, kind in structure.others.items():
        if kind == "buffer":
            continue
        energies.setdefault(kind, 0.0)
        if tuned is not None and name in tuned.specs and name in base.specs:
            new, old = tuned.tensor(name), base.tensor(name)
            rows = slice(min(len(new), len(old))) if new.ndim else ...
            energies[kind] += energy(new[rows].float() - old[rows].float())
    return energies


def unreached(matrices: Sequence[Matrix], elsewhere: Mapping[str, float]) -> dict[str, float]:
    """Kind of tensor -> share (0..1) of what fine-tuning changed that lies there, where the vector has no factors.

    Args:
        matrices: every matrix of the family.
        elsewhere: `changes_elsewhere`.
    """
    whole = (sum(one.change for one in matrices) + sum(elsewhere.values())) or TINY
    shares = {kind: value / whole for kind, value in elsewhere.items()}
    for one in matrices:
        shares[one.kind] = shares.get(one.kind, 0.0) + (0.0 if one.vector else one.change / whole)
    return {kind: share for kind, share in sorted(shares.items()) if share}


def change_of(base: Checkpoint, target: ModelFiles, structure: Structure) -> Callable[[str], Tensor]:
    """Matrix name -> W_target - W_aligned (out, in), float32: of a LoRA its own factors, exactly."""
    if target.adapters:
        patches = [by_stored_name(structure.matrices, open_adapter(folder).patch()) for folder in target.adapters]

        def of_lora(name: str) -> Tensor:
            parts = [patch[name].dense() for patch in patches if name in patch]
            return torch.stack(parts).sum(0) if parts else torch.zeros(base.matrix_shape(name))

        return of_lora
    tuned = open_checkpoint(target.root)
    return lambda name: tuned.matrix(name).float() - base.matrix(name).float()


def measure_matrix(
    name: str, weight: Tensor, change: Tensor, vector: LowRank | None, *, kept: float = 1.0, used: bool = True
) -> Matrix:
    """Measure W (out, in), D (out, in) and V, up (out, r) and down (r, in); ``kept`` is `SafetyVector.energy` of it."""
    held, along, taken, by_chance = 0.0, 0.0, 0.0, 0.0
    if vector is not None:
        held = vector.energy()
        along = float(((vector.up.T @ change).double() * vector.down.double()).sum())
        if bool(change.any()):
            lead = randomised_svd(change, DIRECTIONS).factors
            left, right = (torch.linalg.qr(one)[0] for one in (lead.up, lead.down.T))
            in_columns = LowRank(left.T @ vector.up, vector.down).energy()
            in_rows = LowRank(vector.up, vector.down @ right).energy()
            taken = (in_columns + in_rows) / 2.0
            by_chance = held * lead.rank * (1.0 / change.shape[0] + 1.0 / change.shape[1]) / 2.0
    whole = held / max(kept, TINY)
    return Matrix(name, energy(weight), energy(change), held, whole, along, taken, by_chance, used)


def overall(matrices: Sequence[Matrix], elsewhere: Mapping[str, float] | None = None) -> dict[str, float]:
    """What the matrices tell together; shares are of energy, in 0..1.

    ``task_change``: |D| / |W|; ``vector_size``: |V| / |W|; ``cosine``: of D and V; ``taken`` and ``taken_by_chance``:
    share of V within D's leading directions; ``outside``: share of V that the repair does not use; ``unreached``: share
    of the whole change (``elsewhere`` included) where V has no factors; ``kept``: share of the delta that V holds.
    """
    weight, change, vector, whole = (
        sum(getattr(one, key) for one in matrices) or TINY for key in ("weight", "change", "vector", "whole")
    )
    return {
        "task_change": math.sqrt(change / weight),
        "vector_size": math.sqrt(vector / weight),
        "cosine": sum(one.along for one in matrices) / math.sqrt(change * vector),
        "taken": sum(one.taken for one in matrices) / vector,
        "taken_by_chance": sum(one.by_chance for one in matrices) / vector,
        "outside": sum(one.vector for one in matrices if not one.used) / vector,
        "unreached": sum(unreached(matrices, elsewhere or {}).values()),
        "kept": vector / whole,
    }


def by_layer(matrices: Sequence[Matrix], alphas: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Layer -> the same of its own matrices, and how the repair uses it.

    ``task_change`` and ``cosine``: as in `overall`; ``vector``: its share of the vector's energy; ``used``: the part of
    that in matrices that the repair changes; ``coefficients``: their mean size, 0 without any.
    """
    layers: dict[int, list[Matrix]] = {}
    for one in matrices:
        layers.setdefault(layer_of(one.name) or 0, []).append(one)
    whole, found = sum(one.vector for one in matrices) or TINY, {}
    for layer, some in sorted(layers.items()):
        own = overall(some)
        sizes = [abs(alphas[one.name]) for one in some if one.name in alphas]
        found[str(layer)] = {
            "task_change": own["task_change"],
            "cosine": own["cosine"],
            "vector": sum(one.vector for one in some) / whole,
            "used": sum(one.vector for one in some if one.used) / whole,
            "coefficients": sum(sizes) / max(1, len(sizes)),
        }
    return found
