"""What makes replies: the weights on disk by transformers, or a server that says it serves the same weights.

A server is believed only where it can be seen: of every batch the first replies are made from the weights on disk too,
a few tokens each, and must begin as the server's do. Between two ordinary models they rarely would; rounding makes some
differ all the same.
"""

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from safegene.checkpoints.adapter import open_adapter
from safegene.checkpoints.dtypes import dtype_for
from safegene.datasets.prompts import Prompt
from safegene.errors import ParamsError, SourceError
from safegene.evaluation.early_stop import audit_sample
from safegene.evaluation.refusals import refusal_stop
from safegene.evaluation.server import FailedReply, ModelServer, disagreement, generate_on_server
from safegene.gate import Arm
from safegene.models.device import default_device, threads_for
from safegene.models.generation import Reply, generate
from safegene.models.loading import load_model, load_tokenizer
from safegene.models.patching import low_rank_hooks
from safegene.workspace.digest import digest_json
from safegene.workspace.layout import cache_folder
from safegene.workspace.params import ServerParams
from safegene.workspace.resume_log import ResumeLog

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)
COMPARED, BEGINNING = 4, 8  # replies of a batch, tokens of each


@dataclass(frozen=True)
class EvaluatedModel:
    """One model that answers: a full checkpoint, adapters to add, and the digests of their content, in that order."""

    root: Path
    adapters: tuple[Path, ...]
    contents: tuple[str, ...]

    @property
    def digest(self) -> str:
        """Digest of all that the model is: weights, tokenizer, chat template, adapters."""
        return digest_json(list(self.contents))


@dataclass
class Engine:
    """Makes replies and keeps them; one model at a time is in memory."""

    dtype: str
    server: ServerParams | None = None
    _held: "tuple[str, PreTrainedModel, PreTrainedTokenizerBase] | None" = None

    def to_json(self) -> dict[str, Any]:
        """What replies may depend on besides the model and the decoding."""
        where = default_device()
        found: dict[str, Any] = {name: version(name) for name in ("torch", "transformers")}
        found |= {
            "device": where.partition(":")[0],
            "dtype": str(dtype_for(self.dtype, where)).removeprefix("torch."),
        }
        found["adapters"] = "merged" if holds_adapters_exactly(self.dtype) else "beside"
        if self.server is not None:
            found["server"] = self.server.model_dump(mode="json", include={"url", "names"})
        return found

    def replies(
        self, arm: Arm, contender: EvaluatedModel, asked: Sequence[Prompt], decoding: Mapping[str, Any]
    ) -> list[Reply | FailedReply]:
        """The model's replies in order, those of the journal and new ones.

        Batches are the same whatever the journal holds already, since replies can change with the batch by rounding.
        """
        suite = digest_json([[row.id, row.prompt] for row in asked])
        identity = {"model": contender.digest, "decoding": dict(decoding), "suite": suite}
        journal = ResumeLog(cache_folder() / "replies", identity)
        known = journal.read()
        order = sorted(asked, key=lambda row: (-len(row.prompt), row.id))
        size = decoding["batch_size"]
        batches = [order[at : at + size] for at in range(0, len(order), size)]
        missing = [batch for batch in batches if any(row.id not in known for row in batch)]
        what = f"{arm}, {asked[0].kind}"
        log.info("%s: %d replies, %d of %d batches known", what, len(asked), len(batches) - len(missing), len(batches))
        failed: dict[str, FailedReply] = {}
        rule = decoding["stop"]
        ids = [row.id for row in asked]
        lot = audit_sample(ids, policy=rule["policy"], weights=contender.digest, share=rule["share"]) if rule else ()
        for number, batch in enumerate(missing, start=1):
            made = dict(zip(batch, self._made(arm, contender, batch, decoding, lot), strict=True))
            new = {row.id: asdict(one) for row, one in made.items() if isinstance(one, Reply)}
            failed |= {row.id: one for row, one in made.items() if isinstance(one, FailedReply)}
            journal.append(new)
            known |= {name: value for name, value in new.items() if name not in known}
            log.info("%s: batch %d of %d", what, number, len(missing))
        return [Reply(**known[row.id]) if row.id in known else failed[row.id] for row in asked]

    def _made(
        self,
        arm: Arm,
        contender: EvaluatedModel,
        batch: Sequence[Prompt],
        decoding: Mapping[str, Any],
        lot: Collection[str],
    ) -> Sequence[Reply | FailedReply]:
        texts, limit = [row.prompt for row in batch], decoding["max_new_tokens"]
        model, tokenizer = self._loaded(contender)
        with (
            threads_for_model(model),
            with_adapters(model, () if holds_adapters_exactly(self.dtype) else contender.adapters),
        ):
            if self.server is not None:
                return served_replies(self.server, arm, model, tokenizer, texts, max_new_tokens=limit)
            return generate(
                model,
                tokenizer,
                texts,
                max_new_tokens=limit,
                batch_size=len(batch),
                stop=refusal_stop(after=decoding["stop"]["after"]) if decoding["stop"] else None,
                in_full=[at for at, row in enumerate(batch) if row.id in lot],
            )

    def _loaded(self, contender: EvaluatedModel) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
        if self._held is None or self._held[0] != contender.digest:
            self._held = None  # before the next is loaded, so that two are never in memory
            self._held = (contender.digest, *load_merged(contender.root, contender.adapters, self.dtype))
        return self._held[1:]


def load_merged(
    root: Path, adapters: Sequence[Path], dtype: str
) -> tuple["PreTrainedModel", "PreTrainedTokenizerBase"]:
    """The checkpoint with its adapters in the weights, where they hold them exactly, and its tokenizer."""
    model = load_model(
        root, adapters=adapters if holds_adapters_exactly(dtype) else (), dtype=dtype, device=default_device()
    )
    return model, load_tokenizer(root)


def holds_adapters_exactly(dtype: str) -> bool:
    """Whether weights hold an adapter's change as well as it is served; bf16 would round most of a small one away."""
    return dtype_for(dtype, default_device()) == torch.float32


@contextmanager
def with_adapters(model: "PreTrainedModel", adapters: Sequence[Path]) -> Iterator[None]:
    """Adapters that answer beside the weights, in fp32, as PEFT serves them."""
    with ExitStack() as stack:
        for folder in adapters:
            patch = open_adapter(folder).patch()
            stack.enter_context(low_rank_hooks(model, patch, dict.fromkeys(patch, torch.ones(()))))
        yield


def threads_for_model(model: "PreTrainedModel") -> AbstractContextManager[object]:
    """The number of threads that suits the model's size."""
    return threads_for(sum(one.numel() for one in model.parameters()))


def served_replies(
    params: ServerParams,
    arm: Arm,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    texts: Sequence[str],
    *,
    max_new_tokens: int,
) -> list[Reply | FailedReply]:
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
    where = ModelServer(params.url, name, params.allow_hosts, params.timeout_seconds, at_once=params.at_once)
    local = generate(model, tokenizer, texts[:COMPARED], max_new_tokens=BEGINNING, batch_size=COMPARED)
    found = disagreement(local, generate_on_server(where, texts[:COMPARED], max_new_tokens=BEGINNING))
    if found > params.max_disagreement:
        raise SourceError(
            f"expected {name!r} at {params.url} to begin its replies as the weights on disk do, got {found:.0%} others",
            remedy="serve this very model under that name in the same dtype, or take evaluate.server out",
        )
    return generate_on_server(where, texts, max_new_tokens=max_new_tokens)
