"""Shots: prompts with the first tokens of a teacher's reply, for distilling a vector and for fitting coefficients."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from safegene.datasets.prompts import Prompt
from safegene.models.generation import encode_chat, generate
from safegene.repair.fitting import Shot, ShotKind, make_shots

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BATCH = 128


def shots_from_teacher(
    teacher: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[Prompt],
    *,
    kind: ShotKind,
    response_tokens: int,
) -> list[Shot]:
    """One shot per prompt, in order, of the teacher's own greedy reply and its predictions along it.

    A prompt that the teacher answers with nothing at all still has a shot: its end token.

    Args:
        teacher: in evaluation mode.
        tokenizer: the family's.
        prompts: what is asked.
        kind: the term of the loss that the shots belong to.
        response_tokens: how many of the reply's first tokens count.

    Raises:
        EmptySample: there are no prompts.
    """
    asked = [row.prompt for row in prompts]
    replies = generate(teacher, tokenizer, asked, max_new_tokens=response_tokens, batch_size=BATCH)
    encoded = []
    for row, reply in zip(prompts, replies, strict=True):
        tokens = list(tokenizer(reply.text, add_special_tokens=False)["input_ids"])
        end = [int(tokenizer.eos_token_id)] if reply.finished else []
        encoded.append((row.id, encode_chat(tokenizer, row.prompt), tokens + end))
    return make_shots(teacher, encoded, kind=kind, response_tokens=response_tokens, batch_size=BATCH)


def evenly_spaced(prompts: Sequence[Prompt], count: int) -> tuple[Prompt, ...]:
    """``count`` prompts taken evenly from the whole sequence, in order; all of them where there are fewer."""
    if count >= len(prompts):
        return tuple(prompts)
    return tuple(prompts[at * len(prompts) // count] for at in range(count))
