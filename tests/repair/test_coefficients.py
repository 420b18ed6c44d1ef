"""What is fitted: it begins at the vector, is in the model what it is in the adapter, and fits the numbers allowed."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from safegene.checkpoints.checkpoint import layer_of
from safegene.errors import ParamsError, ShapeMismatch, TensorMissing
from safegene.models.forward import next_token_log_probs
from safegene.models.loading import load_model
from safegene.models.patching import add_patch, linear_layer, low_rank_hooks, matrix_weight
from safegene.repair.coefficients import (
    Coefficients,
    Core,
    Scalars,
    allocate_ranks,
    fold_coefficients,
    scalar_groups,
    top_directions,
)
from safegene.vectors.linalg import LowRank, Patch, truncate
from tests.factories.llamas import random_patch, save_llama

IDS = [[1, 2, 3, 4]]
C = TypeVar("C", bound=Coefficients)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture
def model(root: Path) -> PreTrainedModel:
    return load_model(root)


@pytest.fixture(scope="module")
def patch(root: Path) -> Patch:
    return {name: one for name, one in random_patch(root, size=0.25).items() if "mlp" in name}


@pytest.fixture(scope="module")
def singular(root: Path) -> Patch:
    """The same of rank 5, in singular factors, as `compress` writes them."""
    found = random_patch(root, size=0.25, ranks=(5,))
    return {name: truncate(one, 5) for name, one in found.items() if "mlp" in name}


def diagonal(*values: float) -> LowRank:
    """(n, n) with these singular values, along the axes."""
    return LowRank(torch.diag(torch.tensor(values)), torch.eye(len(values)))


def shaken(coefficients: C) -> C:
    """The same coefficients, moved at random from where they began."""
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in coefficients.parameters:
            value += 0.3 * torch.randn(value.shape, generator=draw)
    return coefficients


def every(patch: Patch) -> Iterator[Coefficients]:
    """One of each kind of coefficients."""
    yield Core(patch, dict.fromkeys(patch, 2), 1.0)
    for granularity in ("direction", "matrix", "layer", "global"):
        yield Scalars(patch, scalar_groups(patch, granularity), 1.0)


@pytest.mark.parametrize("alpha", [torch.tensor(0.7), torch.tensor([0.7])], ids=["scalar", "one"])
def test_scaled_is_the_patch_and_leaves_no_trace(model: PreTrainedModel, patch: Patch, alpha: Tensor) -> None:
    before = next_token_log_probs(model, IDS, 1)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    with low_rank_hooks(model, patch, dict.fromkeys(patch, alpha)):
        inside = next_token_log_probs(model, IDS, 1)
    torch.testing.assert_close(next_token_log_probs(model, IDS, 1), before)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    add_patch(model, patch, scale=0.7)
    torch.testing.assert_close(next_token_log_probs(model, IDS, 1), inside, rtol=1e-3, atol=1e-4)


def test_scaled_leaves_no_trace_after_an_error(model: PreTrainedModel, patch: Patch) -> None:
    before = next_token_log_probs(model, IDS, 1)
    wrong = {**patch, "model.layers.0.mlp.nothing.weight": LowRank(torch.ones(2, 1), torch.ones(1, 2))}
    with (
        pytest.raises(TensorMissing, match="nothing"),
        low_rank_hooks(model, wrong, dict.fromkeys(wrong, torch.ones(()))),
    ):
        pass
    with pytest.raises(TensorMissing, match="nothing"), Core(wrong, dict.fromkeys(wrong, 1), 1.0).hooked(model):
        pass
    assert torch.equal(next_token_log_probs(model, IDS, 1), before)


def test_another_layer_or_shape_is_refused(model: PreTrainedModel) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    assert linear_layer(model, name) is model.model.layers[0].mlp.up_proj
    with pytest.raises(ShapeMismatch, match=r"\(96, 64\).*\(3, 3\)"):
        matrix_weight(model, name, (3, 3))
    with pytest.raises(TensorMissing, match="embed_tokens"):
        linear_layer(model, "model.embed_tokens.weight")
    with pytest.raises(TensorMissing, match="up_proj"):
        linear_layer(model, name.removesuffix(".weight"))
    with pytest.raises(TensorMissing, match="side_proj"):
        linear_layer(model, "model.layers.0.mlp.side_proj.weight")


def test_a_coefficient_per_direction_scales_that_direction(model: PreTrainedModel, patch: Patch) -> None:
    name = next(iter(patch))
    alphas = tuple(float(i) for i in range(patch[name].rank))
    with low_rank_hooks(model, {name: patch[name]}, {name: torch.tensor(alphas)}):
        inside = next_token_log_probs(model, [[1, 2, 3]], 1)
    add_patch(model, fold_coefficients({name: patch[name]}, {name: alphas}))
    torch.testing.assert_close(next_token_log_probs(model, [[1, 2, 3]], 1), inside, rtol=1e-3, atol=1e-4)


def test_a_repair_of_nothing_at_all_is_no_patch() -> None:
    one = LowRank(torch.ones(3, 1), torch.ones(1, 2))
    assert float(fold_coefficients({"a": one}, {"a": (0.0,)})["a"].dense().abs().max()) == 0.0


def test_groups(patch: Patch) -> None:
    names = list(patch)
    assert [scalar_groups(patch, "matrix")[n] for n in names] == [(i,) for i in range(len(names))]
    assert set(scalar_groups(patch, "global").values()) == {(0,)}
    layers = scalar_groups(patch, "layer")
    assert {layer_of(name): at for name, at in layers.items()} == {0: (0,), 1: (1,)}
    directions = [i for name in names for i in scalar_groups(patch, "direction")[name]]
    assert directions == list(range(sum(one.rank for one in patch.values())))


@pytest.mark.parametrize("start", [1.0, 0.6])
@pytest.mark.parametrize("rank", [1, 3, 9])
def test_a_core_begins_at_the_truncated_vector(singular: Patch, rank: int, start: float) -> None:
    found = Core(singular, dict.fromkeys(singular, rank), start).patch()
    assert found.keys() == singular.keys()
    for name, one in singular.items():
        assert found[name].rank == min(rank, 5)
        torch.testing.assert_close(found[name].dense(), start * truncate(one, rank).dense(), rtol=1e-4, atol=1e-5)


def test_a_core_begins_there_however_the_norm_is_shared_and_the_directions_are_ordered(singular: Patch) -> None:
    order = [3, 0, 4, 1, 2]
    other = {name: LowRank(one.up[:, order] * 10, one.down[order] / 10) for name, one in singular.items()}
    one, two = Core(singular, dict.fromkeys(singular, 2), 1.0), Core(other, dict.fromkeys(other, 2), 1.0)
    for name, change in one.patch().items():
        torch.testing.assert_close(two.patch()[name].dense(), change.dense(), rtol=1e-4, atol=1e-5)
    for name, own in one.direction_sizes().items():
        assert two.direction_sizes()[name] == pytest.approx(own, rel=1e-4, abs=1e-6)


def test_every_number_of_a_core_is_trainable_and_counted(model: PreTrainedModel, patch: Patch) -> None:
    core = Core(patch, dict.fromkeys(patch, 2), 1.0)
    assert [tuple(one.shape) for one in core.parameters] == [
        *((one.rank, 2) for one in patch.values()),
        *((2, one.rank) for one in patch.values()),
    ]
    with core.hooked(model):
        next_token_log_probs(model, IDS, 1).square().sum().backward()  # type: ignore[no-untyped-call]
    assert all(
        value.is_leaf and value.grad is not None and value.grad.isfinite().all() and value.grad.all()
        for value in core.parameters
    )
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_what_is_added_is_the_adapter_and_leaves_no_trace(root: Path, patch: Patch) -> None:
    for coefficients in every(patch):
        model = load_model(root)
        before, weights = (
            next_token_log_probs(model, IDS, 2),
            {n: value.clone() for n, value in model.state_dict().items()},
        )
        shaken(coefficients)
        with coefficients.hooked(model):
            inside = next_token_log_probs(model, IDS, 2)
        assert torch.equal(next_token_log_probs(model, IDS, 2), before)
        assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
        made = coefficients.patch()
        assert not any(one.up.requires_grad or one.down.requires_grad for one in made.values())
        add_patch(model, made)
        torch.testing.assert_close(next_token_log_probs(model, IDS, 2), inside.detach(), rtol=1e-3, atol=1e-4)
        assert not torch.allclose(inside, before, atol=0.01), "or nothing was compared"


def test_what_is_written_gives_the_same_change(patch: Patch) -> None:
    """``left`` (r, k) and ``right`` (k, r) of every matrix, which with the vector are the whole repair."""
    core = shaken(Core(patch, dict.fromkeys(patch, 2), 1.0))
    written, again = core.to_json(), Core(patch, dict.fromkeys(patch, 2), 1.0)
    with torch.no_grad():
        halves = [written[name][half] for half in ("left", "right") for name in patch]
        for value, kept in zip(again.parameters, halves, strict=True):
            value.copy_(torch.tensor(kept))
    for name, one in core.patch().items():
        assert torch.equal(again.patch()[name].dense(), one.dense())


def test_sizes_are_shares_of_the_leading_singular_value() -> None:
    """By hand: the rows of U^T dW V over the largest singular value, 8; along the axes these are the rows of dW."""
    patch = {"a.weight": diagonal(2.0, 8.0, 4.0)}
    sizes = [
        Core(patch, dict.fromkeys(patch, rank), start).direction_sizes()["a.weight"]
        for rank, start in ((1, 1.0), (2, 1.0), (3, 3.0))
    ]
    assert sizes[0] == pytest.approx([1.0, 0.0, 0.0], abs=1e-6)
    assert sizes[1] == pytest.approx([1.0, 0.5, 0.0], abs=1e-6)
    assert sizes[2] == pytest.approx([3.0, 1.5, 0.75], abs=1e-6)
    core = shaken(Core(patch, dict.fromkeys(patch, 2), 1.0))
    rows = core.patch()["a.weight"].dense()[[1, 2, 0]]
    assert core.direction_sizes()["a.weight"] == pytest.approx((rows.norm(dim=1) / 8).tolist(), rel=1e-4)


def test_sizes_of_scalars_are_the_scalars(patch: Patch) -> None:
    one = shaken(Scalars(patch, scalar_groups(patch, "matrix"), 1.0))
    assert one.direction_sizes() == one.to_json()
    assert list(one.to_json().values()) == [[value] for value in one.parameters[0].tolist()]


def test_a_direction_of_nothing_is_no_trouble(model: PreTrainedModel) -> None:
    """A vector may hold columns of zeros, and even a matrix of them."""
    name, other = (f"model.layers.0.mlp.{kind}_proj.weight" for kind in ("up", "gate"))
    up, down = torch.zeros(96, 3), torch.zeros(3, 64)
    up[:, 1], down[1] = 0.5, 0.25
    both = {name: LowRank(up, down), other: LowRank(torch.zeros(96, 2), torch.zeros(2, 64))}
    core = Core(both, dict.fromkeys(both, 2), 1.0)
    with core.hooked(model):
        next_token_log_probs(model, IDS, 1).square().sum().backward()  # type: ignore[no-untyped-call]
    assert all(value.grad is not None and value.grad.isfinite().all() for value in core.parameters)
    torch.testing.assert_close(core.patch()[name].dense(), up @ down)
    assert not core.patch()[other].dense().any()
    assert all(math.isfinite(size) for own in core.direction_sizes().values() for size in own)


def test_leading_directions_come_in_the_order_of_their_size() -> None:
    """By hand: |up_j| |down_j| is 2, 6, 3, 6; of equals the first comes first."""
    up, down = torch.tensor([[2.0, 3.0, 1.0, 6.0]]), torch.tensor([[1.0], [2.0], [3.0], [-1.0]])
    patch = {"a.weight": LowRank(up, down)}
    assert top_directions(patch)["a.weight"].up.tolist() == [[3.0, 6.0, 1.0, 2.0]]
    assert top_directions(patch, dict.fromkeys(patch, 2))["a.weight"].up.tolist() == [[3.0, 6.0]]
    assert top_directions(patch, dict.fromkeys(patch, 2))["a.weight"].down.tolist() == [[2.0], [-1.0]]
    torch.testing.assert_close(top_directions(patch)["a.weight"].dense(), patch["a.weight"].dense())


def test_leading_directions_of_singular_factors_are_the_truncation(singular: Patch) -> None:
    for name, one in top_directions(singular, dict.fromkeys(singular, 2)).items():
        torch.testing.assert_close(one.dense(), truncate(singular[name], 2).dense(), rtol=1e-4, atol=1e-5)


def sized(out: int, energy: float, rank: int = 3) -> LowRank:
    """(out, 2) of this energy: out + 2 numbers a column."""
    up = torch.zeros(out, rank)
    up[0, 0] = energy**0.5
    down = torch.zeros(rank, 2)
    down[0, 0] = 1.0
    return LowRank(up, down)


# Of 10, 20 and 30 numbers a column, and an energy of 3, 1 and 2 a number: 60 for rank 1.
MATRICES = {"a.weight": sized(8, 30.0), "b.weight": sized(18, 20.0), "c.weight": sized(28, 60.0, rank=4)}


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        (1e9, {"a": 3, "b": 3, "c": 4}),  # no more than the vector has
        (240, {"a": 3, "b": 3, "c": 4}),
        (205, {"a": 3, "b": 3, "c": 3}),
        (120, {"a": 2, "b": 2, "c": 2}),
        (75, {"a": 2, "b": 1, "c": 1}),
        (60, {"a": 1, "b": 1, "c": 1}),
        (59.9, {"a": 1, "c": 1}),
        (40, {"a": 1, "c": 1}),
        (39, {"a": 1, "b": 1}),  # c no longer fits, b does
        (29, {"a": 1}),
        (10, {"a": 1}),
    ],
)
def test_a_rank_all_round_and_what_is_left_over_to_the_richest(numbers: float, expected: dict[str, int]) -> None:
    ranks = allocate_ranks(MATRICES, numbers)
    assert {name[0]: rank for name, rank in ranks.items()} == expected
    for change in (Core(MATRICES, ranks, 1.0).patch(), top_directions(MATRICES, ranks)):
        assert {name: one.rank for name, one in change.items()} == ranks
        assert sum(one.numel() for one in change.values()) <= numbers


@pytest.mark.parametrize("numbers", [9.9, 0.0])
def test_less_than_a_matrix_is_refused(numbers: float) -> None:
    with pytest.raises(ParamsError, match=rf"max_extra.* 10 numbers, got {int(numbers)}"):
        allocate_ranks(MATRICES, numbers)


def test_a_matrix_that_fits_is_kept_though_a_richer_one_does_not() -> None:
    """``ParamsError: not one matrix fits`` is not so: b fits."""
    assert allocate_ranks({"a.weight": sized(28, 300.0), "b.weight": sized(8, 1.0)}, 12) == {"b.weight": 1}


def test_every_row_may_meet_the_change_at_another_size(root: Path, patch: Patch) -> None:
    """A row at size 0.5 is a batch of its own with half of the change; one at 0 is the model as it is."""
    for coefficients in every(patch):
        model, wanted, rows = load_model(root), torch.tensor([0.0, 0.5, 1.0]), [[1, 2, 3, 4], [5, 6], [7, 8, 9]]
        shaken(coefficients)
        with coefficients.hooked(model, wanted):
            together = next_token_log_probs(model, rows, 2)
        for row, size in enumerate(wanted.tolist()):
            whole = {name: one.scaled(size) for name, one in coefficients.patch().items()}
            alone = next_token_log_probs(load_model(root, patch=whole), [rows[row]], 2)[0]
            torch.testing.assert_close(together[row], alone, rtol=1e-3, atol=1e-4)


def test_resized_is_the_same_change_times_a_number(patch: Patch) -> None:
    for coefficients in every(patch):
        before = shaken(coefficients).patch()
        coefficients.scale(0.5)
        for name, one in coefficients.patch().items():
            torch.testing.assert_close(one.dense(), 0.5 * before[name].dense(), rtol=1e-4, atol=1e-6)
