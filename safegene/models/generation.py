"""Greedy replies of a model, in batches.

Laws (tests state them): there are as many replies as prompts, in the order of the prompts; a reply does not depend on
the other prompts of its batch, up to the rounding of the device; a reply that ``max_new_tokens`` cut off or a rule
stopped is marked (``finished`` is false).

The decoding loop is safegene's own. The checkpoint's generation settings cannot sample or suppress tokens; a reply that
has ended leaves the batch at once, with its part of the cache; a prefix that all prompts of a batch share, such as a
system prompt, is computed once. A model whose logits padding changes gets batches of equal length; one without a cache
that works reads all tokens again for each new one (`safegene.models.forward`). `benchmarks/RESULTS.md` compares the
speed with transformers' loop.
"""

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from safegene.errors import CheckpointError
from safegene.models.forward import decoding_of, left_padded, pads, run, select_rows, shares_prefix
from safegene.models.reading import ReplyReader
from safegene.models.templates import encode_chats
from safegene.workspace.progress import log_progress

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)
SHARED_FROM = 8  # tokens; sharing a shorter prefix is not faster


@dataclass(frozen=True)
class StoppingRule:
    """A rule that ends a reply ``after`` tokens after ``marker`` was first true of its text.

    Attributes:
        marker: whether the text of a reply so far is a plain refusal.
        words: digest of what the marker searches for, as a function has no digest.
        opening: the marker counts within this many tokens only; later such words belong to an answer.
        after: tokens that are generated afterwards, to show a reply that complies right after refusing.
    """

    marker: Callable[[str], bool]
    words: str
    opening: int = 32
    after: int = 2

    def to_json(self) -> dict[str, Any]:
        """The rule as plain JSON values, for the identity of the replies."""
        return {"words": self.words, "opening": self.opening, "after": self.after}

    def stops_at(self, tokens: int, text: Callable[[], str]) -> int | None:
        """The length in tokens at which a reply of ``tokens`` tokens ends; None where the marker is false."""
        return tokens + self.after if tokens <= self.opening and self.marker(text()) else None


@dataclass(frozen=True)
class Reply:
    """A reply of a model.

    Attributes:
        text: the reply as the family's tokenizer reads it, with special tokens but without the one that ends it.
        tokens: the number of generated tokens, including the end token.
        finished: whether the model ended the reply; false where it was cut off by ``max_new_tokens`` or stopped.
        stopped: whether a stopping rule ended it.
        stops_at: the length in tokens at which the rule ends it, or would end it if it were not generated in full; None
            without a rule, or where the rule's marker was never true.
        readable: whether two readings of its tokens agree, see `safegene.models.reading`.
    """

    text: str
    tokens: int
    finished: bool
    stopped: bool = False
    stops_at: int | None = None
    readable: bool = True


def generate(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    batch_size: int,
    reader: ReplyReader | None = None,
    stop: StoppingRule | None = None,
    in_full: Collection[int] = (),
    on_done: Callable[[int, Reply], None] | None = None,
) -> list[Reply]:
    """Greedy replies to ``prompts``, in their order.

    Prompts are batched by length, the longest first, so that a lack of memory shows at once. A batch ends with its
    longest reply.

    Args:
        model: a causal language model in evaluation mode; it runs on the device of its weights.
        tokenizer: the model's, with a chat template.
        prompts: user turns.
        max_new_tokens: the longest reply, in tokens.
        batch_size: prompts per batch.
        reader: reads the tokens of replies; None reads them with ``tokenizer``.
        stop: ends replies early; None ends none.
        in_full: indices of prompts whose replies it does not end.
        on_done: called with (index of the prompt, reply) after each batch, so that a caller can store replies and
            generate only the missing ones after a kill.

    Raises:
        CheckpointError: an ordinary word would end replies, see `end_tokens`; or the model cannot be run.
    """
    rows = encode_chats(tokenizer, prompts)
    ends, reader = end_tokens(model, tokenizer), reader or ReplyReader(tokenizer, tokenizer)
    replies: dict[int, Reply] = {}
    for indices in _batches(model, rows, batch_size):
        batch = [_Row(index, reader, ends, max_new_tokens, stop, index in in_full) for index in indices]
        _decode(model, [rows[index] for index in indices], batch)
        for row in batch:
            replies[row.index] = row.reply()
            if on_done is not None:
                on_done(row.index, replies[row.index])
        if len(rows) > batch_size:  # a caller that gives single batches tells its own progress
            log_progress(log, "replies", len(replies), len(rows))
    return [replies[index] for index in range(len(rows))]


def _batches(model: "PreTrainedModel", rows: Sequence[Sequence[int]], batch_size: int) -> Iterator[list[int]]:
    """Indices of at most ``batch_size`` rows, the longest rows first; of one length where padding changes replies."""
    order = sorted(range(len(rows)), key=lambda i: (-len(rows[i]), i))
    while order:
        longest = len(rows[order[0]])
        batch = order[:batch_size]
        if not pads(model, longest):
            batch = [index for index in batch if len(rows[index]) == longest]
        yield batch
        order = order[len(batch) :]


@dataclass
class _Row:
    """A reply that is being generated."""

    index: int
    reader: ReplyReader
    ends: Collection[int]
    limit: int
    stop: StoppingRule | None
    in_full: bool
    generated: list[int] = field(default_factory=list)
    stops_at: int | None = None
    open: bool = True

    def add(self, token: int) -> None:
        """Append a token; the reply stays ``open`` while it continues."""
        self.generated.append(token)
        if self.finished or len(self.generated) >= self.limit:
            self.open = False
            return
        if self.stop is not None and self.stops_at is None:
            self.stops_at = self.stop.stops_at(len(self.generated), self._text)
        self.open = not self._stopped

    @property
    def finished(self) -> bool:
        return self.generated[-1] in self.ends

    @property
    def _stopped(self) -> bool:
        complete = self.finished or len(self.generated) >= self.limit or self.in_full
        return not complete and self.stops_at is not None and len(self.generated) >= self.stops_at

    def reply(self) -> Reply:
        text = self._text()
        readable = self.reader.agrees(self._kept, text)
        return Reply(text, len(self.generated), self.finished, self._stopped, self.stops_at, readable)

    @property
    def _kept(self) -> list[int]:
        return self.generated[:-1] if self.finished else self.generated

    def _text(self) -> str:
        return self.reader.text(self._kept)


@torch.inference_mode()
def _decode(model: "PreTrainedModel", prompts: Sequence[Sequence[int]], rows: Sequence[_Row]) -> None:
    """Generate the replies of ``rows`` token by token; a reply that has ended leaves the batch where it can."""
    way, tokenizer = decoding_of(model), rows[0].reader.own
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(rows[0].ends)
    common = _shared_prefix_length(model, prompts)
    ids, mask = (tensor.to(model.device) for tensor in left_padded([prompt[common:] for prompt in prompts], pad))
    mask = torch.cat([mask.new_ones(len(rows), common), mask], dim=1)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, common:]
    cache, live = _prefill(model, prompts[0][:common], len(rows)), list(rows)
    while True:
        out = run(
            model,
            ids,
            mask=mask if way.padding else None,
            positions=positions if way.padding else None,
            cache=cache,
            use_cache=way.cache,
            keep=1,
        )
        cache, best = out.cache, out.logits[:, -1].float().argmax(-1)
        for row, token in zip(live, best.tolist(), strict=True):
            if row.open:
                row.add(token)
        kept = [at for at, row in enumerate(live) if row.open]
        if not kept:
            return
        if len(kept) < len(live) and way.select:
            indices = torch.tensor(kept, device=model.device)
            select_rows(cache, indices)
            live, best, mask, ids = [live[at] for at in kept], best[indices], mask[indices], ids[indices]
        mask = torch.cat([mask, mask.new_ones(len(live), 1)], dim=1)
        positions = mask.sum(-1, keepdim=True) - 1
        ids = best[:, None] if way.cache else torch.cat([ids, best[:, None]], dim=1)


def _shared_prefix_length(model: "PreTrainedModel", prompts: Sequence[Sequence[int]]) -> int:
    """The number of tokens that all prompts start with; 0 where sharing them gains little or could change replies."""
    if len(prompts) == 1:
        return 0
    ordered, shortest = sorted(map(list, prompts)), min(map(len, prompts))
    first, last = ordered[0], ordered[-1]
    same = next((at for at in range(shortest) if first[at] != last[at]), shortest)
    common = min(same, shortest - 1)
    return common if common >= SHARED_FROM and shares_prefix(model) else 0


def _prefill(model: "PreTrainedModel", shared: Sequence[int], rows: int) -> Mapping[str, Any]:
    """The cache of a shared prefix, once for each row; empty without one."""
    if not shared:
        return {}
    cache = run(model, torch.tensor([list(shared)], device=model.device), use_cache=True, keep=1).cache
    select_rows(cache, torch.zeros(rows, dtype=torch.long, device=model.device))
    return cache


def end_tokens(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """The tokens that end a reply: those of the model's generation settings, without any the tokenizer's end token.

    These are where transformers ends replies. A reply that went on elsewhere must be judged to its end.

    Raises:
        CheckpointError: one of them is an ordinary word. A checkpoint could use it to end replies before they become
            harmful.
    """
    configured = getattr(model.generation_config, "eos_token_id", None)
    ends = set(configured if isinstance(configured, list) else [] if configured is None else [configured])
    if not ends and tokenizer.eos_token_id is not None:
        ends.add(tokenizer.eos_token_id)
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    if ordinary := sorted(ends - special - set(tokenizer.all_special_ids)):
        words = [tokenizer.decode([index]) for index in ordinary[:3]]
        raise CheckpointError(
            f"expected replies to end with special tokens, got {words} (ids {ordinary[:3]}), in generation_config.json",
            remedy="remove them from eos_token_id",
        )
    return sorted(ends)


@contextmanager
def greedy_decoding(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", max_new_tokens: int
) -> Iterator["GenerationConfig"]:
    """Settings for greedy decoding with transformers; of the checkpoint's settings only the end tokens are used.

    Settings of the checkpoint that suppress or sample tokens would change the measurement. As transformers takes unset
    values from the model's settings, those are replaced inside the block.
    """
    from transformers import GenerationConfig

    ends, settings = end_tokens(model, tokenizer), model.generation_config
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else ends[0]
    model.generation_config = GenerationConfig()
    try:
        yield GenerationConfig(max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=pad, eos_token_id=ends)
    finally:
        model.generation_config = settings
