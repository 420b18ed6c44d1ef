"""What makes replies: the weights on disk by transformers, or a server that says it serves the same weights.

A server is believed only where it can be seen: of every batch the first replies are made from the weights on disk too,
a few tokens each, and must begin as the server's do. Between two ordinary models they rarely would; rounding makes some
differ all the same.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from safegene.coefficients import scaled
from safegene.errors import ParamsError, SourceError
from safegene.generate import Reply, generate
from safegene.params import ServerParams
from safegene.remote import Failed, Server, disagreement, generate_remote
from safegene.tensors.adapter import open_adapter
from safegene.tensors.device import device, dtype_for, threads_for
from safegene.tensors.models import load_model, load_tokenizer
from safegene.verdict import Arm

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

COMPARED, BEGINNING = 4, 8  # replies of a batch, tokens of each


def load(root: Path, adapters: Sequence[Path], dtype: str) -> tuple["PreTrainedModel", "PreTrainedTokenizerBase"]:
    """The checkpoint with its adapters in the weights, where they hold them exactly, and its tokenizer."""
    model = load_model(root, adapters=adapters if exact(dtype) else (), dtype=dtype, device=device())
    return model, load_tokenizer(root)


def exact(dtype: str) -> bool:
    """Whether weights hold an adapter's change as well as it is served; bf16 would round most of a small one away."""
    return dtype_for(dtype, device()) == torch.float32


@contextmanager
def beside(model: "PreTrainedModel", adapters: Sequence[Path]) -> Iterator[None]:
    """Adapters that answer beside the weights, in fp32, as PEFT serves them."""
    with ExitStack() as stack:
        for folder in adapters:
            patch = open_adapter(folder).patch()
            stack.enter_context(scaled(model, patch, dict.fromkeys(patch, torch.ones(()))))
        yield


def suited(model: "PreTrainedModel") -> AbstractContextManager[object]:
    """The number of threads that suits the model's size."""
    return threads_for(sum(one.numel() for one in model.parameters()))


def served(
    params: ServerParams,
    arm: Arm,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    texts: Sequence[str],
    *,
    max_new_tokens: int,
) -> list[Reply | Failed]:
    """The server's replies to ``texts``, in their order.

    Args:
        params: where the server is, and under which name it serves which model.
        arm: which model is meant.
        model: that model, from the weights on disk.
        tokenizer: its tokenizer.
        texts: user turns.
        max_new_tokens: the longest reply.

    Raises:
        ParamsError: the arm has no name there.
        SourceError: the server does not answer, does not know the name, or answers otherwise than the weights do.
    """
    if arm not in params.names:
        raise ParamsError(f"expected the name of the model {arm} on the server, got none, in evaluate.server.names")
    name = params.names[arm]
    where = Server(params.url, name, params.allow_hosts, params.timeout_seconds, at_once=params.at_once)
    local = generate(model, tokenizer, texts[:COMPARED], max_new_tokens=BEGINNING, batch_size=COMPARED)
    found = disagreement(local, generate_remote(where, texts[:COMPARED], max_new_tokens=BEGINNING))
    if found > params.max_disagreement:
        raise SourceError(
            f"expected {name!r} at {params.url} to begin its replies as the weights on disk do, got {found:.0%} others",
            remedy="serve this very model under that name in the same dtype, or take evaluate.server out",
        )
    return generate_remote(where, texts, max_new_tokens=max_new_tokens)
