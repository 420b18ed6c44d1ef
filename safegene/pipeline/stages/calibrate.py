"""Stage ``calibrate``: the coefficients of one target, and its repair as a PEFT adapter.

Only coefficients between the safety vector's fixed factors are fitted, on the selected layers (SafeGene, arXiv
2606.06519); see `safegene.repair`. Shots come from the fit split; the validation split chooses among the values met on
the way, the unrepaired target included. So a target that already answers safety prompts as the aligned model does, or
that no coefficients improve, is left as it is, and the artefact says so.

With ``calibrate.baseline`` a rival method (`safegene.repair.baselines`) makes the repair instead, from the same shots;
its repair is gated, exported and recorded like ours.
"""

from pathlib import Path

from safegene.checkpoints.adapter import open_adapter
from safegene.checkpoints.checkpoint import open_checkpoint
from safegene.checkpoints.export.adapter import write_adapter
from safegene.checkpoints.export.card import model_card
from safegene.checkpoints.record import CheckpointRecord, read_record
from safegene.checkpoints.sources import ModelFiles, local_checkpoint
from safegene.datasets.prompts import read_prompts
from safegene.errors import StaleArtifact
from safegene.models.device import default_device, threads_for
from safegene.models.loading import load_model
from safegene.repair.baselines.base import case_of, mean_change
from safegene.repair.coefficients import zero_change
from safegene.repair.coefficients_file import CoefficientsFile, coefficients_file, direction_table
from safegene.repair.diagnosis.diagnose import diagnose
from safegene.repair.selection import selected_matrices
from safegene.repair.shots import Shots, build_shots
from safegene.repair.target import RepairResult, fit_target, run_baseline
from safegene.vectors.linalg import Patch
from safegene.vectors.vector import SafetyVector, read_surrogates, read_vector
from safegene.workspace.manifest import Manifest, read_manifest, write_artefact
from safegene.workspace.params import CalibrateParams, FetchParams


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
        ...     aligned=ws.aligned, target=ws.checkpoint("sentiment"), vector=ws.vector, selection=ws.selection,
        ...     degraded=ws.degraded, prompts=ws.prompts, task=ws.tasks / "sentiment.jsonl",
        ...     out=ws.candidate("sentiment"),
        ... )
        >>> manifest.facts["repaired"], manifest.facts["extra_params"] < 0.01
        (True, True)
    """
    params = params or CalibrateParams()
    family, record = read_record(aligned), read_record(target)
    held = _vector_of(vector, family)
    factors = selected_matrices(held, selection)
    safety, tasks = read_prompts(prompts / "safety.jsonl"), read_prompts(task)
    root, tuned = local_checkpoint(aligned, limits).root, local_checkpoint(target, limits, family=aligned)
    inputs: dict[str, Path | str] = {"aligned": aligned, "target": target, "vector": vector, "selection": selection}
    inputs |= {"safety.jsonl": safety.digest, "task": tasks.digest}
    inputs |= {} if params.baseline is None else {"degraded": degraded}
    with threads_for(open_checkpoint(root).parameters):
        shots = build_shots(params, root, tuned, safety, tasks)
        whole = None if params.baseline is None else mean_change(read_surrogates(degraded)) or held.factors
        result = _repair(params, root, tuned, shots, factors, whole, record)
    base = (family if tuned.adapters else record).source
    adapter = open_adapter(tuned.adapters[0]) if tuned.adapters else None
    with write_artefact(out, stage="calibrate", params=params.model_dump(mode="json"), inputs=inputs) as draft:
        patch = result.fitted.patch if result.fitted else zero_change(factors)
        facts = write_adapter(patch, base_model=base, out=draft.path, own=adapter)
        content = coefficients_file(params, result, shots, patch, facts["extra_parameters"] / record.parameters)
        found = diagnose(content, shots, held, patch, root=root, target=tuned, records=(family, record))
        content = content.model_copy(update={"diagnosis": found})
        _describe(draft.path, content, result, patch)
        lineage = {name: at if isinstance(at, str) else read_manifest(at).digest for name, at in inputs.items()}
        card = model_card(target=out.parent.name, base_model=base, adapter=facts, lineage=lineage)
        (draft.path / "README.md").write_text(card, encoding="utf-8")
        draft.facts.update(facts, **content.model_dump(include={"extra_params", "repaired", "reason", "trained"}))
    return draft.done


def _vector_of(vector: Path, family: CheckpointRecord) -> SafetyVector:
    held = read_vector(vector)
    if held.aligned != family.digest:
        raise StaleArtifact(
            f"expected a vector of the aligned model {family.digest}, got one of {held.aligned}, in {vector}",
            remedy="run `safegene run`: the vector is made again for this aligned model",
        )
    return held


def _describe(folder: Path, content: CoefficientsFile, result: RepairResult, patch: Patch) -> None:
    """Write ``coefficients.json`` and, for plots, ``coefficients.csv``."""
    (folder / "coefficients.json").write_bytes(content.content)
    sizes = result.fitted.direction_sizes if result.fitted else {name: (0.0,) for name in patch}
    (folder / "coefficients.csv").write_text(direction_table(sizes), encoding="utf-8")


def _repair(
    params: CalibrateParams,
    root: Path,
    tuned: ModelFiles,
    shots: Shots,
    factors: Patch,
    whole: Patch | None,
    record: CheckpointRecord,
) -> RepairResult:
    """Ours, from the vector's ``factors`` in the selected layers; or a baseline's, from the ``whole`` discrepancy."""
    model = load_model(tuned.root, adapters=tuned.adapters, device=default_device())
    if whole is None:
        return fit_target(params, model, params.max_extra * record.parameters, factors, shots)
    return run_baseline(params, case_of(params, root, model, whole, shots))
