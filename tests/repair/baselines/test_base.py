"""Every repair has what it needs, changes nothing but what it returns, and loses no bit on the way."""

from contextlib import suppress
from dataclasses import replace

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from safegene.errors import EmptySample, ShapeMismatch, TensorMissing
from safegene.models.patching import add_patch, patched
from safegene.repair.baselines import Candidate, Case, repair
from safegene.repair.baselines.base import best_of, compose, exact, validation_objective
from safegene.repair.baselines.enchtable import EnchTableParams
from safegene.repair.baselines.finetune import FinetuneParams
from safegene.repair.baselines.one_shot import OneShotParams
from safegene.repair.baselines.resta import RestaParams
from safegene.repair.baselines.safedelta import SafeDeltaParams
from safegene.repair.baselines.safelora import SafeLoraParams
from safegene.repair.baselines.safemerge import SafeMergeParams
from safegene.vectors.linalg import LowRank
from safegene.workspace.baseline_params import Baseline, BaselineParams
from safegene.workspace.plugins import BASELINES
from tests.factories.baselines import by_hand, low, state, unchanged

QUICK: tuple[BaselineParams, ...] = (
    RestaParams(gamma=None, gammas=(0.0, 1.0), drop=0.2),
    SafeLoraParams(threshold=1.0),
    SafeMergeParams(threshold=1.0),
    SafeDeltaParams(budget=None, budgets=(0.1, 0.5)),
    EnchTableParams(beta=None, betas=(0.1, 1.0)),
    FinetuneParams(steps=2, measure_every=1, batch_size=8),
    OneShotParams(steps=2, measure_every=1, tries=2, trial_steps=1),
)


@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (4, 4)])
def test_exact_multiplies_back_bit_for_bit(shape: tuple[int, int]) -> None:
    dense = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(exact(dense).dense(), dense)
    assert exact(dense).rank == min(shape)


def test_a_change_that_is_no_matrix_is_refused() -> None:
    with pytest.raises(ShapeMismatch, match=r"\(3,\)"):
        exact(torch.ones(3))


def test_compose_is_the_sum_in_the_fewest_numbers() -> None:
    one, two = low([[1.0], [2.0]], [[1.0, 0.0, 1.0]]), low([[0.0], [1.0]], [[0.0, 3.0, 0.0]])
    expected = torch.tensor([[1.0, 0.0, 1.0], [2.0, 3.0, 2.0]])
    assert torch.equal(compose([one, two]).dense(), expected)
    assert compose([one, two]).rank == 2
    thrice = compose([one, two, one.scaled(2.0)])
    assert torch.equal(thrice.dense(), torch.tensor([[3.0, 0.0, 3.0], [6.0, 3.0, 6.0]]))
    assert thrice.rank == 2


def test_every_method_has_quick_settings_here() -> None:
    assert {one.method for one in QUICK} == set(BASELINES)


@pytest.mark.parametrize("name", sorted(BASELINES))
def test_every_method_names_itself_and_its_paper(name: str) -> None:
    method = BASELINES[name]
    assert method.params().method == name
    assert method.reference_url.startswith("https://arxiv.org/abs/")


@pytest.mark.parametrize("settings", QUICK, ids=lambda one: one.method)
def test_a_repair_leaves_the_model_as_it_was_and_fits_it(case: Case, settings: BaselineParams) -> None:
    target, aligned = state(case.model), state(case.anchor())
    found = repair(settings, case)
    assert unchanged(case.model, target)
    assert unchanged(case.anchor(), aligned)
    assert set(found.patch) <= set(case.names)
    assert (found.trained > 0) == (settings.method in {"finetune", "one_shot"} or "validation" in found.facts)
    add_patch(case.model, found.patch)


@pytest.mark.parametrize("settings", QUICK, ids=lambda one: one.method)
def test_a_repair_is_repeated_bit_for_bit(case: Case, settings: BaselineParams) -> None:
    one, two = repair(settings, case), repair(settings, case)
    assert one.facts == two.facts
    assert all(torch.equal(one.patch[name].dense(), two.patch[name].dense()) for name in one.patch)


def test_weights_come_back_after_an_error(case: Case) -> None:
    before, stop = state(case.model), RuntimeError("stop")
    with suppress(RuntimeError), patched(case.model, case.safety):
        assert not unchanged(case.model, before)
        raise stop
    assert unchanged(case.model, before)


def test_the_choice_is_the_best_on_the_validation_shots(case: Case) -> None:
    def make(gamma: float) -> Candidate:
        return Candidate({name: one.scaled(gamma) for name, one in case.safety.items()}, 0, {"gamma": gamma})

    found = best_of(case, (0.0, 1.0, 3.0), make)
    reached = dict(map(tuple, found.facts["validation"]))
    assert reached == {gamma: validation_objective(case, make(gamma).patch) for gamma in (0.0, 1.0, 3.0)}
    assert found.facts["gamma"] == min(reached, key=reached.__getitem__)
    assert found.trained == 1


def test_what_is_not_a_number_is_never_best_of(case: Case) -> None:
    def make(value: float) -> Candidate:
        return Candidate({name: one.scaled(value) for name, one in case.safety.items()}, 0, {"value": value})

    assert best_of(case, (float("nan"), 0.0), make).facts["value"] == 0.0
    with pytest.raises(EmptySample, match="values"):
        best_of(case, (), make)


def test_errors_say_what_is_lacking(case: Case) -> None:
    first = case.names[0]
    with pytest.raises(EmptySample, match="matrices"):
        repair(RestaParams(), replace(case, names=()))
    with pytest.raises(TensorMissing, match=first):
        repair(RestaParams(), replace(case, safety={}))
    with pytest.raises(ShapeMismatch, match=r"\(2, 2\)"):
        repair(RestaParams(), replace(case, safety={first: LowRank(torch.ones(2, 1), torch.ones(1, 2))}))
    with pytest.raises(EmptySample, match="validation"):
        repair(RestaParams(gamma=None), replace(case, shots={"fit": case.shots["fit"]}))
    benign = [shot for shot in case.shots["fit"] if shot.kind == "benign"]
    for settings in (SafeDeltaParams(), OneShotParams()):
        with pytest.raises(EmptySample, match="safety"):
            repair(settings, replace(case, shots={"fit": benign}))
    with pytest.raises(ShapeMismatch, match=r"\(1, 2\) and \(1, 3\)"):
        by_hand({"a": [[1.0, 2.0]]}, {"a": [[1.0, 2.0, 3.0]]}, {}).delta("a")


def test_parameters_are_told_apart_by_their_method() -> None:
    read = TypeAdapter(Baseline).validate_python
    assert read({"method": "resta", "gamma": None}) == RestaParams(gamma=None)
    assert {type(read({"method": method})) for method in BASELINES} == {type(one) for one in QUICK}
    for wrong in (
        {"method": "other"},
        {"method": "resta", "drop": 1.0},
        {"method": "resta", "typo": 1},
        {"method": "safelora", "number": 3},
        {"method": "safelora", "threshold": None},
        {"method": "safemerge", "directions": 3},
        {"method": "one_shot", "steps": 2, "trial_steps": 3},
    ):
        with pytest.raises(ValidationError):
            read(wrong)
