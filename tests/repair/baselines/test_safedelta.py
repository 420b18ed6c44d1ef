"""Safe Delta: costs, order, budget and compensation on matrices worked out by hand, and on a real model."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from safegene.errors import EmptySample, TensorMissing
from safegene.repair.baselines import Case, repair
from safegene.repair.baselines.activations import moments
from safegene.repair.baselines.safedelta import SafeDeltaParams, affordable, allowance, compensated, costs, damped
from tests.factories.baselines import NAME


def safety_loss(change: Tensor, hessian: Tensor) -> float:
    """``1/2 tr(D H D^T)`` of a change D (out, in): half the mean squared output that it moves on safety inputs."""
    return 0.5 * float(((change @ hessian) * change).sum())


# H = diag(1, 4): H^-1 = diag(1, 1/4), so the first column is the roomier one.
ROOM = torch.tensor([1.0, 0.25], dtype=torch.float64)
DELTA = torch.tensor([[2.0, 1.0], [4.0, 1.0]], dtype=torch.float64)
COSTS = [[2.0, 2.0], [8.0, 2.0]]  # d^2 / (2 [H^-1]): 4/2, 1/0.5; 16/2, 1/0.5. In order: 2, 8, then 2, 2.


def test_costs_and_order() -> None:
    assert costs(DELTA, ROOM).tolist() == COSTS
    expected = {1.9: [[0, 0], [0, 0]], 2.0: [[1, 0], [0, 0]], 10.0: [[1, 0], [1, 0]], 12.5: [[1, 1], [1, 0]]}
    for budget, mask in expected.items():
        assert affordable(DELTA, ROOM, budget).int().tolist() == mask


@pytest.mark.parametrize("scale", ["total", "absolute"])
def test_no_budget_keeps_nothing_and_an_endless_one_everything(scale: str) -> None:
    assert not affordable(DELTA, ROOM, allowance(DELTA, ROOM, 0.0, scale)).any()
    assert affordable(DELTA, ROOM, allowance(DELTA, ROOM, math.inf, scale)).all()


def test_budgets() -> None:
    assert allowance(DELTA, ROOM, 0.5, "total") == 7.0  # half of 14
    assert affordable(DELTA, ROOM, allowance(DELTA, ROOM, 1.0, "total")).all()
    # 0.1 * (2 rows / 4096) * mean(1 / 2, 1 / 0.5) = 0.1 / 2048 * 1.25
    assert allowance(DELTA, ROOM, 0.1, "absolute") == pytest.approx(0.1 / 2048 * 1.25)


def test_compensation_minimises_the_safety_loss() -> None:
    # H = [[2, 1], [1, 2]], d = (3, *), the first kept: c = -H_22^-1 H_21 d_1 = -(1/2) * 1 * 3
    hessian = torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
    delta = torch.tensor([[3.0, 5.0], [3.0, 5.0]], dtype=torch.float64)
    kept = torch.tensor([[True, False], [False, False]])
    found = compensated(delta, kept, hessian)
    assert found.tolist() == [[3.0, pytest.approx(-1.5)], [0.0, 0.0]]
    assert safety_loss(delta * kept, hessian) == 9.0  # 1/2 * 2 * 3^2
    assert safety_loss(found, hessian) == pytest.approx(6.75)  # 1/2 (2*9 + 2*2.25 - 2*4.5)


def test_compensation_never_raises_the_loss_and_keeps_what_is_kept() -> None:
    draw = torch.Generator().manual_seed(0)
    rows = torch.randn(20, 9, generator=draw, dtype=torch.float64)
    hessian, delta = damped(rows.T @ rows / 20, 0.01), torch.randn(5, 9, generator=draw, dtype=torch.float64)
    room = torch.linalg.inv(hessian).diagonal()
    for budget in (0.05, 0.3, 0.7):
        kept = affordable(delta, room, allowance(delta, room, budget, "total"))
        found = compensated(delta, kept, hessian)
        assert torch.equal(found[kept], delta[kept])
        assert safety_loss(found, hessian) < safety_loss(delta * kept, hessian)
    everything = torch.ones(5, 9, dtype=torch.bool)
    assert torch.equal(compensated(delta, everything, hessian), delta)
    assert not compensated(delta, ~everything, hessian).any()


def test_damping_makes_any_moment_invertible() -> None:
    assert torch.equal(damped(torch.zeros(2, 2), 0.01), torch.eye(2))
    assert torch.allclose(damped(torch.diag(torch.tensor([2.0, 0.0])), 0.1), torch.diag(torch.tensor([2.1, 0.1])))


def test_moments_are_those_of_the_inputs(case: Case) -> None:
    model, shots = case.anchor(), case.taught("fit", "safety")[:3]
    seen = []
    layer = model.get_submodule(NAME.removesuffix(".weight"))
    with torch.no_grad():
        handle = layer.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0][0]))
        for shot in shots:
            model(torch.tensor([shot.ids]))
        handle.remove()
    rows = torch.cat(seen)
    assert len(rows) == sum(len(shot.ids) for shot in shots)
    other = NAME.replace("up_proj", "gate_proj")
    found = dict(moments(model, [NAME, other], shots, at_once=1))
    assert torch.allclose(found[NAME], rows.T @ rows / len(rows), atol=1e-5)
    assert torch.equal(found[NAME], found[other])  # both read the same input
    assert not layer._forward_hooks


def test_moments_of_nothing_are_refused(case: Case) -> None:
    shots = case.taught("fit")
    with pytest.raises(EmptySample, match="shots"):
        list(moments(case.anchor(), [NAME], []))
    with pytest.raises(TensorMissing, match="nothing"):
        list(moments(case.anchor(), ["model.nothing.weight"], shots))
    with pytest.raises(TensorMissing, match="embed_tokens"):
        list(moments(case.anchor(), ["model.embed_tokens.weight"], shots))


def test_a_repair_lowers_the_outputs_moved_on_safety_prompts(case: Case) -> None:
    hessians = {name: h.double() for name, h in moments(case.anchor(), case.names, case.taught("fit", "safety"))}
    loss = {}
    for compensate in (False, True):
        found = repair(SafeDeltaParams(budget=0.3, compensate=compensate), case)
        moved = {name: (case.delta(name) + found.patch[name].dense()).double() for name in case.names}
        loss[compensate] = sum(safety_loss(moved[name], h) for name, h in hessians.items())
        assert all(0.0 < share < 1.0 for share in found.facts["kept"].values())
    before = sum(safety_loss(case.delta(name).double(), h) for name, h in hessians.items())
    assert loss[True] < loss[False] < before


def test_a_budget_of_nothing_gives_the_aligned_model_back(case: Case) -> None:
    found = repair(SafeDeltaParams(budget=0.0), case)
    for name in case.names:
        assert torch.allclose(case.delta(name) + found.patch[name].dense(), torch.zeros(()), atol=1e-7)
    whole = repair(SafeDeltaParams(budget=1.0), replace(case, names=case.names[:1]))
    assert not whole.patch[case.names[0]].dense().any()
