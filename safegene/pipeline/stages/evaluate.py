"""Stage ``evaluate``: all models answer the gate's prompts, and a judge labels the replies.

The models are the target before and after repair, the aligned model and the live model, loaded as their users load them
(`safegene.evaluation.shared_bases`). The plan (prompts, weights, judge, policy) is fixed before the first reply and
written with the judgements, so that the gate can refuse judgements of anything else. Replies are cached under
everything that they depend on: the content of weights, adapters, tokenizer and chat template, the decoding, the engine,
and the prompts of the batch. So a killed run continues with the next batch, the aligned model answers once for all
targets, and a checkpoint that changed under the same name answers anew.

Prompts are asked in blocks, in the policy's order, until the verdict on the replies is clear: a harmless candidate and
a very harmful one need few prompts. The gate recomputes the verdict from what is written. An adjudicator, where there
is one, labels the candidate's and the reference's replies where the first judge sees a difference, and a share of the
others. Before the run, the judges label canaries (`safegene.evaluation.judges.canaries`). The candidate answers the
first block twice, in other batches: changed labels estimate the noise floor. Plain refusals of direct prompts end
early while their audit holds (`safegene.evaluation.early_stop`).
"""

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safegene.checkpoints.chat_template import chat_files
from safegene.checkpoints.checkpoint import open_checkpoint
from safegene.checkpoints.dtypes import resolve_dtype
from safegene.checkpoints.export.adapter import CHANGE, read_change
from safegene.checkpoints.export.merge import merge
from safegene.checkpoints.record import read_record
from safegene.checkpoints.sources import local_checkpoint
from safegene.checkpoints.wanted import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from safegene.datasets.contamination import normalised
from safegene.datasets.prompts import Prompt, PromptSet, read_prompts
from safegene.datasets.receipt import validated_receipt
from safegene.errors import ArtifactError, FormatError, JudgeError
from safegene.evaluation.early_stop import EarlyStop, audit_stopping
from safegene.evaluation.engines import Decoding, Engine
from safegene.evaluation.judges import build
from safegene.evaluation.judges.canaries import check_canaries
from safegene.evaluation.judging import CalibratedJudge, JudgeBuilder
from safegene.evaluation.refusals import refusal_stop
from safegene.evaluation.run import EvaluationRun
from safegene.evaluation.shared_bases import EvaluatedModel
from safegene.gate import Arm, JudgementRow, Plan, PlannedPrompt
from safegene.gate.decision import policy_digest
from safegene.gate.floors import FLOORS
from safegene.gate.ordering import policy_order
from safegene.ledger.incumbent import open_incumbent, read_incumbent
from safegene.workspace.digest import PREFIX, canonical_json, digest_bytes, digest_files, digest_json, digest_tree
from safegene.workspace.layout import cache_folder
from safegene.workspace.manifest import Manifest, read_manifest, write_artefact
from safegene.workspace.params import EvaluateParams, FetchParams, GateParams
from safegene.workspace.resume_log import ResumeLog
from safegene.workspace.staleness import require_current

PROBES_OF_A_KIND = 2  # with which a server's weights are checked
ADAPTER = (ADAPTER_CONFIG, ADAPTER_WEIGHTS)


def evaluate(
    *,
    aligned: Path,
    target: Path,
    candidate: Path,
    validation: Path,
    prompts: Path,
    task: Path,
    out: Path,
    params: EvaluateParams,
    gate: GateParams | None = None,
    incumbent: Path | None = None,
    limits: FetchParams | None = None,
    dtype: str = "auto",
    engine: Engine | None = None,
    build_judge: JudgeBuilder = build,
) -> Manifest:
    """Ask every model every prompt of ``prompts/gate.jsonl`` and of the task's test split, and judge the replies.

    Args:
        aligned: artefact of the family's aligned checkpoint.
        target: artefact of the fine-tune.
        candidate: artefact with the repair as a PEFT adapter.
        validation: artefact of stage ``validate``; its receipt must be of these prompt sets.
        prompts: folder with ``gate.jsonl``.
        task: the target's task set.
        out: folder of the artefact to write.
        params: judge and decoding.
        gate: the policy, by default the section's; its digest is fixed in the plan.
        incumbent: ``incumbent.json``: what was live when it was pinned, if anything.
        limits: limits of a checkpoint that must be fetched again.
        dtype: of the models; ``auto`` is each model's as stored.
        engine: makes the replies; by default the weights on disk in ``dtype``, or ``params.server``.
        build_judge: makes a judge of its parameters; by default the judge of that kind.

    Raises:
        StaleArtifact: the candidate was made from another target or another aligned model, or a set was not validated.
        JudgeError: a judge cannot be built, or its calibration is of another judge.
        EmptySample: a set has no test prompt.

    Example:
        >>> manifest = safegene.evaluate(
        ...     aligned=ws.aligned, target=ws.checkpoint("sentiment"), candidate=ws.candidate("sentiment"),
        ...     validation=ws.validation, prompts=ws.prompts, task=ws.tasks / "sentiment.jsonl",
        ...     out=ws.judgements("sentiment"), params=safegene.EvaluateParams(judge=judge, max_new_tokens=48),
        ... )
        >>> manifest.facts["unscored"]
        0
    """
    gate = gate or GateParams()
    gate_set, task_set = read_prompts(prompts / "gate.jsonl"), read_prompts(task)
    receipt = validated_receipt(validation, {"gate": gate_set.digest, f"task-{task.stem}": task_set.digest})
    judges, models = _judges(params, build_judge), evaluated_models(aligned, target, candidate, incumbent, limits)
    engine = engine or Engine(_dtype(dtype, models), params.server)
    decoding = _decoding(params, engine, policy_digest(gate))
    plan, planned = _plan(gate_set, task_set, models, judges, gate, decoding, incumbent)
    engine.probes = _probes(plan, planned)
    rows = EvaluationRun(models, plan, planned, gate, decoding, engine, *judges).run()
    for model in models.values():
        if model.root.parent == _merged_folder():
            shutil.rmtree(model.root)
    inputs: dict[str, Path | str] = {"prompts": plan.suites["gate"], "task": plan.suites["task"], "validation": receipt}
    inputs |= {"aligned": aligned, "target": target, "candidate": candidate} | _optional_inputs(params, incumbent)
    chosen = params.model_dump(mode="json") | {"gate": gate.model_dump(mode="json"), "dtype": engine.dtype}
    return _write(out, plan, rows, params=chosen, inputs=inputs)


def _plan(
    gate_set: PromptSet,
    task_set: PromptSet,
    models: Mapping[Arm, EvaluatedModel],
    judges: tuple[CalibratedJudge, CalibratedJudge | None],
    gate: GateParams,
    decoding: Decoding,
    incumbent: Path | None,
) -> tuple[Plan, dict[str, Prompt]]:
    """The plan, and its prompts by id."""
    asked = [*gate_set.where(split="test"), *task_set.where(kind="task", split="test")]
    (judge, adjudicator), policy = judges, policy_digest(gate)
    plan = Plan(
        prompts=policy_order(map(_planned, asked), policy),
        models={**{arm: model.digest for arm, model in models.items()}, "repeat": models["candidate"].digest},
        judge=judge.judge.identity,
        calibration=judge.calibration,
        policy=policy,
        suites={"gate": gate_set.digest, "task": task_set.digest},
        decoding=decoding.to_json(),
        adjudicator=adjudicator.judge.identity if adjudicator else "",
        adjudication=adjudicator.calibration if adjudicator else None,
        canaries=_failed_canaries(judge, adjudicator),
        attempt=read_incumbent(incumbent).attempt,
        floors=FLOORS,
    )
    _require_distinct(plan, gate_set.path, task_set.path)
    return plan, {prompt.id: prompt for prompt in asked}


def _probes(plan: Plan, planned: Mapping[str, Prompt]) -> list[str]:
    """The first prompts of every kind in the plan's order."""
    kinds = sorted({prompt.kind for prompt in plan.prompts})
    first = {kind: [prompt.id for prompt in plan.prompts if prompt.kind == kind][:PROBES_OF_A_KIND] for kind in kinds}
    return [planned[name].prompt for kind in kinds for name in first[kind]]


def _dtype(setting: str, models: Mapping[Arm, EvaluatedModel]) -> str:
    """The dtype that the setting means for every model; ``auto`` where their stored dtypes differ."""
    found = {resolve_dtype(setting, open_checkpoint(model.root).specs.values()) for model in models.values()}
    return found.pop() if len(found) == 1 else setting


def _judges(params: EvaluateParams, build_judge: JudgeBuilder) -> tuple[CalibratedJudge, CalibratedJudge | None]:
    judge = CalibratedJudge.of(params.judge, build_judge)
    adjudicator = CalibratedJudge.of(params.adjudicator, build_judge) if params.adjudicator else None
    if adjudicator and adjudicator.judge.identity == judge.judge.identity:
        raise JudgeError("expected an adjudicator that is another judge, got the judge itself, in evaluate.adjudicator")
    return judge, adjudicator


def _failed_canaries(*calibrated: CalibratedJudge | None) -> tuple[str, ...]:
    judges = [one.judge for one in calibrated if one]
    return tuple(f"{judge.identity[:19]}: {failure}" for judge in judges for failure in check_canaries(judge))


def _optional_inputs(params: EvaluateParams, incumbent: Path | None) -> dict[str, Path]:
    """The calibration files that ``params`` names and that are there, and the incumbent where one was pinned."""
    adjudicator = params.adjudicator.calibration if params.adjudicator else None
    named = {"calibration": params.judge.calibration, "adjudication": adjudicator, "incumbent": incumbent}
    return {name: path for name, path in named.items() if path and path.is_file()}


def _write(
    out: Path, plan: Plan, rows: Sequence[JudgementRow], *, params: dict[str, Any], inputs: dict[str, Path | str]
) -> Manifest:
    with write_artefact(out, stage="evaluate", params=params, inputs=inputs) as draft:
        (draft.path / "plan.json").write_bytes(canonical_json(plan.to_json()) + b"\n")
        lines = b"".join(canonical_json(row.to_json()) + b"\n" for row in rows)
        (draft.path / "judgements.jsonl").write_bytes(lines)
        draft.facts["stopping"] = _stopping(plan, rows)
        draft.facts.update(
            prompts=len({row.prompt for row in rows}),
            planned=len(plan.prompts),
            models=sorted(plan.models),
            replies=len(rows),
            unscored=sum(row.kind != "task" and row.harmful == "unscored" for row in rows),
        )
    return draft.done


def _stopping(plan: Plan, rows: Sequence[JudgementRow]) -> dict[str, dict[str, Any]]:
    """Arm -> the audit of its stopped replies; empty where no reply may be stopped."""
    if not plan.decoding["stop"]:
        return {}
    return {arm: audit_stopping(row for row in rows if row.model == arm).to_json() for arm in sorted(plan.models)}


def evaluated_models(
    aligned: Path, target: Path, candidate: Path, incumbent: Path | None, limits: FetchParams | None
) -> dict[Arm, EvaluatedModel]:
    """Arm -> model. The candidate's adapter loads on the full checkpoint under the target."""
    current = {"target": read_manifest(target).digest, "aligned": read_manifest(aligned).digest}
    require_current("candidate", candidate, read_manifest(candidate), current, required=current)
    family = _evaluated(aligned, None, limits)
    before = _evaluated(target, aligned, limits)
    models: dict[Arm, EvaluatedModel] = {
        "before": before,
        "candidate": _repaired(before, candidate),
        "aligned": family,
    }
    release = open_incumbent(read_incumbent(incumbent), incumbent.resolve().parents[3]) if incumbent else None
    if release is not None:
        live = _evaluated(release / "target", release / "aligned", limits)
        models["incumbent"] = _repaired(live, release / "candidate")
    return models


def _evaluated(artefact: Path, family: Path | None, limits: FetchParams | None) -> EvaluatedModel:
    record = read_record(artefact)
    model = local_checkpoint(artefact, limits, family=family)
    contents = (record.digest,) if record.base is None else (record.base, record.digest)
    reader = local_checkpoint(family, limits).root if family else model.root
    return EvaluatedModel(model.root, model.adapters, contents, chat_files(model.root, model.adapters), reader)


def _repaired(before: EvaluatedModel, candidate: Path) -> EvaluatedModel:
    """The repair as a user serves it: the adapter on the base, or a merged checkpoint where PEFT cannot carry it."""
    manifest = read_manifest(candidate)
    brought = (before.chat.digest,) if before.chat and before.chat.digest else ()
    if not manifest.facts.get("adapter_loads", True):
        digest = digest_files(candidate, (CHANGE,))
        root = _merged_folder() / digest_json([before.contents[0], digest]).removeprefix(PREFIX)
        _merge_once(before, candidate, root)
        return EvaluatedModel(root, (), (before.contents[0], digest, *brought), before.chat, before.family)
    if not all((candidate / name).is_file() for name in ADAPTER):
        raise ArtifactError(f"expected {' and '.join(ADAPTER)}, got no such files, in {candidate}")
    contents = (before.contents[0], digest_files(candidate, ADAPTER), *brought)
    return EvaluatedModel(before.root, (candidate,), contents, before.chat, before.family)


def _merge_once(before: EvaluatedModel, candidate: Path, root: Path) -> None:
    """Merge, unless ``root`` holds what a killed run merged: its digest is then in a sealed note of the cache."""
    notes = ResumeLog(cache_folder() / "merges", {"merged": root.name})
    if root.is_dir() and digest_tree(root) not in notes.read():
        shutil.rmtree(root)
    if not root.is_dir():
        source = before.contents[0]
        merge(open_checkpoint(before.root), read_change(candidate), out=root, lossy=True, source=source)
        notes.append({digest_tree(root): True})


def _merged_folder() -> Path:
    return cache_folder() / "merged"


def _decoding(params: EvaluateParams, engine: Engine, policy: str) -> Decoding:
    rule = refusal_stop(after=params.stop_after_tokens) if params.early_stop and params.server is None else None
    stop = EarlyStop(rule, params.audit_share, params.audit_limit, policy) if rule else None
    return Decoding(params.max_new_tokens, params.batch_size, engine.to_json(), stop)


def _planned(prompt: Prompt) -> PlannedPrompt:
    text = digest_bytes(normalised(prompt.prompt).encode())
    return PlannedPrompt(prompt.id, prompt.kind, prompt.category, prompt.behaviour, text)


def _require_distinct(plan: Plan, prompts: Path, task: Path) -> None:
    counts = Counter(prompt.id for prompt in plan.prompts)
    if twice := sorted(name for name, count in counts.items() if count > 1):
        raise FormatError(f"expected ids that differ between both sets, got {twice[:3]} in both, in {prompts}, {task}")
