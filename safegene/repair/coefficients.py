"""What is fitted per target: a few numbers between, or along, the fixed factors of the safety vector.

For a matrix l of the vector, ``up_l`` (out, r) and ``down_l`` (r, in) never change. `Scalars` are the paper's alphas
(SafeGene, arXiv 2606.06519): ``dW_l = up_l diag(alpha_l) down_l``, shared within a layer or not. A `Core` goes further
at the same size of adapter: ``dW_l = up_l L_l R_l down_l`` with L (r, k) and R (k, r), so a target gets its own k
directions out of everything the vector holds, where scalars can only scale the k that compression kept. An (r, r) core
between frozen singular factors is LoRA-XS (arXiv 2405.17604); here it is of rank k, begins at the vector itself and
folds into an adapter of rank k.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from safegene.errors import ParamsError
from safegene.models.patching import forward_hooks, low_rank_hooks
from safegene.vectors.linalg import LowRank, Patch

TINY = 1e-20
FLATTEN = 0.3  # a basis direction's step shrinks with its singular value to this power: 0 treats all alike


class Coefficients(Protocol):
    """Trainable numbers and what they make of the vector."""

    @property
    def values(self) -> list[Tensor]:
        """The numbers, as leaf tensors with a gradient."""

    def added(self, model: nn.Module, sizes: Tensor | None = None) -> AbstractContextManager[None]:
        """The change beside the model's weights inside the block, times ``sizes`` (batch,) where they are given."""

    def resize(self, factor: float) -> None:
        """Make the change ``factor`` times as large."""

    def patch(self) -> dict[str, LowRank]:
        """The change as an adapter: matrix name -> factors with the numbers folded in, without gradient."""

    def plain(self) -> dict[str, Any]:
        """The numbers as JSON, by matrix name."""

    def sizes(self) -> dict[str, list[float]]:
        """For pictures: matrix name -> how much of each direction of the vector is in the change."""

    def alphas(self) -> dict[str, float]:
        """For pictures: matrix name -> the change along the vector itself; 1 is the vector, 0 nothing of it."""


class Scalars:
    """One scalar per group of directions; see `groups`."""

    def __init__(self, patch: Patch, group: Mapping[str, Sequence[int]], start: float) -> None:
        self._patch = patch
        self._index = {name: torch.tensor(at) for name, at in group.items()}
        count = 1 + max(max(at) for at in group.values())
        self._values = torch.full((count,), start, requires_grad=True)

    @property
    def values(self) -> list[Tensor]:
        """The scalars, (n,)."""
        return [self._values]

    def added(self, model: nn.Module, sizes: Tensor | None = None) -> AbstractContextManager[None]:
        """See `Coefficients`."""
        return low_rank_hooks(model, self._patch, {name: self._values[at] for name, at in self._index.items()}, sizes)

    def resize(self, factor: float) -> None:
        """See `Coefficients`."""
        with torch.no_grad():
            self._values.mul_(factor)

    def patch(self) -> dict[str, LowRank]:
        """See `Coefficients`."""
        return fold_coefficients(self._patch, self.plain())

    def plain(self) -> dict[str, list[float]]:
        """Matrix name -> its scalars."""
        return {name: self._values.detach()[at].tolist() for name, at in self._index.items()}

    def sizes(self) -> dict[str, list[float]]:
        """The scalars themselves."""
        return self.plain()

    def alphas(self) -> dict[str, float]:
        """The mean of each matrix's scalars."""
        return {name: sum(own) / len(own) for name, own in self.plain().items()}


class Core:
    """A core of rank k_l for every matrix that ``ranks`` names.

    The directions of its bases are scaled by a power of their singular values.
    It begins with ``start`` times the vector's own k_l leading directions.
    """

    def __init__(self, patch: Patch, ranks: Mapping[str, int], start: float) -> None:
        self._bases, self._left, self._right = dict[str, LowRank](), dict[str, Tensor](), dict[str, Tensor]()
        self._scale, self._spectra = dict[str, Tensor](), dict[str, Tensor]()
        for name, factors in top_directions({name: patch[name] for name in ranks}).items():
            out, into = factors.up.norm(dim=0).clamp_min(TINY), factors.down.norm(dim=1).clamp_min(TINY)
            spectrum = out * into
            weight = (spectrum / spectrum[0]) ** FLATTEN * spectrum[0].sqrt()
            k, root = min(ranks[name], len(spectrum)), spectrum.sqrt() / weight
            self._bases[name] = LowRank(factors.up / out * weight, factors.down / into[:, None] * weight[:, None])
            self._left[name] = torch.diag(start * root)[:, :k].clone().requires_grad_()
            self._right[name] = torch.diag(root)[:k].clone().requires_grad_()
            self._scale[name], self._spectra[name] = weight**2 / spectrum[0], spectrum / spectrum[0]

    @property
    def values(self) -> list[Tensor]:
        """L (r, k) and R (k, r) of every matrix."""
        return [*self._left.values(), *self._right.values()]

    @contextmanager
    def added(self, model: nn.Module, sizes: Tensor | None = None) -> Iterator[None]:
        """See `Coefficients`."""
        with forward_hooks(model, self._bases, self._factors, sizes):
            yield

    def _factors(self, name: str, device: torch.device) -> tuple[Tensor, Tensor]:
        basis = self._bases[name]
        return (basis.up @ self._left[name]).to(device), (self._right[name] @ basis.down).to(device)

    def resize(self, factor: float) -> None:
        """See `Coefficients`."""
        with torch.no_grad():
            for left in self._left.values():
                left.mul_(factor)

    def patch(self) -> dict[str, LowRank]:
        """See `Coefficients`."""
        with torch.no_grad():
            return {
                name: LowRank(one.up @ self._left[name], self._right[name] @ one.down)
                for name, one in self._bases.items()
            }

    def plain(self) -> dict[str, dict[str, list[list[float]]]]:
        """Matrix name -> ``left`` (r, k) and ``right`` (k, r)."""
        return {
            name: {"left": left.detach().tolist(), "right": self._right[name].detach().tolist()}
            for name, left in self._left.items()
        }

    def sizes(self) -> dict[str, list[float]]:
        """Row norms of the core between unit directions, in units of the leading singular value."""
        return {name: self._core(name).norm(dim=1).tolist() for name in self._left}

    def alphas(self) -> dict[str, float]:
        """``<core, S_k> / <S_k, S_k>`` with S_k the vector's k leading singular values: ``start`` before the fit."""
        found = {}
        for name, spectrum in self._spectra.items():
            own = spectrum[: self._left[name].shape[1]]
            found[name] = float((self._core(name).diagonal()[: len(own)] * own).sum() / own.square().sum())
        return found

    def _core(self, name: str) -> Tensor:
        scale = self._scale[name].sqrt()
        return (self._left[name].detach() @ self._right[name].detach()) * scale[:, None] * scale


def scalar_groups(patch: Patch, granularity: str, layer_of: Callable[[str], int | None]) -> dict[str, tuple[int, ...]]:
    """Matrix name -> indices of its scalars: one per direction, one per matrix, one per layer, or one for all.

    Matrices outside every layer share a scalar of their own.
    """
    if granularity == "direction":
        start, found = 0, {}
        for name, one in patch.items():
            found[name] = tuple(range(start, start + one.rank))
            start += one.rank
        return found
    if granularity == "matrix":
        return {name: (at,) for at, name in enumerate(patch)}
    if granularity == "global":
        return dict.fromkeys(patch, (0,))
    order = {layer: at for at, layer in enumerate(dict.fromkeys(map(layer_of, patch)))}
    return {name: (order[layer_of(name)],) for name in patch}


def fold_coefficients(patch: Patch, alphas: Mapping[str, Sequence[float]]) -> dict[str, LowRank]:
    """The patch with its coefficients folded into ``up``: column j times the matrix's j-th (or only) coefficient."""
    return {
        name: LowRank(one.up * torch.tensor(alphas[name], dtype=one.up.dtype), one.down) for name, one in patch.items()
    }


def top_directions(patch: Patch, ranks: Mapping[str, int] | None = None) -> dict[str, LowRank]:
    """The directions of the largest norm ``|up_j| |down_j|``, in order, as many of each matrix as ``ranks`` says.

    For singular factors these are the leading singular directions. Without ``ranks`` it only puts them in order; with
    it, a matrix that it does not name is left out.
    """
    found = {}
    for name, one in patch.items():
        if ranks is not None and name not in ranks:
            continue
        size = one.up.norm(dim=0) * one.down.norm(dim=1)
        order = torch.argsort(size, descending=True, stable=True)[: ranks[name] if ranks else None]
        found[name] = LowRank(one.up[:, order].contiguous(), one.down[order].contiguous())
    return found


def allocate_ranks(patch: Patch, numbers: float) -> dict[str, int]:
    """Ranks of an adapter of at most ``numbers`` numbers, at most the patch's own: matrix name -> rank, 1 or more.

    Every matrix gets the same rank as far as that goes; what is left over goes to those of the most energy per number,
    one rank more each. Where not even rank 1 goes all round, the poorest are left out.

    Raises:
        ParamsError: not one matrix fits.
    """
    cost = {name: sum(one.shape) for name, one in patch.items()}
    even = int(numbers // sum(cost.values()))
    ranks = {name: min(even, one.rank) for name, one in patch.items()}
    spent = sum(rank * cost[name] for name, rank in ranks.items())
    for name in sorted(patch, key=lambda name: (-patch[name].energy() / cost[name], name)):
        if ranks[name] < patch[name].rank and spent + cost[name] <= numbers:
            ranks[name] += 1
            spent += cost[name]
    kept = {name: rank for name, rank in ranks.items() if rank}
    if not kept:
        raise ParamsError(
            f"expected calibrate.max_extra to hold the smallest matrix at rank 1, {min(cost.values())} numbers, "
            f"got {int(numbers)}"
        )
    return kept
