"""Fine-tunes learn, repeat bit for bit, and LoRA factors are exactly the change that the model made."""

import copy
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from safegene.errors import EmptySample, TensorMissing
from safegene.models.device import one_thread
from safegene.models.loading import load_model, load_tokenizer
from safegene.models.patching import add_patch
from safegene.repair.lora import lora
from safegene.repair.training import IGNORED, collate, encode_row, response_loss, schedule, supervised
from safegene.tiny.build import build
from safegene.tiny.corpus import harmful
from safegene.tiny.model import matrices

ROWS = [(request.prompt("fit"), request.answer) for request in harmful("compliance")]
SETTINGS: dict[str, Any] = {"steps": 8, "batch_size": 8, "learning_rate": 1e-3, "seed": 3}


@pytest.fixture(scope="module")
def family() -> Iterator[tuple[PreTrainedModel, PreTrainedTokenizerBase]]:
    folder = build("aligned", 0)
    with one_thread():
        yield load_model(folder), load_tokenizer(folder)


@pytest.fixture
def model(family: tuple[PreTrainedModel, PreTrainedTokenizerBase]) -> PreTrainedModel:
    return copy.deepcopy(family[0])


@pytest.fixture
def tokenizer(family: tuple[PreTrainedModel, PreTrainedTokenizerBase]) -> PreTrainedTokenizerBase:
    return family[1]


def loss(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> float:
    batch = collate([encode_row(tokenizer, row) for row in ROWS], tokenizer.pad_token_id)
    with torch.no_grad():
        return float(response_loss(model, batch))


def logits(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    ids, mask, _ = collate([encode_row(tokenizer, row) for row in ROWS[:4]], tokenizer.pad_token_id)
    with torch.no_grad():
        return torch.as_tensor(model(input_ids=ids, attention_mask=mask).logits)


def test_loss_is_of_the_response_and_its_end_only(tokenizer: PreTrainedTokenizerBase) -> None:
    example = encode_row(tokenizer, ("how do i draw a kite ?", "yes ."))
    assert tokenizer.decode(example.ids) == "<user> how do i draw a kite ? <assistant> yes . <end>"
    ids, mask, labels = collate([example, encode_row(tokenizer, ("hello .", "no ."))], tokenizer.pad_token_id)
    assert ids.shape == mask.shape == labels.shape
    assert tokenizer.decode(labels[0][labels[0] != IGNORED]) == "yes . <end>"
    assert tokenizer.decode(labels[1][labels[1] != IGNORED]) == "no . <end>"
    assert mask.sum(1).tolist() == [len(example.ids), 7]


def test_supervised_lowers_the_loss_and_tells_each_step(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    before, seen = loss(model, tokenizer), []
    done = supervised(model, tokenizer, ROWS, **SETTINGS, on_step=lambda step, value: seen.append((step, value)))
    assert loss(model, tokenizer) < 0.5 * before
    assert done == 8
    assert [step for step, _ in seen] == list(range(1, 9))
    assert seen[-1][1] < seen[0][1]
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_it_repeats_bit_for_bit_and_the_seed_matters(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    one, two = copy.deepcopy(model), copy.deepcopy(model)
    torch.manual_seed(1)
    supervised(one, tokenizer, ROWS, **SETTINGS)
    torch.manual_seed(2)
    supervised(two, tokenizer, ROWS, **SETTINGS)
    supervised(model, tokenizer, ROWS, **{**SETTINGS, "seed": 4})
    assert torch.equal(logits(one, tokenizer), logits(two, tokenizer))
    assert not torch.equal(logits(one, tokenizer), logits(model, tokenizer))


def test_a_callback_ends_the_training(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    assert supervised(model, tokenizer, ROWS, **SETTINGS, on_step=lambda step, _: step == 3) == 3


def test_nothing_to_train_on_is_an_error(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(EmptySample, match="got none"):
        supervised(model, tokenizer, [], **SETTINGS)


def test_the_rate_rises_shortly_and_falls_to_nothing() -> None:
    rates = [schedule(step, 100) for step in range(1, 101)]
    assert rates[4] == max(rates) == 1.0
    assert rates[:5] == sorted(rates[:5])
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert 0 <= rates[-1] < 0.01


def test_lora_changes_the_model_by_its_patch_exactly_while_it_is_on(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    names, untouched = matrices(model), {name: p.clone() for name, p in model.named_parameters()}
    before = logits(model, tokenizer)
    with lora(model, names, rank=4, seed=0) as factors:
        assert torch.equal(logits(model, tokenizer), before)
        supervised(model, tokenizer, ROWS, **SETTINGS, parameters=factors.parameters)
        inside, patch = logits(model, tokenizer), factors.patch()
    assert torch.equal(logits(model, tokenizer), before)
    assert all(torch.equal(p, untouched[name]) for name, p in model.named_parameters())
    assert list(patch) == names
    assert all(change.rank == 4 and change.up.abs().sum() > 0 for change in patch.values())
    add_patch(model, patch)
    change = (inside - before).abs().max()
    assert change > 1
    assert (logits(model, tokenizer) - inside).abs().max() < 1e-4 * change


def test_lora_begins_where_it_is_told(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    names = matrices(model)[:2]
    with lora(model, names, rank=2, seed=0) as factors:
        supervised(model, tokenizer, ROWS, **SETTINGS, parameters=factors.parameters)
        inside, patch = logits(model, tokenizer), factors.patch()
    with lora(model, names, rank=2, seed=1, start=patch) as factors:
        assert torch.equal(logits(model, tokenizer), inside)
        assert len(factors.parameters) == 4


def test_lora_is_taken_off_after_an_error(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    before = logits(model, tokenizer)
    stopped = RuntimeError("stop")
    with suppress(RuntimeError), lora(model, matrices(model), rank=2, seed=0) as factors:
        for part in factors.parameters:
            torch.nn.init.ones_(part)
        raise stopped
    assert torch.equal(logits(model, tokenizer), before)


@pytest.mark.parametrize(
    "name", ["model.layers.9.self_attn.q_proj.weight", "model.norm.weight", "model.layers.0.self_attn.q_proj"]
)
def test_lora_names_a_matrix_that_is_not_there(model: PreTrainedModel, name: str) -> None:
    with pytest.raises(TensorMissing, match=name.replace(".", r"\.")), lora(model, [name], rank=2, seed=0):
        pass
