"""Teachers in bounded memory, batches in bounded memory, and gradients that do not depend on either."""

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from safegene.models import memory
from safegene.models.forward import last_logits, next_token_log_probs
from safegene.models.loading import load_model
from safegene.models.memory import Microbatches
from safegene.models.structure import structure_of
from safegene.repair import divergence, shots, training
from safegene.repair.coefficients import Core
from safegene.repair.distributions import SMALL_VOCABULARY, TOP, binned, compact
from safegene.repair.divergence import batch_objective, measure_shots, parts_of
from safegene.repair.fitting import fit_coefficients
from safegene.repair.shots import Shot, make_shots
from safegene.repair.training import checkpointing
from safegene.vectors.linalg import LowRank
from safegene.workspace.params import CalibrateParams
from tests.factories.llamas import random_patch, save_llama

REPLIES: list[tuple[str, list[int], list[int]]] = [
    (f"p{at}", list(range(1, 5 + at % 3)), [7 + at, 8, 9 + at][: 1 + at % 3]) for at in range(9)
]
QWEN = 151_936  # tokens of Qwen2's vocabulary


def large_vocabulary(folder: Path, words: int = 2000, *, seed: int = 0) -> Path:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=words, tie_word_embeddings=True, **sizes))
    model.get_input_embeddings().weight.data.mul_(20)  # peaked predictions, as of a trained model
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return large_vocabulary(tmp_path_factory.mktemp("large"))


def test_a_small_vocabulary_is_kept_whole_and_bit_for_bit() -> None:
    logits = torch.randn(3, 4, SMALL_VOCABULARY)
    kept, tokens = compact(logits)
    assert tokens is None
    assert torch.equal(kept, F.log_softmax(logits, dim=-1))
    assert torch.equal(binned(logits, None), kept)


def test_a_large_vocabulary_keeps_the_likeliest_tokens_and_the_mass_of_the_rest() -> None:
    logits = torch.randn(3, SMALL_VOCABULARY + 1) * 3
    kept, tokens = compact(logits)
    assert tokens is not None
    assert tokens.dtype is torch.int32
    whole = F.log_softmax(logits, dim=-1)
    torch.testing.assert_close(kept[:, :TOP], whole.topk(TOP).values)
    assert torch.equal(tokens[:, 0].long(), logits.argmax(-1))
    torch.testing.assert_close(kept.exp().sum(-1), torch.ones(3))
    rest = whole.exp().scatter(-1, tokens.long(), 0.0).sum(-1)
    torch.testing.assert_close(kept[:, TOP].exp(), rest)


def test_the_divergence_over_bins_is_at_most_the_whole_one_and_near_it() -> None:
    first = torch.randn(50, 5000) * 4
    second = first + 0.5 * torch.randn(50, 5000)
    kept, tokens = compact(first)
    bins = (kept.exp() * (kept - binned(second, tokens))).sum(-1)
    logs, others = first.log_softmax(-1), second.log_softmax(-1)
    whole = (logs.exp() * (logs - others)).sum(-1)
    assert (bins <= whole + 1e-6).all()
    assert (bins > 0.6 * whole).all()


def test_gradients_reach_every_logit_through_the_bins() -> None:
    logits = (torch.randn(2, 3000) * 3).requires_grad_()
    kept, tokens = compact(torch.randn(2, 3000) * 3)
    loss = -(kept.exp() * binned(logits, tokens)).sum()
    loss.backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert (logits.grad != 0).all()
    torch.testing.assert_close(logits.grad.sum(-1), torch.zeros(2), atol=1e-5, rtol=0.0)


def test_the_shots_of_247_prompts_and_151936_tokens_take_less_than_4_mb() -> None:
    calls, nothing = list[int](), cast(Any, None)

    def logits(_: Any, rows: Any, keep: int) -> torch.Tensor:
        calls.append(len(rows))
        return torch.randn(len(rows), keep, QWEN)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shots, "last_logits", logits)
        patch.setattr(shots, "microbatches", lambda *_, **__: Microbatches(2, checkpointed=False))
        encoded = [(f"p{at}", [1, 2, 3], list(range(14))) for at in range(6)]
        made = make_shots(nothing, encoded, kind="safety", response_tokens=14)
    assert calls == [2, 2, 2]
    assert all(shot.tokens is not None for shot in made)
    held = sum(
        part.untyped_storage().nbytes() for shot in made for part in (shot.teacher, shot.tokens) if part is not None
    )
    assert held == 6 * 14 * ((TOP + 1) * 4 + TOP * 4)
    assert 247 * held / 6 < 4e6  # 2.1 GB as whole rows in float32


def test_a_model_taught_by_itself_diverges_by_nothing(root: Path) -> None:
    model = load_model(root)
    made = make_shots(model, REPLIES, kind="safety", response_tokens=3)
    measured = measure_shots(model, made)
    assert abs(measured.loss["safety"]) < 1e-6
    assert measured.changed["safety"] == 0.0
    logs = next_token_log_probs(model, [made[0].ids], len(made[0].teacher))[0]
    assert torch.equal(made[0].greedy, logs.argmax(-1))


def test_another_model_diverges_as_its_whole_distribution_says(root: Path) -> None:
    model, other = load_model(root), load_model(root, patch=random_patch(root, size=0.3))
    made = make_shots(model, REPLIES, kind="safety", response_tokens=3)
    measured = measure_shots(other, made)
    whole = list[float]()
    for shot in made:
        keep = len(shot.teacher)
        ours, theirs = (next_token_log_probs(one, [shot.ids], keep)[0] for one in (other, model))
        whole.append(float((theirs.exp() * (theirs - ours)).sum(-1).mean()))
    assert measured.changed["safety"] > 0.5
    assert 0.7 * sum(whole) < measured.loss["safety"] * len(whole) <= sum(whole) * (1 + 1e-5)


def parts(monkeypatch: pytest.MonkeyPatch, rows: int, *, checkpointed: bool) -> None:
    def plan(model: Any, count: int, *_: Any, gradient: bool = True) -> Microbatches:
        return Microbatches(min(rows, count), checkpointed and gradient)

    for module in (divergence, shots, training):
        monkeypatch.setattr(module, "microbatches", plan)


def fitted(root: Path, patch: dict[str, LowRank]) -> torch.Tensor:
    model = load_model(root)
    safe, benign = load_model(root, patch=patch), model
    made: list[Shot] = make_shots(safe, REPLIES, kind="safety", response_tokens=3)
    made += make_shots(benign, REPLIES[:5], kind="benign", response_tokens=3)
    params = CalibrateParams(steps=3, batch_size=9, measure_every=3, jitter=0.2, task_weight=0.0, learning_rate=0.05)
    core = Core(patch, dict.fromkeys(patch, 1), 0.3)
    fit_coefficients(params, model, core, made, made)
    return torch.cat([tensor.detach().flatten() for tensor in core.parameters])


@pytest.mark.parametrize("words", [50, 2000])
@pytest.mark.parametrize(("rows", "checkpointed"), [(2, False), (4, True), (99, True)])
def test_microbatches_and_checkpointing_give_the_coefficients_of_the_whole_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: int, rows: int, checkpointed: bool
) -> None:
    root = save_llama(tmp_path / "m") if words == 50 else large_vocabulary(tmp_path / "m", words)
    patch = random_patch(root, size=0.2, ranks=(2,))
    whole = fitted(root, patch)
    parts(monkeypatch, rows, checkpointed=checkpointed)
    split = fitted(root, patch)
    start = torch.cat([t.detach().flatten() for t in Core(patch, dict.fromkeys(patch, 1), 0.3).parameters])
    assert (whole - start).abs().max() > 0.05
    torch.testing.assert_close(split, whole, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradients_with_checkpointing_are_those_without(root: Path, dtype: str) -> None:
    patch = random_patch(root, size=0.3, ranks=(2,))
    model = load_model(root, dtype=dtype)
    made = make_shots(load_model(root, patch=patch), REPLIES, kind="safety", response_tokens=3)
    runs, gradients = list[int](), list[list[torch.Tensor]]()
    model.model.layers[1].mlp.register_forward_pre_hook(lambda *_: runs.append(1))
    for on in (False, True):
        core = Core(patch, dict.fromkeys(patch, 2), 0.3)
        runs.clear()
        with checkpointing(model, on=on), core.hooked(model):
            batch_objective(model, made, {"safety": 1.0}).backward()  # type: ignore[no-untyped-call]
        assert len(runs) == (2 if on else 1)  # computed again in the backward pass
        gradients.append([tensor.grad for tensor in core.parameters if tensor.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) == 2 * len(patch)
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))
    assert any(bool(one.abs().max() > 1e-3) for one in gradients[0])
    assert not any(module.training for module in model.modules())
    assert not any(weight.requires_grad for weight in model.parameters())


def test_experts_are_computed_again_with_their_changes(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "moe_intermediate_size": 8, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    torch.manual_seed(0)
    config = Qwen3MoeConfig(vocab_size=50, num_experts=4, num_experts_per_tok=2, **sizes, **heads)
    Qwen3MoeForCausalLM(config).save_pretrained(tmp_path)
    model = load_model(tmp_path)
    experts = {name: one for name, one in structure_of(model).matrices.items() if one.kind == "expert"}
    assert {one.apply for one in experts.values()} == {"parameter"}
    patch = {n: LowRank(torch.randn(m.shape[0], 1), torch.randn(1, m.shape[1])) for n, m in experts.items()}
    made = make_shots(model, REPLIES, kind="safety", response_tokens=3)
    gradients = []
    for on in (False, True):
        core = Core(patch, dict.fromkeys(patch, 1), 0.5)
        with checkpointing(model, on=on), core.hooked(model):
            batch_objective(model, made, {"safety": 1.0}).backward()  # type: ignore[no-untyped-call]
        gradients.append(torch.cat([tensor.grad.flatten() for tensor in core.parameters if tensor.grad is not None]))
    assert gradients[0].abs().max() > 1e-3
    torch.testing.assert_close(gradients[1], gradients[0])


def test_what_fits_is_one_batch_and_what_does_not_is_split(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(root)
    made = make_shots(model, REPLIES, kind="safety", response_tokens=3)
    assert parts_of(model, made) == ([slice(0, 9)], False)
    whole = measure_shots(model, made)
    one = memory.row_bytes(memory.size_of_model(model), 8, 3, gradient=True, checkpointed=True)
    monkeypatch.setattr(memory, "device_bytes", lambda _: int(one * 4 / memory.MICROBATCH_SHARE))
    slices, checkpointed = parts_of(model, made)
    assert checkpointed
    assert [part.stop - part.start for part in slices[:-1]] == [slices[0].stop] * (len(slices) - 1)
    assert 1 < slices[0].stop < 9
    asked = list[int]()

    def counted(one: Any, rows: Any, keep: int) -> torch.Tensor:
        asked.append(len(rows))
        return last_logits(one, rows, keep)

    monkeypatch.setattr(divergence, "last_logits", counted)
    monkeypatch.setattr(memory, "device_bytes", lambda _: 1)
    assert measure_shots(model, made).loss["safety"] == pytest.approx(whole.loss["safety"], abs=1e-6)
    assert asked == [1] * 9
