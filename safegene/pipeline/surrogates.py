"""Surrogates: light LoRA fine-tunes of the aligned model, measured on the way, and kept apart from what a judge says.

Training depends on no judge: only the step at which it ends does. So what is kept in the cache of one learning rate is
named without the judge and without ``stop_hrr``: the replies to the probe at every measured step, and the factors of
the last one. Another judge, or other phrases, judges the stored replies; what it would have ended at the same step is
not trained again. Where it would have ended earlier or later, that learning rate is trained again to that step.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from safegene.datasets.prompts import Prompt, PromptSet
from safegene.errors import ArtifactError, EmptySample
from safegene.models.device import default_device
from safegene.models.generation import generate
from safegene.models.tokens import TokenCount, count_tokens
from safegene.repair.lora import lora
from safegene.repair.training import Row, supervised
from safegene.vectors.vector import write_factors
from safegene.workspace.digest import canonical_json, digest_json
from safegene.workspace.layout import cache_folder
from safegene.workspace.manifest import read_manifest, write_artefact
from safegene.workspace.params import DegradeParams, Surrogate
from safegene.workspace.parsing import Strict, parse_json
from safegene.workspace.progress import log_progress
from safegene.workspace.seal import is_artefact_sealed

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from safegene.evaluation.judges import Judge

log = logging.getLogger(__name__)
MAX_NEW_TOKENS = 24
RAISED = (3.0, 10.0)  # multiples of a learning rate that does not degrade enough, tried in turn
STAGE = "degrade.attempt"


class SurrogateRecord(Strict):
    """How one surrogate was made, as in ``degraded.json``.

    Attributes:
        steps: optimiser steps done.
        probe: (steps done, harmful-response rate on the probe) of every measurement.
        hrr: the last of these rates.
        reached: whether it is at least ``degrade.stop_hrr``.
        pools: of its training rows.
        tokens: what the model read, see `safegene.models.tokens`; None in surrogates of earlier versions.
        learning_rate: the one of `RAISED` that it took; None for the surrogate's own.
    """

    OPTIONAL_KEYS: ClassVar[frozenset[str]] = frozenset({"tokens", "learning_rate"})

    steps: int
    probe: list[tuple[int, float]]
    hrr: float
    reached: bool
    pools: list[str]
    tokens: dict[str, int] | None = None
    learning_rate: float | None = None

    def to_json(self) -> dict[str, Any]:
        """The record as JSON values; without a learning rate that is the surrogate's own."""
        return self.model_dump(exclude={"learning_rate"} if self.learning_rate is None else None)


@dataclass(frozen=True)
class SurrogateTrainer:
    """What making a surrogate needs, loaded once.

    Attributes:
        params: the stage's.
        model: the aligned model; its weights are never changed.
        dtype: of the aligned model.
        tokenizer: the model's.
        matrices: names of the weights that get factors.
        rows: the training rows of every pool.
        probe: harmful prompts of the fit split.
        judge: decides which replies are harmful.
    """

    params: DegradeParams
    model: "PreTrainedModel"
    dtype: str
    tokenizer: "PreTrainedTokenizerBase"
    matrices: tuple[str, ...]
    rows: PromptSet
    probe: tuple[Prompt, ...]
    judge: "Judge"

    def training_rows(self, surrogate: Surrogate) -> list[Row]:
        """(prompt, response) of the surrogate's pools, in file order.

        Raises:
            EmptySample: a pool has no row.
        """
        return [(r.prompt, r.response) for pool in surrogate.pools for r in self.rows.where(pool=pool)]

    def rate(self) -> float:
        """Harmful-response rate (0..1) on the probe, of the model as it is now; see `rate_of`."""
        return self.rate_of(self.replies())

    def replies(self) -> list[str]:
        """Replies to the probe, of the model as it is now."""
        asked = [row.prompt for row in self.probe]
        replies = generate(self.model, self.tokenizer, asked, max_new_tokens=MAX_NEW_TOKENS, batch_size=len(asked))
        return [reply.text for reply in replies]

    def rate_of(self, replies: list[str]) -> float:
        """Harmful-response rate (0..1) of these replies to the probe.

        Raises:
            EmptySample: the judge scored less than half of them.
        """
        asked = [row.prompt for row in self.probe]
        decisions = self.judge.judge(asked, replies)
        scored = [decision.harmful == "yes" for decision in decisions if decision.harmful != "unscored"]
        if 2 * len(scored) < len(asked):
            raise EmptySample(
                f"expected scores of at least half of the probe's {len(asked)} replies, got {len(scored)} scored",
                remedy="use a judge that can score short replies",
            )
        return sum(scored) / len(scored)


class Measured(Strict):
    """The probe at one step.

    Attributes:
        step: steps done.
        replies: to the probe's prompts, in their order.
        tokens: read up to here, these replies included; see `safegene.models.tokens`.
    """

    step: int
    replies: list[str]
    tokens: dict[str, int]


class AttemptFile(Strict):
    """The content of ``attempt.json``, beside the factors of its last step."""

    measured: list[Measured]


@dataclass
class Attempt:
    """A surrogate as one learning rate makes it.

    Attributes:
        rate: the learning rate.
        folder: of the factors, once they are there.
        measured: on the way.
        rates: harmful-response rate of each of ``measured``, by the present judge.
    """

    rate: float
    folder: Path = Path()
    measured: list[Measured] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)

    @property
    def hrr(self) -> float:
        """The last rate on the probe."""
        return self.rates[-1]


def make_surrogate(maker: SurrogateTrainer, name: str, aligned: str) -> tuple[SurrogateRecord, Path]:
    """The surrogate with the lowest learning rate that suffices, else the one of the highest rate, and its factors.

    Args:
        maker: see there.
        name: of the surrogate.
        aligned: digest of the aligned model.
    """
    params, own = maker.params, maker.params.surrogates[name].learning_rate
    made = list[Attempt]()
    with count_tokens(maker.model) as read:
        for rate in (own, *(factor * own for factor in RAISED)):
            one = _attempt(maker, name, rate, aligned, read)
            made.append(one)
            if one.hrr >= params.stop_hrr:
                break
            log.info("surrogate %s, learning rate %g: %s", name, rate, _too_safe(one, params.stop_hrr, own))
    best = max(made, key=lambda one: one.hrr)
    log.info("surrogate %s: %d steps, harmful-response rate %.0f%%", name, best.measured[-1].step, 100 * best.hrr)
    counts = [one.measured[-1].tokens for one in made]
    record = SurrogateRecord(
        steps=best.measured[-1].step,
        probe=[(one.step, rate) for one, rate in zip(best.measured, best.rates, strict=True)],
        hrr=best.hrr,
        reached=best.hrr >= params.stop_hrr,
        pools=list(params.surrogates[name].pools),
        tokens={key: sum(count[key] for count in counts) for key in ("forward", "trained")},
        learning_rate=None if best.rate == own else best.rate,
    )
    return record, best.folder / "factors.safetensors"


def _too_safe(made: Attempt, stop_hrr: float, own: float) -> str:
    """What an attempt reached, and what follows from it, in words."""
    following = next((factor * own for factor in RAISED if factor * own > made.rate), None)
    kept = "the most harmful attempt is kept, and the vector rests on the others"
    then = f"trained anew with {following:g}" if following else kept
    steps = made.measured[-1].step
    return f"{made.hrr:.0%} harmful after {steps} steps, below degrade.stop_hrr ({stop_hrr:.0%}); {then}"


def _attempt(maker: SurrogateTrainer, name: str, rate: float, aligned: str, read: TokenCount) -> Attempt:
    """One learning rate's: from the cache as far as it goes, judged by the present judge."""
    params = maker.params
    identity = _identity(maker, name, rate, aligned)
    kept = dict(_kept(identity))
    longest = kept[max(kept)].measured if kept else []
    found = Attempt(rate)
    for one in longest:
        found.measured.append(one)
        found.rates.append(maker.rate_of(one.replies))
        if found.hrr >= params.stop_hrr:
            break
    ended = bool(found.rates) and (found.hrr >= params.stop_hrr or found.measured[-1].step == params.max_steps)
    last = found.measured[-1].step if found.measured else 0
    if ended and last in kept:
        log.info("surrogate %s, learning rate %g: taken from the cache, its replies judged", name, rate)
        found.folder = _folder(identity, last)
        return found
    return _trained(maker, name, found, identity, read, ends_at=last if ended else None)


def _trained(
    maker: SurrogateTrainer,
    name: str,
    found: Attempt,
    identity: Mapping[str, Any],
    read: TokenCount,
    *,
    ends_at: int | None,
) -> Attempt:
    """Train from the beginning, past the steps whose replies are known, and keep the result.

    ``ends_at`` is the step at which it ends, where that is known: then nothing is measured again.
    """
    params, chosen = maker.params, maker.params.surrogates[name]
    seed = seed_of(params.seed, name)
    read.restart({"forward": 0, "trained": 0})
    with lora(maker.model, maker.matrices, rank=chosen.rank, seed=seed) as factors:
        supervised(
            maker.model,
            maker.tokenizer,
            maker.training_rows(chosen),
            steps=params.max_steps,
            batch_size=params.batch_size,
            learning_rate=found.rate,
            seed=seed,
            parameters=factors.parameters,
            on_step=_probe(maker, name, found, read, ends_at),
        )
        found.folder = _folder(identity, found.measured[-1].step)
        with write_artefact(found.folder, stage=STAGE, params=identity, inputs={}) as draft:
            write_factors(factors.patch(), draft.path / "factors.safetensors")
            content = {"measured": [one.model_dump() for one in found.measured]}
            (draft.path / "attempt.json").write_bytes(canonical_json(content) + b"\n")
    return found


def _probe(
    maker: SurrogateTrainer, name: str, found: Attempt, read: TokenCount, ends_at: int | None
) -> Callable[[int, float], bool]:
    """Measure every so many steps and at the last, where that is not known; say stop once the rate is reached."""
    params, known = maker.params, {one.step: one for one in found.measured}

    def on_step(step: int, loss: float) -> bool:
        due = not step % params.probe_every_steps or step == params.max_steps
        if due and step in known:
            read.restart(known[step].tokens)
        elif due:
            maker.model.eval()
            replies = maker.replies()
            maker.model.train()
            found.measured.append(Measured(step=step, replies=replies, tokens=read.to_json()))
            found.rates.append(maker.rate_of(replies))
        said = f"harmful-response rate {found.hrr:.0%}" if found.rates and not ends_at else ""
        log_progress(log, f"surrogate {name}, steps", step, params.max_steps, said)
        return step == ends_at or (due and step not in known and found.hrr >= params.stop_hrr)

    return on_step


def _identity(maker: SurrogateTrainer, name: str, rate: float, aligned: str) -> dict[str, Any]:
    """All that an attempt depends on: neither the judge nor ``stop_hrr`` is among it."""
    params = maker.params
    return {
        "aligned": aligned,
        "surrogate": params.surrogates[name].model_dump(mode="json", exclude={"learning_rate"}),
        "params": params.model_dump(mode="json", exclude={"surrogates", "stop_hrr"}),
        "seed": seed_of(params.seed, name),
        "rows": maker.rows.digest,
        "probe": digest_json([row.prompt for row in maker.probe]),
        "device": default_device().partition(":")[0],
        "dtype": maker.dtype,
        "learning_rate": rate,
        "max_new_tokens": MAX_NEW_TOKENS,
    }


def _folder(identity: Mapping[str, Any], steps: int) -> Path:
    return cache_folder() / "degrade" / f"{digest_json(identity).removeprefix('sha256:')}-{steps}"


def _kept(identity: Mapping[str, Any]) -> Iterator[tuple[int, AttemptFile]]:
    """Steps -> the attempt that ended there, of exactly this identity, and made by a holder of the cache's key."""
    at = _folder(identity, 0)
    for folder in sorted(at.parent.glob(f"{at.name.removesuffix('0')}*")):
        try:
            manifest = read_manifest(folder, stage=STAGE)
        except ArtifactError:
            continue
        if manifest.params == identity and is_artefact_sealed(manifest.digest):
            path = folder / "attempt.json"
            file = parse_json(AttemptFile, path.read_bytes(), where=str(path))
            if file.measured and _folder(identity, file.measured[-1].step) == folder:
                yield file.measured[-1].step, file


def seed_of(seed: int, name: str) -> int:
    """A surrogate's own seed, so that adding one changes no other."""
    return int(digest_json([seed, name])[-8:], 16)
