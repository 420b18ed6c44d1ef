"""What is fitted per target: a few numbers between, or along, the fixed factors of the safety vector.

For a matrix l of the vector, ``up_l`` (out, r) and ``down_l`` (r, in) never change. `Scalars` are the paper's alphas
(SafeGene, arXiv 2606.06519): ``dW_l = up_l diag(alpha_l) down_l``, shared within a layer or not. A `Core` goes further
at the same size of adapter: ``dW_l = up_l L_l R_l down_l`` with L (r, k) and R (k, r), so a target gets its own k
directions out of everything the vector holds, where scalars can only scale the k that compression kept. An (r, r) core
between frozen singular factors is LoRA-XS (arXiv 2405.17604); here it is of rank k, begins at the vector itself and
folds into an adapter of rank k.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from safegene.checkpoints.checkpoint import layer_of
from safegene.errors import ParamsError
from safegene.models.patching import forward_hooks, low_rank_hooks
from safegene.vectors.linalg import LowRank, Patch
from safegene.workspace.params import CalibrateParams

SMALLEST_NORM = 1e-20  # in place of the norm of a zero direction, which is divided by
STEP_EXPONENT = 0.3  # a basis direction's step shrinks with its singular value to this power: 0 treats all alike


class Coefficients(Protocol):
    """Trainable numbers and the change that they make of the vector."""

    @property
    def parameters(self) -> list[Tensor]:
        """The numbers, as leaf tensors with a gradient."""

    def hooked(self, model: nn.Module, scales: Tensor | None = None) -> AbstractContextManager[None]:
        """Compute the change beside the model's weights inside the block, times ``scales`` (batch,) where given."""

    def scale(self, factor: float) -> None:
        """Make the change ``factor`` times as large."""

    def patch(self) -> dict[str, LowRank]:
        """The change as an adapter: matrix name -> factors with the numbers folded in, without gradient."""

    def to_json(self) -> dict[str, Any]:
        """The numbers as JSON, by matrix name."""

    def direction_sizes(self) -> dict[str, list[float]]:
        """For tables: matrix name -> how much of each direction of the vector is in the change."""

    def alphas(self) -> dict[str, float]:
        """For pictures: matrix name -> the change along the vector itself; 1 is the vector, 0 nothing of it."""


class Scalars:
    """One scalar alpha per group of directions; see `scalar_groups`."""

    def __init__(self, patch: Patch, groups: Mapping[str, Sequence[int]], start: float) -> None:
        self._patch = patch
        self._groups = {name: torch.tensor(at) for name, at in groups.items()}
        count = 1 + max(max(at) for at in groups.values())
        self._scalars = torch.full((count,), start, requires_grad=True)

    @property
    def parameters(self) -> list[Tensor]:
        """The scalars, (n,)."""
        return [self._scalars]

    def hooked(self, model: nn.Module, scales: Tensor | None = None) -> AbstractContextManager[None]:
        """See `Coefficients`."""
        return low_rank_hooks(
            model, self._patch, {name: self._scalars[at] for name, at in self._groups.items()}, scales
        )

    def scale(self, factor: float) -> None:
        """See `Coefficients`."""
        with torch.no_grad():
            self._scalars.mul_(factor)

    def patch(self) -> dict[str, LowRank]:
        """See `Coefficients`."""
        return fold_coefficients(self._patch, self.to_json())

    def to_json(self) -> dict[str, list[float]]:
        """Matrix name -> its scalars."""
        return {name: self._scalars.detach()[at].tolist() for name, at in self._groups.items()}

    def direction_sizes(self) -> dict[str, list[float]]:
        """The scalars themselves."""
        return self.to_json()

    def alphas(self) -> dict[str, float]:
        """The mean of each matrix's scalars."""
        return {name: sum(scalars) / len(scalars) for name, scalars in self.to_json().items()}


class Core:
    """A core ``L R`` of rank k_l, L (r, k) and R (k, r), for every matrix that ``ranks`` names.

    The bases are the vector's directions, each scaled by a power of its singular value. The core begins with ``start``
    times the vector's own k_l leading directions.
    """

    def __init__(self, patch: Patch, ranks: Mapping[str, int], start: float) -> None:
        self._bases, self._left, self._right = dict[str, LowRank](), dict[str, Tensor](), dict[str, Tensor]()
        self._scale, self._spectra = dict[str, Tensor](), dict[str, Tensor]()
        for name, factors in top_directions({name: patch[name] for name in ranks}).items():
            out = factors.up.norm(dim=0).clamp_min(SMALLEST_NORM)
            into = factors.down.norm(dim=1).clamp_min(SMALLEST_NORM)
            spectrum = out * into
            weight = (spectrum / spectrum[0]) ** STEP_EXPONENT * spectrum[0].sqrt()
            k, root = min(ranks[name], len(spectrum)), spectrum.sqrt() / weight
            self._bases[name] = LowRank(factors.up / out * weight, factors.down / into[:, None] * weight[:, None])
            self._left[name] = torch.diag(start * root)[:, :k].clone().requires_grad_()
            self._right[name] = torch.diag(root)[:k].clone().requires_grad_()
            self._scale[name], self._spectra[name] = weight**2 / spectrum[0], spectrum / spectrum[0]

    @property
    def parameters(self) -> list[Tensor]:
        """L (r, k) and R (k, r) of every matrix."""
        return [*self._left.values(), *self._right.values()]

    @contextmanager
    def hooked(self, model: nn.Module, scales: Tensor | None = None) -> Iterator[None]:
        """See `Coefficients`."""
        with forward_hooks(model, self._bases, self._factors, scales):
            yield

    def _factors(self, name: str, device: torch.device) -> tuple[Tensor, Tensor]:
        basis = self._bases[name]
        return (basis.up @ self._left[name]).to(device), (self._right[name] @ basis.down).to(device)

    def scale(self, factor: float) -> None:
        """See `Coefficients`."""
        with torch.no_grad():
            for left in self._left.values():
                left.mul_(factor)

    def patch(self) -> dict[str, LowRank]:
        """See `Coefficients`."""
        with torch.no_grad():
            return {
                name: LowRank(basis.up @ self._left[name], self._right[name] @ basis.down)
                for name, basis in self._bases.items()
            }

    def to_json(self) -> dict[str, dict[str, list[list[float]]]]:
        """Matrix name -> ``left`` (r, k) and ``right`` (k, r)."""
        return {
            name: {"left": left.detach().tolist(), "right": self._right[name].detach().tolist()}
            for name, left in self._left.items()
        }

    def direction_sizes(self) -> dict[str, list[float]]:
        """Row norms of the core between unit directions, in units of the leading singular value."""
        return {name: self._unit_core(name).norm(dim=1).tolist() for name in self._left}

    def alphas(self) -> dict[str, float]:
        """``<core, S_k> / <S_k, S_k>`` with S_k the vector's k leading singular values: ``start`` before the fit."""
        alphas = {}
        for name, spectrum in self._spectra.items():
            leading = spectrum[: self._left[name].shape[1]]
            diagonal = self._unit_core(name).diagonal()[: len(leading)]
            alphas[name] = float((diagonal * leading).sum() / leading.square().sum())
        return alphas

    def _unit_core(self, name: str) -> Tensor:
        """(r, r) ``L R`` between unit directions, in units of the leading singular value."""
        scale = self._scale[name].sqrt()
        return (self._left[name].detach() @ self._right[name].detach()) * scale[:, None] * scale


def new_coefficients(params: CalibrateParams, patch: Patch, numbers: float) -> Coefficients:
    """Coefficients at their start, such that their adapter holds at most ``numbers`` numbers.

    Args:
        params: granularity and start.
        patch: the safety vector's factors in the selected layers.
        numbers: the most numbers that the adapter may hold.

    Raises:
        ParamsError: not even one matrix at rank 1 fits.
    """
    ranks = allocate_ranks(patch, numbers)
    if params.granularity == "core":
        return Core(patch, ranks, params.start)
    leading = top_directions(patch, ranks)
    return Scalars(leading, scalar_groups(leading, params.granularity), params.start)


def scalar_groups(patch: Patch, granularity: str) -> dict[str, tuple[int, ...]]:
    """Matrix name -> indices of its scalars: one per direction, one per matrix, one per layer, or one for all.

    Matrices outside every layer share a scalar of their own.
    """
    if granularity == "direction":
        start, groups = 0, {}
        for name, factors in patch.items():
            groups[name] = tuple(range(start, start + factors.rank))
            start += factors.rank
        return groups
    if granularity == "matrix":
        return {name: (at,) for at, name in enumerate(patch)}
    if granularity == "global":
        return dict.fromkeys(patch, (0,))
    order = {layer: at for at, layer in enumerate(dict.fromkeys(map(layer_of, patch)))}
    return {name: (order[layer_of(name)],) for name in patch}


def fold_coefficients(patch: Patch, alphas: Mapping[str, Sequence[float]]) -> dict[str, LowRank]:
    """The patch with its coefficients folded into ``up``: column j times the matrix's j-th (or only) coefficient."""
    return {
        name: LowRank(factors.up * torch.tensor(alphas[name], dtype=factors.up.dtype), factors.down)
        for name, factors in patch.items()
    }


def top_directions(patch: Patch, ranks: Mapping[str, int] | None = None) -> dict[str, LowRank]:
    """The directions of the largest norm ``|up_j| |down_j|``, in order, as many of each matrix as ``ranks`` says.

    For singular factors these are the leading singular directions. Without ``ranks`` it only puts them in order; with
    it, a matrix that it does not name is left out.
    """
    leading = {}
    for name, factors in patch.items():
        if ranks is not None and name not in ranks:
            continue
        norms = factors.up.norm(dim=0) * factors.down.norm(dim=1)
        order = torch.argsort(norms, descending=True, stable=True)[: ranks[name] if ranks else None]
        leading[name] = LowRank(factors.up[:, order].contiguous(), factors.down[order].contiguous())
    return leading


def zero_change(patch: Patch) -> dict[str, LowRank]:
    """Zeros at rank 1 for every matrix of the patch: an adapter that changes nothing."""
    return {name: factors.scaled(0.0) for name, factors in top_directions(patch, dict.fromkeys(patch, 1)).items()}


def allocate_ranks(patch: Patch, numbers: float) -> dict[str, int]:
    """Ranks of an adapter of at most ``numbers`` numbers, at most the patch's own: matrix name -> rank, 1 or more.

    Every matrix gets the same rank as far as ``numbers`` go. What is left gives one rank more to the matrices of the
    most energy per number. Where not every matrix can have rank 1, those of the least energy per number are left out.

    Raises:
        ParamsError: not even one matrix at rank 1 fits.
    """
    cost = {name: sum(factors.shape) for name, factors in patch.items()}
    even = int(numbers // sum(cost.values()))
    ranks = {name: min(even, factors.rank) for name, factors in patch.items()}
    spent = sum(rank * cost[name] for name, rank in ranks.items())
    for name in sorted(patch, key=lambda name: (-patch[name].energy() / cost[name], name)):
        if ranks[name] < patch[name].rank and spent + cost[name] <= numbers:
            ranks[name] += 1
            spent += cost[name]
    ranks = {name: rank for name, rank in ranks.items() if rank}
    if not ranks:
        raise ParamsError(
            f"expected calibrate.max_extra to hold the smallest matrix at rank 1, {min(cost.values())} numbers, "
            f"got {int(numbers)}",
            remedy="raise calibrate.max_extra",
        )
    return ranks
