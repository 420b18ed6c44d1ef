"""Small fine-tunes: the tiny family, surrogates, distilled vectors and baselines share these few functions.

Law: the same model, rows, settings and seed give the same weights on the same machine with the same number of threads.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from safegene.errors import EmptySample
from safegene.models.device import bf16_autocast
from safegene.models.patching import linear_layer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from safegene.vectors.linalg import LowRank

Row = tuple[str, str]
IGNORED = -100


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
    longest = max(len(e.ids) for e in examples)
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
    """Mean cross-entropy (nats per token) over the response tokens of a batch from `collate`."""
    ids, mask, labels = (part.to(model.device) for part in batch)
    logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
    wanted = labels[:, 1:]
    kept = wanted != IGNORED
    return F.cross_entropy(logits[kept].float(), wanted[kept])


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
    """Fine-tune on (prompt, response) rows: cross-entropy of the responses, AdamW, cosine after a short warm-up.

    Args:
        model: changed in place, and left in evaluation mode; it may be frozen, as `load_model` gives it.
        tokenizer: the model's, with a chat template.
        rows: drawn in shuffled passes.
        steps: optimiser steps.
        batch_size: rows per step.
        learning_rate: the peak.
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
    trained = list(model.parameters()) if parameters is None else list(parameters)
    fixed = [parameter for parameter in trained if not parameter.requires_grad]
    for parameter in fixed:
        parameter.requires_grad_(True)
    optimiser = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=weight_decay)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    model.train()
    done = 0
    for done, chosen in enumerate(_batches(len(examples), batch_size, steps, seed), start=1):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate * schedule(done, steps)
        with bf16_autocast(model):
            loss = response_loss(model, collate([examples[i] for i in chosen], int(pad)))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        if on_step is not None and on_step(done, float(loss.detach())):
            break
    model.eval()
    for parameter in fixed:
        parameter.requires_grad_(False)
    return done


def schedule(step: int, steps: int) -> float:
    """Share of the peak learning rate at ``step`` of ``1..steps``: a linear rise over 5%, then half a cosine to 0."""
    warm = max(1, steps // 20)
    if step <= warm:
        return step / warm
    return 0.5 * (1.0 + math.cos(math.pi * (step - warm) / max(1, steps - warm + 1)))


def _batches(count: int, batch_size: int, steps: int, seed: int) -> Iterator[list[int]]:
    random = torch.Generator().manual_seed(seed)
    queue: list[int] = []
    for _ in range(steps):
        while len(queue) < batch_size:
            queue += torch.randperm(count, generator=random).tolist()
        yield queue[:batch_size]
        queue = queue[batch_size:]


class Lora:
    """Trainable fp32 factors added to some of a model's linear layers, alive inside `lora`."""

    def __init__(self, factors: Mapping[str, tuple[nn.Parameter, nn.Parameter]]) -> None:
        self.factors = dict(factors)

    @property
    def parameters(self) -> list[Tensor]:
        """Every up (out, r) and down (r, in), for an optimiser."""
        return [part for pair in self.factors.values() for part in pair]

    def patch(self) -> "dict[str, LowRank]":
        """The change dW = up @ down made so far, by matrix name: copies on the CPU in fp32."""
        from safegene.vectors.linalg import LowRank

        return {
            name: LowRank(up.detach().float().cpu().clone(), down.detach().float().cpu().clone())
            for name, (up, down) in self.factors.items()
        }


@contextmanager
def lora(
    model: "PreTrainedModel",
    names: Sequence[str],
    *,
    rank: int,
    seed: int,
    start: "Mapping[str, LowRank] | None" = None,
) -> Iterator[Lora]:
    """Add x -> up @ (down @ x) to linear layers while the block runs; the model's own weights are frozen meanwhile.

    Args:
        model: its forward pass includes the factors inside the block and is as before outside it.
        names: weights of `nn.Linear` layers, such as ``model.layers.0.self_attn.q_proj.weight``.
        rank: columns of up and rows of down.
        seed: of the down factors; up starts at zero, so the block begins with the unchanged model.
        start: factors to begin with instead, by the same names.

    Raises:
        TensorMissing: the model has no such layer.
        ShapeMismatch: a name is not a linear layer's weight.
    """
    random = torch.Generator().manual_seed(seed)
    factors, handles = {}, []
    frozen = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for name in names:
        layer = linear_layer(model, name)
        factors[name] = _pair(layer, rank, random, None if start is None else start[name])
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        for name in names:
            handles.append(linear_layer(model, name).register_forward_hook(_add(*factors[name])))
        yield Lora(factors)
    finally:
        for handle in handles:
            handle.remove()
        for parameter in frozen:
            parameter.requires_grad_(True)


def _pair(
    layer: nn.Linear, rank: int, random: torch.Generator, start: "LowRank | None"
) -> tuple[nn.Parameter, nn.Parameter]:
    device, (out, into) = layer.weight.device, layer.weight.shape
    down = (torch.rand(rank, into, generator=random) * 2 - 1) / math.sqrt(into)
    up = torch.zeros(out, rank)
    if start is not None:
        up, down = start.up.float().clone(), start.down.float().clone()
    return nn.Parameter(up.to(device)), nn.Parameter(down.to(device))


def _add(up: Tensor, down: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output + F.linear(F.linear(inputs[0].to(down.dtype), down), up).to(output.dtype)

    return hook
