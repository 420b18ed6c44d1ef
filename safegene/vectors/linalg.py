"""Low-rank linear algebra of weight changes: torch only, no files.

Shapes are written (out, in): a linear layer computes ``y = W x`` with W (out, in). *Energy* is the squared Frobenius
norm, without unit. Sums are float64, factors float32. Every function runs on the device of its tensors.

Dense matrices are read in blocks of `BLOCK` numbers: glibc returns an allocation above 32 MiB to the system when it is
freed, so a larger float64 temporary costs more in page faults than in arithmetic.

Sources: Halko, Martinsson, Tropp 2011 (arXiv 0909.4061) for the randomised SVD; Musco, Musco 2015 (arXiv 1504.05477),
algorithm 2, for its block Krylov space; Bandeira, van Handel 2016 (arXiv 1408.6185) for the norm of noise; SafeGene
(arXiv 2606.06519) for the safety vector ``B_l A_l ~ (W_a - W_d)_l``.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from safegene.errors import ShapeMismatch

OVERSAMPLING = 8  # columns beyond the rank; Halko et al., section 4.2, recommend 5 or 10
BLOCK = 1 << 20  # numbers of a dense matrix that are converted at once: 8 MiB in float64
POWER_ITERATIONS = 3
NEGLIGIBLE = 1e-7
VANISHING = 1e-30  # a step of this size has no energy beside any weight's
INDEPENDENT = 0.1  # of a unit column must lie outside the known space; less is a direction that D does not have


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


def randomised_svd(
    delta: Tensor, rank: int, *, power_iterations: int = POWER_ITERATIONS, seed: int = 0, total: float | None = None
) -> Approximation:
    """A randomised SVD of D (out, in), of rank ``min(rank, out, in)``.

    With ``Q_0 = orth(D Omega)`` and ``Q_i = orth(D D^T Q_(i-1))``, Q holds the columns of Q_0 to Q_q, the block Krylov
    space; then an exact SVD of the small ``Q^T D``, whose blocks are the products ``D^T Q_i`` already computed. So
    q = 1 costs as many products as one power iteration of Halko et al., which keep Q_q only, and is more accurate. The
    error is measured, so it holds for every random draw.

    Args:
        delta: D (out, in).
        rank: the largest rank.
        power_iterations: q.
        seed: of Omega.
        total: ``|D|_F^2`` where it is known already.
    """
    matrix = delta.detach().float()
    out, inner = matrix.shape
    width = min(rank + OVERSAMPLING, out, inner)
    generator = torch.Generator().manual_seed(seed)
    omega = torch.randn(inner, width, generator=generator).to(matrix.device)
    basis, projected = _krylov(matrix, _orth(matrix @ omega), power_iterations)
    left, values, right = _thin_svd(projected, min(rank, out, inner))
    factors, energies = _factors(basis.double() @ left, values, right, len(values))
    return Approximation(factors, energies, energy(matrix) if total is None else total, residual(matrix, factors))


def _krylov(matrix: Tensor, start: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """Q (out, k) with orthonormal or zero columns, which span the block Krylov space of D, and ``Q^T D`` (k, in)."""
    blocks, products = [start], [start.T @ matrix]
    for _ in range(iterations):
        known = torch.cat(blocks, dim=1)
        if (room := min(matrix.shape) - known.shape[1]) == 0:
            break
        new = matrix @ _orth(products[-1].T)[:, :room]
        new = _orth(new - known @ (known.T @ new))
        new, scale = torch.linalg.qr(new - known @ (known.T @ new))  # once leaves rounding errors along `known`
        blocks.append(new * (scale.diagonal().abs() > INDEPENDENT))
        products.append(blocks[-1].T @ matrix)
    return torch.cat(blocks, dim=1), torch.cat(products)


def _thin_svd(wide: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """U (k, rank), s (rank,) and V^T (rank, in) of B (k, in), k << in, from the eigenvectors of ``B B^T`` in float64.

    Directions with less than `NEGLIGIBLE` of the largest singular value, which this cannot resolve, get s = 0.
    """
    wide = wide.double()
    squares, vectors = torch.linalg.eigh(wide @ wide.T)
    values, left = squares.flip(0)[:rank].clamp_min(0.0).sqrt(), vectors.flip(1)[:, :rank]
    values = values * (values > NEGLIGIBLE * values[0])
    return left, values, (left.T @ wide) * torch.where(values > 0.0, 1.0 / values, 0.0)[:, None]


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


def row_blocks(shape: Sequence[int], *, numbers: int = BLOCK) -> Iterator[slice]:
    """Slices of the first dimension of a tensor of ``shape``, of at most ``numbers`` numbers, or one row."""
    rows = shape[0]
    step = max(1, numbers * rows // max(1, torch.Size(shape).numel()))
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def energy(matrix: Tensor) -> float:
    """``|M|_F^2`` for a tensor M of any shape and floating dtype: rows in float32, their sum in float64.

    The rows of a float64 tensor stay so. The relative error is about 1e-9 (measured on normal numbers), at a fifth of
    the cost of squares in float64.
    """
    total = torch.zeros((), dtype=torch.float64, device=matrix.device)
    for rows in row_blocks(matrix.shape) if matrix.ndim else [...]:
        block = matrix[rows] if matrix.dtype == torch.float64 else matrix[rows].float()
        norms = torch.linalg.vector_norm(block if block.ndim else block[None], dim=-1)
        total += norms.double().square().sum()
    return float(total)


def residual(delta: Tensor, factors: LowRank) -> float:
    """``|D - up @ down|_F^2`` for D (out, in): the difference in float32, its energy in float64, in blocks of rows."""
    up, down = factors.up.float(), factors.down.float()
    return sum(energy(torch.addmm(delta[rows].float(), up[rows], down, alpha=-1.0)) for rows in row_blocks(delta.shape))


def rounding_floor(weight: Tensor, dtype: torch.dtype) -> float:
    """The expected energy of the rounding error of ``weight`` (any shape) in ``dtype``.

    An element w with 2^e <= |w| < 2^(e+1) is rounded to a grid of step ``2^e eps``. The error is uniform over one step,
    so its expected square is step^2 / 12. An element without its sign and mantissa is 2^e; below the smallest normal
    number of ``dtype`` the grid is that of this number.
    """
    info, total = torch.finfo(dtype), 0.0
    for rows in row_blocks(weight.shape) if weight.ndim else [...]:
        powers = _powers(weight[rows])
        total += energy(powers if info.tiny < VANISHING else powers.clamp_min(info.tiny))
    return info.eps**2 * total / 12.0


def rounding_edge(weights: Sequence[Tensor], difference: Tensor) -> float:
    """The largest squared singular value that the noise of rounding can be expected to have in a mean difference.

    ``(max_i sqrt(r_i) + max_j sqrt(c_j))^2`` (Bandeira, van Handel 2016), with r_i and c_j the expected energies of the
    noise in row i and column j; ``(sqrt(out) + sqrt(in))^2`` times the variance where all elements have one. The noise
    of a row is at most its expected rounding error, and at most what the difference holds.

    Args:
        weights: the k weights (out, in) whose rounding errors, independent of each other, are in the mean.
        difference: D (out, in), the mean of k differences.
    """
    noise = [torch.zeros(size, dtype=torch.float64, device=difference.device) for size in difference.shape]
    found = [torch.zeros_like(one) for one in noise]
    for rows in row_blocks(difference.shape):
        actual = difference[rows].double().square()
        expected = torch.zeros_like(actual)
        for weight in weights:
            steps = _step(weight.dtype).to(actual.device)[_exponent_bits(weight[rows]).long()]
            expected += steps.square().view_as(actual) / (12.0 * len(weights) ** 2)
        for sums, block in ((noise, expected), (found, actual)):
            sums[0][rows] = block.sum(dim=1)
            sums[1] += block.sum(dim=0)
    largest = [torch.minimum(one, other).max().sqrt() for one, other in zip(noise, found, strict=True)]
    return float((largest[0] + largest[1]).square())


def _powers(weight: Tensor) -> Tensor:
    """The power of two below each element's size, 0 where the exponent bits are 0; bf16 stays, others in float32."""
    if weight.dtype == torch.bfloat16:
        return weight.contiguous().view(torch.int16).bitwise_and(0x7F80).view(torch.bfloat16)
    return weight.float().contiguous().view(torch.int32).bitwise_and(0x7F800000).view(torch.float32)


def _exponent_bits(weight: Tensor) -> Tensor:
    """(n,) the 8 exponent bits, 0..255, of each element in bf16 or float32; other dtypes are cast to float32."""
    if weight.dtype == torch.bfloat16:
        bits, mantissa = weight.contiguous().view(torch.int16), 7
    else:
        bits, mantissa = weight.float().contiguous().view(torch.int32), 23
    return bits.reshape(-1).bitwise_right_shift(mantissa).bitwise_and_(0xFF)


def _step(dtype: torch.dtype) -> Tensor:
    """(256,) the grid step of ``dtype`` for elements of each value of the exponent bits; constant below its tiny."""
    info = torch.finfo(dtype)
    return torch.exp2(torch.arange(256, dtype=torch.float64) - 127.0).clamp_min(info.tiny) * info.eps


def signal_share(delta_energy: float, floor: float) -> float:
    """The share of a difference's energy that is not rounding: ``max(0, 1 - floor / energy)``, 0..1.

    Args:
        delta_energy: energy of the difference.
        floor: expected energy of the rounding in it; see `rounding_floor`.

    Returns:
        0 for a difference of zero, and for one that rounding alone explains.
    """
    return 0.0 if delta_energy <= 0.0 else max(0.0, 1.0 - floor / delta_energy)


def inner_product(matrix: Tensor, change: LowRank) -> float:
    """``<M, up @ down>`` for M (out, in) in float32, without the dense product; M should be a block (`row_blocks`)."""
    return float(torch.dot((matrix @ change.down.T).flatten(), change.up.flatten()))


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
