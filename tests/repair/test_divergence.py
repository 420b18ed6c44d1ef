"""Teacher and student may have different numbers of tokens: a fine-tune added some, or lacks rows of padding."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from safegene.models.forward import next_token_log_probs
from safegene.repair.divergence import mean_divergence, measure_shots
from tests.factories.llamas import WORDS
from tests.factories.shots import taught


def model_with(rows: int) -> LlamaForCausalLM:
    """Equal weights for the tokens that models of all sizes have; random ones for the others."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=WORDS + 20, initializer_range=0.5, **shape)).eval()
    if rows < WORDS + 20:
        model.resize_token_embeddings(rows)
    return model


@pytest.mark.parametrize(("teacher_rows", "student_rows"), [(WORDS, WORDS + 14), (WORDS + 14, WORDS)])
def test_the_divergence_is_over_the_tokens_that_both_have(teacher_rows: int, student_rows: int) -> None:
    shots, student = taught(model_with(teacher_rows), 6), model_with(student_rows)
    shared = min(teacher_rows, student_rows)
    expected = []
    for shot in shots:
        with torch.no_grad():
            log_probs = next_token_log_probs(student, [shot.ids], len(shot.teacher))[0, :, :shared]
        known = shot.teacher[:, :shared]
        expected.append((known.exp() * (known - log_probs)).sum(-1))
    loss = mean_divergence(student.requires_grad_(True), shots)
    torch.autograd.backward(loss)
    torch.testing.assert_close(loss.detach(), torch.cat(expected).mean(), rtol=1e-4, atol=1e-5)
    by_shot = float(torch.stack([kl.mean() for kl in expected]).mean())
    assert measure_shots(student, shots).loss["safety"] == pytest.approx(by_shot, rel=1e-4)
    assert all(weight.grad is None or weight.grad.isfinite().all() for weight in student.parameters())
