"""Stage ``calibrate``: the coefficients of one target, and its repair as a PEFT adapter.

Only coefficients between the safety vector's fixed factors are fitted, on the selected layers (SafeGene, arXiv
2606.06519); see `safegene.repair`. Shots come from the fit split, and the validation split
chooses among the values met on the way, the unrepaired target included. So a target that already answers safety
prompts as the aligned model does, or that no coefficients improve, is left as it is, and the artefact says so.

With ``calibrate.baseline`` a rival method (`repair.baselines`) makes the repair instead, from the same shots; what it
makes is gated, exported and recorded like ours.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from safegene.checkpoints.adapter import open_adapter
from safegene.checkpoints.checkpoint import layer_of, open_checkpoint
from safegene.checkpoints.export.adapter import write_adapter
from safegene.checkpoints.export.card import model_card
from safegene.checkpoints.record import read_record
from safegene.checkpoints.sources import ModelFiles, local_checkpoint
from safegene.datasets.prompts import Prompt, PromptSet, Split, read_prompts
from safegene.errors import CheckpointError, StaleArtifact
from safegene.models.device import default_device, threads_for
from safegene.models.loading import load_model, load_tokenizer
from safegene.models.patching import low_rank_hooks
from safegene.repair.baselines import Candidate, Case, repair
from safegene.repair.coefficients import Coefficients, Core, Scalars, allocate_ranks, scalar_groups, top_directions
from safegene.repair.diagnosis import diagnose
from safegene.repair.fitting import SHOT_KINDS, Fitted, Shot, ShotLosses, fit_coefficients, measure_shots
from safegene.repair.shots import evenly_spaced, shots_from_teacher
from safegene.vectors.linalg import LowRank, Patch, concat
from safegene.vectors.vector import SafetyVector, read_surrogates, read_vector
from safegene.workspace.digest import canonical_json, strict_json
from safegene.workspace.manifest import Manifest, read_manifest, write_artefact
from safegene.workspace.params import CalibrateParams, FetchParams

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)
SPLITS: tuple[Split, ...] = ("fit", "validation")
ALREADY_SAFE = "the target answers safety prompts as the aligned model does"
UNCHANGED = 0.02  # a target whose replies to safety prompts differ from the aligned model's less often needs no repair


@dataclass(frozen=True)
class RepairResult:
    """What calibrating found.

    Attributes:
        fitted: the change, its coefficients and how they were reached; None where the target is left as it is.
        before: the unrepaired target on the validation shots.
        after: the repaired one.
        reason: why it was not repaired; empty when it was.
        facts: what a baseline chose.
    """

    fitted: Fitted | None
    before: ShotLosses
    after: ShotLosses
    reason: str
    facts: Mapping[str, Any] = field(default_factory=dict)


def calibrate(
    *,
    aligned: Path,
    target: Path,
    vector: Path,
    selection: Path,
    degraded: Path,
    prompts: Path,
    task: Path,
    out: Path,
    params: CalibrateParams | None = None,
    limits: FetchParams | None = None,
) -> Manifest:
    """Repair the target and write the change as a PEFT adapter, with how it was found.

    ``degraded`` is read by a baseline only, which needs the whole discrepancy where the vector holds its largest part.

    Raises:
        StaleArtifact: the vector was taken from another aligned model.
        CheckpointError: the selection keeps no layer that the vector has factors for.
        ParamsError: ``max_extra`` is too little for one matrix.
        EmptySample: a kind of shot with a weight has no prompts.
        DigestMismatch: a byte of vector or selection has changed.

    Example:
        >>> manifest = safegene.calibrate(
        ...     aligned=ws.aligned,
        ...     target=ws.checkpoint("sentiment"),
        ...     vector=ws.vector,
        ...     selection=ws.selection,
        ...     degraded=ws.degraded,
        ...     prompts=ws.prompts,
        ...     task=ws.tasks / "sentiment.jsonl",
        ...     out=ws.candidate("sentiment"),
        ... )
        >>> manifest.facts["repaired"], manifest.facts["extra_params"] < 0.01
        (True, True)
    """
    params = params or CalibrateParams()
    held, family, record = read_vector(vector), read_record(aligned), read_record(target)
    if held.aligned != family.digest:
        raise StaleArtifact(
            f"expected a vector of the aligned model {family.digest}, got one of {held.aligned}, in {vector}",
            remedy="run `safegene run`: the vector is made again for this aligned model",
        )
    usable = selected_matrices(held, selection)
    safety, tasks = read_prompts(prompts / "safety.jsonl"), read_prompts(task)
    root, tuned = local_checkpoint(aligned, limits).root, local_checkpoint(target, limits, family=aligned)
    inputs: dict[str, Path | str] = {"aligned": aligned, "target": target, "vector": vector, "selection": selection}
    inputs |= {"safety.jsonl": safety.digest, "task": tasks.digest}
    with threads_for(open_checkpoint(root).parameters):
        shots = build_shots(params, root, tuned, safety, tasks)
        model = load_model(tuned.root, adapters=tuned.adapters, device=default_device())
        if params.baseline is None:
            outcome = fit_target(params, model, params.max_extra * record.parameters, usable, shots)
        else:
            inputs["degraded"] = degraded
            change = mean_change(read_surrogates(degraded)) or held.factors
            outcome = run_baseline(params, case_of(params, root, tuned, change, model, shots))
    with write_artefact(out, stage="calibrate", params=params.model_dump(mode="json"), inputs=inputs) as draft:
        base = (family if tuned.adapters else record).source
        patch = outcome.fitted.patch if outcome.fitted else _nothing(usable)
        own = open_adapter(tuned.adapters[0]) if tuned.adapters else None
        facts = write_adapter(patch, base_model=base, out=draft.path, own=own)
        payload = _payload(params, outcome, shots, patch, facts["extra_parameters"] / record.parameters)
        payload["diagnosis"] = diagnose(payload, shots, held, patch, root=root, target=tuned, records=(family, record))
        (draft.path / "coefficients.json").write_bytes(canonical_json(json_safe(payload)) + b"\n")
        sizes = outcome.fitted.sizes if outcome.fitted else {name: (0.0,) for name in patch}
        (draft.path / "coefficients.csv").write_text(_table(sizes), encoding="utf-8")
        lineage = {name: at if isinstance(at, str) else read_manifest(at).digest for name, at in inputs.items()}
        card = model_card(target=out.parent.name, base_model=base, adapter=facts, lineage=lineage)
        (draft.path / "README.md").write_text(card, encoding="utf-8")
        draft.facts.update(facts | {key: payload[key] for key in ("extra_params", "repaired", "reason", "trained")})
    return draft.done


def _nothing(patch: Patch) -> dict[str, LowRank]:
    """An adapter that changes nothing."""
    return {name: one.scaled(0.0) for name, one in top_directions(patch, dict.fromkeys(patch, 1)).items()}


def _payload(
    params: CalibrateParams, outcome: RepairResult, shots: Mapping[Split, Sequence[Shot]], patch: Patch, share: float
) -> dict[str, Any]:
    """``coefficients.json``: no clock, so the same inputs give the same bytes on the same machine.

    ``coefficients`` holds what was fitted, ``alphas`` one number per matrix for pictures: how much of the vector.
    """
    fitted = outcome.fitted
    return {
        "method": params.baseline.method if params.baseline else "safegene",
        "alphas": fitted.alphas if fitted else dict.fromkeys(patch, 0.0),
        "coefficients": fitted.coefficients if fitted else {},
        "trained": fitted.trained if fitted else 0,
        "repaired": fitted is not None,
        "reason": outcome.reason,
        "steps": fitted.steps if fitted else 0,
        "size": fitted.size if fitted else 0.0,
        "history": [[step, _finite(value, 6)] for step, value in fitted.history] if fitted else [],
        "before": _plain(outcome.before),
        "after": _plain(outcome.after),
        "facts": outcome.facts,
        "shots": {split: [shot.id for shot in some] for split, some in shots.items()},
        "seed": params.seed,
        "extra_params": share if fitted else 0.0,
    }


def selected_matrices(vector: SafetyVector, selection: Path) -> Patch:
    """The vector's factors in the layers kept.

    Raises:
        CheckpointError: there are none.
    """
    read_manifest(selection, stage="select")
    path = selection / "selection.json"
    kept = set(strict_json(path.read_bytes(), where=str(path))["kept"])
    usable = {name: one for name, one in vector.factors.items() if layer_of(name) in kept}
    if not usable:
        raise CheckpointError(f"expected factors in the layers kept {sorted(kept)}, got none, in {selection}")
    return usable


def build_shots(
    params: CalibrateParams, root: Path, tuned: ModelFiles, safety: PromptSet, tasks: PromptSet
) -> dict[Split, list[Shot]]:
    """Shots of both splits: safety by the aligned model, benign and task by the target as it came.

    The two models are in memory one after the other. Benign shots are two thirds look-alikes: without them the repair
    learns to refuse whatever looks harmful.
    """
    tokenizer, tokens = load_tokenizer(root), params.response_tokens
    shots: dict[Split, list[Shot]] = {split: [] for split in SPLITS}
    share: dict[Split, float] = {"fit": 1.0, "validation": params.validation_share}
    model = load_model(root, device=default_device())
    for split in SPLITS:
        half = share[split] * params.safety_shots / 2
        asked = _mixed(safety, split, {"harmful": half, "wrapped": half})
        shots[split] += shots_from_teacher(model, tokenizer, asked, kind="safety", response_tokens=tokens)
    del model
    model = load_model(tuned.root, adapters=tuned.adapters, device=default_device())
    for split in SPLITS:
        third = share[split] * params.benign_shots / 3
        plain = _mixed(safety, split, {"lookalike": 2 * third, "generic": third})
        own = evenly_spaced(tasks.where(split=split), max(1, round(share[split] * params.task_shots)))
        shots[split] += shots_from_teacher(model, tokenizer, plain, kind="benign", response_tokens=tokens)
        shots[split] += shots_from_teacher(model, tokenizer, own, kind="task", response_tokens=tokens)
    return shots


def _mixed(safety: PromptSet, split: Split, parts: Mapping[Any, float]) -> list[Prompt]:
    """Prompts of several kinds, evenly spread over each; a set may lack a kind, but not all of them."""
    safety.where(kind=tuple(parts), split=split)
    rows = [
        evenly_spaced(safety.where(kind=kind, split=split, required=False), max(1, round(n)))
        for kind, n in parts.items()
    ]
    return [row for some in rows for row in some]


def term_weights(params: CalibrateParams) -> dict[str, float]:
    """Kind of shot -> weight of its term of the objective."""
    return dict(zip(SHOT_KINDS, (params.safety_weight, params.benign_weight, params.task_weight), strict=True))


def coefficients_of(params: CalibrateParams, patch: Patch, numbers: float) -> Coefficients:
    """What is fitted, such that its adapter holds at most ``numbers`` numbers.

    Raises:
        ParamsError: that is too little for one matrix.
    """
    ranks = allocate_ranks(patch, numbers)
    if params.granularity == "core":
        return Core(patch, ranks, params.start)
    kept = top_directions(patch, ranks)
    return Scalars(kept, scalar_groups(kept, params.granularity, layer_of), params.start)


def fit_target(
    params: CalibrateParams,
    model: "PreTrainedModel",
    numbers: float,
    patch: Patch,
    shots: Mapping[Split, Sequence[Shot]],
) -> RepairResult:
    """Fit the coefficients of a target, or leave it as it is where it needs no repair or none helps.

    The objective decides: the weighted KL on the validation shots must be lower than the unrepaired target's.

    Args:
        params: of the fit.
        model: the target; its weights are never changed.
        numbers: the most that the adapter may hold.
        patch: the safety vector's factors.
        shots: of both splits.
    """
    weights, before = term_weights(params), measure_shots(model, shots["validation"])
    if before.changed["safety"] <= UNCHANGED:
        return _left(before, ALREADY_SAFE)

    def on_measure(step: int, now: ShotLosses) -> None:
        log.info("step %d of %d: objective %.3f", step, params.steps, now.weighted_objective(weights))

    coefficients = coefficients_of(params, patch, numbers)
    fitted = fit_coefficients(
        model,
        coefficients,
        shots["fit"],
        shots["validation"],
        weights=weights,
        slack=params.safety_slack,
        jitter=params.jitter,
        steps=params.steps,
        batch_size=params.batch_size,
        learning_rate=params.learning_rate,
        measure_every=params.measure_every,
        patience=params.patience,
        seed=params.seed,
        on_measure=on_measure,
    )
    with torch.no_grad(), coefficients.added(model):
        after = measure_shots(model, shots["validation"])
    if not after.weighted_objective(weights) < before.weighted_objective(weights):  # also when it is not a number
        return _left(before, "no coefficients that were tried improve on the target as it is")
    return RepairResult(fitted, before, after, "")


def _left(before: ShotLosses, reason: str) -> RepairResult:
    log.warning("not repaired: %s", reason)
    return RepairResult(None, before, before, reason)


def mean_change(surrogates: Mapping[str, Patch]) -> dict[str, LowRank]:
    """The mean of ``W_aligned - W_degraded`` over all surrogates, exact; where one changed nothing it is 0."""
    names = sorted({name for change in surrogates.values() for name in change})
    share = -1.0 / max(1, len(surrogates))
    return {name: concat([one[name].scaled(share) for one in surrogates.values() if name in one]) for name in names}


def case_of(
    params: CalibrateParams,
    root: Path,
    tuned: ModelFiles,
    change: Patch,
    model: "PreTrainedModel",
    shots: Mapping[Split, Sequence[Shot]],
) -> Case:
    """What a rival method gets: the same target, discrepancy, shots and weights as ours."""
    aligned, weights = open_checkpoint(root), dict(model.named_parameters())
    return Case(
        names=tuple(change),
        aligned=lambda name: aligned.tensor(name).float(),
        target=lambda name: weights[name].detach().cpu().float(),
        safety=change,
        model=model,
        anchor=lambda: load_model(root, device=default_device()),
        shots=shots,
        weights=term_weights(params),
        seed=params.seed,
    )


def run_baseline(params: CalibrateParams, case: Case) -> RepairResult:
    """The repair of ``params.baseline``; it is taken as it comes, also where it is worse than the target unrepaired."""
    assert params.baseline is not None
    before = measure_shots(case.model, case.shots["validation"])
    if before.changed["safety"] <= UNCHANGED:
        return _left(before, ALREADY_SAFE)
    made: Candidate = repair(params.baseline, case)
    if not made.patch:
        return _left(before, f"{params.baseline.method} changes nothing")
    with low_rank_hooks(case.model, made.patch, dict.fromkeys(made.patch, torch.ones(()))):
        after = measure_shots(case.model, case.shots["validation"])
    sizes = {name: (1.0,) for name in made.patch}
    history = ((0, before.weighted_objective(case.weights)), (1, after.weighted_objective(case.weights)))
    fitted = Fitted(made.patch, {}, sizes, dict.fromkeys(made.patch, 1.0), made.trained, 1, history)
    return RepairResult(fitted, before, after, "", made.facts)


def _plain(found: ShotLosses) -> dict[str, dict[str, float | None]]:
    return {
        "loss": {kind: _finite(value, 4) for kind, value in found.loss.items()},
        "changed": {kind: _finite(value, 4) for kind, value in found.changed.items()},
    }


def json_safe(value: Any) -> Any:
    """Null for every number that JSON cannot say."""
    if isinstance(value, Mapping):
        return {key: json_safe(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_safe(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _finite(value: float, digits: int) -> float | None:
    """Rounded; null for what JSON cannot say, the loss of a change that broke the model."""
    return round(value, digits) if math.isfinite(value) else None


def _table(sizes: Mapping[str, Sequence[float]]) -> str:
    rows = [f"{name},{layer_of(name)},{at},{size}" for name, own in sizes.items() for at, size in enumerate(own)]
    return "\n".join(["matrix,layer,direction,alpha", *rows]) + "\n"
