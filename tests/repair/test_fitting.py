"""The coefficient fit on a small real Llama: it finds known coefficients and changes nothing else."""

import math
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from safegene.errors import EmptySample
from safegene.models.forward import next_token_log_probs
from safegene.models.loading import load_model
from safegene.models.patching import add_patch, low_rank_hooks
from safegene.repair import fitting
from safegene.repair.coefficients import Coefficients, Core, Scalars, fold_coefficients, scalar_groups
from safegene.repair.divergence import ShotLosses, divergence, measure_shots, term_weights
from safegene.repair.fitting import SAFE_SCALES, Fitted, fit_coefficients, jitter_scales, smallest_safe_scale
from safegene.repair.shots import Shot, make_shots
from safegene.vectors.linalg import LowRank, Patch
from safegene.workspace.params import CalibrateParams
from tests.factories.baselines import state, unchanged
from tests.factories.llamas import random_patch, save_llama
from tests.factories.shots import taught

NAN = torch.tensor(math.nan)
SETTINGS = CalibrateParams(
    safety_weight=1.0,
    benign_weight=0.0,
    task_weight=0.0,
    safety_slack=0.0,
    jitter=0.0,
    steps=80,
    batch_size=24,
    learning_rate=0.1,
    measure_every=20,
    patience=9,
)
WEIGHTS = term_weights(SETTINGS)


def settings(**changed: Any) -> CalibrateParams:
    return SETTINGS.model_copy(update=changed)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture
def model(root: Path) -> PreTrainedModel:
    return load_model(root)


@pytest.fixture(scope="module")
def patch(root: Path) -> Patch:
    return {name: one for name, one in random_patch(root, size=0.25).items() if "mlp" in name}


def test_further_shots_are_drawn_and_leave_each_kinds_part_of_a_batch(
    root: Path, patch: Patch, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, drawn, draw = load_model(root), list[list[Shot]](), fitting.draw_batch
    shots = [*taught(model, 8), *taught(model, 4, seed=4, kind="task")]
    further = taught(model, 40, seed=5)

    def noted(*args: Any) -> list[Shot]:
        drawn.append(draw(*args))
        return drawn[-1]

    monkeypatch.setattr(fitting, "draw_batch", noted)
    params = settings(steps=3, measure_every=3, task_weight=1.0, batch_size=6)
    fit_coefficients(params, model, scalars(patch, "matrix"), shots, shots, further=further)
    assert [[shot.kind for shot in batch] for batch in drawn] == [["safety"] * 4 + ["task"] * 2] * 3
    assert any(shot is one for batch in drawn for shot in batch for one in further)


def test_predictions_do_not_depend_on_the_rows_beside(model: PreTrainedModel) -> None:
    short, long = [1, 2, 3], [4, 5, 6, 7, 8, 9, 10]
    together, alone = next_token_log_probs(model, [short, long], 2), next_token_log_probs(model, [short], 2)
    torch.testing.assert_close(together[0], alone[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together.exp().sum(-1), torch.ones(2, 2))


def test_a_shot_holds_the_teachers_predictions_along_its_reply(model: PreTrainedModel) -> None:
    (shot,) = make_shots(model, [("a", [1, 2, 3], [4, 5, 6, 7])], kind="task", response_tokens=3)
    assert shot.ids == (1, 2, 3, 4, 5)
    logits = model(torch.tensor([[1, 2, 3, 4, 5]])).logits[0, 2:]
    torch.testing.assert_close(shot.teacher, logits.log_softmax(-1), rtol=1e-4, atol=1e-5)


def test_shots_without_a_reply_are_refused(model: PreTrainedModel) -> None:
    with pytest.raises(EmptySample):
        make_shots(model, [("a", [1], [])], kind="task", response_tokens=3)


def test_a_model_does_not_diverge_from_itself(model: PreTrainedModel) -> None:
    shots = taught(model)
    kl, mask = divergence(model, shots)
    assert float(kl.detach().abs().max()) < 1e-5
    assert int(mask.sum()) == sum(len(shot.teacher) for shot in shots)
    found = measure_shots(model, shots)
    assert found.changed == {"safety": 0.0}
    assert found.weighted_objective({"safety": 2.0}) == pytest.approx(0.0, abs=1e-5)


def test_divergence_is_the_kl_of_the_teacher(model: PreTrainedModel, patch: Patch) -> None:
    shots = taught(model, 5)
    add_patch(model, patch)
    kl, mask = divergence(model, shots)
    for row, shot in enumerate(shots):
        own = next_token_log_probs(model, [shot.ids], len(shot.teacher))[0]
        expected = (shot.teacher.exp() * (shot.teacher - own)).sum(-1)
        torch.testing.assert_close(kl[row][mask[row]], expected, rtol=1e-3, atol=1e-5)
    assert measure_shots(model, shots).loss["safety"] > 0.01


def scalars(patch: Patch, granularity: str, start: float = 1.0) -> Scalars:
    return Scalars(patch, scalar_groups(patch, granularity), start)


def new(patch: Patch, kind: str, rank: int, start: float) -> Coefficients:
    """A core of that rank, or scalars of that granularity."""
    return Core(patch, dict.fromkeys(patch, rank), start) if kind == "core" else scalars(patch, kind, start)


@pytest.mark.parametrize("granularity", ["matrix", "direction"])
def test_known_coefficients_are_recovered(model: PreTrainedModel, root: Path, patch: Patch, granularity: str) -> None:
    group = scalar_groups(patch, granularity)
    true = {name: tuple(0.3 + 1.4 * math.sin(1 + n) ** 2 for n in at) for name, at in group.items()}
    shots = taught(load_model(root, patch=fold_coefficients(patch, true)), 48)
    before = state(model)
    fitted = fit_coefficients(settings(steps=120), model, scalars(patch, granularity), shots[:32], shots[32:])
    assert fitted.history[-1][1] < 0.02 * fitted.history[0][1]
    off = [abs(a - b) for name in patch for a, b in zip(fitted.coefficients[name], true[name], strict=True)]
    assert sum(off) / len(off) < 0.15
    assert fitted.trained == len({at for own in group.values() for at in own})
    assert unchanged(model, before)


def test_a_core_finds_what_lies_between_the_directions(model: PreTrainedModel, root: Path) -> None:
    """A change of rank 1 inside the vector's span, but along none of its directions: no scalars make it."""
    patch = {name: one for name, one in random_patch(root, size=0.25, ranks=(3,)).items() if "mlp" in name}
    draw = torch.Generator().manual_seed(4)
    planted = {
        name: LowRank(one.up @ unit(3, draw)[:, None], unit(3, draw)[None] @ one.down) for name, one in patch.items()
    }
    shots, before = taught(load_model(root, patch=planted), 48), state(model)
    params, whole = settings(steps=120), Core(patch, dict.fromkeys(patch, 1), 1.0)
    core = fit_coefficients(params, model, whole, shots[:32], shots[32:])
    alphas = fit_coefficients(params, model, scalars(patch, "direction"), shots[:32], shots[32:])
    assert min(core.history, key=lambda one: one[1])[1] < 0.2 * min(value for _, value in alphas.history)
    assert {one.rank for one in core.patch.values()} == {1}
    off = sum(float((core.patch[name].dense() - one.dense()).square().sum()) for name, one in planted.items())
    assert off < 0.1 * sum(one.energy() for one in planted.values())
    assert unchanged(model, before)


def unit(size: int, draw: torch.Generator) -> Tensor:
    direction = torch.randn(size, generator=draw)
    return torch.div(direction, direction.norm())


@pytest.mark.parametrize("kind", ["core", "direction"])
def test_the_same_seed_gives_the_same_coefficients(root: Path, patch: Patch, kind: str) -> None:
    shots = taught(load_model(root, patch=patch))

    def once(**changed: Any) -> Fitted:
        start = new(patch, kind, 2, 0.5)
        return fit_coefficients(settings(steps=6, **changed), load_model(root), start, shots, shots)

    one, two, other = once(), once(), once(batch_size=5, seed=1)
    assert (one.coefficients, one.direction_sizes, one.history) == (two.coefficients, two.direction_sizes, two.history)
    assert all(torch.equal(one.patch[name].up, two.patch[name].up) for name in patch)
    assert all(torch.equal(one.patch[name].down, two.patch[name].down) for name in patch)
    assert other.coefficients != one.coefficients


def test_the_start_is_kept_where_nothing_seen_is_better(root: Path, patch: Patch) -> None:
    """The training shots lead away from the start, at which the validation shots are matched exactly."""
    half = {name: one.scaled(0.5) for name, one in patch.items()}
    shots, validation = taught(load_model(root, patch=half)), taught(load_model(root, patch=patch))
    fitted = fit_coefficients(SETTINGS, load_model(root), scalars(patch, "matrix"), shots, validation)
    assert fitted.steps == 0
    assert all(own == [1.0] for own in fitted.coefficients.values())
    assert len(fitted.history) > 1
    assert min(value for _, value in fitted.history[1:]) > 1e-4, "worse by far more than rounding"


@pytest.mark.parametrize("kind", ["core", "direction"])
def test_what_is_returned_is_the_best_of_what_was_measured(root: Path, patch: Patch, kind: str) -> None:
    """The rate is too high, so the objective goes up and down."""
    half = {name: one.scaled(0.5) for name, one in patch.items()}
    shots = taught(load_model(root, patch=half))
    start = new(patch, kind, 9, 0.6)
    seen: dict[int, ShotLosses] = {}
    params = settings(steps=8, measure_every=1, learning_rate=0.6)
    fitted = fit_coefficients(params, load_model(root), start, shots, shots, on_measure=seen.__setitem__)
    assert fitted.history == tuple((step, one.weighted_objective(WEIGHTS)) for step, one in seen.items())
    values = dict(fitted.history)
    assert values[fitted.steps] == min(values.values())
    assert 0 < values[fitted.steps] < max(values.values())
    again = measure_shots(load_model(root, patch=fitted.patch), shots).weighted_objective(WEIGHTS)
    assert again == pytest.approx(values[fitted.steps], rel=1e-3, abs=1e-6)
    assert start.to_json() == fitted.coefficients, "the coefficients stand at the best values afterwards"
    assert start.direction_sizes() == fitted.direction_sizes


@pytest.mark.parametrize("kind", ["core", "direction"])
def test_what_is_not_a_number_never_wins(root: Path, patch: Patch, kind: str) -> None:
    shots = taught(load_model(root))
    params = settings(steps=4, measure_every=1, learning_rate=1e30)
    fitted = fit_coefficients(params, load_model(root), new(patch, kind, 2, 1.0), shots, shots)
    assert math.isnan(fitted.history[-1][1])
    assert fitted.steps == 0
    assert all(one.up.isfinite().all() and one.down.isfinite().all() for one in fitted.patch.values())


def test_a_start_that_is_not_a_number_does_not_win(root: Path, patch: Patch) -> None:
    class Odd(Scalars):
        """Not a number at the first measurement."""

        measured = 0

        def hooked(self, model: nn.Module, scales: Tensor | None = None) -> AbstractContextManager[None]:
            self.measured += 1
            broken = low_rank_hooks(model, patch, dict.fromkeys(patch, NAN))
            return broken if self.measured == 1 else super().hooked(model, scales)

    shots = taught(load_model(root))
    start = Odd(patch, scalar_groups(patch, "matrix"), 1.0)
    fitted = fit_coefficients(settings(steps=2, measure_every=1), load_model(root), start, shots, shots)
    assert math.isnan(fitted.history[0][1])
    assert fitted.steps > 0


def test_a_fit_that_no_longer_improves_ends(root: Path, patch: Patch) -> None:
    shots = taught(load_model(root, patch=patch))
    params = settings(measure_every=1, patience=2)
    fitted = fit_coefficients(params, load_model(root), scalars(patch, "matrix"), shots, shots)
    assert len(fitted.history) == 3


def test_a_weight_without_shots_is_refused(model: PreTrainedModel, patch: Patch) -> None:
    shots = taught(model, 4)
    with pytest.raises(EmptySample, match="benign"):
        fit_coefficients(settings(benign_weight=1.0), model, scalars(patch, "matrix"), shots, shots)


def test_the_weights_of_the_kinds_count(root: Path, patch: Patch) -> None:
    half = fold_coefficients(patch, dict.fromkeys(patch, (0.5,)))
    safety, benign = taught(load_model(root, patch=half)), taught(load_model(root), kind="benign")
    found = []
    for weight in (0.01, 100.0):
        shots, params = [*safety, *benign], settings(benign_weight=weight, steps=40)
        fitted = fit_coefficients(params, load_model(root), scalars(patch, "global"), shots, shots)
        found.append(next(iter(fitted.coefficients.values()))[0])
    assert found[0] == pytest.approx(0.5, abs=0.1)
    assert abs(found[1]) < 0.2


def test_shots_meet_the_change_at_differing_sizes(model: PreTrainedModel) -> None:
    """Safety at most at its own size, what is benign at a larger one too; without jitter nothing is drawn."""
    batch = [*taught(model, 24), *taught(model, 24, kind="benign")]
    draws = [jitter_scales(batch, 0.2, torch.Generator().manual_seed(seed)) for seed in range(40)]
    drawn = torch.stack([scales for scales in draws if scales is not None])
    safety, benign = drawn[:, :24], drawn[:, 24:]
    found = [float(one) for part in (safety, benign) for one in (part.min(), part.max())]
    assert found == pytest.approx([0.8, 1.0, 0.8, 1.2], abs=0.02)
    assert found[1] <= 1.0
    assert jitter_scales(batch, 0.0, torch.Generator()) is None


def test_the_change_is_made_as_small_as_safety_allows(root: Path, patch: Patch) -> None:
    """The teacher has the change at 0.7, so every size that is tried is too large: the least is kept."""
    smaller = fold_coefficients(patch, dict.fromkeys(patch, (0.7,)))
    safety, model = taught(load_model(root, patch=smaller)), load_model(root)
    whole = Scalars(patch, scalar_groups(patch, "global"), 1.0)
    assert smallest_safe_scale(model, whole, safety, 10.0) == SAFE_SCALES[-1]
    torch.testing.assert_close(whole.parameters[0], torch.tensor([SAFE_SCALES[-1]]), check_stride=False)


def test_a_change_that_safety_needs_is_left_as_it_is(root: Path, patch: Patch) -> None:
    safety, model = taught(load_model(root, patch=patch)), load_model(root)
    for coefficients in (new(patch, "matrix", 1, 1.0), new(patch, "core", 2, 1.0)):
        before = [value.clone() for value in coefficients.parameters]
        assert smallest_safe_scale(model, coefficients, safety, 1e-9) == 1.0
        for value, kept in zip(coefficients.parameters, before, strict=True):
            torch.testing.assert_close(value, kept, rtol=1e-6, atol=1e-7)


def test_without_safety_shots_or_a_limit_nothing_is_made_smaller(root: Path, patch: Patch) -> None:
    shots, whole = taught(load_model(root, patch=patch), kind="benign"), scalars(patch, "global")
    assert smallest_safe_scale(load_model(root), whole, shots, 10.0) == 1.0
    assert smallest_safe_scale(load_model(root), whole, taught(load_model(root)), 0.0) == 1.0
