"""Low-rank algebra against torch.linalg, and the two measures of what a dtype's rounding does to a small change."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from safegene.errors import ShapeMismatch
from safegene.vectors.linalg import (
    LowRank,
    concat,
    energy,
    inner_product,
    product_svd,
    randomised_svd,
    residual,
    rounding_edge,
    rounding_floor,
    signal_share,
    truncate,
)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def low_rank(out: int, rank: int, inner: int, seed: int = 0) -> LowRank:
    return LowRank(normal(out, rank, seed=seed), normal(rank, inner, seed=seed + 1))


def decaying(out: int, inner: int) -> torch.Tensor:
    """A matrix whose singular values halve."""
    left, _ = torch.linalg.qr(normal(out, min(out, inner)))
    right, _ = torch.linalg.qr(normal(inner, min(out, inner), seed=1))
    values = torch.logspace(0, 1 - min(out, inner), min(out, inner), base=2)
    matrix: torch.Tensor = (left * values) @ right.T
    return matrix


def test_factors_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ShapeMismatch, match=r"\(4, 2\) and \(3, 5\)"):
        LowRank(normal(4, 2), normal(3, 5))


def test_energy_needs_no_dense_product() -> None:
    change = low_rank(9, 3, 7)
    assert change.energy() == pytest.approx(energy(change.dense()), rel=1e-5)
    assert change.scaled(-2.0).energy() == pytest.approx(4 * change.energy(), rel=1e-6)
    assert change.numel() == 9 * 3 + 3 * 7


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_concat_is_the_exact_sum(first: int, second: int, seed: int) -> None:
    parts = [low_rank(8, first, 6, seed), low_rank(8, second, 6, seed + 7)]
    torch.testing.assert_close(concat(parts).dense(), parts[0].dense() + parts[1].dense())
    assert concat(parts).rank == first + second


def test_concat_of_different_shapes_is_refused() -> None:
    with pytest.raises(ShapeMismatch):
        concat([low_rank(8, 2, 6), low_rank(6, 2, 8)])
    with pytest.raises(ShapeMismatch):
        concat([])


@pytest.mark.parametrize("shape", [(40, 24), (24, 40), (5, 30)])
def test_energies_are_those_of_the_exact_svd(shape: tuple[int, int]) -> None:
    matrix = decaying(*shape)
    found = randomised_svd(matrix, 6)
    exact = torch.linalg.svdvals(matrix.double())[: len(found.energies)].square()
    torch.testing.assert_close(found.energies, exact, rtol=1e-4, atol=1e-9)
    assert found.total == pytest.approx(energy(matrix))


def test_the_certificate_is_the_measured_error() -> None:
    matrix = normal(60, 50)
    found = randomised_svd(matrix, 8)
    assert found.residual == pytest.approx(energy(matrix - found.factors.dense()), rel=1e-4)
    assert found.kept == pytest.approx(1 - found.relative_error**2)


def test_a_power_iteration_brings_a_flat_spectrum_near_the_optimum() -> None:
    matrix = normal(200, 150)
    optimum = float(torch.linalg.svdvals(matrix.double())[16:].square().sum())
    errors = [randomised_svd(matrix, 16, power_iterations=q).residual / optimum for q in (0, 1, 3)]
    assert errors[0] > errors[1] > errors[2] >= 1 - 1e-6
    assert errors[1] < 1.04


@pytest.mark.parametrize("decay", [0.0, 0.25, 0.5, 1.0])
def test_the_error_is_within_3_per_mille_of_the_optimum(decay: float) -> None:
    """For a flat spectrum and for ones that fall as a power of their index."""
    left, values, right = torch.linalg.svd(normal(400, 300), full_matrices=False)
    if decay:
        values = torch.arange(1, 301).float().pow(-decay)
    optimum = float(values[16:].double().square().sum())
    assert randomised_svd(left * values @ right, 16).residual / optimum < 1.003**2


@pytest.mark.parametrize(("shape", "rank"), [((64, 64), 30), ((30, 64), 12), ((64, 30), 25), ((9, 200), 4)])
def test_a_space_that_fills_the_matrix_gives_the_exact_svd(shape: tuple[int, int], rank: int) -> None:
    matrix = normal(*shape)
    found = randomised_svd(matrix, rank)
    assert found.residual == pytest.approx(float(torch.linalg.svdvals(matrix)[rank:].square().sum()), rel=1e-3)
    assert found.factors.rank == rank


def test_a_matrix_of_low_rank_is_found_exactly() -> None:
    change = low_rank(50, 4, 30)
    found = randomised_svd(change.dense(), 4)
    assert found.relative_error < 1e-5
    assert residual(change.dense(), found.factors) == pytest.approx(found.residual, abs=1e-6)


def test_the_same_seed_gives_the_same_bytes_and_a_rank_beyond_the_shape_is_capped() -> None:
    matrix = normal(12, 9)
    one, two = randomised_svd(matrix, 100, seed=4), randomised_svd(matrix, 100, seed=4)
    assert torch.equal(one.factors.up, two.factors.up)
    assert one.factors.rank == 9
    assert one.relative_error < 1e-5


def test_nothing_has_no_error() -> None:
    found = randomised_svd(torch.zeros(4, 3), 2)
    assert (found.kept, found.relative_error) == (1.0, 0.0)


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_truncate_is_the_best_approximation(rank: int, keep: int, seed: int) -> None:
    change = low_rank(11, rank, 13, seed)
    cut = truncate(change, keep)
    values = torch.linalg.svdvals(change.dense().double())
    assert energy(change.dense() - cut.dense()) == pytest.approx(
        float(values[keep:].square().sum()), rel=1e-3, abs=1e-6
    )
    assert cut.rank <= min(rank, keep)


def test_product_svd_is_that_of_the_product() -> None:
    change = low_rank(11, 5, 13)
    left, values, right = product_svd(change)
    torch.testing.assert_close((left * values @ right).float(), change.dense(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_floor_is_the_energy_of_real_rounding(dtype: torch.dtype) -> None:
    weight = normal(400, 300) * 0.02
    assert rounding_floor(weight, dtype) == pytest.approx(energy(weight.to(dtype).float() - weight), rel=0.03)


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_floor_is_that_of_every_elements_own_exponent(stored: torch.dtype, dtype: torch.dtype) -> None:
    weight = (normal(50, 40) * torch.logspace(-7, 2, 50)[:, None]).to(stored)
    weight[3, :5] = 0.0
    info = torch.finfo(dtype)
    _, exponent = torch.frexp(weight.double().abs().clamp_min(info.tiny))
    step = torch.exp2(exponent.double() - 1.0) * info.eps
    assert rounding_floor(weight, dtype) == pytest.approx(float(step.square().sum()) / 12.0, rel=1e-6)
    assert rounding_floor(weight[7], dtype) == pytest.approx(float(step[7].square().sum()) / 12.0, rel=1e-6)


def test_a_difference_at_the_floor_has_no_signal_and_one_far_above_has() -> None:
    weight = normal(300, 300) * 0.02
    rounded = weight.bfloat16()
    noise = energy(weight - rounded.float())
    floor = rounding_floor(rounded, torch.bfloat16)
    assert signal_share(noise, floor) < 0.05
    assert signal_share(20 * noise, floor) > 0.9
    assert signal_share(0.0, 0.0) == 0.0


@pytest.mark.parametrize("shape", [(64, 64), (40, 200), (400, 300)])
@pytest.mark.parametrize("uneven", [False, True])
def test_rounding_has_no_direction_beyond_its_edge_and_a_change_of_low_rank_has(
    shape: tuple[int, int], uneven: bool
) -> None:
    """Also where a few rows are much larger than the rest, as in trained models."""
    weight = normal(*shape) * 0.02
    if uneven:
        weight *= normal(shape[0], 1, seed=1).exp() * normal(1, shape[1], seed=2).exp()
    rounded = weight.bfloat16()
    noise = weight - rounded.float()
    assert float(torch.linalg.svdvals(noise)[0]) ** 2 < rounding_edge([rounded], noise)

    change = low_rank(shape[0], 1, shape[1], seed=3).dense()
    change *= 0.003 * rounded.float().norm() / change.norm()
    stored = (rounded.float() + change).bfloat16()
    found = rounded.float() - stored.float()
    assert float(torch.linalg.svdvals(found)[0]) ** 2 > 2 * rounding_edge([stored], found)


def test_the_edge_of_a_mean_is_lower_as_rounding_errors_are_independent() -> None:
    weights = [normal(200, 100, seed=seed) * 0.02 for seed in range(4)]
    mean = torch.stack([one - one.bfloat16().float() for one in weights]).mean(0)
    edge = rounding_edge([one.bfloat16() for one in weights], mean)
    assert edge < rounding_edge([weights[0].bfloat16()], normal(200, 100)) / 3
    assert float(torch.linalg.svdvals(mean)[0]) ** 2 < edge


@pytest.mark.parametrize(("size", "share"), [(0.0003, 0.18), (0.001, 0.53), (0.003, 0.93), (0.01, 1.0)])
def test_survival_in_bf16_is_as_measured_before(size: float, share: float) -> None:
    weight, change = normal(1024, 1024) * 0.02, low_rank(1024, 16, 1024, seed=2)
    change = change.scaled(size * float(weight.norm()) / change.energy() ** 0.5)
    rounded = weight.bfloat16().float()
    for own, dtype, expected in ((rounded, torch.bfloat16, share), (weight, torch.float32, 1.0)):
        kept = inner_product((own + change.dense()).to(dtype).float() - own, change)
        assert kept / change.energy() == pytest.approx(expected, abs=0.02 if dtype == torch.bfloat16 else 1e-3)


def test_an_inner_product_is_that_of_the_dense_change() -> None:
    change = low_rank(30, 4, 20, seed=1)
    assert inner_product(change.dense(), change) == pytest.approx(change.energy(), rel=1e-5)
    assert inner_product(torch.zeros(30, 20), change) == 0.0
