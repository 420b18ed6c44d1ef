"""The coefficient fit on a small real Llama: it finds known coefficients and changes nothing else."""

import math

import pytest
import torch

from safegene.errors import EmptySample, ShapeMismatch, TensorMissing
from safegene.fit import applied, divergence, fit, groups, linear, make_shots, measure, predictions, scaled
from safegene.linalg import LowRank
from safegene.tensors.checkpoint import layer_of
from safegene.tensors.models import add_patch, load_model
from tests.llamas import WORDS, random_patch, save_llama

WEIGHTS = {"safety": 1.0, "benign": 0.0, "task": 0.0}
SETTINGS = {
    "weights": WEIGHTS,
    "start": 1.0,
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
    together, alone = predictions(model, [short, long], 2), predictions(model, [short], 2)
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
    found = measure(model, shots)
    assert found.changed == {"safety": 0.0}
    assert found.objective({"safety": 2.0}) == pytest.approx(0.0, abs=1e-5)


def test_divergence_is_the_kl_of_the_teacher(model, patch):
    shots = taught(model, 5)
    add_patch(model, patch)
    kl, mask = divergence(model, shots)
    for row, shot in enumerate(shots):
        own = predictions(model, [shot.ids], len(shot.teacher))[0]
        expected = (shot.teacher.exp() * (shot.teacher - own)).sum(-1)
        torch.testing.assert_close(kl[row][mask[row]], expected, rtol=1e-3, atol=1e-5)
    assert measure(model, shots).loss["safety"] > 0.01


@pytest.mark.parametrize("alpha", [torch.tensor(0.7), torch.tensor([0.7])], ids=["scalar", "one"])
def test_scaled_is_the_patch_and_leaves_no_trace(model, patch, alpha):
    ids = [[1, 2, 3, 4]]
    before = predictions(model, ids, 1)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    with scaled(model, patch, dict.fromkeys(patch, alpha)):
        inside = predictions(model, ids, 1)
    torch.testing.assert_close(predictions(model, ids, 1), before)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    add_patch(model, patch, scale=0.7)
    torch.testing.assert_close(predictions(model, ids, 1), inside, rtol=1e-3, atol=1e-4)


def test_scaled_leaves_no_trace_after_an_error(model, patch):
    before = predictions(model, [[1, 2]], 1)
    wrong = patch | {"model.layers.0.mlp.nothing.weight": LowRank(torch.ones(2, 1), torch.ones(1, 2))}
    with pytest.raises(TensorMissing, match="nothing"), scaled(model, wrong, dict.fromkeys(wrong, torch.ones(()))):
        pass
    torch.testing.assert_close(predictions(model, [[1, 2]], 1), before)


def test_another_shape_is_refused(model):
    with pytest.raises(ShapeMismatch, match=r"\(3, 3\)"):
        linear(model, "model.layers.0.mlp.up_proj.weight", (3, 3))
    with pytest.raises(ShapeMismatch, match="Embedding"):
        linear(model, "model.embed_tokens.weight", (3, 3))


def test_a_coefficient_per_direction_scales_that_direction(model, patch):
    name = next(iter(patch))
    alphas = tuple(float(i) for i in range(patch[name].rank))
    with scaled(model, {name: patch[name]}, {name: torch.tensor(alphas)}):
        inside = predictions(model, [[1, 2, 3]], 1)
    add_patch(model, applied({name: patch[name]}, {name: alphas}))
    torch.testing.assert_close(predictions(model, [[1, 2, 3]], 1), inside, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("granularity", ["matrix", "direction"])
def test_known_coefficients_are_recovered(model, root, patch, granularity):
    group = groups(patch, granularity, layer_of)
    true = {name: tuple(0.3 + 1.4 * math.sin(1 + n) ** 2 for n in at) for name, at in group.items()}
    shots = taught(load_model(root, patch=applied(patch, true)), 48)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fitted = fit(model, patch, group, shots[:32], shots[32:], **{**SETTINGS, "steps": 120})
    assert fitted.history[-1][1] < 0.02 * fitted.history[0][1]
    off = [abs(a - b) for name in patch for a, b in zip(fitted.alphas[name], true[name], strict=True)]
    assert sum(off) / len(off) < 0.15
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_same_seed_gives_the_same_alphas(root, patch):
    shots = taught(load_model(root, patch=patch))
    group = groups(patch, "matrix", layer_of)
    short = {**SETTINGS, "steps": 6, "start": 0.5}
    one, two = (fit(load_model(root), patch, group, shots, shots, **short) for _ in range(2))
    other = fit(load_model(root), patch, group, shots, shots, **{**short, "batch_size": 5, "seed": 1})
    assert one == two
    assert other.alphas != one.alphas


def test_the_start_is_kept_where_nothing_seen_is_better(root, patch):
    shots = taught(load_model(root, patch=patch))
    fitted = fit(load_model(root), patch, groups(patch, "matrix", layer_of), shots, shots, **SETTINGS)
    assert fitted.steps == 0
    assert set(fitted.alphas.values()) == {(1.0,)}
    assert len(fitted.history) > 1


def test_a_fit_that_no_longer_improves_ends(root, patch):
    shots = taught(load_model(root, patch=patch))
    settings = {**SETTINGS, "measure_every": 1, "patience": 2}
    fitted = fit(load_model(root), patch, groups(patch, "matrix", layer_of), shots, shots, **settings)
    assert len(fitted.history) == 3


def test_a_weight_without_shots_is_refused(model, patch):
    shots = taught(model, 4)
    with pytest.raises(EmptySample, match="benign"):
        fit(
            model,
            patch,
            groups(patch, "matrix", layer_of),
            shots,
            shots,
            **{**SETTINGS, "weights": {"safety": 1.0, "benign": 1.0}},
        )


def test_the_weights_of_the_kinds_count(root, patch):
    half = applied(patch, dict.fromkeys(patch, (0.5,)))
    safety, benign = taught(load_model(root, patch=half)), taught(load_model(root), kind="benign")
    found = []
    for weight in (0.01, 100.0):
        settings = {**SETTINGS, "weights": {"safety": 1.0, "benign": weight}, "steps": 40}
        shots = [*safety, *benign]
        fitted = fit(load_model(root), patch, groups(patch, "global", layer_of), shots, shots, **settings)
        found.append(next(iter(fitted.alphas.values()))[0])
    assert found[0] == pytest.approx(0.5, abs=0.1)
    assert abs(found[1]) < 0.2


def test_groups(patch):
    names = list(patch)
    assert [groups(patch, "matrix", layer_of)[n] for n in names] == [(i,) for i in range(len(names))]
    assert set(groups(patch, "global", layer_of).values()) == {(0,)}
    layers = groups(patch, "layer", layer_of)
    assert {layer_of(name): at for name, at in layers.items()} == {0: (0,), 1: (1,)}
    directions = [i for name in names for i in groups(patch, "direction", layer_of)[name]]
    assert directions == list(range(sum(one.rank for one in patch.values())))
