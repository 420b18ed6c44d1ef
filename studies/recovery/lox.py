"""LoX: before fine-tuning, extrapolate what alignment changed: ``W_a + coefficient SVD_k(W_a - W_base)``.

Perin et al. 2025 (COLM, arXiv 2506.15606). It makes the *aligned* model harder to break; it repairs nothing. Ours takes
the change in fp32 factors, truncated exactly without a dense SVD; rank 6 and coefficient 1.25 are defaults.
"""

from safegene.errors import ParamsError
from safegene.vectors.linalg import LowRank, Patch, truncate


def lox(change: Patch, *, rank: int = 6, coefficient: float = 1.25) -> dict[str, LowRank]:
    """What to add to the aligned model before it is fine-tuned: matrix -> factors of rank at most ``rank``.

    Args:
        change: W_aligned - W_base, (out, in) each, in factors (`exact` for a dense one).
        rank: leading singular directions kept.
        coefficient: how far the change is continued.

    Raises:
        ParamsError: the rank is below 1.
    """
    if rank < 1:
        raise ParamsError(f"expected a rank of at least 1, got {rank}, for lox")
    return {name: truncate(factors, rank).scaled(coefficient) for name, factors in change.items()}
