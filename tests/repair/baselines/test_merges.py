"""RESTA, SafeLoRA, SafeMERGE, EnchTable and LoX: their equations on matrices worked out by hand."""

import math

import pytest
import torch

from safegene.errors import EmptySample, ParamsError
from safegene.repair.baselines import Case, repair
from safegene.repair.baselines.base import exact
from safegene.repair.baselines.enchtable import EnchTableParams
from safegene.repair.baselines.resta import RestaParams, dare
from safegene.repair.baselines.safelora import SafeLoraParams
from safegene.repair.baselines.safemerge import SafeMergeParams, mix
from safegene.repair.baselines.subspace import columns, cosine, project
from safegene.vectors.linalg import Patch
from studies.recovery.lox import lox
from tests.factories.baselines import by_hand, low

# V = [[2, 0], [0, 0]]: |V| = 2, C = V V^T / |V| = [[2, 0], [0, 0]], the projector onto it [[1, 0], [0, 0]].
V = low([[2.0], [0.0]], [[1.0, 0.0]])
# delta = [[3, 0], [0, 4]]: C delta = [[6, 0], [0, 0]], cosine = 18 / (6 * 5) = 0.6
ALIGNED, TARGET = {"a": [[1.0, 1.0], [1.0, 1.0]]}, {"a": [[4.0, 1.0], [1.0, 5.0]]}
DELTA = torch.tensor([[3.0, 0.0], [0.0, 4.0]])


@pytest.fixture
def case() -> Case:
    return by_hand(ALIGNED, TARGET, {"a": V})


def repaired(case: Case, patch: Patch) -> torch.Tensor:
    return case.target("a") + patch["a"].dense()


def test_resta_adds_gamma_times_the_vector_in_low_rank(case: Case) -> None:
    found = repair(RestaParams(gamma=1.5), case)
    assert torch.equal(repaired(case, found.patch), torch.tensor([[7.0, 1.0], [1.0, 5.0]]))
    assert found.patch["a"].rank == 1
    assert found.trained == 0
    assert found.facts["gamma"] == 1.5


def test_dare_drops_and_rescales_so_that_the_expectation_stays() -> None:
    ones = torch.ones(300, 300)
    found = dare(ones, 0.6, torch.Generator().manual_seed(1))
    assert sorted(set(found.flatten().tolist())) == [0.0, pytest.approx(2.5)]
    assert float(found.mean()) == pytest.approx(1.0, abs=0.02)
    assert torch.equal(found, dare(ones, 0.6, torch.Generator().manual_seed(1)))
    assert not torch.equal(found, dare(ones, 0.6, torch.Generator().manual_seed(2)))
    assert torch.equal(dare(ones, 0.0, torch.Generator()), ones)


def test_resta_drops_from_the_vector_or_from_the_fine_tune(case: Case) -> None:
    added = repair(RestaParams(drop=0.5), case).patch["a"].dense()
    assert added[0, 0] in (0.0, 4.0)  # 2 / (1 - 0.5)
    assert added.count_nonzero() <= 1
    task = repaired(case, repair(RestaParams(drop=0.5, drop_from="task"), case).patch)
    assert task[0, 0] in (3.0, 9.0)  # 1 + 2 + (0 or 3 / 0.5)
    assert task[1, 1] in (1.0, 9.0)  # 1 + (0 or 4 / 0.5)


def test_the_papers_c_and_the_cosine() -> None:
    along = project(V, DELTA, "paper")
    assert torch.allclose(along, torch.tensor([[6.0, 0.0], [0.0, 0.0]]))
    assert cosine(along, DELTA) == pytest.approx(0.6)
    assert cosine(DELTA, torch.zeros(2, 2)) == 0.0


def test_the_papers_c_grows_and_shrinks_with_v_and_the_projector_does_not() -> None:
    for size in (0.01, 1.0, 7.0):
        assert torch.allclose(project(V.scaled(size), DELTA, "paper"), size * project(V, DELTA, "paper"))
        kept = project(V.scaled(size), DELTA, "true")
        assert torch.allclose(kept, torch.tensor([[3.0, 0.0], [0.0, 0.0]]))


def test_the_true_projector_is_one() -> None:
    draw = torch.Generator().manual_seed(0)
    safety = low(torch.randn(6, 3, generator=draw).tolist(), torch.randn(3, 5, generator=draw).tolist())
    inside = safety.up @ torch.randn(3, 5, generator=draw)
    assert torch.allclose(project(safety, inside, "true"), inside, atol=1e-5)
    once = project(safety, torch.randn(6, 5, generator=draw), "true")
    assert torch.allclose(project(safety, once, "true"), once, atol=1e-6)
    assert columns(safety).shape == (6, 3)
    assert columns(safety, 2).shape == (6, 2)
    assert columns(low([[1.0, 1.0], [0.0, 0.0]], [[1.0, 2.0], [1.0, 2.0]])).shape == (2, 1)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (SafeLoraParams(threshold=0.6001), [[7.0, 1.0], [1.0, 1.0]]),  # W_a + [[6, 0], [0, 0]]
        (SafeLoraParams(threshold=0.6001, projector="true"), [[4.0, 1.0], [1.0, 1.0]]),  # W_a + [[3, 0], [0, 0]]
        (SafeLoraParams(threshold=0.5999), TARGET["a"]),
        (SafeLoraParams(threshold=None, number=1), [[7.0, 1.0], [1.0, 1.0]]),
    ],
)
def test_safelora(case: Case, settings: SafeLoraParams, expected: list[list[float]]) -> None:
    found = repair(settings, case)
    now = repaired(case, found.patch) if found.patch else case.target("a")
    assert torch.allclose(now, torch.tensor(expected))
    assert found.facts["cosines"] == {"a": pytest.approx(0.6)}


def test_safelora_takes_the_lowest_and_leaves_what_has_no_cosine() -> None:
    none, same = [[0.0, 0.0], [0.0, 0.0]], [[1.0, 0.0], [0.0, 0.0]]
    aligned = dict.fromkeys("wxyz", none)
    target = {"w": [[1.0, 0.0], [0.0, 3.0]], "x": none, "y": same, "z": same}
    case = by_hand(aligned, target, {"w": V, "x": V, "y": V, "z": V.scaled(0.0)})
    found = repair(SafeLoraParams(threshold=None, number=1), case)
    assert found.facts["projected"] == list(found.patch) == ["w"]
    assert found.facts["cosines"] == {"w": pytest.approx(10**-0.5), "y": pytest.approx(1.0)}
    assert found.facts["skipped"] == {
        "x": "the fine-tune did not change it",
        "z": "the safety vector is zero there",
    }


def test_safemerge_is_the_weighted_sum_of_the_changes(case: Case) -> None:
    found = repair(SafeMergeParams(threshold=0.7, weight=0.75), case)
    # W_a + 0.75 [[3, 0], [0, 4]] + 0.25 [[2, 0], [0, 0]] = W_a + [[2.75, 0], [0, 3]]
    assert torch.equal(repaired(case, found.patch), torch.tensor([[3.75, 1.0], [1.0, 4.0]]))
    assert repair(SafeMergeParams(threshold=0.6 - 1e-6), case).patch == {}


def test_safemerge_composes_exactly_where_adding_factors_apart_does_not() -> None:
    draw = torch.Generator().manual_seed(0)
    safety = low(torch.randn(8, 2, generator=draw).tolist(), torch.randn(2, 8, generator=draw).tolist())
    own = low(torch.randn(8, 2, generator=draw).tolist(), torch.randn(2, 8, generator=draw).tolist())
    case = by_hand({"a": torch.zeros(8, 8).tolist()}, {"a": own.dense().tolist()}, {"a": safety})
    expected = 0.8 * own.dense() + 0.2 * safety.dense()
    now = case.target("a") + mix(case, "a", 0.8).dense()
    assert float((now - expected).norm() / expected.norm()) < 1e-6
    apart = (0.8**0.5 * own.up + 0.2**0.5 * safety.up) @ (0.8**0.5 * own.down + 0.2**0.5 * safety.down)
    assert float((apart - expected).norm() / expected.norm()) > 0.3


def test_enchtable_scales_the_vector_to_the_fine_tune() -> None:
    # |T| = 5, |S| = 2: scale = 0.4 * 5 / 2 = 1; changes with no shared direction are not weakened.
    case = by_hand({"a": [[0.0, 0.0], [0.0, 0.0]]}, {"a": [[0.0, 0.0], [0.0, 5.0]]}, {"a": V})
    found = repair(EnchTableParams(beta=0.4), case)
    assert found.facts["scale"] == pytest.approx(1.0)
    assert found.facts["weights"] == {"a": 1.0}
    assert torch.allclose(repaired(case, found.patch), torch.tensor([[2.0, 0.0], [0.0, 5.0]]))


def test_enchtable_weakens_the_vector_where_it_interferes() -> None:
    # T = 4 e1 e1^T, S scaled to 0.5 * 4 = 2 e1 e1^T. U = V = [e1 e1]: U^T U - I = [[0, 1], [1, 0]];
    # [[0, 1], [1, 0]] diag(4, 2) [[0, 1], [1, 0]] = diag(2, 4), mean absolute entry 6 / 4 = 1.5.
    case = by_hand({"a": [[0.0, 0.0], [0.0, 0.0]]}, {"a": [[4.0, 0.0], [0.0, 0.0]]}, {"a": V})
    found = repair(EnchTableParams(beta=0.5, sharpness=0.2), case)
    assert found.facts["weights"]["a"] == pytest.approx(math.exp(-0.3))
    assert found.patch["a"].dense()[0, 0] == pytest.approx(2.0 * math.exp(-0.3))


def test_enchtable_without_a_fine_tune_or_a_vector() -> None:
    still = by_hand(ALIGNED, ALIGNED, {"a": V})
    assert not repair(EnchTableParams(), still).patch["a"].dense().any()
    with pytest.raises(EmptySample, match="zeros"):
        repair(EnchTableParams(), by_hand(ALIGNED, TARGET, {"a": V.scaled(0.0)}))


def test_lox_continues_the_leading_directions_of_alignment() -> None:
    change = {"a": exact(torch.tensor([[3.0, 0.0], [0.0, 1.0]]))}
    found = lox(change, rank=1, coefficient=2.0)["a"]
    assert found.rank == 1
    assert torch.allclose(found.dense(), torch.tensor([[6.0, 0.0], [0.0, 0.0]]), atol=1e-6)
    with pytest.raises(ParamsError, match="got 0"):
        lox(change, rank=0)
