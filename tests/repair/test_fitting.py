"""The coefficient fit on a small real Llama: it finds known coefficients and changes nothing else."""

import math

import pytest
import torch

from safegene.checkpoints.checkpoint import layer_of
from safegene.errors import EmptySample
from safegene.models.loading import load_model
from safegene.models.patching import add_patch, low_rank_hooks
from safegene.repair.coefficients import Core, Scalars, fold_coefficients, scalar_groups
from safegene.repair.fitting import (
    SIZES,
    ShotLosses,
    divergence,
    fit_coefficients,
    jitter_scales,
    make_shots,
    measure_shots,
    next_token_log_probs,
    smallest_safe_scale,
)
from safegene.vectors.linalg import LowRank
from tests.factories.llamas import WORDS, random_patch, save_llama

NAN = torch.tensor(math.nan)
WEIGHTS = {"safety": 1.0, "benign": 0.0, "task": 0.0}
SETTINGS = {
    "weights": WEIGHTS,
    "steps": 80,
    "batch_size": 24,
    "learning_rate": 0.1,
    "measure_every": 20,
    "patience": 9,
    "seed": 0,
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return save_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture
def model(root):
    return load_model(root)


@pytest.fixture(scope="module")
def patch(root):
    return {name: one for name, one in random_patch(root, size=0.25).items() if "mlp" in name}


def rows(count: int, seed: int) -> list[tuple[str, list[int], list[int]]]:
    """(id, prompt, reply) of random tokens and differing lengths."""
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, 9, (count, 2), generator=draw).tolist()
    words = torch.randint(0, WORDS, (count, 16), generator=draw).tolist()
    return [(f"p{i}", w[:a], w[a : a + b]) for i, (w, (a, b)) in enumerate(zip(words, lengths, strict=True))]


def taught(model, count: int = 24, seed: int = 3, kind: str = "safety"):
    return make_shots(model, rows(count, seed), kind=kind, response_tokens=5)


def test_predictions_do_not_depend_on_the_rows_beside(model):
    short, long = [1, 2, 3], [4, 5, 6, 7, 8, 9, 10]
    together, alone = next_token_log_probs(model, [short, long], 2), next_token_log_probs(model, [short], 2)
    torch.testing.assert_close(together[0], alone[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together.exp().sum(-1), torch.ones(2, 2))


def test_a_shot_holds_the_teachers_predictions_along_its_reply(model):
    (shot,) = make_shots(model, [("a", [1, 2, 3], [4, 5, 6, 7])], kind="task", response_tokens=3)
    assert shot.ids == (1, 2, 3, 4, 5)
    logits = model(torch.tensor([[1, 2, 3, 4, 5]])).logits[0, 2:]
    torch.testing.assert_close(shot.teacher, logits.log_softmax(-1), rtol=1e-4, atol=1e-5)


def test_shots_without_a_reply_are_refused(model):
    with pytest.raises(EmptySample):
        make_shots(model, [("a", [1], [])], kind="task", response_tokens=3)


def test_a_model_does_not_diverge_from_itself(model):
    shots = taught(model)
    kl, mask = divergence(model, shots)
    assert float(kl.detach().abs().max()) < 1e-5
    assert int(mask.sum()) == sum(len(shot.teacher) for shot in shots)
    found = measure_shots(model, shots)
    assert found.changed == {"safety": 0.0}
    assert found.weighted_objective({"safety": 2.0}) == pytest.approx(0.0, abs=1e-5)


def test_divergence_is_the_kl_of_the_teacher(model, patch):
    shots = taught(model, 5)
    add_patch(model, patch)
    kl, mask = divergence(model, shots)
    for row, shot in enumerate(shots):
        own = next_token_log_probs(model, [shot.ids], len(shot.teacher))[0]
        expected = (shot.teacher.exp() * (shot.teacher - own)).sum(-1)
        torch.testing.assert_close(kl[row][mask[row]], expected, rtol=1e-3, atol=1e-5)
    assert measure_shots(model, shots).loss["safety"] > 0.01


def scalars(patch, granularity: str, start: float = 1.0) -> Scalars:
    return Scalars(patch, scalar_groups(patch, granularity, layer_of), start)


def state(model) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def unchanged(model, before) -> bool:
    return all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("granularity", ["matrix", "direction"])
def test_known_coefficients_are_recovered(model, root, patch, granularity):
    group = scalar_groups(patch, granularity, layer_of)
    true = {name: tuple(0.3 + 1.4 * math.sin(1 + n) ** 2 for n in at) for name, at in group.items()}
    shots = taught(load_model(root, patch=fold_coefficients(patch, true)), 48)
    before = state(model)
    fitted = fit_coefficients(model, scalars(patch, granularity), shots[:32], shots[32:], **{**SETTINGS, "steps": 120})
    assert fitted.history[-1][1] < 0.02 * fitted.history[0][1]
    off = [abs(a - b) for name in patch for a, b in zip(fitted.coefficients[name], true[name], strict=True)]
    assert sum(off) / len(off) < 0.15
    assert fitted.trained == len({at for own in group.values() for at in own})
    assert unchanged(model, before)


def test_a_core_finds_what_lies_between_the_directions(model, root):
    """A change of rank 1 inside the vector's span, but along none of its directions: no scalars make it."""
    patch = {name: one for name, one in random_patch(root, size=0.25, ranks=(3,)).items() if "mlp" in name}
    draw = torch.Generator().manual_seed(4)
    planted = {
        name: LowRank(one.up @ unit(3, draw)[:, None], unit(3, draw)[None] @ one.down) for name, one in patch.items()
    }
    shots, before = taught(load_model(root, patch=planted), 48), state(model)
    settings = {**SETTINGS, "steps": 120}
    core = fit_coefficients(model, Core(patch, dict.fromkeys(patch, 1), 1.0), shots[:32], shots[32:], **settings)
    alphas = fit_coefficients(model, scalars(patch, "direction"), shots[:32], shots[32:], **settings)
    assert min(core.history, key=lambda one: one[1])[1] < 0.2 * min(value for _, value in alphas.history)
    assert {one.rank for one in core.patch.values()} == {1}
    off = sum(float((core.patch[name].dense() - one.dense()).square().sum()) for name, one in planted.items())
    assert off < 0.1 * sum(one.energy() for one in planted.values())
    assert unchanged(model, before)


def unit(size: int, draw: torch.Generator) -> torch.Tensor:
    found = torch.randn(size, generator=draw)
    return found / found.norm()


@pytest.mark.parametrize("kind", ["core", "direction"])
def test_the_same_seed_gives_the_same_coefficients(root, patch, kind):
    shots = taught(load_model(root, patch=patch))

    def once(**changed):
        start = Core(patch, dict.fromkeys(patch, 2), 0.5) if kind == "core" else scalars(patch, kind, 0.5)
        return fit_coefficients(load_model(root), start, shots, shots, **{**SETTINGS, "steps": 6, **changed})

    one, two, other = once(), once(), once(batch_size=5, seed=1)
    assert (one.coefficients, one.sizes, one.history) == (two.coefficients, two.sizes, two.history)
    assert all(torch.equal(one.patch[name].up, two.patch[name].up) for name in patch)
    assert all(torch.equal(one.patch[name].down, two.patch[name].down) for name in patch)
    assert other.coefficients != one.coefficients


def test_the_start_is_kept_where_nothing_seen_is_better(root, patch):
    """The training shots lead away from the start, at which the validation shots are matched exactly."""
    half = {name: one.scaled(0.5) for name, one in patch.items()}
    shots, validation = taught(load_model(root, patch=half)), taught(load_model(root, patch=patch))
    fitted = fit_coefficients(load_model(root), scalars(patch, "matrix"), shots, validation, **SETTINGS)
    assert fitted.steps == 0
    assert all(own == [1.0] for own in fitted.coefficients.values())
    assert len(fitted.history) > 1
    assert min(value for _, value in fitted.history[1:]) > 1e-4, "worse by far more than rounding"


@pytest.mark.parametrize("kind", ["core", "direction"])
def test_what_is_returned_is_the_best_of_what_was_measured(root, patch, kind):
    """The rate is too high, so the objective goes up and down."""
    half = {name: one.scaled(0.5) for name, one in patch.items()}
    shots = taught(load_model(root, patch=half))
    start = Core(patch, dict.fromkeys(patch, 9), 0.6) if kind == "core" else scalars(patch, kind, 0.6)
    seen: dict[int, ShotLosses] = {}
    settings = {**SETTINGS, "steps": 8, "measure_every": 1, "learning_rate": 0.6}
    fitted = fit_coefficients(load_model(root), start, shots, shots, **settings, on_measure=seen.__setitem__)
    assert fitted.history == tuple((step, one.weighted_objective(WEIGHTS)) for step, one in seen.items())
    values = dict(fitted.history)
    assert values[fitted.steps] == min(values.values())
    assert 0 < values[fitted.steps] < max(values.values())
    again = measure_shots(load_model(root, patch=fitted.patch), shots).weighted_objective(WEIGHTS)
    assert again == pytest.approx(values[fitted.steps], rel=1e-3, abs=1e-6)
    assert start.plain() == fitted.coefficients, "the coefficients stand at the best values afterwards"
    assert start.sizes() == fitted.sizes


@pytest.mark.parametrize("kind", ["core", "direction"])
def test_what_is_not_a_number_never_wins(root, patch, kind):
    shots = taught(load_model(root))
    start = Core(patch, dict.fromkeys(patch, 2), 1.0) if kind == "core" else scalars(patch, kind)
    settings = {**SETTINGS, "steps": 4, "measure_every": 1, "learning_rate": 1e30}
    fitted = fit_coefficients(load_model(root), start, shots, shots, **settings)
    assert math.isnan(fitted.history[-1][1])
    assert fitted.steps == 0
    assert all(one.up.isfinite().all() and one.down.isfinite().all() for one in fitted.patch.values())


def test_a_start_that_is_not_a_number_does_not_win(root, patch):
    class Odd(Scalars):
        """Not a number at the first measurement."""

        measured = 0

        def added(self, model, sizes=None):
            self.measured += 1
            return (
                super().added(model, sizes)
                if self.measured > 1
                else low_rank_hooks(model, patch, dict.fromkeys(patch, NAN))
            )

    shots = taught(load_model(root))
    start = Odd(patch, scalar_groups(patch, "matrix", layer_of), 1.0)
    fitted = fit_coefficients(load_model(root), start, shots, shots, **{**SETTINGS, "steps": 2, "measure_every": 1})
    assert math.isnan(fitted.history[0][1])
    assert fitted.steps > 0


def test_a_fit_that_no_longer_improves_ends(root, patch):
    shots = taught(load_model(root, patch=patch))
    settings = {**SETTINGS, "measure_every": 1, "patience": 2}
    fitted = fit_coefficients(load_model(root), scalars(patch, "matrix"), shots, shots, **settings)
    assert len(fitted.history) == 3


def test_a_weight_without_shots_is_refused(model, patch):
    shots = taught(model, 4)
    settings = {**SETTINGS, "weights": {"safety": 1.0, "benign": 1.0}}
    with pytest.raises(EmptySample, match="benign"):
        fit_coefficients(model, scalars(patch, "matrix"), shots, shots, **settings)


def test_the_weights_of_the_kinds_count(root, patch):
    half = fold_coefficients(patch, dict.fromkeys(patch, (0.5,)))
    safety, benign = taught(load_model(root, patch=half)), taught(load_model(root), kind="benign")
    found = []
    for weight in (0.01, 100.0):
        settings = {**SETTINGS, "weights": {"safety": 1.0, "benign": weight}, "steps": 40}
        shots = [*safety, *benign]
        fitted = fit_coefficients(load_model(root), scalars(patch, "global"), shots, shots, **settings)
        found.append(next(iter(fitted.coefficients.values()))[0])
    assert found[0] == pytest.approx(0.5, abs=0.1)
    assert abs(found[1]) < 0.2


def test_shots_meet_the_change_at_differing_sizes(model):
    """Safety at most at its own size, what is benign at a larger one too; without jitter nothing is drawn."""
    batch = [*taught(model, 24), *taught(model, 24, kind="benign")]
    drawn = torch.cat([jitter_scales(batch, 0.2, torch.Generator().manual_seed(seed))[None] for seed in range(40)])
    safety, benign = drawn[:, :24], drawn[:, 24:]
    found = [float(one) for part in (safety, benign) for one in (part.min(), part.max())]
    assert found == pytest.approx([0.8, 1.0, 0.8, 1.2], abs=0.02)
    assert found[1] <= 1.0
    assert jitter_scales(batch, 0.0, torch.Generator()) is None


def test_the_change_is_made_as_small_as_safety_allows(root, patch):
    """The teacher has the change at 0.7, so every size that is tried is too large: the least is kept."""
    smaller = fold_coefficients(patch, dict.fromkeys(patch, (0.7,)))
    safety, model = taught(load_model(root, patch=smaller)), load_model(root)
    whole = Scalars(patch, scalar_groups(patch, "global", layer_of), 1.0)
    assert smallest_safe_scale(model, whole, safety, 10.0) == SIZES[-1]
    torch.testing.assert_close(whole.values[0], torch.tensor([SIZES[-1]]), check_stride=False)


def test_a_change_that_safety_needs_is_left_as_it_is(root, patch):
    safety, model = taught(load_model(root, patch=patch)), load_model(root)
    for coefficients in (scalars(patch, "matrix"), Core(patch, dict.fromkeys(patch, 2), 1.0)):
        before = [value.clone() for value in coefficients.values]
        assert smallest_safe_scale(model, coefficients, safety, 1e-9) == 1.0
        for value, kept in zip(coefficients.values, before, strict=True):
            torch.testing.assert_close(value, kept, rtol=1e-6, atol=1e-7)


def test_without_safety_shots_or_a_limit_nothing_is_made_smaller(root, patch):
    shots, whole = taught(load_model(root, patch=patch), kind="benign"), scalars(patch, "global")
    assert smallest_safe_scale(load_model(root), whole, shots, 10.0) == 1.0
    assert smallest_safe_scale(load_model(root), whole, taught(load_model(root)), 0.0) == 1.0
