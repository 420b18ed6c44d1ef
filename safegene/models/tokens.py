"""Count the tokens that a model reads, for the operations that a record states (`safegene.ledger.compute`)."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class TokenCount:
    """Tokens of forward passes, padding left out.

    A pass with gradients counts as training, every other one as forward. A token that is read again counts again.
    """

    def __init__(self) -> None:
        self._passes: list[tuple[bool, Tensor]] = []
        self._before = {"forward": 0, "trained": 0}

    def restart(self, counts: Mapping[str, int]) -> None:
        """Forget what was counted, and count on from ``counts``: what a killed process had counted up to here."""
        self._passes.clear()
        self._before = {"forward": counts["forward"], "trained": counts["trained"]}

    def add(self, ids: Tensor, mask: Tensor | None) -> None:
        """Count one pass: (batch, length) token ids, and the mask of them and of earlier positions, 0 for padding."""
        tokens = torch.tensor(ids.numel()) if mask is None else mask[:, -ids.shape[1] :].sum()
        self._passes.append((torch.is_grad_enabled(), tokens))

    def to_json(self) -> dict[str, int]:
        """``forward`` and ``trained``: numbers of tokens."""
        sums = {False: self._before["forward"], True: self._before["trained"]}
        for trained, tokens in self._passes:
            sums[trained] += int(tokens)
        return {"forward": sums[False], "trained": sums[True]}


@contextmanager
def count_tokens(model: "PreTrainedModel") -> Iterator[TokenCount]:
    """Count the tokens that the model reads inside the block."""
    count = TokenCount()

    def before(_: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        ids = named.get("input_ids", arguments[0] if arguments else None)
        if isinstance(ids, Tensor):
            mask = named.get("attention_mask")
            count.add(ids, mask if isinstance(mask, Tensor) and mask.dim() == 2 else None)

    handle = model.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield count
    finally:
        handle.remove()
