"""Stage ``degrade``: degraded copies (surrogates) of the aligned model, for families that have none.

Each surrogate is a light LoRA fine-tune of the aligned model on small harmless pools that are known to erode refusals,
stopped when its harmful-response rate on a probe set reaches ``stop_hrr``; with a higher learning rate where the given
one does not get there. It is kept as float32 factors of
``W_degraded - W_aligned`` and never as a bf16 checkpoint: the change is smaller than bf16's rounding.

What was trained is kept in the cache by everything that influenced it (`safegene.pipeline.surrogates`), so a stage that
was killed continues with the next learning rate or surrogate, and another judge only judges the stored replies.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safegene.checkpoints.checkpoint import open_checkpoint
from safegene.checkpoints.dtypes import resolve_dtype
from safegene.checkpoints.sources import local_checkpoint
from safegene.checkpoints.structure import read_structure
from safegene.datasets.prompts import read_prompts
from safegene.errors import CheckpointError
from safegene.evaluation.judges import build
from safegene.models.device import default_device, threads_for
from safegene.models.loading import load_model, load_tokenizer
from safegene.pipeline.surrogates import SurrogateRecord, SurrogateTrainer, make_surrogate
from safegene.workspace.digest import canonical_json
from safegene.workspace.manifest import Manifest, read_manifest, write_artefact
from safegene.workspace.params import DegradeParams, FetchParams, JudgeParams
from safegene.workspace.progress import log_progress

log = logging.getLogger(__name__)
MIN_RISE = 0.05  # of the harmful-response rate above the aligned model's; less shows no loss of refusals


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
        digest, made = read_manifest(aligned).digest, dict[str, tuple[SurrogateRecord, Path]]()
        for name in sorted(params.surrogates):
            log_progress(log, "surrogates", len(made), len(params.surrogates), overall=True)
            made[name] = make_surrogate(maker, name, digest)
    records = {name: record for name, (record, _) in made.items()}
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
        for name, (_, factors) in made.items():
            (draft.path / f"{name}.safetensors").write_bytes(factors.read_bytes())
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
