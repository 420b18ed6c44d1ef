"""How replies are made and cached: by the weights on disk with transformers, or by a model server.

Replies are cached on disk, in a `ResumeLog` in the folder ``replies`` of the cache. The cache key is the digest of the
model's weights (with tokenizer, chat template and adapters), the decoding (with engine and stopping rule), what reads
the replies, and the prompts asked together; below it each reply is found by its prompt's id. A failed reply of a server
is not cached. How a server's weights are checked, without loading them: `safegene.evaluation.server_check`.
"""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from safegene.datasets.prompts import Prompt
from safegene.evaluation.early_stop import EarlyStop, audit_sample
from safegene.evaluation.server import FailedReply
from safegene.evaluation.server_check import ServedModels
from safegene.evaluation.shared_bases import EvaluatedModel, SharedBases
from safegene.gate import Arm
from safegene.models.device import default_device, threads_for
from safegene.models.generation import Reply, generate
from safegene.workspace.digest import digest_json
from safegene.workspace.layout import cache_folder
from safegene.workspace.progress import log_progress
from safegene.workspace.resume_log import ResumeLog
from safegene.workspace.server_params import ServerParams

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Decoding:
    """How replies are decoded; decoding is greedy.

    Attributes:
        max_new_tokens: longest reply.
        batch_size: prompts at a time; rounding can make replies depend on it.
        engine: what else replies depend on: versions of libraries, device, dtype (`Engine.to_json`).
        stop: when replies to direct prompts end early; None where none does.
    """

    max_new_tokens: int
    batch_size: int
    engine: Mapping[str, Any]
    stop: EarlyStop | None

    def to_json(self) -> dict[str, Any]:
        """JSON values, as in ``plan.json``."""
        return {
            "greedy": True,
            "max_new_tokens": self.max_new_tokens,
            "batch_size": self.batch_size,
            "stop": self.stop.to_json() if self.stop else None,
            "engine": dict(self.engine),
        }


@dataclass
class Engine:
    """Makes replies and keeps them in the cache; a base is loaded once, where memory allows (`SharedBases`).

    Attributes:
        dtype: of the models; ``auto`` is each as it is stored, see `safegene.models.loading.load_model`.
        server: the server to ask; None for the weights on disk.
        generate: makes replies from the weights on disk; a test may pass another function.
        probes: user turns of every kind, with which a server's weights are checked.
    """

    dtype: str = "auto"
    server: ServerParams | None = None
    generate: Callable[..., list[Reply]] = generate
    probes: Sequence[str] = ()
    bases: SharedBases = field(init=False)
    _served: ServedModels | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.bases = SharedBases(self.dtype)

    def to_json(self) -> dict[str, Any]:
        """What replies depend on besides the model and the decoding, as JSON values."""
        device = default_device()
        values: dict[str, Any] = {name: version(name) for name in ("torch", "transformers", "peft")}
        values["device"] = device.partition(":")[0]
        values["dtype"] = self.dtype
        if self.server is not None:
            values["server"] = self.server.identity()
        return values

    def replies(
        self, arm: Arm, model: EvaluatedModel, prompts: Sequence[Prompt], decoding: Decoding
    ) -> list[Reply | FailedReply]:
        """The model's replies in the prompts' order, from the cache where they are known.

        The batches do not depend on what is cached, since rounding can make replies depend on the batch.
        """
        ids = [prompt.id for prompt in prompts]
        suite = digest_json([[prompt.id, prompt.prompt] for prompt in prompts])
        identity = {"model": model.digest, "decoding": decoding.to_json(), "suite": suite, "reading": model.reading}
        cache = ResumeLog(cache_folder() / "replies", identity)
        known = {name: Reply(**value) for name, value in cache.read().items()}
        order = sorted(prompts, key=lambda prompt: (-len(prompt.prompt), prompt.id))
        batches = [order[at : at + decoding.batch_size] for at in range(0, len(order), decoding.batch_size)]
        missing = [batch for batch in batches if any(prompt.id not in known for prompt in batch)]
        what, n = f"{arm}, {prompts[0].kind}, batches", len(batches)
        log_progress(log, what, n - len(missing), n)
        stop, audited = decoding.stop, frozenset[str]()
        if stop:
            audited = audit_sample(ids, policy=stop.policy, weights=model.digest, share=stop.share)
        failed: dict[str, FailedReply] = {}
        for number, batch in enumerate(missing, start=1):
            made = dict(zip(batch, self._batch(arm, model, batch, decoding, audited), strict=True))
            new = {prompt.id: reply for prompt, reply in made.items() if isinstance(reply, Reply)}
            failed |= {prompt.id: reply for prompt, reply in made.items() if isinstance(reply, FailedReply)}
            cache.append({name: asdict(reply) for name, reply in new.items()})
            known = new | known
            log_progress(log, what, n - len(missing) + number, n)
        return [known[name] if name in known else failed[name] for name in ids]

    def _batch(
        self,
        arm: Arm,
        evaluated: EvaluatedModel,
        batch: Sequence[Prompt],
        decoding: Decoding,
        audited: Collection[str],
    ) -> Sequence[Reply | FailedReply]:
        texts, limit = [prompt.prompt for prompt in batch], decoding.max_new_tokens
        if self.server is not None:
            self._served = self._served or ServedModels(self.server, self.probes)
            return self._served.replies(arm, evaluated, texts, max_new_tokens=limit)
        with self.bases.serving(evaluated) as (model, tokenizer), threads_for_model(model):
            return self.generate(
                model,
                tokenizer,
                texts,
                max_new_tokens=limit,
                batch_size=len(batch),
                reader=self.bases.reader(evaluated),
                stop=decoding.stop.rule if decoding.stop else None,
                in_full=[at for at, prompt in enumerate(batch) if prompt.id in audited],
            )


def threads_for_model(model: "PreTrainedModel") -> AbstractContextManager[object]:
    """The number of CPU threads that suits the model's size, while the context is open."""
    return threads_for(sum(parameter.numel() for parameter in model.parameters()))
