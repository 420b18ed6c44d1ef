"""The training loop that fine-tunes, distillation, coefficient fits and trained baselines share.

Law: the same model, rows, settings and seed give the same weights on the same machine with the same number of threads.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from safegene.errors import EmptySample
from safegene.models.device import bf16_autocast
from safegene.models.forward import decoder_layers
from safegene.models.memory import microbatches

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

S = TypeVar("S")
Row = tuple[str, str]  # prompt, response
IGNORED = -100  # label of a token without loss


def optimise(
    optimiser: torch.optim.Optimizer,
    step_losses: Callable[[int], Iterable[Tensor]],
    *,
    steps: int,
    learning_rate: Callable[[int], float],
    max_norm: float | None = None,
    after_step: Callable[[int, Tensor], bool | None] | None = None,
) -> int:
    """Take gradient steps, and return how many.

    Args:
        optimiser: of the tensors that are trained.
        step_losses: step (from 1) -> () losses with a gradient, whose sum is the loss; batches are drawn here. Each is
            differentiated before the next is asked for, so one microbatch's activations are in memory at a time.
        steps: the most steps.
        learning_rate: step -> learning rate.
        max_norm: gradients are clipped to this norm, all tensors together; None clips nothing.
        after_step: called with (steps done, () loss without gradient); returning True ends the training.
    """
    tensors = [tensor for group in optimiser.param_groups for tensor in group["params"]]
    for step in range(1, steps + 1):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step)
        optimiser.zero_grad(set_to_none=True)
        losses = list[Tensor]()
        for part in step_losses(step):
            part.backward()  # type: ignore[no-untyped-call]
            losses.append(part.detach())
        if max_norm is not None:
            nn.utils.clip_grad_norm_(tensors, max_norm)
        optimiser.step()
        if after_step is not None and after_step(step, torch.stack(losses).sum()):
            return step
    return steps


def schedule(step: int, steps: int) -> float:
    """Share of the peak learning rate at ``step`` of ``1..steps``: a linear rise over 5%, then half a cosine to 0."""
    warm = max(1, steps // 20)
    if step <= warm:
        return step / warm
    return 0.5 * (1.0 + math.cos(math.pi * (step - warm) / max(1, steps - warm + 1)))


class Trajectory(Generic[S]):
    """The objectives measured during a fit, and a snapshot taken at the lowest of them, the earliest of equals.

    Attributes:
        history: (steps done, objective) of every measurement, in order.
        best_step: steps done at the lowest objective.
        best: the snapshot taken there.
    """

    best: S

    def __init__(self, snapshot: Callable[[], S]) -> None:
        self._snapshot = snapshot
        self._lowest: tuple[bool, float] | None = None
        self.history: list[tuple[int, float]] = []
        self.best_step = 0

    def record(self, step: int, objective: float) -> None:
        """Note a measurement; the snapshot is replaced only where the objective is lower than every one before."""
        self.history.append((step, objective))
        if self._lowest is None or nan_last(objective) < self._lowest:
            self._lowest, self.best_step, self.best = nan_last(objective), step, self._snapshot()

    def stalled(self, patience: int) -> bool:
        """Whether none of the last ``patience`` objectives is 1% below the lowest one before them."""
        values = [objective for _, objective in self.history]
        return len(values) > patience and not min(values[-patience:]) < 0.99 * min(values[:-patience])


def nan_last(objective: float) -> tuple[bool, float]:
    """A key that sorts NaN behind every number."""
    return math.isnan(objective), objective


@dataclass(frozen=True)
class Example:
    """One encoded row: ``ids`` (tokens of prompt, reply and end), of which the first ``prompt`` carry no loss."""

    ids: tuple[int, ...]
    prompt: int


def encode_row(tokenizer: "PreTrainedTokenizerBase", row: Row) -> Example:
    """Encode (prompt, response) by the chat template; the response is followed by the end token."""
    prompt, response = row
    turn = [{"role": "user", "content": prompt}]
    head = tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
    start = list(tokenizer(head, add_special_tokens=False)["input_ids"])
    reply = list(tokenizer(response, add_special_tokens=False)["input_ids"])
    return Example((*start, *reply, int(tokenizer.eos_token_id)), len(start))


def collate(examples: Sequence[Example], pad: int) -> tuple[Tensor, Tensor, Tensor]:
    """(batch, longest) ids, attention mask and labels, right padded; labels are -100 outside the responses."""
    longest = max(len(example.ids) for example in examples)
    ids = torch.full((len(examples), longest), pad, dtype=torch.long)
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, IGNORED)
    for at, example in enumerate(examples):
        length = len(example.ids)
        ids[at, :length] = torch.tensor(example.ids)
        mask[at, :length] = 1
        labels[at, example.prompt : length] = ids[at, example.prompt : length]
    return ids, mask, labels


def response_loss(model: "PreTrainedModel", batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """() mean cross-entropy (nats per token) over the response tokens of a batch from `collate`."""
    ids, mask, labels = (part.to(model.device) for part in batch)
    logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
    wanted = labels[:, 1:]
    in_response = wanted != IGNORED
    return F.cross_entropy(logits[in_response].float(), wanted[in_response])


def supervised(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    rows: Sequence[Row],
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    parameters: Sequence[Tensor] | None = None,
    weight_decay: float = 0.0,
    on_step: Callable[[int, float], bool | None] | None = None,
) -> int:
    """Fine-tune on (prompt, response) rows: cross-entropy of the responses, AdamW, gradients clipped to norm 1.

    Args:
        model: changed in place, and left in evaluation mode; it may be frozen, as `load_model` gives it.
        tokenizer: the model's, with a chat template.
        rows: drawn in shuffled passes.
        steps: optimiser steps.
        batch_size: rows per step.
        learning_rate: the peak; see `schedule`.
        seed: of the shuffling.
        parameters: what is trained; all of the model's when absent.
        weight_decay: AdamW's.
        on_step: called with (steps done, loss in nats per token) after each step; returning True ends the training.

    Returns:
        The number of steps done.

    Raises:
        EmptySample: there are no rows.
    """
    if not rows:
        raise EmptySample("expected rows to train on, got none")
    examples = [encode_row(tokenizer, row) for row in rows]
    pad = int(tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id)
    trained = list(model.parameters()) if parameters is None else list(parameters)
    frozen = [parameter for parameter in trained if not parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(True)
    batches = _batches(len(examples), batch_size, seed)

    def step_losses(_: int) -> Iterator[Tensor]:
        batch = [examples[at] for at in next(batches)]
        tokens = sum(len(example.ids) - example.prompt for example in batch)
        parts, checkpointed = _parts(model, batch)
        with checkpointing(model, on=checkpointed):
            for part in parts:
                share = sum(len(example.ids) - example.prompt for example in part) / tokens
                with bf16_autocast(model):
                    yield response_loss(model, collate(part, pad)) * share

    model.train()
    done = optimise(
        torch.optim.AdamW(trained, lr=learning_rate, weight_decay=weight_decay),
        step_losses,
        steps=steps,
        learning_rate=lambda step: learning_rate * schedule(step, steps),
        max_norm=1.0,
        after_step=None if on_step is None else lambda step, loss: on_step(step, float(loss)),
    )
    model.eval()
    for parameter in frozen:
        parameter.requires_grad_(False)
    return done


def _parts(model: "PreTrainedModel", batch: Sequence[Example]) -> tuple[list[Sequence[Example]], bool]:
    """The microbatches of a batch, one where it fits, and whether activations are checkpointed."""
    longest = max(len(example.ids) for example in batch)
    plan = microbatches(model, len(batch), longest, longest)
    return [batch[at : at + plan.rows] for at in range(0, len(batch), plan.rows)], plan.checkpointed


@contextmanager
def checkpointing(model: "PreTrainedModel", *, on: bool = True) -> Iterator[None]:
    """Keep only the inputs of decoder layers for the backward pass inside the block; each layer is computed again.

    Gradients are those without it, and reach factors beside the weights although the weights are frozen. The backward
    pass must run inside the block. A layer is computed again as it was called, with every hook on it: transformers
    checkpoints ``forward`` alone, in training mode only, and would compute experts again without their changes.

    Args:
        model: a causal language model; its cache must not be used inside the block.
        on: False changes nothing.
    """
    layers = list(decoder_layers(model)) if on else []
    for layer in layers:
        vars(layer)["_call_impl"] = partial(_checkpointed, layer)  # what Module.__call__ calls
    try:
        yield
    finally:
        for layer in layers:
            del vars(layer)["_call_impl"]


def _checkpointed(layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return checkpoint(partial(type(layer)._call_impl, layer, **kwargs), *args, use_reentrant=False)


def _batches(count: int, batch_size: int, seed: int) -> Iterator[list[int]]:
    """Endless batches of indices below ``count``, in shuffled passes."""
    random = torch.Generator().manual_seed(seed)
    queue: list[int] = []
    while True:
        while len(queue) < batch_size:
            queue += torch.randperm(count, generator=random).tolist()
        yield queue[:batch_size]
        queue = queue[batch_size:]
