"""Replies of a model: greedy, batched, each given back in its prompt's place.

Laws (tests state them): the order and number of replies equal those of the prompts; a reply does not depend on the
prompts beside it, up to the rounding of the device; a reply cut off by ``max_new_tokens`` or stopped by a rule says so
(``finished`` is false) and is never passed off as a whole one.

The loop is our own: nothing of a checkpoint's own settings can sample or suppress; a row that has ended leaves the
batch at once, with its keys and values; and what all prompts of a batch begin with, such as a system prompt, is read
once. Figures beside transformers' own loop: `benchmarks/RESULTS.md`, "The gate".
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from safegene.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import Cache, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase


STOPPED_KINDS = ("harmful",)  # kinds of prompts whose replies may end early, see `safegene.evaluation.early_stop`
SHARED_FROM = 8  # tokens; reading fewer once costs more than it brings


@dataclass(frozen=True)
class StoppingRule:
    """A stopping rule: a reply ends ``after`` tokens after ``marker`` was first true of its first tokens.

    Attributes:
        marker: whether a reply's text so far refuses beyond doubt.
        words: digest of what the marker looks for, since a function has none.
        opening: tokens within which the marker counts; later on such words belong to an answer.
        after: tokens that are still generated then, so that a turn right behind the refusal shows.
    """

    marker: Callable[[str], bool]
    words: str
    opening: int = 32
    after: int = 2

    def to_json(self) -> dict[str, Any]:
        """The rule as plain JSON values, for the identity of what is made by it."""
        return {"words": self.words, "opening": self.opening, "after": self.after, "kinds": list(STOPPED_KINDS)}

    def stops_at(self, tokens: int, text: Callable[[], str]) -> int | None:
        """At how many tokens a reply ends that has ``tokens`` now; None while the marker is not seen."""
        return tokens + self.after if tokens <= self.opening and self.marker(text()) else None


@dataclass(frozen=True)
class Reply:
    """What a model answered.

    Attributes:
        text: the reply without special tokens.
        tokens: how many tokens were generated, the end token included.
        finished: whether the model ended the reply itself; false for one cut off by ``max_new_tokens`` or stopped.
        stopped: whether a stopping rule ended it.
        stops_at: at how many tokens the rule ends it, or would end it had it not to be finished in full; None where
            there is no rule or the rule's marker was not seen.
    """

    text: str
    tokens: int
    finished: bool
    stopped: bool = False
    stops_at: int | None = None


def encode_chat(tokenizer: "PreTrainedTokenizerBase", prompt: str) -> list[int]:
    """Token ids of one user turn by the chat template, up to where the assistant's reply begins."""
    turn = [{"role": "user", "content": prompt}]
    text = tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def left_padded(rows: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """(batch, longest) ids and (batch, longest) attention mask, every row ending at the right edge."""
    longest = max(map(len, rows))
    ids = torch.tensor([[pad] * (longest - len(row)) + list(row) for row in rows], dtype=torch.long)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], dtype=torch.long)
    return ids, mask


def generate(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    batch_size: int,
    stop: StoppingRule | None = None,
    in_full: Collection[int] = (),
    on_done: Callable[[int, Reply], None] | None = None,
) -> list[Reply]:
    """Greedy replies to ``prompts``, in their order.

    Prompts are batched by length (longest first, so that too little memory shows at once) and left padded. A batch ends
    when its last reply has ended.

    Args:
        model: a causal language model in evaluation mode; it runs where its weights are.
        tokenizer: the model's, with a chat template.
        prompts: user turns.
        max_new_tokens: the longest reply, in tokens.
        batch_size: prompts per batch.
        stop: when a reply may end early.
        in_full: indices of prompts whose replies it never ends.
        on_done: called with (index of the prompt, reply) as soon as a batch is known, so that a caller can keep it and
            ask only for the missing ones after a kill.

    Raises:
        CheckpointError: an ordinary word would end replies; see `end_tokens`.
    """
    rows = [encode_chat(tokenizer, prompt) for prompt in prompts]
    order = sorted(range(len(rows)), key=lambda i: (-len(rows[i]), i))
    ends = end_tokens(model, tokenizer)
    replies: dict[int, Reply] = {}
    for start in range(0, len(order), batch_size):
        batch = [
            _Row(index, tokenizer, ends, max_new_tokens, stop, index in in_full)
            for index in order[start : start + batch_size]
        ]
        _decode(model, [rows[row.index] for row in batch], batch)
        for row in batch:
            replies[row.index] = row.reply()
            if on_done is not None:
                on_done(row.index, replies[row.index])
    return [replies[index] for index in range(len(rows))]


@dataclass
class _Row:
    """One reply in the making."""

    index: int
    tokenizer: "PreTrainedTokenizerBase"
    ends: Collection[int]
    limit: int
    stop: StoppingRule | None
    in_full: bool
    said: list[int] = field(default_factory=list)
    stops_at: int | None = None

    def add(self, token: int) -> bool:
        """Take the next token; whether more are wanted."""
        self.said.append(token)
        if self.finished or len(self.said) >= self.limit:
            return False
        if self.stop is not None and self.stops_at is None:
            self.stops_at = self.stop.stops_at(len(self.said), self._text)
        return not self._stopped

    @property
    def finished(self) -> bool:
        return self.said[-1] in self.ends

    @property
    def _stopped(self) -> bool:
        whole = self.finished or len(self.said) >= self.limit or self.in_full
        return not whole and self.stops_at is not None and len(self.said) >= self.stops_at

    def reply(self) -> Reply:
        return Reply(self._text(), len(self.said), self.finished, self._stopped, self.stops_at)

    def _text(self) -> str:
        kept = self.said[:-1] if self.finished else self.said
        return str(self.tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False)).strip()


@torch.inference_mode()
def _decode(model: "PreTrainedModel", prompts: Sequence[Sequence[int]], rows: Sequence[_Row]) -> None:
    """Fill ``rows`` token by token until none wants more; those that want no more leave the batch."""
    tokenizer = rows[0].tokenizer
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(rows[0].ends)
    common = _shared_prefix_length(model, prompts)
    ids, mask = (one.to(model.device) for one in left_padded([prompt[common:] for prompt in prompts], pad))
    mask = torch.cat([mask.new_ones(len(rows), common), mask], dim=1)
    places = (mask.cumsum(-1) - 1).clamp(min=0)[:, common:]
    cache, live = _prefill(model, prompts[0][:common], len(rows)), list(rows)
    while True:
        out = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=places,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        cache, best = out.past_key_values, out.logits[:, -1].float().argmax(-1)
        kept = [at for at, (row, token) in enumerate(zip(live, best.tolist(), strict=True)) if row.add(token)]
        if not kept:
            return
        if len(kept) < len(live):
            some = torch.tensor(kept, device=model.device)
            live, best, mask = [live[at] for at in kept], best[some], mask[some]
            cache.batch_select_indices(some)
        ids = best[:, None]
        mask = torch.cat([mask, mask.new_ones(len(live), 1)], dim=1)
        places = mask.sum(-1, keepdim=True) - 1


def _shared_prefix_length(model: "PreTrainedModel", prompts: Sequence[Sequence[int]]) -> int:
    """How many tokens at the start of all prompts are read once; 0 where that gains little or could change replies.

    Padding then stands between the shared and the own tokens, which a sliding window would count as tokens.
    """
    config = model.config.get_text_config()
    if len(prompts) == 1 or getattr(config, "sliding_window", None) is not None:
        return 0
    ordered, shortest = sorted(map(list, prompts)), min(map(len, prompts))
    first, last = ordered[0], ordered[-1]
    same = next((at for at in range(shortest) if first[at] != last[at]), shortest)
    common = min(same, shortest - 1)
    return common if common >= SHARED_FROM else 0


def _prefill(model: "PreTrainedModel", shared: Sequence[int], rows: int) -> "Cache | None":
    if not shared:
        return None
    ids = torch.tensor([list(shared)], device=model.device)
    cache: Cache = model(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values
    cache.batch_repeat_interleave(rows)
    return cache


def end_tokens(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Every token that ends a reply: those of the model's generation settings and the tokenizer's own.

    Raises:
        CheckpointError: one of them is an ordinary word: a checkpoint could end its replies just before the harm.
    """
    named = getattr(model.generation_config, "eos_token_id", None)
    ends = set(named if isinstance(named, list) else [] if named is None else [named])
    if tokenizer.eos_token_id is not None:
        ends.add(tokenizer.eos_token_id)
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    if ordinary := sorted(ends - special - set(tokenizer.all_special_ids)):
        words = [tokenizer.decode([index]) for index in ordinary[:3]]
        raise CheckpointError(
            f"expected replies to end with special tokens, got {words} (ids {ordinary[:3]}), in its settings",
            remedy="take them out of generation_config.json",
        )
    return sorted(ends)


@contextmanager
def greedy_decoding(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", max_new_tokens: int
) -> Iterator["GenerationConfig"]:
    """Plain greedy decoding.

    Nothing of the checkpoint's own settings but which special tokens end a reply: what a file beside the weights says
    to suppress or to sample would change the measurement. transformers fills unset values from the model's settings,
    so those are put aside meanwhile.
    """
    from transformers import GenerationConfig

    ends, own = end_tokens(model, tokenizer), model.generation_config
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else ends[0]
    model.generation_config = GenerationConfig()
    try:
        yield GenerationConfig(max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=pad, eos_token_id=ends)
    finally:
        model.generation_config = own
