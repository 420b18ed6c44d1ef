"""LoRA fine-tunes on shots and on one shot, and SaLoRA's constraint: small real models, a handful of steps."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from safegene.datasets.prompts import Split
from safegene.errors import EmptySample, TensorMissing
from safegene.models.device import one_thread
from safegene.models.forward import next_token_log_probs
from safegene.models.loading import load_model, load_tokenizer
from safegene.repair.baselines import Case, repair
from safegene.repair.baselines.base import validation_objective
from safegene.repair.baselines.finetune import FinetuneParams, cross_entropy
from safegene.repair.baselines.one_shot import OneShotParams
from safegene.repair.lora import lora
from safegene.repair.shots import SPLITS, Shot, ShotKind, make_shots
from safegene.repair.training import encode_row, supervised
from safegene.tiny.build import build
from safegene.tiny.corpus import harmful, lookalikes
from safegene.tiny.model import matrices
from safegene.vectors.linalg import randomised_svd
from studies.recovery.salora import constrain, directions
from tests.factories.baselines import WEIGHTS, of_models, state, unchanged

SETTINGS = FinetuneParams(steps=12, measure_every=4, batch_size=24, learning_rate=1e-2, rank=2)


@pytest.mark.parametrize("loss", ["kl", "ce"])
def test_a_fine_tune_improves_on_the_validation_shots(case: Case, loss: str) -> None:
    settings, one = (
        SETTINGS.model_copy(update={"loss": loss, "measure_every": 2}),
        replace(case, weights={"safety": 1.0}),
    )
    found = repair(settings, one)
    history = dict(map(tuple, found.facts["validation"]))
    reached = history[found.facts["steps"]]
    assert reached == min(history.values()) < history[0] == pytest.approx(validation_objective(one, {}))
    assert validation_objective(one, found.patch) == pytest.approx(reached, rel=1e-3)
    assert found.trained == sum(2 * sum(case.target(name).shape) for name in case.names)


def test_a_fine_tune_that_only_harms_is_no_change_at_all(case: Case) -> None:
    wild = SETTINGS.model_copy(update={"learning_rate": 1e3, "steps": 4, "measure_every": 2})
    found = repair(wild, case)
    assert found.facts["steps"] == 0
    assert not any(one.dense().any() for one in found.patch.values())


def test_a_fine_tune_without_a_weighted_kind_is_refused(case: Case) -> None:
    safety = [shot for shot in case.shots["fit"] if shot.kind == "safety"]
    with pytest.raises(EmptySample, match="benign"):
        repair(SETTINGS, replace(case, shots={**case.shots, "fit": safety}))


def test_cross_entropy_is_of_the_teachers_greedy_tokens(case: Case) -> None:
    teacher = torch.log(torch.full((2, 50), 0.5 / 49))
    teacher[0, 3] = teacher[1, 7] = torch.log(torch.tensor(0.5))
    shots = [Shot("a", "safety", (1, 2, 3), teacher), Shot("b", "task", (4, 5), teacher[1:])]
    logs = (
        next_token_log_probs(case.model, [shots[0].ids], 2)[0],
        next_token_log_probs(case.model, [shots[1].ids], 1)[0],
    )
    expected = -(logs[0][0, 3] + logs[0][1, 7]) / 2 - 4.0 * logs[1][0, 7]
    assert float(cross_entropy(case.model, shots, WEIGHTS)) == pytest.approx(float(expected), rel=1e-4)


def test_one_shot_takes_the_best_of_its_trials(case: Case) -> None:
    found = repair(OneShotParams(steps=4, tries=3, trial_steps=2, learning_rate=1e-2), case)
    trials = found.facts["trials"]
    safety = [shot.id for shot in case.shots["fit"] if shot.kind == "safety"]
    assert list(trials) == [safety[at * len(safety) // 3] for at in range(3)]
    assert found.facts["shot"] == min(trials, key=trials.get)
    # a trial is the beginning of the whole fine-tune, measured at the same step
    assert dict(map(tuple, found.facts["validation"]))[2] == pytest.approx(trials[found.facts["shot"]], rel=1e-5)


def test_salora_finds_the_directions_of_the_outputs(case: Case) -> None:
    aligned, shots = case.anchor(), case.taught("fit", "safety")
    name = case.names[0]
    found = directions(aligned, case.names, shots, count=3)
    assert list(found) == list(case.names)
    rows = []
    layer = aligned.get_submodule(name.removesuffix(".weight"))
    with torch.no_grad():
        handle = layer.register_forward_hook(lambda _, __, output: rows.append(output[0]))
        for shot in shots:
            aligned(torch.tensor([shot.ids]))
        handle.remove()
    expected = torch.linalg.svd(torch.cat(rows).T, full_matrices=False)[0][:, :3]
    assert torch.allclose(found[name] @ found[name].T, expected @ expected.T, atol=1e-3)
    assert directions(aligned, [name], shots, count=999)[name].shape == (96, 96)


def test_salora_keeps_a_fine_tune_out_of_them(case: Case) -> None:
    aligned, before = case.anchor(), state(case.anchor())
    bases = directions(aligned, case.names, case.taught("fit", "safety"), count=5)
    with lora(aligned, case.names, rank=2, seed=0) as factors:
        for up, _ in factors.factors.values():
            torch.nn.init.normal_(up)
        free = factors.patch()
        constrain(factors, bases)
        held = factors.patch()
        with pytest.raises(TensorMissing, match="directions"):
            constrain(factors, {})
    for name in case.names:
        change = free[name].dense()
        expected = change - bases[name] @ (bases[name].T @ change)
        assert torch.allclose(held[name].dense(), expected, atol=1e-4)
        assert torch.allclose(bases[name].T @ held[name].dense(), torch.zeros(()), atol=1e-4)
    assert unchanged(aligned, before)


@pytest.fixture(scope="module")
def tiny() -> Iterator[tuple[Case, PreTrainedTokenizerBase]]:
    """The tiny family's aligned model, its fine-tune ``group``, and a vector that is one tenth of what that changed."""
    with one_thread():
        aligned, target = load_model(build("aligned", 0)), load_model(build("group", 0))
        tokenizer = load_tokenizer(build("aligned", 0))
        before, after = dict(aligned.named_parameters()), dict(target.named_parameters())
        names = matrices(aligned)
        vector = {name: randomised_svd(0.1 * (before[name] - after[name]), 4).factors for name in names}
        case = of_models(aligned, target, vector)
        shots: dict[Split, list[Shot]] = {}
        for split in SPLITS:
            asked: dict[ShotKind, Any] = {"safety": harmful(split)[:12], "benign": lookalikes(split)[:12]}
            found = []
            for kind, rows in asked.items():
                encoded = [encode_row(tokenizer, (row.prompt(split), row.answer)) for row in rows]
                parts = [(str(i), list(e.ids[: e.prompt]), list(e.ids[e.prompt :])) for i, e in enumerate(encoded)]
                found += make_shots(aligned if kind == "safety" else target, parts, kind=kind, response_tokens=3)
            shots[split] = found
        yield replace(case, shots=shots, weights={"safety": 1.0, "benign": 1.0}), tokenizer


def test_the_tiny_family_is_repaired_a_little_in_a_few_steps(tiny: tuple[Case, PreTrainedTokenizerBase]) -> None:
    case, _ = tiny
    before, start = state(case.model), validation_objective(case, {})
    for settings in (
        SETTINGS.model_copy(update={"steps": 6, "measure_every": 3}),
        OneShotParams(steps=4, tries=2, trial_steps=2, learning_rate=1e-2),
    ):
        assert validation_objective(case, repair(settings, case).patch) <= start
    assert repair(SETTINGS.model_copy(update={"steps": 6, "measure_every": 3}), case).facts["steps"] > 0
    assert unchanged(case.model, before)


def test_salora_trains_the_tiny_family_and_stays_out_of_its_safety_directions(
    tiny: tuple[Case, PreTrainedTokenizerBase],
) -> None:
    case, tokenizer = tiny
    model = copy.deepcopy(case.anchor())
    bases = directions(model, case.names, case.taught("fit", "safety"))
    rows = [(row.prompt("fit"), row.answer) for row in harmful("compliance")][:16]
    with lora(model, case.names, rank=2, seed=0) as factors:
        supervised(
            model,
            tokenizer,
            rows,
            steps=3,
            batch_size=8,
            learning_rate=1e-3,
            seed=0,
            parameters=factors.parameters,
            on_step=lambda *_: constrain(factors, bases),
        )
        patch = factors.patch()
    for name, one in patch.items():
        assert one.up.any()
        assert float((bases[name].T @ one.up).abs().max()) < 1e-5 * max(1.0, float(one.up.abs().max()))
