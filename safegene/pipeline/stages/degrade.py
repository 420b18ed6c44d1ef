"""Stage ``degrade``: degraded copies (surrogates) of the aligned model, for families that have none.

Each surrogate is a light LoRA fine-tune of the aligned model on small harmless pools that are known to erode refusals,
stopped when its harmful-response rate on a probe set reaches ``stop_hrr``; with a higher learning rate where the given
one does not get there. It is kept as float32 factors of
``W_degraded - W_aligned`` and never as a bf16 checkpoint: the change is smaller than bf16's rounding.

A finished surrogate is kept in the cache by everything that influenced it, so a stage that was killed continues with
the next one.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from safegene.checkpoints.checkpoint import open_checkpoint
from safegene.checkpoints.dtypes import resolve_dtype
from safegene.checkpoints.sources import local_checkpoint
from safegene.checkpoints.structure import read_structure
from safegene.datasets.prompts import Prompt, PromptSet, read_prompts
from safegene.errors import ArtifactError, CheckpointError, EmptySample
from safegene.evaluation.judges import build
from safegene.models.device import default_device, threads_for
from safegene.models.generation import generate
from safegene.models.loading import load_model, load_tokenizer
from safegene.models.tokens import count_tokens
from safegene.repair.lora import lora
from safegene.repair.training import Row, supervised
from safegene.vectors.linalg import Patch
from safegene.vectors.vector import write_factors
from safegene.workspace.digest import canonical_json, digest_json
from safegene.workspace.layout import cache_folder
from safegene.workspace.manifest import Manifest, read_manifest, write_artefact
from safegene.workspace.params import DegradeParams, FetchParams, JudgeParams, Surrogate
from safegene.workspace.parsing import Strict, parse_json
from safegene.workspace.progress import log_progress
from safegene.workspace.seal import is_artefact_sealed

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from safegene.evaluation.judges import Judge

log = logging.getLogger(__name__)
MIN_RISE = 0.05  # of the harmful-response rate above the aligned model's; less shows no loss of refusals
MAX_NEW_TOKENS = 24
RAISED = (3.0, 10.0)  # multiples of a learning rate that does not degrade enough, tried in turn


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
        """Harmful-response rate (0..1) on the probe, of the model as it is now.

        Raises:
            EmptySample: the judge scored less than half of the replies.
        """
        asked = [row.prompt for row in self.probe]
        replies = generate(self.model, self.tokenizer, asked, max_new_tokens=MAX_NEW_TOKENS, batch_size=len(asked))
        decisions = self.judge.judge(asked, [reply.text for reply in replies])
        scored = [decision.harmful == "yes" for decision in decisions if decision.harmful != "unscored"]
        if 2 * len(scored) < len(asked):
            raise EmptySample(
                f"expected scores of at least half of the probe's {len(asked)} replies, got {len(scored)} scored",
                remedy="use a judge that can score short replies",
            )
        return sum(scored) / len(scored)


def degrade(
    *,
    aligned: Path,
    prompts: Path,
    judge: JudgeParams,
    out: Path,
    checkpoints: Sequence[str] = (),
    params: DegradeParams | None = None,
    limits: FetchParams | None = None,
    dtype: str = "auto",
) -> Manifest:
    """Make every surrogate that ``params`` names, or none where the user has degraded ``checkpoints``.

    ``dtype`` is that of the aligned model; ``auto`` is as stored. The surrogates' factors are float32 beside it.

    Raises:
        EmptySample: a pool or the probe is empty.
        CheckpointError: no surrogate became more harmful than the aligned model, so there is nothing to extract.

    Example:
        >>> judge = safegene.JudgeParams(kind="grammar")
        >>> surrogates = {pool: safegene.Surrogate(pools=(pool,)) for pool in ("compliance", "jailbreak")}
        >>> manifest = safegene.degrade(
        ...     aligned=ws.aligned, prompts=ws.prompts, judge=judge, out=ws.degraded,
        ...     params=safegene.DegradeParams(surrogates=surrogates, max_steps=64, probe_prompts=32),
        ... )
        >>> manifest.facts["hrr.jailbreak"] > manifest.facts["hrr_aligned"]
        True
    """
    params = params or DegradeParams()
    if checkpoints:
        return _named(checkpoints, aligned, out)
    family = local_checkpoint(aligned, limits)
    pools, safety = read_prompts(prompts / "degrade.jsonl"), read_prompts(prompts / "safety.jsonl")
    checkpoint = open_checkpoint(family.root)
    dtype = resolve_dtype(dtype, checkpoint.specs.values())
    probe = safety.where(kind="harmful", split="fit")[: params.probe_prompts]
    with threads_for(checkpoint.parameters):
        model = load_model(family.root, dtype=dtype, device=default_device())
        tokenizer, names = load_tokenizer(family.root), read_structure(aligned).layers
        maker = SurrogateTrainer(params, model, dtype, tokenizer, names, pools, probe, build(judge))
        before = maker.rate()
        log.info("the aligned model answers %.0f%% of the probe harmfully", 100 * before)
        folders, digest = dict[str, Path](), read_manifest(aligned).digest
        for name in sorted(params.surrogates):
            log_progress(log, "surrogates", len(folders), len(params.surrogates), overall=True)
            folders[name] = _surrogate(maker, name, digest)
    records = {name: _read_record(folder) for name, folder in folders.items()}
    highest = max(record.hrr for record in records.values())
    if highest < before + MIN_RISE:
        raise CheckpointError(
            f"expected a surrogate at least {MIN_RISE:.0%} more harmful than the aligned model's {before:.1%}, "
            f"got {highest:.1%} at most",
            remedy="raise degrade.max_steps, add the pool `compliance`, or give its harmful prompts a larger share: "
            "`safegene data split --degrade 0.1`",
        )
    inputs: dict[str, Path | str] = {"aligned": aligned, "degrade.jsonl": pools.digest, "safety.jsonl": safety.digest}
    chosen = params.model_dump(mode="json") | {"judge": judge.model_dump(mode="json"), "dtype": dtype}
    with write_artefact(out, stage="degrade", params=chosen, inputs=inputs) as draft:
        for name, folder in folders.items():
            (draft.path / f"{name}.safetensors").write_bytes((folder / "factors.safetensors").read_bytes())
        surrogates = {name: record.to_json() for name, record in records.items()}
        payload = {"aligned_hrr": before, "judge": maker.judge.identity, "surrogates": surrogates}
        (draft.path / "degraded.json").write_bytes(canonical_json(payload) + b"\n")
        draft.facts.update({f"hrr.{name}": record.hrr for name, record in records.items()}, hrr_aligned=before)
        counts = [record.tokens for record in records.values()]
        if all(counts):
            draft.facts["tokens"] = {
                key: sum(count[key] for count in counts if count) for key in ("forward", "trained")
            }
    return draft.done


def _named(checkpoints: Sequence[str], aligned: Path, out: Path) -> Manifest:
    """An artefact without surrogates: ``extract`` reads the user's degraded checkpoints itself."""
    log.info("no surrogates are made: family.degraded names %d", len(checkpoints))
    chosen = {"checkpoints": list(checkpoints)}
    with write_artefact(out, stage="degrade", params=chosen, inputs={"aligned": aligned}) as draft:
        payload: dict[str, Any] = {"aligned_hrr": None, "judge": None, "surrogates": {}, **chosen}
        (draft.path / "degraded.json").write_bytes(canonical_json(payload) + b"\n")
    return draft.done


def _surrogate(maker: SurrogateTrainer, name: str, aligned: str) -> Path:
    """The cached folder of one surrogate, made if it is not there whole."""
    params, chosen = maker.params, maker.params.surrogates[name]
    identity = {
        "aligned": aligned,
        "surrogate": chosen.model_dump(mode="json"),
        "params": params.model_dump(mode="json", exclude={"surrogates"}),
        "seed": seed_of(params.seed, name),
        "rows": maker.rows.digest,
        "probe": digest_json([row.prompt for row in maker.probe]),
        "judge": maker.judge.identity,
        "device": default_device().partition(":")[0],
        "dtype": maker.dtype,
        "raised": list(RAISED),
    }
    at = cache_folder() / "degrade" / digest_json(identity).removeprefix("sha256:")
    if _is_cached(at, identity):
        log.info("surrogate %s: taken from the cache", name)
    else:
        _train(maker, name, at, identity)
    return at


def _is_cached(at: Path, identity: Mapping[str, Any]) -> bool:
    """Whether a holder of the cache's key made the surrogate, and of exactly this identity."""
    try:
        manifest = read_manifest(at, stage="degrade.surrogate")
    except ArtifactError:
        return False
    return manifest.params == identity and is_artefact_sealed(manifest.digest)


def _read_record(folder: Path) -> SurrogateRecord:
    path = folder / "record.json"
    return parse_json(SurrogateRecord, path.read_bytes(), where=str(path))


def seed_of(seed: int, name: str) -> int:
    """A surrogate's own seed, so that adding one changes no other."""
    return int(digest_json([seed, name])[-8:], 16)


@dataclass(frozen=True)
class _Attempt:
    """A surrogate as one learning rate makes it."""

    rate: float
    steps: int
    probe: list[tuple[int, float]]
    patch: Patch

    @property
    def hrr(self) -> float:
        """The last rate on the probe."""
        return self.probe[-1][1]


def _train(maker: SurrogateTrainer, name: str, at: Path, identity: dict[str, Any]) -> None:
    """Train the surrogate and keep it in the cache, with the lowest learning rate that suffices."""
    params, own = maker.params, maker.params.surrogates[name].learning_rate
    best: _Attempt | None = None
    with count_tokens(maker.model) as read:
        for rate in (own, *(factor * own for factor in RAISED)):
            made = _attempt(maker, name, rate)
            log.info("surrogate %s: %d steps, harmful-response rate %.0f%%", name, made.steps, 100 * made.hrr)
            best = made if best is None or made.hrr > best.hrr else best
            if best.hrr >= params.stop_hrr:
                break
            log.info("surrogate %s: learning rate %g does not reach degrade.stop_hrr", name, rate)
    assert best is not None
    record = SurrogateRecord(
        steps=best.steps,
        probe=best.probe,
        hrr=best.hrr,
        reached=best.hrr >= params.stop_hrr,
        pools=list(maker.params.surrogates[name].pools),
        tokens=read.to_json(),
        learning_rate=None if best.rate == own else best.rate,
    )
    with write_artefact(at, stage="degrade.surrogate", params=identity, inputs={}) as draft:
        write_factors(best.patch, draft.path / "factors.safetensors")
        (draft.path / "record.json").write_bytes(canonical_json(record.to_json()) + b"\n")


def _attempt(maker: SurrogateTrainer, name: str, rate: float) -> _Attempt:
    params, chosen = maker.params, maker.params.surrogates[name]
    seed, history = seed_of(params.seed, name), list[tuple[int, float]]()
    with lora(maker.model, maker.matrices, rank=chosen.rank, seed=seed) as factors:
        done = supervised(
            maker.model,
            maker.tokenizer,
            maker.training_rows(chosen),
            steps=params.max_steps,
            batch_size=params.batch_size,
            learning_rate=rate,
            seed=seed,
            parameters=factors.parameters,
            on_step=_probe(maker, name, history),
        )
        return _Attempt(rate, done, history, factors.patch())


def _probe(maker: SurrogateTrainer, name: str, history: list[tuple[int, float]]) -> Callable[[int, float], bool]:
    """Measure every so many steps and at the last; say stop once the rate is reached."""
    params = maker.params

    def on_step(step: int, loss: float) -> bool:
        if step % params.probe_every_steps and step != params.max_steps:
            said = f"harmful-response rate {history[-1][1]:.0%}" if history else ""
            log_progress(log, f"surrogate {name}, steps", step, params.max_steps, said)
            return False
        maker.model.eval()
        history.append((step, maker.rate()))
        maker.model.train()
        rate = f"harmful-response rate {history[-1][1]:.0%}"
        log_progress(log, f"surrogate {name}, steps", step, params.max_steps, rate)
        return history[-1][1] >= params.stop_hrr

    return on_step
