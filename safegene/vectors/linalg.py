"""Low-rank linear algebra on weight changes: pure torch, no files.

Shapes are written (out, in): a linear layer computes ``y = W x`` with W (out, in). *Energy* is the squared Frobenius
norm, unitless. Work is done in float64 where a result is a number and in float32 where it is a factor.

Sources: Halko, Martinsson, Tropp 2011 (arXiv 0909.4061), algorithms 4.3/4.4 and 5.1 for the randomised SVD; SafeGene
(arXiv 2606.06519) for the safety vector ``B_l A_l ~ (W_a - W_d)_l``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from safegene.errors import ShapeMismatch

OVERSAMPLING = 8  # Halko et al. section 4.2: 5 or 10 columns more than the rank asked for
BLOCK = 4096  # rows of a dense product held at once


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
        """Number of columns of ``up``; the true rank may be lower."""
        return self.up.shape[1]

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the dense change."""
        return self.up.shape[0], self.down.shape[1]

    def dense(self) -> Tensor:
        """(out, in) = up @ down."""
        return self.up @ self.down

    def scaled(self, alpha: float) -> "LowRank":
        """``alpha * dW``: the factor goes into ``up``."""
        return LowRank(self.up * alpha, self.down)

    def numel(self) -> int:
        """Numbers stored: r (out + in)."""
        return self.up.numel() + self.down.numel()

    def energy(self) -> float:
        """``|dW|_F^2``, from the r x r Gram matrices in float64, so nothing dense is made."""
        up, down = self.up.double(), self.down.double()
        return float(((up.T @ up) * (down @ down.T)).sum().clamp_min(0.0))


Patch = Mapping[str, LowRank]
"""Full matrix name as in safetensors -> the change to add to it."""


@dataclass(frozen=True, eq=False)
class Approximation:
    """A truncated SVD with its certificate.

    Attributes:
        factors: up (out, r) and down (r, in), each carrying the square root of the singular values.
        energies: (r,) float64, the squared singular values kept, descending.
        total: ``|D|_F^2`` of the whole input, exact.
        residual: ``|D - up down|_F^2``, measured (not estimated) in float64.
    """

    factors: LowRank
    energies: Tensor
    total: float
    residual: float

    @property
    def kept(self) -> float:
        """Share of the energy that the factors hold, 0..1; 1 for a zero input."""
        return 1.0 if self.total == 0.0 else max(0.0, 1.0 - self.residual / self.total)

    @property
    def relative_error(self) -> float:
        """``|D - up down|_F / |D|_F``."""
        return 0.0 if self.total == 0.0 else (self.residual / self.total) ** 0.5


def concat(factors: Sequence[LowRank]) -> LowRank:
    """(out, sum r) and (sum r, in): the exact sum of several changes, ``[B1 B2] [A1; A2] = B1 A1 + B2 A2``.

    Raises:
        ShapeMismatch: there is none, or they change matrices of different shapes.
    """
    shapes = {one.shape for one in factors}
    if len(shapes) != 1:
        raise ShapeMismatch(f"expected at least one change, all of one shape, got {sorted(shapes)}")
    return LowRank(torch.cat([f.up for f in factors], dim=1), torch.cat([f.down for f in factors], dim=0))


def randomised_svd(delta: Tensor, rank: int, *, power_iterations: int = 1, seed: int = 0) -> Approximation:
    """(out, in) -> factors of rank ``min(rank, out, in)``: the best approximation within a randomly found range.

    ``Y = (D D^T)^q D Omega``, ``Q = orth(Y)``, then an exact SVD of the small ``Q^T D`` (Halko et al. algorithms 4.4
    and 5.1), re-orthonormalised between products. The certificate is the measured Frobenius error, so it holds
    whatever the random draw.
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
    """The best approximation of rank ``min(rank, r)``, exact: QR of both factors, SVD of the r x r core."""
    left, values, right = product_svd(factors)
    return _factors(left, values, right, min(rank, len(values)))[0]


def product_svd(factors: LowRank) -> tuple[Tensor, Tensor, Tensor]:
    """U (out, k), s (k,), V^T (k, in) of ``up @ down`` in float64, k = min(r, out, in), without the dense product."""
    q_up, r_up = torch.linalg.qr(factors.up.double())
    q_down, r_down = torch.linalg.qr(factors.down.double().T)
    left, values, right = torch.linalg.svd(r_up @ r_down.T, full_matrices=False)
    return q_up @ left, values, right @ q_down.T


def energy(matrix: Tensor) -> float:
    """``|M|_F^2`` in float64, whatever the dtype of M."""
    return float(matrix.double().square().sum())


def residual(delta: Tensor, factors: LowRank) -> float:
    """``|D - up down|_F^2`` for D (out, in), in float64, a block of rows at a time."""
    down = factors.down.double()
    starts = range(0, delta.shape[0], BLOCK)
    return sum(energy(delta[i : i + BLOCK].double() - factors.up[i : i + BLOCK].double() @ down) for i in starts)


def rounding_floor(weight: Tensor, dtype: torch.dtype) -> float:
    """Expected energy of the error made by storing ``weight`` (any shape) in ``dtype``.

    An element w between powers of two 2^e <= |w| < 2^(e+1) is rounded to a grid of step ``2^e eps``; the error is
    uniform over one step, so its expected square is step^2 / 12. A difference of two stored weights carries twice
    this energy.
    """
    info = torch.finfo(dtype)
    _, exponent = torch.frexp(weight.double().abs().clamp_min(info.tiny))
    step = torch.exp2(exponent.double() - 1.0) * info.eps
    return float(step.square().sum() / 12.0)


def signal_share(delta_energy: float, floor: float) -> float:
    """Share of a measured difference that is signal, ``max(0, 1 - 2 floor / energy)``, 0..1.

    ``floor`` is `rounding_floor` of one of the two stored weights. A difference no larger than the noise of storing
    both operands holds nothing that can be told from rounding: 0. A difference of zero has no signal either.
    """
    return 0.0 if delta_energy <= 0.0 else max(0.0, 1.0 - 2.0 * floor / delta_energy)


def delta_survival(weight: Tensor, delta: Tensor, dtype: torch.dtype) -> float:
    """Share of ``delta`` that is still there after ``weight + delta`` is stored in ``dtype``; 1 is all, 0 none.

    ``<S, D> / |D|^2`` with S = stored(W + D) - stored(W), all (out, in): the part of the change, along itself, that the
    stored weights really make. A zero delta survives whole.
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
    """What makes each column's largest element positive, so that equal inputs give equal factors."""
    top = left.abs().argmax(dim=0)
    signs = left[top, torch.arange(left.shape[1], device=left.device)].sign()
    return torch.where(signs == 0, torch.ones_like(signs), signs)


def _factors(left: Tensor, values: Tensor, right: Tensor, rank: int) -> tuple[LowRank, Tensor]:
    left, values, right = left[:, :rank], values[:rank], right[:rank]
    signs, root = _signs(left), values.sqrt()
    up, down = (left * signs * root).float(), (right * signs[:, None] * root[:, None]).float()
    return LowRank(up.contiguous(), down.contiguous()), values.double().square()
