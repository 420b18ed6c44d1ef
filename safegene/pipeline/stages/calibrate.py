"""Stage ``calibrate``: the coefficients of one target, and its repair as a PEFT adapter.

Only coefficients between the safety vector's fixed factors are fitted, on the selected layers (SafeGene, arXiv
2606.06519); see `safegene.repair`. Coefficients are fitted on the fit split. The set with the lowest validation loss is
kept. If no set beats the unrepaired target, the target is left as it is. So is a target that already answers safety
prompts as the aligned model does. ``coefficients.json`` states the reason.

With ``calibrate.baseline`` a rival method (`safegene.repair.baselines`) makes the repair instead, from the same shots;
its repair is gated, exported and recorded like ours.

Two facts in the manifest have similar names: ``extra_parameters`` is the number of parameters of the repair,
``extra_params`` is their share of the model's parameters (0 where nothing was repaired).
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safegene.checkpoints.adapter import Adapter, open_adapter
from safegene.checkpoints.chat_template import chat_files
from safegene.checkpoints.checkpoint import Checkpoint, open_checkpoint
from safegene.checkpoints.dtypes import resolve_dtype
from safegene.checkpoints.export.adapter import CHANGE, serving_words, withdraw_adapter, write_adapter
from safegene.checkpoints.export.base_model import base_model_name
from safegene.checkpoints.export.card import model_card
from safegene.checkpoints.record import CheckpointRecord, read_record
from safegene.checkpoints.sources import local_checkpoint
from safegene.checkpoints.structure import Structure, read_structure
from safegene.datasets.made_sets import SHIPPED
from safegene.datasets.prompts import PromptSet, read_prompts
from safegene.errors import ParamsError, StaleArtifact
from safegene.evaluation.adapter_trial import adapter_fault
from safegene.evaluation.judges import Judge, build
from safegene.models.device import default_device, threads_for
from safegene.models.loading import load_model
from safegene.models.structure import model_without_weights
from safegene.models.templates import load_chat_tokenizer
from safegene.models.tokens import count_tokens
from safegene.repair.baselines.base import case_of, mean_change
from safegene.repair.coefficients import zero_change
from safegene.repair.coefficients_file import CoefficientsFile, coefficients_file, direction_table
from safegene.repair.diagnosis.diagnose import diagnose
from safegene.repair.fit_log import FitLog
from safegene.repair.mining import Miner, unused_tasks
from safegene.repair.pool import Pool, label_pool
from safegene.repair.selection import selected_matrices
from safegene.repair.shots import Shots, build_shots
from safegene.repair.target import RepairResult, fit_target, run_baseline
from safegene.vectors.linalg import Patch
from safegene.vectors.vector import SafetyVector, read_surrogates, read_vector
from safegene.workspace.manifest import Manifest, read_manifest, write_artefact
from safegene.workspace.params import CalibrateParams, FetchParams, JudgeParams

log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def calibrate(
    *,
    aligned: Path,
    target: Path,
    vector: Path,
    selection: Path,
    degraded: Path | None,
    prompts: Path,
    task: Path,
    out: Path,
    params: CalibrateParams | None = None,
    judge: JudgeParams | None = None,
    limits: FetchParams | None = None,
    dtype: str = "auto",
) -> Manifest:
    """Repair the target and write the change as a PEFT adapter, with how it was found.

    ``dtype`` is that of the models; ``auto`` is the one in which the target is stored.

    ``degraded`` is read only for a baseline: it gets the full delta, not its compressed form, the safety vector. None
    where the vector was fetched: then a baseline gets the vector.
    ``pool.jsonl`` is read, and ``judge`` asked, only where ``params.mining`` has rounds and there is no baseline.

    Raises:
        StaleArtifact: the vector was taken from another aligned model.
        CheckpointError: the selection keeps no layer that the vector has factors for.
        ParamsError: ``max_extra`` is too little for one matrix.
        ParamsError: mining has rounds, and there is no ``judge``.
        EmptySample: a kind of shot with a weight has no prompts, or the aligned model refuses or answers none of the
            pool.
        DigestMismatch: a byte of vector or selection has changed.

    Example:
        >>> manifest = safegene.calibrate(
        ...     aligned=ws.aligned, target=ws.checkpoint("sentiment"), vector=ws.vector, selection=ws.selection,
        ...     degraded=ws.degraded, prompts=ws.prompts, task=ws.tasks / "sentiment.jsonl",
        ...     out=ws.candidate("sentiment"),
        ... )
        >>> manifest.facts["repaired"], manifest.facts["extra_params"] < 0.01
        (True, True)
    """
    params = params or CalibrateParams()
    records = family, target_record = read_record(aligned), read_record(target)
    safety_vector = _vector_of(vector, family)
    factors = selected_matrices(safety_vector, selection)
    safety, tasks = read_prompts(prompts / "safety.jsonl"), read_prompts(task)
    aligned_root = local_checkpoint(aligned, limits).root
    files = local_checkpoint(target, limits, family=aligned)
    pool = _pool_to_mine(params, prompts, safety)
    sets = {"safety.jsonl": safety.digest, "task": tasks.digest} | ({"pool.jsonl": pool.digest} if pool else {})
    inputs: dict[str, Path | str] = {"aligned": aligned, "target": target, "vector": vector, "selection": selection}
    inputs |= sets if params.baseline is None or degraded is None else {"degraded": degraded, **sets}
    structure, checkpoint = read_structure(aligned), open_checkpoint(files.root)
    dtype = resolve_dtype(dtype, checkpoint.specs.values())
    with threads_for(checkpoint.parameters):
        shots = build_shots(params, aligned_root, files, safety, tasks, dtype=dtype)
        own = load_chat_tokenizer(chat_files(files.root, files.adapters))
        mining = pool and _label(params, pool, judge, aligned_root, family.digest, own, dtype)
        chosen = params.model_dump(mode="json") | {"dtype": dtype, "judge": mining[0].identity if mining else None}
        model = load_model(files.root, adapters=files.adapters, dtype=dtype, device=default_device())
        whole = None if params.baseline is None else _whole_delta(degraded, safety_vector)
        numbers = params.max_extra * target_record.parameters
        with count_tokens(model) as read:
            miner = Miner(params, model, own, *mining, tasks=unused_tasks(tasks, shots)) if mining else None
            parts = FitLog({"params": chosen, "inputs": _digests(inputs)}, read)
            result = _repair(params, model, shots, factors, numbers, aligned_root, whole, miner, parts)
        del model
    adapter = open_adapter(files.adapters[0]) if files.adapters else None
    record = family if adapter else target_record
    with write_artefact(out, stage="calibrate", params=chosen, inputs=inputs) as draft:
        patch = result.fitted.patch if result.fitted else zero_change(factors)
        facts = _export(patch, record, checkpoint, structure, adapter, out=draft.path)
        log.info("%s: %s", out.parent.name, serving_words(facts))
        content = coefficients_file(params, result, shots, patch, facts["extra_parameters"] / target_record.parameters)
        diagnosis = diagnose(
            content, shots, safety_vector, patch, root=aligned_root, structure=structure, target=files, records=records
        )
        coefficients = content.model_copy(update={"diagnosis": diagnosis})
        _describe(draft.path, coefficients, result, patch)
        _write_card(draft.path, out.parent.name, base_model_name(record)[0], facts, inputs)
        draft.facts.update(facts, **coefficients.model_dump(include={"extra_params", "repaired", "reason", "trained"}))
        draft.facts["tokens"] = read.to_json()
    parts.remove()
    return draft.done


def _pool_to_mine(params: CalibrateParams, prompts: Path, safety: PromptSet) -> PromptSet | None:
    """The pool; None where nothing is mined: without rounds, or where it is the tiny family's and the sets are not."""
    if not params.mining.rounds or params.baseline is not None:
        return None
    pool = read_prompts(prompts / "pool.jsonl")
    shipped = {
        name: one.digest == SHIPPED[f"prompts/{name}.jsonl"] for name, one in (("pool", pool), ("safety", safety))
    }
    if shipped["pool"] and not shipped["safety"]:
        log.warning("nothing is mined: %s is the tiny family's; write a pool of your own (docs/data.md)", pool.path)
        return None
    return pool


def _label(
    params: CalibrateParams,
    prompts: PromptSet,
    judge: JudgeParams | None,
    aligned: Path,
    digest: str,
    own: "PreTrainedTokenizerBase",
    dtype: str,
) -> tuple[Judge, Pool]:
    """The judge, and the pool as the aligned model labels it."""
    if judge is None:
        raise ParamsError("expected a judge, since calibrate.mining has rounds, got none", remedy="pass judge=")
    built = build(judge)
    pool = label_pool(
        params.mining,
        prompts,
        aligned,
        built,
        digest=digest,
        student_tokenizer=own,
        response_tokens=params.response_tokens,
        dtype=dtype,
    )
    return built, pool


def _export(
    patch: Patch,
    record: CheckpointRecord,
    checkpoint: Checkpoint,
    structure: Structure,
    own: Adapter | None,
    *,
    out: Path,
) -> dict[str, Any]:
    """Write the adapter, or only the change by matrix name where PEFT does not compute it on ``checkpoint``."""
    name, revision = base_model_name(record)
    facts = write_adapter(
        patch,
        base_model=name,
        revision=revision,
        out=out,
        own=own,
        matrices=structure.matrices,
        model=lambda: model_without_weights(checkpoint.config, len(checkpoint.specs), str(checkpoint.root)),
    )
    if facts["adapter_loads"] and (out / CHANGE).is_file() and (fault := adapter_fault(checkpoint.root, out)):
        return withdraw_adapter(out, facts, fault)
    return facts


def _vector_of(vector: Path, family: CheckpointRecord) -> SafetyVector:
    safety_vector = read_vector(vector)
    if safety_vector.aligned != family.digest:
        raise StaleArtifact(
            f"expected a vector of the aligned model {family.digest}, got one of {safety_vector.aligned}, in {vector}",
            remedy="run `safegene run`: the vector is made again for this aligned model",
        )
    return safety_vector


def _describe(folder: Path, coefficients: CoefficientsFile, result: RepairResult, patch: Patch) -> None:
    """Write ``coefficients.json`` and, for plots, ``coefficients.csv``."""
    (folder / "coefficients.json").write_bytes(coefficients.content)
    sizes = result.fitted.direction_sizes if result.fitted else {name: (0.0,) for name in patch}
    (folder / "coefficients.csv").write_text(direction_table(sizes), encoding="utf-8")


def _write_card(
    folder: Path, target: str, base: str, adapter: Mapping[str, Any], inputs: Mapping[str, Path | str]
) -> None:
    """Write the model card, with the digest of each input."""
    card = model_card(target=target, base_model=base, adapter=adapter, lineage=_digests(inputs))
    (folder / "README.md").write_text(card, encoding="utf-8")


def _digests(inputs: Mapping[str, Path | str]) -> dict[str, str]:
    """The digest of each input: of a file as given, of an artefact its manifest's."""
    return {name: at if isinstance(at, str) else read_manifest(at).digest for name, at in inputs.items()}


def _whole_delta(degraded: Path | None, safety_vector: SafetyVector) -> Patch:
    """What a baseline gets: the full delta; the safety vector where there are no surrogates here."""
    return (mean_change(read_surrogates(degraded)) if degraded else None) or safety_vector.factors


def _repair(
    params: CalibrateParams,
    model: "PreTrainedModel",
    shots: Shots,
    factors: Patch,
    numbers: float,
    aligned: Path,
    whole: Patch | None,
    miner: Miner | None,
    parts: FitLog,
) -> RepairResult:
    """The repair from the vector's ``factors`` in the selected layers; a baseline's where it gets a ``whole`` delta."""
    if whole is None:
        return fit_target(params, model, numbers, factors, shots, miner, parts)
    dtype = str(model.dtype).removeprefix("torch.")
    return run_baseline(params, case_of(params, aligned, model, whole, shots, dtype))
