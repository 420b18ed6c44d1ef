"""A teacher's predictions in little memory: the likeliest tokens, and one bin for the rest of the vocabulary.

A row of log-probabilities over 151,000 tokens takes 600 KB in float32. Of a large vocabulary the `TOP` likeliest tokens
are kept, with their log-probabilities in float32 and the log of the remaining mass: 1,028 bytes a row. The KL
divergence over these ``TOP + 1`` bins is at most that over the whole vocabulary (data processing inequality), and equal
where the student spreads the remainder as the teacher does. A vocabulary of at most `SMALL_VOCABULARY` tokens is kept
whole.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

TOP = 128
SMALL_VOCABULARY = 1024


def compact(logits: Tensor) -> tuple[Tensor, Tensor | None]:
    """The log-probabilities that are kept, and of which tokens.

    Args:
        logits: (..., vocabulary).

    Returns:
        log-probabilities (nats) (..., vocabulary) and None where the vocabulary is small; else those of the `TOP`
        likeliest tokens, the likeliest first, with that of all others together, (..., TOP + 1), and the tokens
        (..., TOP), int32.
    """
    if logits.shape[-1] <= SMALL_VOCABULARY:
        return F.log_softmax(logits.float(), dim=-1), None
    tokens = logits.topk(TOP, dim=-1).indices
    return binned(logits, tokens), tokens.to(torch.int32)


def binned(logits: Tensor, tokens: Tensor | None) -> Tensor:
    """Log-probabilities (nats), float32, in the bins of `compact`, with a gradient.

    Args:
        logits: (..., vocabulary).
        tokens: (..., k); None for every token.

    Returns:
        (..., k + 1): of these tokens, and last of all others together; (..., vocabulary) without ``tokens``.
    """
    logits = logits.float()
    if tokens is None:
        return F.log_softmax(logits, dim=-1)
    at = tokens.long()
    others = logits.scatter(-1, at, float("-inf")).logsumexp(-1, keepdim=True)
    return torch.cat([logits.gather(-1, at), others], dim=-1) - logits.logsumexp(-1, keepdim=True)
