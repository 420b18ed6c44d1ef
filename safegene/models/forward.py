"""Forward passes of causal language models, whatever their architecture.

Models of transformers differ in the arguments that they accept, in their caches, and in what padding does to them. So
an argument is passed only where ``forward`` names it. Where one pass is enough, rows are padded on the right, behind
the positions that are looked at: those of a causal model depend on earlier ones only. Decoding needs rows that end at
the same position, so they are padded on the left where the loaded model shows that this does not change its logits:
`decoding_of` compares, and needs no list of architectures.
"""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from safegene.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CACHES = ("past_key_values", "cache_params", "state")  # names of the cache, in a model's arguments and its output
TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 6e-2}  # of the largest logit
_REFUSALS = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True)
class Decoding:
    """How replies of a model can be generated in batches without changing them.

    Attributes:
        padding: rows may be padded on the left; otherwise a batch has prompts of one length.
        cache: the cache of earlier positions gives the same logits; otherwise every pass reads all tokens.
        select: rows of the cache can be selected; otherwise a reply that has ended stays in the batch.
    """

    padding: bool
    cache: bool
    select: bool


@dataclass(frozen=True)
class Output:
    """What a forward pass gives.

    Attributes:
        logits: (batch, at least ``keep``, vocabulary).
        cache: name of the argument -> the cache; empty without one.
    """

    logits: Tensor
    cache: Mapping[str, Any]


def run(
    model: "PreTrainedModel",
    ids: Tensor,
    *,
    mask: Tensor | None = None,
    positions: Tensor | None = None,
    cache: Mapping[str, Any] | None = None,
    use_cache: bool = False,
    keep: int = 0,
) -> Output:
    """One forward pass with the arguments that the model accepts.

    Args:
        model: a causal language model, or a multimodal one, which then reads text only.
        ids: (batch, tokens), on the model's device.
        mask: (batch, cached and new tokens), 1 where there is a token and 0 where there is padding.
        positions: (batch, tokens), counted from each row's first token.
        cache: of an earlier pass, which the pass may change.
        use_cache: whether the output has a cache.
        keep: positions whose logits are wanted, counted from the last; 0 for all. A model may give more.

    Raises:
        CheckpointError: the model cannot be run; names its class.
    """
    optional = {"attention_mask": mask, "position_ids": positions, "logits_to_keep": keep or None}
    wanted = {name: value for name, value in optional.items() if value is not None} | {"use_cache": use_cache}
    known = _arguments(type(base_model(model)).forward)
    with _refusals_named(model), _contiguous_head(model):
        out = model(input_ids=ids, **{name: wanted[name] for name in wanted if name in known}, **(cache or {}))
        held = {name: out[name] for name in CACHES if name in known and out.get(name) is not None} if use_cache else {}
        return Output(out.logits, held)


@contextmanager
def _contiguous_head(model: nn.Module) -> Iterator[None]:
    """Give the output embedding a contiguous input: torch copies the weight per row of a batch for a slice of one."""
    head = getattr(base_model(model), "get_output_embeddings", lambda: None)()
    if head is None:
        yield
        return
    with head.register_forward_pre_hook(
        lambda _, inputs: (inputs[0].clone(memory_format=torch.contiguous_format), *inputs[1:])
    ):
        yield


def base_model(model: nn.Module) -> nn.Module:
    """The model itself, also where PEFT has wrapped it."""
    unwrap = getattr(model, "get_base_model", None)
    return model if unwrap is None else unwrap()


@cache
def _arguments(forward: Any) -> frozenset[str]:
    return frozenset(inspect.signature(forward).parameters)


@contextmanager
def _refusals_named(model: nn.Module) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except _REFUSALS as error:
        inner = base_model(model)
        kind = getattr(getattr(inner, "config", None), "model_type", "unknown")
        raise CheckpointError(
            f"expected {type(inner).__name__} to run on token ids, got {type(error).__name__}: {error}",
            remedy=f"the architecture {kind!r} cannot be run by the installed transformers; remove it from "
            "fetch.model_types, or report it",
        ) from error


def last_logits(model: "PreTrainedModel", rows: Sequence[Sequence[int]], keep: int) -> Tensor:
    """(batch, keep, vocabulary) logits at the last ``keep`` positions of each row, in the model's dtype.

    The output embedding reads those positions only. Where a row is shorter than ``keep``, the first of them are those
    of its first token.

    Raises:
        CheckpointError: the model cannot be run.
    """
    ids, lengths = right_padded(rows, model.device)
    first = (lengths - keep)[:, None]
    wanted = (first + torch.arange(keep, device=ids.device)).clamp_min(0)
    head = getattr(base_model(model), "get_output_embeddings", lambda: None)()

    def select(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        hidden = inputs[0]
        return (_at(hidden, wanted), *inputs[1:]) if hidden.shape[:2] == ids.shape else None

    handle = None if head is None else head.register_forward_pre_hook(select)
    try:
        logits = run(model, ids).logits
    finally:
        if handle is not None:
            handle.remove()
    return logits if logits.shape[1] == keep and ids.shape[1] != keep else _at(logits, wanted)


def _at(values: Tensor, positions: Tensor) -> Tensor:
    """(batch, keep, d) of values (batch, tokens, d) at positions (batch, keep)."""
    rows = torch.arange(len(values), device=values.device)[:, None]
    return values[rows, positions.to(values.device)]


def next_token_log_probs(model: "PreTrainedModel", rows: Sequence[Sequence[int]], keep: int) -> Tensor:
    """(batch, keep, vocabulary) log-probabilities (nats) at the last ``keep`` positions of each row, float32.

    Where a row is shorter than ``keep``, the first of them are those of its first token.

    Raises:
        CheckpointError: the model cannot be run.
    """
    return F.log_softmax(last_logits(model, rows, keep).float(), dim=-1)


def right_padded(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids (batch, longest), padded with zeros on the right, and the lengths (batch,)."""
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    for at, row in enumerate(rows):
        ids[at, : len(row)] = torch.as_tensor(row)
    return ids.to(device), torch.tensor([len(row) for row in rows], device=device)


def left_padded(rows: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Ids and attention mask, each (batch, longest), padded on the left."""
    longest = max(map(len, rows))
    ids = torch.tensor([[pad] * (longest - len(row)) + list(row) for row in rows], dtype=torch.long)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], dtype=torch.long)
    return ids, mask


def select_rows(held: Mapping[str, Any], indices: Tensor) -> None:
    """Keep only some rows of a cache, in the order of ``indices`` (rows,), which may repeat one.

    Raises:
        TypeError: it is no `transformers.Cache`.
    """
    from transformers import Cache

    for name, value in held.items():
        if not isinstance(value, Cache):
            raise TypeError(f"expected a Cache whose rows can be selected, got {type(value).__name__} for {name}")
        value.reorder_cache(indices)


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The layers of the text decoder, in order: the list of ``num_hidden_layers`` modules.

    Raises:
        CheckpointError: the model has no such list.
    """
    inner: Any = base_model(model)
    count = int(inner.config.get_text_config(decoder=True).num_hidden_layers)
    for root in (inner.get_decoder(), inner):
        for _, module in root.named_modules():  # the outermost first
            if isinstance(module, nn.ModuleList) and len(module) == count:
                return module
    raise CheckpointError(f"expected a list of {count} decoder layers, got none, in {type(inner).__name__}")


_DECODING: "WeakKeyDictionary[nn.Module, Decoding]" = WeakKeyDictionary()
_SHARING: "WeakKeyDictionary[nn.Module, bool]" = WeakKeyDictionary()


def decoding_of(model: "PreTrainedModel") -> Decoding:
    """How the replies of a loaded model can be generated in batches; remembered as long as the model.

    The last logits of a short prompt alone are compared with those that it has beside a longer prompt, left padded,
    with its last token read through the cache. That takes two passes of some tokens and one of one token; more where
    they differ by more than `TOLERANCE`, or the model raises.

    Raises:
        CheckpointError: the model cannot be run on a prompt alone.
    """
    inner = base_model(model)
    if inner not in _DECODING:
        _DECODING[inner] = _probe(model)
    return _DECODING[inner]


def shares_prefix(model: "PreTrainedModel") -> bool:
    """Whether the cache of a prefix can serve several prompts that go on differently, with padding behind the prefix.

    Compared like `decoding_of`. False where attention is bounded by a window, which would count padding as tokens.
    """
    inner = base_model(model)
    if inner not in _SHARING:
        way, config = decoding_of(model), model.config.get_text_config(decoder=True)
        bounded = any(getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size"))
        _SHARING[inner] = way.padding and way.cache and way.select and not bounded and _probe_prefix(model)
    return _SHARING[inner]


def pads(model: "PreTrainedModel", longest: int) -> bool:
    """Whether prompts of at most ``longest`` tokens may be padded on the left.

    Attention in chunks counts positions from the start of the row, padding included, which shows in longer rows only.
    """
    chunk = getattr(model.config.get_text_config(decoder=True), "attention_chunk_size", None)
    return decoding_of(model).padding and (chunk is None or longest <= chunk)


@torch.no_grad()
def _probe(model: "PreTrainedModel") -> Decoding:
    tokens = _ordinary_tokens(model, 11)
    short, long, equal = tokens[:6], tokens[::-1], tokens[5:]
    alone = run(model, torch.tensor([short], device=model.device), keep=1).logits[0, -1]
    for other, padding in ((long, True), (equal, False)):
        for select in (True, False):
            if _agrees(model, alone, lambda o=other, p=padding, s=select: _cached(model, [o, short], p, s)):
                return Decoding(padding, cache=True, select=select)
    return Decoding(padding=False, cache=False, select=True)


def _cached(model: "PreTrainedModel", rows: Sequence[Sequence[int]], padding: bool, select: bool) -> Tensor:
    """(vocabulary,) logits of the last row, whose last token is read through the cache of both rows."""
    ids, mask = (part.to(model.device) for part in left_padded(rows, 0))
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    before = run(
        model,
        ids[:, :-1],
        mask=mask[:, :-1] if padding else None,
        positions=positions[:, :-1] if padding else None,
        use_cache=True,
        keep=1,
    )
    if not before.cache:
        raise TypeError("expected a cache, got none")
    if select:
        last = torch.tensor([len(rows) - 1], device=model.device)
        select_rows(before.cache, last)
        ids, mask, positions = ids[last], mask[last], positions[last]
    after = run(
        model,
        ids[:, -1:],
        mask=mask if padding else None,
        positions=positions[:, -1:] if padding else None,
        cache=before.cache,
        use_cache=True,
        keep=1,
    )
    return after.logits[-1, -1]


@torch.no_grad()
def _probe_prefix(model: "PreTrainedModel") -> bool:
    """Whether the last logits of a prompt are the same where another one shares its first tokens, and goes on."""
    tokens = _ordinary_tokens(model, 11)
    shared, rests = tokens[:4], [tokens[6:], tokens[4:6]]
    alone = run(model, torch.tensor([tokens[:6]], device=model.device), keep=1).logits[0, -1]

    def beside() -> Tensor:
        before = run(model, torch.tensor([shared], device=model.device), use_cache=True, keep=1)
        select_rows(before.cache, torch.zeros(2, dtype=torch.long, device=model.device))
        ids, mask = (part.to(model.device) for part in left_padded(rests, 0))
        mask = torch.cat([mask.new_ones(2, len(shared)), mask], dim=1)
        positions = (mask.cumsum(-1) - 1)[:, len(shared) :]
        after = run(model, ids, mask=mask, positions=positions, cache=before.cache, use_cache=True, keep=1)
        return after.logits[-1, -1]

    return _agrees(model, alone, beside)


def _agrees(model: "PreTrainedModel", alone: Tensor, beside: Any) -> bool:
    try:
        got = beside()
    except (CheckpointError, *_REFUSALS):
        return False
    expected, got = alone.float().nan_to_num(), got.float().nan_to_num()
    tolerance = TOLERANCE.get(model.dtype, max(TOLERANCE.values())) * float(expected.abs().max().clamp_min(1e-6))
    return bool((expected - got).abs().max() <= tolerance)


def _ordinary_tokens(model: "PreTrainedModel", count: int) -> list[int]:
    """Different token ids, always the same ones, without those that the config names, such as an image's."""
    named: set[int] = set()
    for config in (model.config, model.config.get_text_config(decoder=True)):
        for key, value in config.to_dict().items():
            if "token" in key:
                named |= {one for one in (value if isinstance(value, list) else [value]) if isinstance(one, int)}
    size = int(model.config.get_text_config(decoder=True).vocab_size)
    order = torch.randperm(size, generator=torch.Generator().manual_seed(0)).tolist()
    return [token for token in order if token not in named][:count]
