"""Tokens are counted as the model reads them: padding left out, training apart, nothing outside of the block."""

import torch

from safegene.models.loading import load_model, load_tokenizer
from safegene.models.tokens import count_tokens
from safegene.repair.training import encode_row, supervised
from safegene.tiny.build import build


def test_training_and_forward_passes_are_counted_apart_without_padding() -> None:
    folder = build("aligned", 0)
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    rows = [("write a word", "yes"), ("write a longer text with more words", "no no no")]
    lengths = [len(encode_row(tokenizer, row).ids) for row in rows]
    assert lengths[0] != lengths[1]
    factor = next(parameter for parameter in model.parameters() if parameter.dim() == 1)
    with count_tokens(model) as read:
        supervised(model, tokenizer, rows, steps=3, batch_size=2, learning_rate=0.0, seed=0, parameters=[factor])
        with torch.no_grad():
            model(input_ids=torch.ones(2, 5, dtype=torch.long))
            model(torch.ones(1, 4, dtype=torch.long), attention_mask=torch.tensor([[0, 1, 1, 1]]))
    assert read.to_json() == {"forward": 10 + 3, "trained": 3 * sum(lengths)}
    with torch.no_grad():
        model(input_ids=torch.ones(2, 5, dtype=torch.long))
    assert read.to_json()["forward"] == 13


def test_a_cached_step_counts_its_new_token_only() -> None:
    model = load_model(build("aligned", 0))
    with count_tokens(model) as read, torch.no_grad():
        first = model(input_ids=torch.ones(2, 5, dtype=torch.long), attention_mask=torch.ones(2, 5), use_cache=True)
        model(
            input_ids=torch.ones(2, 1, dtype=torch.long),
            attention_mask=torch.ones(2, 6),
            past_key_values=first.past_key_values,
        )
    assert read.to_json() == {"forward": 12, "trained": 0}
