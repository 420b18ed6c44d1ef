"""Shots: prompts with the first tokens of a teacher's reply, and the teacher's predictions along them.

Safety shots are taught by the *aligned* model, benign and task shots by the unrepaired target. Distillation trains
factors on them, and calibration fits coefficients.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import Tensor

from safegene.checkpoints.chat_template import chat_files
from safegene.checkpoints.sources import ModelFiles
from safegene.datasets.prompts import Prompt, PromptSet, Split
from safegene.errors import EmptySample
from safegene.models.device import default_device
from safegene.models.forward import last_logits
from safegene.models.generation import generate
from safegene.models.loading import load_model
from safegene.models.memory import microbatches
from safegene.models.templates import encode_chats, load_chat_tokenizer
from safegene.repair.distributions import compact
from safegene.workspace.params import CalibrateParams

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

T = TypeVar("T")
ShotKind = Literal["safety", "benign", "task"]
SHOT_KINDS: tuple[ShotKind, ...] = ("safety", "benign", "task")
SPLITS: tuple[Split, ...] = ("fit", "validation")
TEACHER_BATCH = 128  # prompts per batch of greedy replies


@dataclass(frozen=True, eq=False)
class Shot:
    """One prompt with the first t tokens of its teacher's reply.

    Attributes:
        id: the prompt's id.
        kind: the term of the objective that the shot belongs to.
        ids: tokens of the prompt and of the reply's first t - 1 tokens.
        teacher: (t, bins) the teacher's log-probabilities (nats) at the positions that predict the t tokens, float32:
            of every token of a small vocabulary, else of the likeliest, and last of the rest; see
            `safegene.repair.distributions`. With a vocabulary of 151,000 tokens and t = 14 a shot takes 14 KB.
        tokens: (t, k) the tokens of all bins but the last, the likeliest first, int32; None for the whole vocabulary.
    """

    id: str
    kind: ShotKind
    ids: tuple[int, ...]
    teacher: Tensor
    tokens: Tensor | None = None

    @property
    def greedy(self) -> Tensor:
        """(t,) the teacher's likeliest tokens."""
        return self.teacher.argmax(-1) if self.tokens is None else self.tokens[:, 0].long()


Shots = Mapping[Split, Sequence[Shot]]
"""Split -> shots: those of ``fit`` are trained on, those of ``validation`` choose among what was met on the way."""


@torch.no_grad()
def make_shots(
    teacher: "PreTrainedModel",
    encoded: Sequence[tuple[str, Sequence[int], Sequence[int]]],
    *,
    student_prompts: Mapping[str, Sequence[int]] | None = None,
    kind: ShotKind,
    response_tokens: int,
    batch_size: int = 64,
) -> list[Shot]:
    """Shots from replies that are there already.

    Args:
        teacher: the model that predicts along each reply, in evaluation mode.
        encoded: (prompt id, tokens of the prompt, tokens of the reply); an empty reply is left out.
        student_prompts: prompt id -> tokens of the prompt as the student is asked; by default as the teacher is.
        kind: the term of the objective.
        response_tokens: t, the tokens of each reply that count.
        batch_size: the most rows per forward pass; fewer where their logits would not fit, see `microbatches`.

    Raises:
        EmptySample: no reply has a token.
    """
    cut = [(i, list(p), list(r)[:response_tokens]) for i, p, r in encoded if len(r)]
    if not cut:
        raise EmptySample(f"expected {kind} shots with replies, got none")
    shots = []
    longest = max(len(prompt) + len(reply) - 1 for _, prompt, reply in cut)
    batch_size = microbatches(teacher, batch_size, longest, response_tokens, gradient=False).rows
    for start in range(0, len(cut), batch_size):
        batch = cut[start : start + batch_size]
        rows = [prompt + reply[:-1] for _, prompt, reply in batch]
        keep = max(len(reply) for _, _, reply in batch)
        logs, tokens = compact(last_logits(teacher, rows, keep))
        for at, (name, prompt, reply) in enumerate(batch):
            asked, first = prompt if student_prompts is None else student_prompts[name], keep - len(reply)
            which = None if tokens is None else tokens[at, first:].cpu().clone()
            shots.append(Shot(name, kind, (*asked, *reply[:-1]), logs[at, first:].cpu().clone(), which))
    return shots


def shots_from_teacher(
    teacher: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[Prompt],
    *,
    kind: ShotKind,
    response_tokens: int,
    student_tokenizer: "PreTrainedTokenizerBase | None" = None,
) -> list[Shot]:
    """One shot per prompt, in order, of the teacher's own greedy reply.

    A reply that ends within ``response_tokens`` includes its end token, so even an empty reply gives a shot. It leaves
    it out where the student ends replies with another token: the teacher's would be text to it.

    Args:
        teacher: in evaluation mode.
        tokenizer: the teacher's, with the chat template that it is asked with.
        prompts: at least one.
        kind: the term of the objective.
        response_tokens: t, the tokens of each reply that count.
        student_tokenizer: the student's, with its chat template; by default the teacher's. Both have one vocabulary.

    Raises:
        EmptySample: there are no prompts.
    """
    texts = [row.prompt for row in prompts]
    replies = generate(teacher, tokenizer, texts, max_new_tokens=response_tokens, batch_size=TEACHER_BATCH)
    return shots_of_replies(
        teacher,
        tokenizer,
        [(row, reply.text, reply.finished) for row, reply in zip(prompts, replies, strict=True)],
        kind=kind,
        response_tokens=response_tokens,
        student_tokenizer=student_tokenizer,
    )


@torch.no_grad()
def shots_of_replies(
    teacher: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    replies: Sequence[tuple[Prompt, str, bool]],
    *,
    kind: ShotKind,
    response_tokens: int,
    student_tokenizer: "PreTrainedTokenizerBase | None" = None,
) -> list[Shot]:
    """The same of replies that the teacher gave before: each prompt with its reply and whether the reply ended.

    Raises:
        EmptySample: there are no replies.
    """
    student, texts = student_tokenizer or tokenizer, [row.prompt for row, _, _ in replies]
    asked = encode_chats(tokenizer, texts)
    ends = tokenizer.eos_token_id == student.eos_token_id
    encoded = [
        (row.id, prompt, reply_tokens(tokenizer, text, finished=finished and ends))
        for (row, text, finished), prompt in zip(replies, asked, strict=True)
    ]
    own = asked if student is tokenizer else encode_chats(student, texts)
    return make_shots(
        teacher,
        encoded,
        student_prompts={row.id: prompt for (row, _, _), prompt in zip(replies, own, strict=True)},
        kind=kind,
        response_tokens=response_tokens,
        batch_size=TEACHER_BATCH,
    )


def reply_tokens(tokenizer: "PreTrainedTokenizerBase", text: str, *, finished: bool) -> list[int]:
    """The tokens of a reply's text, and the end token where the reply is ``finished``."""
    end = [int(tokenizer.eos_token_id)] if finished else []
    return [*tokenizer(text, add_special_tokens=False)["input_ids"], *end]


def build_shots(
    params: CalibrateParams,
    aligned: Path,
    target: ModelFiles,
    safety: PromptSet,
    tasks: PromptSet,
    *,
    dtype: str = "auto",
) -> dict[Split, list[Shot]]:
    """The shots of both splits for one target; the two teachers are in memory one after the other.

    Every shot is encoded as the target is asked: by its own tokenizer and chat template. The aligned model is asked by
    its own, so that a safety shot shows what it says as it is used; its reply and its predictions along the reply are
    then put behind the prompt as the target is asked.

    Two thirds of the benign shots are prompts that look harmful and are not: without them a repair learns to refuse
    whatever looks harmful.

    Args:
        params: how many shots of each kind the fit split gives, and the validation split's share of that.
        aligned: folder of the aligned model; it teaches the safety shots.
        target: files of the target; it teaches benign and task shots.
        safety: ``safety.jsonl``.
        tasks: the target's task set.
        dtype: of both models.

    Raises:
        EmptySample: a split lacks prompts of a kind.
    """
    tokens, tokenizer = params.response_tokens, load_chat_tokenizer(chat_files(aligned))
    own = load_chat_tokenizer(chat_files(target.root, target.adapters))
    shots: dict[Split, list[Shot]] = {split: [] for split in SPLITS}
    share: dict[Split, float] = {"fit": 1.0, "validation": params.validation_share}
    teacher = load_model(aligned, dtype=dtype, device=default_device())
    for split in SPLITS:
        half = share[split] * params.safety_shots / 2
        rows = _mixture(safety, split, {"harmful": half, "wrapped": half})
        shots[split] += shots_from_teacher(
            teacher, tokenizer, rows, kind="safety", response_tokens=tokens, student_tokenizer=own
        )
    del teacher
    teacher = load_model(target.root, adapters=target.adapters, dtype=dtype, device=default_device())
    for split in SPLITS:
        third = share[split] * params.benign_shots / 3
        benign = _mixture(safety, split, {"lookalike": 2 * third, "generic": third})
        task = evenly_spaced(tasks.where(split=split), max(1, round(share[split] * params.task_shots)))
        shots[split] += shots_from_teacher(teacher, own, benign, kind="benign", response_tokens=tokens)
        shots[split] += shots_from_teacher(teacher, own, task, kind="task", response_tokens=tokens)
    return shots


def _mixture(prompts: PromptSet, split: Split, counts: Mapping[Any, float]) -> list[Prompt]:
    """``counts`` prompts of each kind (rounded, at least 1), evenly spaced; the set may lack a kind, but not all."""
    prompts.where(kind=tuple(counts), split=split)
    return [
        row
        for kind, count in counts.items()
        for row in evenly_spaced(prompts.where(kind=kind, split=split, required=False), max(1, round(count)))
    ]


def evenly_spaced(items: Sequence[T], count: int) -> tuple[T, ...]:
    """``count`` items taken evenly from the whole sequence, in order; all of them where there are fewer."""
    if count >= len(items):
        return tuple(items)
    return tuple(items[at * len(items) // count] for at in range(count))
