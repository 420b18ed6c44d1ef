"""Low-rank linear algebra of weight changes: torch only, no files.

Shapes are written (out, in): a linear layer computes ``y = W x`` with W (out, in). *Energy* is the squared Frobenius
norm, without unit. Numbers are computed in float64, factors in float32.

Sources: Halko, Martinsson, Tropp 2011 (arXiv 0909.4061), algorithms 4.3/4.4 and 5.1 for the randomised SVD; SafeGene
(arXiv 2606.06519) for the safety vector ``B_l A_l ~ (W_a - W_d)_l``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from safegene.errors import ShapeMismatch

OVERSAMPLING = 8  # columns beyond the rank; Halko et al., section 4.2, recommend 5 or 10
BLOCK = 4096  # rows of a dense product in memory at once


@dataclass(frozen=True, eq=False)
class LowRank:
    """A weight change in low-rank form, ``dW = up @ down``.

    Attributes:
        up: (out, r).
        down: (r, in).
    """

    up: Tensor
    down: Tensor

    def __post_init__(self) -> None:
        if self.up.ndim != 2 or self.down.ndim != 2 or self.up.shape[1] != self.down.shape[0]:
            shapes = f"{tuple(self.up.shape)} and {tuple(self.down.shape)}"
            raise ShapeMismatch(f"expected factors of shape (out, r) and (r, in), got {shapes}")

    @property
    def rank(self) -> int:
        """The number of columns of ``up``; the rank of the product may be lower."""
        return self.up.shape[1]

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the dense change."""
        return self.up.shape[0], self.down.shape[1]

    def dense(self) -> Tensor:
        """(out, in) = up @ down."""
        return self.up @ self.down

    def scaled(self, alpha: float) -> "LowRank":
        """``alpha * dW``, with alpha multiplied into ``up``."""
        return LowRank(self.up * alpha, self.down)

    def transposed(self) -> "LowRank":
        """The change of the transposed matrix: (in, out) = down^T @ up^T."""
        return LowRank(self.down.T, self.up.T)

    def numel(self) -> int:
        """The number of stored values: r (out + in)."""
        return self.up.numel() + self.down.numel()

    def energy(self) -> float:
        """``|dW|_F^2`` in float64, from the (r, r) Gram matrices, without the dense product."""
        up, down = self.up.double(), self.down.double()
        return float(((up.T @ up) * (down @ down.T)).sum().clamp_min(0.0))


Patch = Mapping[str, LowRank]
"""Full matrix name as in safetensors -> the change to add to the matrix."""


@dataclass(frozen=True, eq=False)
class Approximation:
    """A truncated SVD of D (out, in) with its measured error.

    Attributes:
        factors: up (out, r) and down (r, in), each scaled by the square roots of the singular values.
        energies: (r,) float64, the squared singular values kept, descending.
        total: ``|D|_F^2``, exact.
        residual: ``|D - up @ down|_F^2``, measured in float64.
    """

    factors: LowRank
    energies: Tensor
    total: float
    residual: float

    @property
    def kept(self) -> float:
        """The share of the energy in the factors, 0..1; 1 for a zero input."""
        return 1.0 if self.total == 0.0 else max(0.0, 1.0 - self.residual / self.total)

    @property
    def relative_error(self) -> float:
        """``|D - up @ down|_F / |D|_F``; 0 for a zero input."""
        return 0.0 if self.total == 0.0 else (self.residual / self.total) ** 0.5


def concat(factors: Sequence[LowRank]) -> LowRank:
    """The exact sum of changes as factors (out, sum r) and (sum r, in): ``[B1 B2] [A1; A2] = B1 A1 + B2 A2``.

    Raises:
        ShapeMismatch: there is no change, or they have different shapes.
    """
    shapes = {change.shape for change in factors}
    if len(shapes) != 1:
        raise ShapeMismatch(f"expected at least one change, all of one shape, got {sorted(shapes)}")
    return LowRank(torch.cat([f.up for f in factors], dim=1), torch.cat([f.down for f in factors], dim=0))


def randomised_svd(delta: Tensor, rank: int, *, power_iterations: int = 1, seed: int = 0) -> Approximation:
    """A randomised SVD of D (out, in), of rank ``min(rank, out, in)``.

    ``Y = (D D^T)^q D Omega``, ``Q = orth(Y)``, then an exact SVD of the small ``Q^T D`` (Halko et al., algorithms 4.4
    and 5.1), with an orthonormalisation after each product. The error is measured, so it holds for every random draw.

    Args:
        delta: D (out, in).
        rank: the largest rank.
        power_iterations: q.
        seed: of Omega.
    """
    matrix = delta.detach().float()
    out, inner = matrix.shape
    width = min(rank + OVERSAMPLING, out, inner)
    generator = torch.Generator().manual_seed(seed)
    omega = torch.randn(inner, width, generator=generator).to(matrix.device)
    basis = _orth(matrix @ omega)
    for _ in range(power_iterations):
        basis = _orth(matrix @ _orth(matrix.T @ basis))
    left, values, right = torch.linalg.svd(basis.T @ matrix, full_matrices=False)
    factors, energies = _factors(basis @ left, values, right, min(rank, width))
    return Approximation(factors, energies, energy(matrix), residual(matrix, factors))


def truncate(factors: LowRank, rank: int) -> LowRank:
    """The best approximation of rank ``min(rank, r)``: QR of both factors, SVD of the (r, r) core."""
    left, values, right = product_svd(factors)
    return _factors(left, values, right, min(rank, len(values)))[0]


def product_svd(factors: LowRank) -> tuple[Tensor, Tensor, Tensor]:
    """U (out, k), s (k,) and V^T (k, in) of ``up @ down`` in float64, k = min(r, out, in); no dense product."""
    q_up, r_up = torch.linalg.qr(factors.up.double())
    q_down, r_down = torch.linalg.qr(factors.down.double().T)
    left, values, right = torch.linalg.svd(r_up @ r_down.T, full_matrices=False)
    return q_up @ left, values, right @ q_down.T


def energy(matrix: Tensor) -> float:
    """``|M|_F^2`` in float64, for a matrix M of any dtype."""
    return float(matrix.double().square().sum())


def residual(delta: Tensor, factors: LowRank) -> float:
    """``|D - up @ down|_F^2`` for D (out, in), in float64, computed in blocks of rows."""
    down = factors.down.double()
    starts = range(0, delta.shape[0], BLOCK)
    return sum(energy(delta[i : i + BLOCK].double() - factors.up[i : i + BLOCK].double() @ down) for i in starts)


def rounding_floor(weight: Tensor, dtype: torch.dtype) -> float:
    """The expected energy of the rounding error of ``weight`` (any shape) in ``dtype``.

    An element w with 2^e <= |w| < 2^(e+1) is rounded to a grid of step ``2^e eps``. The error is uniform over one step,
    so its expected square is step^2 / 12. The difference of two stored weights has twice this energy.
    """
    info = torch.finfo(dtype)
    _, exponent = torch.frexp(weight.double().abs().clamp_min(info.tiny))
    step = torch.exp2(exponent.double() - 1.0) * info.eps
    return float(step.square().sum() / 12.0)


def signal_share(delta_energy: float, floor: float) -> float:
    """The share of a measured difference that is not rounding: ``max(0, 1 - 2 floor / energy)``, 0..1.

    Args:
        delta_energy: energy of the difference of two stored weights.
        floor: `rounding_floor` of one of them.

    Returns:
        0 for a difference of zero, and for one that rounding alone explains.
    """
    return 0.0 if delta_energy <= 0.0 else max(0.0, 1.0 - 2.0 * floor / delta_energy)


def delta_survival(weight: Tensor, delta: Tensor, dtype: torch.dtype) -> float:
    """The share of ``delta`` that is left after ``weight + delta`` is stored in ``dtype``: 1 is all, 0 none.

    ``<S, D> / |D|^2`` with S = stored(W + D) - stored(W), all (out, in): the projection of the stored change on the
    intended one. 1 for a zero delta.
    """
    total = energy(delta)
    if total == 0.0:
        return 1.0
    base = weight.to(dtype).double()
    stored = (base + delta.double()).to(dtype).double() - base
    return float((stored * delta.double()).sum()) / total


def _orth(matrix: Tensor) -> Tensor:
    basis: Tensor = torch.linalg.qr(matrix)[0]
    return basis


def _signs(left: Tensor) -> Tensor:
    """The signs that make the largest element of each column positive, so that equal inputs give equal factors."""
    top = left.abs().argmax(dim=0)
    signs = left[top, torch.arange(left.shape[1], device=left.device)].sign()
    return torch.where(signs == 0, torch.ones_like(signs), signs)


def _factors(left: Tensor, values: Tensor, right: Tensor, rank: int) -> tuple[LowRank, Tensor]:
    left, values, right = left[:, :rank], values[:rank], right[:rank]
    signs, root = _signs(left), values.sqrt()
    up, down = (left * signs * root).float(), (right * signs[:, None] * root[:, None]).float()
    return LowRank(up.contiguous(), down.contiguous()), values.double().square()
