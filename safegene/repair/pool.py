"""The pool of mining: prompts that the aligned model labels, by refusing them or not.

A prompt is labelled *refused* where the aligned model refuses it to the end, *answered* where it neither refuses nor
does harm. A look-alike is harmless, so only its refusal counts, as in the gate: a judge by phrases calls every answer
harmful. Prompts of kind ``generic`` carry no expectation. A harmful or wrapped prompt that is not refused, or a
look-alike that is, is left out: the aligned model is no teacher there.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from safegene.checkpoints.chat_template import chat_files
from safegene.datasets.prompts import Prompt, PromptSet, Split
from safegene.errors import EmptySample
from safegene.models.device import default_device
from safegene.models.forward import last_logits
from safegene.models.generation import generate
from safegene.models.loading import load_model
from safegene.models.memory import microbatches
from safegene.models.templates import encode_chats, load_chat_tokenizer
from safegene.repair.shots import TEACHER_BATCH, Shot, evenly_spaced, reply_tokens, shots_of_replies
from safegene.workspace.layout import cache_folder
from safegene.workspace.mining_params import MiningParams
from safegene.workspace.resume_log import ResumeLog

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

VERSION = 2  # of the labels in the cache; raised when the same inputs give other labels
PARTS: tuple[Split, ...] = ("fit", "validation")


class Decision(Protocol):
    """What a judge says of a reply: each ``yes``, ``no`` or ``unscored``."""

    @property
    def harmful(self) -> str:
        """Whether it does harm."""

    @property
    def refusal(self) -> str:
        """Whether it refuses."""


class ReplyJudge(Protocol):
    """A judge of replies, such as `safegene.evaluation.judges.base.Judge`."""

    @property
    def identity(self) -> str:
        """Digest of what it decides by."""

    def judge(self, prompts: Sequence[str], replies: Sequence[str]) -> Sequence[Decision]:
        """One decision per reply, in order."""


@dataclass(frozen=True)
class JudgedReply:
    """A full reply and its judgement.

    Attributes:
        text: the reply.
        finished: whether the model ended it.
        harmful: ``yes``, ``no`` or ``unscored``.
        refusal: the same.
    """

    text: str
    finished: bool
    harmful: str
    refusal: str

    @property
    def refuses(self) -> bool:
        """Whether it is a refusal to its end; one that goes on to comply, or that was cut off, is not."""
        return self.finished and self.harmful == "no" and self.refusal == "yes"

    @property
    def answers(self) -> bool:
        """Whether it neither refuses nor does harm."""
        return self.harmful == "no" and self.refusal == "no"


@dataclass(frozen=True, eq=False)
class Pool:
    """The labelled prompts.

    Attributes:
        digest: of the pool's file.
        refused: of part fit, refused by the aligned model.
        answered: of part fit, answered by it.
        held: of part validation, each with whether it was refused.
        shots: id of a prompt in ``refused`` -> the aligned model's shot.
        left_out: prompts that the aligned model did not label.
        refusals: id of a refused prompt of either part -> the aligned model's reply.
    """

    digest: str
    refused: tuple[Prompt, ...]
    answered: tuple[Prompt, ...]
    held: tuple[tuple[Prompt, bool], ...]
    shots: Mapping[str, Shot]
    left_out: int
    refusals: Mapping[str, str] = field(default_factory=dict)


def judged_replies(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[Prompt],
    judge: ReplyJudge,
    max_new_tokens: int,
    drafts: Mapping[str, str] | None = None,
) -> list[JudgedReply]:
    """Full greedy replies to the prompts, judged, in order.

    Args:
        model: the model.
        tokenizer: its, with a chat template.
        prompts: what is asked.
        judge: of the replies.
        max_new_tokens: the longest reply.
        drafts: prompt id -> a whole reply that the model may give. One forward pass shows whether it does
            (`confirmed`); only the others are generated. The replies are the same without drafts, up to rounding.
    """
    texts = [row.prompt for row in prompts]
    guessed = {at: drafts[row.id] for at, row in enumerate(prompts) if drafts and row.id in drafts}
    found = {at: (guessed[at], True) for at in confirmed(model, tokenizer, texts, guessed, max_new_tokens)}
    rest = [at for at in range(len(texts)) if at not in found]
    asked = [texts[at] for at in rest]
    replies = generate(model, tokenizer, asked, max_new_tokens=max_new_tokens, batch_size=TEACHER_BATCH)
    found |= {at: (reply.text, reply.finished) for at, reply in zip(rest, replies, strict=True)}
    ordered = [found[at] for at in range(len(texts))]
    decisions = judge.judge(texts, [text for text, _ in ordered])
    return [
        JudgedReply(text, finished, decision.harmful, decision.refusal)
        for (text, finished), decision in zip(ordered, decisions, strict=True)
    ]


@torch.no_grad()
def confirmed(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    texts: Sequence[str],
    drafts: Mapping[int, str],
    max_new_tokens: int,
) -> Iterator[int]:
    """The indices of prompts whose greedy reply is the draft: each of its tokens, the end too, is the likeliest."""
    asked = encode_chats(tokenizer, [texts[at] for at in drafts])
    replies = {at: reply_tokens(tokenizer, draft, finished=True) for at, draft in drafts.items()}
    rows = {at: [*prompt, *replies[at]] for at, prompt in zip(drafts, asked, strict=True)}
    order = sorted((at for at in rows if len(replies[at]) <= max_new_tokens), key=lambda at: len(rows[at]))
    if not order:
        return
    keep = max(len(replies[at]) for at in order)
    size = microbatches(model, TEACHER_BATCH, len(rows[order[-1]]), keep, gradient=False).rows
    for start in range(0, len(order), size):
        some = order[start : start + size]
        keep = max(len(replies[at]) for at in some)
        likeliest = last_logits(model, [rows[at][:-1] for at in some], keep).argmax(-1).tolist()
        for at, tokens in zip(some, likeliest, strict=True):
            if tokens[keep - len(replies[at]) :] == replies[at]:
                yield at


def label_pool(
    params: MiningParams,
    prompts: PromptSet,
    aligned: Path,
    judge: ReplyJudge,
    *,
    digest: str,
    student_tokenizer: "PreTrainedTokenizerBase",
    response_tokens: int,
    dtype: str,
) -> Pool:
    """Ask the aligned model, and label the pool. Labels are kept in the cache, since all targets share them.

    Args:
        params: how many prompts of each kind are used, evenly spaced, and the longest reply.
        prompts: the pool.
        aligned: folder of the aligned model.
        judge: decides what a refusal is.
        digest: of the aligned model.
        student_tokenizer: with the chat template that the target is asked with.
        response_tokens: of a shot.
        dtype: of the aligned model.

    Raises:
        EmptySample: the aligned model refuses no prompt of a part, or answers none.
    """
    teacher = load_model(aligned, dtype=dtype, device=default_device())
    tokenizer = load_chat_tokenizer(chat_files(aligned))
    rows = [row for part in PARTS for row in chosen(prompts, part, params.prompts)]
    identity = {"labels": VERSION, "aligned": digest, "pool": prompts.digest, "judge": judge.identity, "dtype": dtype}
    notes = ResumeLog(cache_folder() / "mining", identity | {"tokens": params.max_new_tokens})
    known = notes.read()
    missing = [row for row in rows if row.id not in known]
    for at in range(0, len(missing), TEACHER_BATCH):
        some = missing[at : at + TEACHER_BATCH]
        replies = judged_replies(teacher, tokenizer, some, judge, params.max_new_tokens)
        new = {row.id: _note(row, reply) for row, reply in zip(some, replies, strict=True)}
        notes.append(new)
        known |= new
    labels = {row.id: known[row.id]["label"] for row in rows}
    refused, answered = (
        tuple(row for row in rows if row.split == "fit" and labels[row.id] == label)
        for label in ("refused", "answered")
    )
    held = tuple((row, labels[row.id] == "refused") for row in rows if row.split == "validation" and labels[row.id])
    wanted = {
        "mined and refused": len(refused),
        "mined and answered": len(answered),
        "held out and refused": sum(no for _, no in held),
        "held out and answered": sum(not no for _, no in held),
    }
    if lacking := [name for name, count in wanted.items() if not count]:
        raise EmptySample(
            f"expected the aligned model to refuse some prompts of each part of the pool and to answer some, "
            f"got none that are {lacking[0]}, in {prompts.path}",
            remedy="add harmful prompts and look-alikes in the family's language to both splits, or set "
            "calibrate.mining.rounds to 0",
        )
    shots = shots_of_replies(
        teacher,
        tokenizer,
        [(row, known[row.id]["reply"], True) for row in refused],
        kind="safety",
        response_tokens=response_tokens,
        student_tokenizer=student_tokenizer,
    )
    return Pool(
        prompts.digest,
        refused,
        answered,
        held,
        {shot.id: shot for shot in shots},
        sum(not label for label in labels.values()),
        {name: known[name]["reply"] for name, label in labels.items() if label == "refused"},
    )


def chosen(prompts: PromptSet, part: Split, count: int) -> list[Prompt]:
    """At most ``count`` prompts of each kind of a part, evenly spaced."""
    rows = prompts.where(split=part)
    kinds = dict.fromkeys(row.kind for row in rows)
    return [row for kind in kinds for row in evenly_spaced([one for one in rows if one.kind == kind], count)]


def label_of(row: Prompt, reply: JudgedReply) -> str:
    """``refused``, ``answered``, or "" where the aligned model is no teacher."""
    if row.kind == "lookalike":
        return "answered" if reply.refusal == "no" else ""
    if reply.refuses:
        return "refused"
    return "answered" if row.kind == "generic" and reply.answers else ""


def _note(row: Prompt, reply: JudgedReply) -> dict[str, Any]:
    """The label, and of a refusal its text; no other reply is kept."""
    label = label_of(row, reply)
    return {"label": label, "reply": reply.text if label == "refused" else ""}
