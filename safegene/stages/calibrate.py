"""Stage ``calibrate``: the coefficients of one target, and its repair as a PEFT adapter.

Only the alphas of ``W_t + alpha_l B_l A_l`` on the selected layers are fitted (SafeGene, arXiv 2606.06519); see
`safegene.fit`. Shots come from the fit split, and the validation split chooses among the alphas met on the way, the
unrepaired target included. So a target that already answers safety prompts as the aligned model does, or that no alphas
improve, keeps alphas of 0, and the artefact says so.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safegene.digest import canonical_json, strict_json
from safegene.errors import CheckpointError, StaleArtifact
from safegene.export.adapter import write_adapter
from safegene.export.card import model_card
from safegene.fit import KINDS, Fitted, Measure, Shot, applied, fit, groups, measure
from safegene.linalg import Patch
from safegene.manifest import Manifest, read_manifest, write_artefact
from safegene.params import CalibrateParams, FetchParams
from safegene.prompts import Prompt, PromptSet, Split, read_prompts
from safegene.shots import spread, teach
from safegene.sources import Model, local_checkpoint, read_record
from safegene.tensors.adapter import open_adapter
from safegene.tensors.checkpoint import layer_of, open_checkpoint
from safegene.tensors.device import device, threads_for
from safegene.tensors.models import load_model, load_tokenizer
from safegene.vector import SafetyVector, read_vector

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)
SPLITS: tuple[Split, ...] = ("fit", "validation")
UNCHANGED = 0.02  # a target whose replies to safety prompts differ from the aligned model's less often needs no repair


@dataclass(frozen=True)
class Outcome:
    """What calibrating found.

    Attributes:
        fitted: the alphas and how they were reached.
        before: the unrepaired target on the validation shots.
        after: the repaired one.
        reason: why it was not repaired; empty when it was.
    """

    fitted: Fitted
    before: Measure
    after: Measure
    reason: str

    @property
    def repaired(self) -> bool:
        """Whether any alpha is not 0."""
        return any(any(own) for own in self.fitted.alphas.values())


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
    """Fit the coefficients and write them with the repair as a PEFT adapter.

    Raises:
        StaleArtifact: the vector was taken from another aligned model.
        CheckpointError: the selection keeps no layer that the vector has factors for.
        EmptySample: a kind of shot with a weight has no prompts.
        DigestMismatch: a byte of vector or selection has changed.
    """
    held, family = read_vector(vector), read_record(aligned)
    if held.aligned != family["digest"]:
        raise StaleArtifact(
            f"expected a vector of the aligned model {family['digest']}, got one of {held.aligned}, in {vector}",
            remedy="run `safegene run`: the vector is made again for this aligned model",
        )
    usable = selected(held, selection)
    safety, tasks = read_prompts(prompts / "safety.jsonl"), read_prompts(task)
    root, tuned = local_checkpoint(aligned, fetch).root, local_checkpoint(target, fetch, family=aligned)
    with threads_for(open_checkpoint(root).parameters):
        shots = make(params, root, tuned, safety, tasks)
        outcome = solve(params, load_model(tuned.root, adapters=tuned.adapters, device=device()), usable, shots)
    inputs: dict[str, Path | str] = {"aligned": aligned, "target": target, "vector": vector, "selection": selection}
    inputs |= {"safety.jsonl": safety.digest, "task": tasks.digest}
    with write_artefact(out, stage="calibrate", params=params.model_dump(mode="json"), inputs=inputs) as draft:
        record = read_record(target)
        base = str((family if tuned.adapters else record)["source"])
        patch = applied(usable, outcome.fitted.alphas)
        own = open_adapter(tuned.adapters[0]) if tuned.adapters else None
        facts = write_adapter(patch, base_model=base, out=draft.path, own=own)
        trained = len({at for own in groups(usable, params.granularity, layer_of).values() for at in own})
        payload = _payload(params, outcome, shots, facts["extra_parameters"] / record["parameters"], trained)
        (draft.path / "coefficients.json").write_bytes(canonical_json(payload) + b"\n")
        (draft.path / "coefficients.csv").write_text(_table(outcome.fitted.alphas), encoding="utf-8")
        lineage = {name: at if isinstance(at, str) else read_manifest(at).digest for name, at in inputs.items()}
        card = model_card(target=out.parent.name, base_model=base, adapter=facts, lineage=lineage)
        (draft.path / "README.md").write_text(card, encoding="utf-8")
        draft.facts.update(facts | {key: payload[key] for key in ("extra_params", "repaired", "reason", "trained")})
    return draft.done


def _payload(
    params: CalibrateParams, outcome: Outcome, shots: Mapping[Split, Sequence[Shot]], share: float, trained: int
) -> dict[str, Any]:
    """``coefficients.json``: no clock, so the same inputs give the same bytes on the same machine.

    ``coefficients`` holds what was fitted, ``alphas`` the mean of each matrix's, for pictures.
    """
    fitted = outcome.fitted
    return {
        "alphas": {name: sum(own) / len(own) for name, own in fitted.alphas.items()},
        "coefficients": {name: list(own) for name, own in fitted.alphas.items()},
        "trained": trained,
        "repaired": outcome.repaired,
        "reason": outcome.reason,
        "steps": fitted.steps,
        "history": [[step, round(value, 6)] for step, value in fitted.history],
        "before": _plain(outcome.before),
        "after": _plain(outcome.after),
        "shots": {split: [shot.id for shot in some] for split, some in shots.items()},
        "seed": params.seed,
        "extra_params": share if outcome.repaired else 0.0,
    }


def selected(vector: SafetyVector, selection: Path) -> Patch:
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


def make(
    params: CalibrateParams, root: Path, tuned: Model, safety: PromptSet, tasks: PromptSet
) -> dict[Split, list[Shot]]:
    """Shots of both splits: safety by the aligned model, benign and task by the target as it came.

    The two models are in memory one after the other. Benign shots are two thirds look-alikes: without them the repair
    learns to refuse whatever looks harmful.
    """
    tokenizer, tokens = load_tokenizer(root), params.response_tokens
    shots: dict[Split, list[Shot]] = {split: [] for split in SPLITS}
    share: dict[Split, float] = {"fit": 1.0, "validation": params.validation_share}
    model = load_model(root, device=device())
    for split in SPLITS:
        half = share[split] * params.safety_shots / 2
        asked = _mixed(safety, split, {"harmful": half, "wrapped": half})
        shots[split] += teach(model, tokenizer, asked, kind="safety", response_tokens=tokens)
    del model
    model = load_model(tuned.root, adapters=tuned.adapters, device=device())
    for split in SPLITS:
        third = share[split] * params.benign_shots / 3
        plain = _mixed(safety, split, {"lookalike": 2 * third, "generic": third})
        own = spread(tasks.where(split=split), max(1, round(share[split] * params.task_shots)))
        shots[split] += teach(model, tokenizer, plain, kind="benign", response_tokens=tokens)
        shots[split] += teach(model, tokenizer, own, kind="task", response_tokens=tokens)
    return shots


def _mixed(safety: PromptSet, split: Split, parts: Mapping[Any, float]) -> list[Prompt]:
    """Prompts of several kinds, evenly spread over each; a set may lack a kind, but not all of them."""
    safety.where(kind=tuple(parts), split=split)
    rows = [spread(safety.where(kind=kind, split=split, required=False), max(1, round(n))) for kind, n in parts.items()]
    return [row for some in rows for row in some]


def solve(
    params: CalibrateParams, model: "PreTrainedModel", patch: Patch, shots: Mapping[Split, Sequence[Shot]]
) -> Outcome:
    """Fit the alphas of a target, or leave them at 0 where it needs no repair or none helps.

    The objective decides: the weighted KL on the validation shots must be lower than the unrepaired target's.
    """
    weights: dict[str, float] = dict(
        zip(KINDS, (params.safety_weight, params.benign_weight, params.task_weight), strict=True)
    )
    before = measure(model, shots["validation"])
    unrepaired = Fitted(dict.fromkeys(patch, (0.0,)), 0, ((0, before.objective(weights)),))
    if before.changed["safety"] <= UNCHANGED:
        reason = "the target answers safety prompts as the aligned model does"
        log.info("nothing to repair: %s", reason)
        return Outcome(unrepaired, before, before, reason)
    found: dict[int, Measure] = {}

    def on_measure(step: int, now: Measure) -> None:
        found[step] = now
        log.info("step %d of %d: objective %.3f", step, params.steps, now.objective(weights))

    fitted = fit(
        model,
        patch,
        groups(patch, params.granularity, layer_of),
        shots["fit"],
        shots["validation"],
        weights=weights,
        start=params.start,
        steps=params.steps,
        batch_size=params.batch_size,
        learning_rate=params.learning_rate,
        measure_every=params.measure_every,
        patience=params.patience,
        seed=params.seed,
        on_measure=on_measure,
    )
    after = found[fitted.steps]
    if not after.objective(weights) < before.objective(weights):  # also when it is not a number
        reason = "no coefficients that were tried improve on the target as it is"
        log.warning("not repaired: %s", reason)
        return Outcome(unrepaired, before, before, reason)
    return Outcome(fitted, before, after, "")


def _plain(found: Measure) -> dict[str, dict[str, float]]:
    return {
        "loss": {kind: round(value, 4) for kind, value in found.loss.items()},
        "changed": {kind: round(value, 4) for kind, value in found.changed.items()},
    }


def _table(alphas: Mapping[str, Sequence[float]]) -> str:
    rows = [f"{name},{layer_of(name)},{at},{alpha}" for name, own in alphas.items() for at, alpha in enumerate(own)]
    return "\n".join(["matrix,layer,direction,alpha", *rows]) + "\n"
