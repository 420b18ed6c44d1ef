"""Stage ``calibrate``: the coefficients of one target, and its repair as a PEFT adapter.

Only the alphas of ``W_t + alpha_l B_l A_l`` on the selected layers are fitted (SafeGene, arXiv 2606.06519); see
`safegene.fit`. A target that already answers the validation split's safety prompts as the aligned model does needs no
repair: its alphas are 0, and the artefact says so.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safegene.digest import canonical_json, strict_json
from safegene.errors import CheckpointError
from safegene.export.adapter import write_adapter
from safegene.export.card import model_card
from safegene.fit import Fitted, Measure, Shot, fit, groups, measure
from safegene.linalg import Patch
from safegene.manifest import Manifest, read_manifest, write_artefact
from safegene.params import CalibrateParams, FetchParams
from safegene.prompts import PromptSet, Split, read_prompts
from safegene.shots import spread, teach
from safegene.sources import Model, local_checkpoint, read_record
from safegene.tensors.adapter import open_adapter
from safegene.tensors.checkpoint import layer_of
from safegene.tensors.device import device, one_thread
from safegene.tensors.models import load_model, load_tokenizer
from safegene.vector import read_vector

log = logging.getLogger(__name__)
SPLITS: tuple[Split, ...] = ("fit", "validation")
UNCHANGED = 0.02  # a target whose replies to safety prompts differ from the aligned model's less often needs no repair


def calibrate(
    params: CalibrateParams,
    *,
    vector: Path,
    selection: Path,
    aligned: Path,
    target: Path,
    prompts: Path,
    task: Path,
    out: Path,
    fetch: FetchParams | None = None,
) -> Manifest:
    """Fit the coefficients on shots of the fit split, choose among them on the validation split, write the adapter.

    Raises:
        CheckpointError: the selection keeps no layer that the vector has factors for.
        EmptySample: a kind of shot with a weight has no prompts.
        DigestMismatch: a byte of vector or selection has changed.
    """
    usable = selected(vector, selection)
    family, tuned = local_checkpoint(aligned, fetch), local_checkpoint(target, fetch, family=aligned)
    safety, tasks = read_prompts(prompts / "safety.jsonl"), read_prompts(task)
    with one_thread():
        shots = {split: _shots(params, family, tuned, safety, tasks, split) for split in SPLITS}
        model = load_model(tuned.root, adapters=tuned.adapters, device=device())
        before = measure(model, shots["validation"])
        fitted = _fit(params, model, usable, shots, before)
    inputs: dict[str, Path | str] = {"aligned": aligned, "target": target, "vector": vector, "selection": selection}
    inputs |= {"safety.jsonl": safety.digest, "task": tasks.digest}
    with write_artefact(out, stage="calibrate", params=params.model_dump(mode="json"), inputs=inputs) as draft:
        patch = {name: usable[name].scaled(alpha) for name, alpha in fitted.alphas.items()}
        record = read_record(target)
        base = str(read_record(aligned)["source"] if tuned.adapters else record["source"])
        own = open_adapter(tuned.adapters[0]) if tuned.adapters else None
        facts = write_adapter(patch, base_model=base, out=draft.path, own=own)
        repaired = any(fitted.alphas.values())
        share = facts["extra_parameters"] / record["parameters"] if repaired else 0.0
        draft.facts.update(facts | {"extra_params": share, "trained": len(set(fitted.alphas.values()))})
        draft.facts.update(repaired=repaired, steps=fitted.steps, before=_plain(before))
        payload = {
            "alphas": dict(fitted.alphas),
            "repaired": repaired,
            "objective": [list(point) for point in fitted.history],
            "shots": {split: [shot.id for shot in some] for split, some in shots.items()},
            "seed": params.seed,
            "extra_params": share,
        }
        (draft.path / "coefficients.json").write_bytes(canonical_json(payload) + b"\n")
        (draft.path / "coefficients.csv").write_text(_table(fitted.alphas), encoding="utf-8")
        lineage = {name: at if isinstance(at, str) else read_manifest(at).digest for name, at in inputs.items()}
        card = model_card(target=out.parent.name, base_model=base, adapter=facts, lineage=lineage)
        (draft.path / "README.md").write_text(card, encoding="utf-8")
    return draft.done


def selected(vector: Path, selection: Path) -> Patch:
    """The vector's factors in the layers kept.

    Raises:
        CheckpointError: there are none.
    """
    read_manifest(selection, stage="select")
    path = selection / "selection.json"
    kept = set(strict_json(path.read_bytes(), where=str(path))["kept"])
    usable = {name: one for name, one in read_vector(vector).factors.items() if layer_of(name) in kept}
    if not usable:
        raise CheckpointError(f"expected factors in the layers kept {sorted(kept)}, got none, in {vector}")
    return usable


def _shots(
    params: CalibrateParams, family: Model, tuned: Model, safety: PromptSet, tasks: PromptSet, split: Split
) -> list[Shot]:
    """Shots of one split: safety by the aligned model, benign and task by the target as it came."""
    tokenizer, tokens = load_tokenizer(family.root), params.response_tokens
    harmful = [
        *spread(safety.where(kind="harmful", split=split), (params.safety_shots + 1) // 2),
        *spread(safety.where(kind="wrapped", split=split, required=False), params.safety_shots // 2),
    ]
    plain = [
        *spread(safety.where(kind="lookalike", split=split, required=False), params.benign_shots * 2 // 3),
        *spread(safety.where(kind="generic", split=split, required=False), params.benign_shots // 3),
    ]
    own = spread(tasks.where(split=split), params.task_shots)
    teacher = load_model(family.root, device=device())
    shots = teach(teacher, tokenizer, harmful, kind="safety", response_tokens=tokens)
    del teacher
    target = load_model(tuned.root, adapters=tuned.adapters, device=device())
    shots += teach(target, tokenizer, plain, kind="benign", response_tokens=tokens)
    return shots + teach(target, tokenizer, own, kind="task", response_tokens=tokens)


def _fit(
    params: CalibrateParams, model: Any, usable: Patch, shots: Mapping[Split, Sequence[Shot]], before: Measure
) -> Fitted:
    if before.changed["safety"] <= UNCHANGED:
        log.info("the target answers safety prompts as the aligned model does: nothing to repair")
        return Fitted(dict.fromkeys(usable, 0.0), 0, ())
    weights = {"safety": params.safety_weight, "benign": params.benign_weight, "task": params.task_weight}
    fitted = fit(
        model,
        usable,
        groups(list(usable), params.granularity, layer_of),
        shots["fit"],
        shots["validation"],
        weights=weights,
        start=params.start,
        steps=params.steps,
        batch_size=params.batch_size,
        learning_rate=params.learning_rate,
        measure_every=params.measure_every,
        seed=params.seed,
        on_measure=lambda step, found: log.info("step %d of %d: %s", step, params.steps, _plain(found)),
    )
    return fitted


def _plain(found: Measure) -> dict[str, dict[str, float]]:
    return {
        "loss": {kind: round(value, 4) for kind, value in found.loss.items()},
        "changed": {kind: round(value, 4) for kind, value in found.changed.items()},
    }


def _table(alphas: Mapping[str, float]) -> str:
    rows = [f"{name},{layer_of(name)},{alpha}" for name, alpha in alphas.items()]
    return "\n".join(["matrix,layer,alpha", *rows]) + "\n"
