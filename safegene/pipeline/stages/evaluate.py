"""Stage ``evaluate``: every reply of the target before and after repair, of the aligned and the live model, judged.

The plan (which prompts, which weights, which judge, which policy) is fixed before the first reply and kept beside the
judgements, so that the gate can refuse judgements of anything else. A reply is kept in a journal under everything that
influences it: the content of weights, adapters, tokenizer and chat template, the decoding, the engine, and the prompts
of its batch. So a killed run goes on with the next batch, the aligned model answers once for all targets, and another
checkpoint under the same name never answers for this one.

Prompts are asked in blocks, in the order that the policy fixes, until the verdict on the replies so far is clear: a
harmless candidate and a very harmful one need few. The gate finds the same verdict again from what is written. Where
there is an adjudicator, it judges the candidate's and the reference's replies where the first judge sees a difference,
and a share of the others. Judges first face replies whose labels are known (`judges.canaries`), and the
candidate answers the first block twice, in other batches: what changes is the noise that any difference stands in.
Plain refusals of direct prompts are ended early, while an audit of replies finished in full holds; see
`safegene.evaluation.early_stop`.
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safegene.checkpoints.record import read_record
from safegene.checkpoints.sources import local_checkpoint
from safegene.datasets.contamination import normalised
from safegene.datasets.prompts import Prompt, read_prompts
from safegene.datasets.receipt import validated_receipt
from safegene.errors import ArtifactError, FormatError, JudgeError, StaleArtifact
from safegene.evaluation.early_stop import audit_stopping
from safegene.evaluation.engines import Engine, EvaluatedModel
from safegene.evaluation.judges.calibration import log_cost
from safegene.evaluation.judges.canaries import check_canaries
from safegene.evaluation.judging import CalibratedJudge, judgement_of
from safegene.evaluation.refusals import refusal_stop
from safegene.gate import Arm, Plan, PlannedPrompt, decide
from safegene.gate.adjudication import replies_to_adjudicate
from safegene.gate.decision import policy_digest
from safegene.gate.ordering import next_block, policy_order
from safegene.gate.pairs import index_judgements
from safegene.ledger.incumbent import open_incumbent, read_incumbent
from safegene.models.generation import STOPPED_KINDS
from safegene.workspace.digest import canonical_json, digest_bytes, digest_files
from safegene.workspace.manifest import Manifest, read_manifest, write_artefact
from safegene.workspace.params import EvaluateParams, FetchParams, GateParams

log = logging.getLogger(__name__)
ADAPTER = ("adapter_config.json", "adapter_model.safetensors")


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
) -> Manifest:
    """Ask every model every prompt of ``prompts/gate.jsonl`` and of the task's test split, and judge the replies.

    Args:
        aligned: artefact of the family's aligned checkpoint.
        target: artefact of the fine-tune.
        candidate: artefact with the repair as a PEFT adapter.
        validation: artefact of stage ``validate``, whose receipt must be of these very sets.
        prompts: folder with ``gate.jsonl``.
        task: the target's task set.
        out: folder of the artefact to write.
        params: judge and decoding.
        gate: the policy, by default the section's; its digest is fixed in the plan.
        incumbent: ``incumbent.json``: what was live when it was pinned, if anything.
        limits: where a checkpoint must be fetched again.
        dtype: of the models; ``auto`` is float32 on a CPU and bfloat16 on a GPU.

    Raises:
        StaleArtifact: the candidate was made from another target or another aligned model, or a set was not validated.
        JudgeError: the judge is missing or its calibration is another's.
        EmptySample: a set has no test prompt.

    Example:
        >>> manifest = safegene.evaluate(
        ...     aligned=ws.aligned,
        ...     target=ws.checkpoint("sentiment"),
        ...     candidate=ws.candidate("sentiment"),
        ...     validation=ws.validation,
        ...     prompts=ws.prompts,
        ...     task=ws.tasks / "sentiment.jsonl",
        ...     out=ws.judgements("sentiment"),
        ...     params=safegene.EvaluateParams(judge=judge, max_new_tokens=48),
        ... )
        >>> manifest.facts["unscored"]
        0
    """
    gate = gate or GateParams()
    first, second = _instruments(params)
    suites = {"gate": read_prompts(prompts / "gate.jsonl"), "task": read_prompts(task)}
    receipt = validated_receipt(validation, {"gate": suites["gate"].digest, f"task-{task.stem}": suites["task"].digest})
    asked = {"gate": suites["gate"].where(split="test"), "task": suites["task"].where(kind="task", split="test")}
    arms = _arms(aligned, target, candidate, incumbent, limits)
    policy = policy_digest(gate)
    plan = Plan(
        prompts=policy_order((_planned(row) for rows in asked.values() for row in rows), policy),
        models={**{arm: one.digest for arm, one in arms.items()}, "repeat": arms["candidate"].digest},
        judge=first.judge.identity,
        calibration=first.calibration,
        policy=policy,
        suites={name: one.digest for name, one in suites.items()},
        decoding=_decoding(params, dtype, policy),
        adjudicator=second.judge.identity if second else "",
        adjudication=second.calibration if second else None,
        canaries=_canaries(first, second),
        attempt=read_incumbent(incumbent).attempt,
    )
    _require_distinct(plan, prompts, task)
    known = {row.id: row for rows in asked.values() for row in rows}
    ask = EvaluationRun(arms, plan, gate, Engine(dtype, params.server), first, second)
    rows = _run_sequential(ask, known, gate)
    inputs: dict[str, Path | str] = {"prompts": plan.suites["gate"], "task": plan.suites["task"]}
    inputs |= {"aligned": aligned, "target": target, "candidate": candidate, "validation": receipt}
    inputs |= {"incumbent": incumbent} if incumbent and incumbent.is_file() else {}
    inputs |= _calibrations(params)
    chosen = params.model_dump(mode="json") | {"gate": gate.model_dump(mode="json"), "dtype": dtype}
    return _write(out, plan, rows, params=chosen, inputs=inputs)


def _instruments(params: EvaluateParams) -> tuple[CalibratedJudge, CalibratedJudge | None]:
    first = CalibratedJudge.of(params.judge)
    second = CalibratedJudge.of(params.adjudicator) if params.adjudicator else None
    if second and second.judge.identity == first.judge.identity:
        raise JudgeError("expected an adjudicator that is another judge, got the judge itself, in evaluate.adjudicator")
    return first, second


def _canaries(*instruments: CalibratedJudge | None) -> tuple[str, ...]:
    """What the judges got wrong of the replies whose labels are known."""
    judges = [one.judge for one in instruments if one]
    return tuple(f"{judge.identity[:19]}: {said}" for judge in judges for said in check_canaries(judge))


def _calibrations(params: EvaluateParams) -> dict[str, Path]:
    """The judges' measured errors, as inputs of the artefact."""
    second = params.adjudicator.calibration if params.adjudicator else None
    named = {"calibration": params.judge.calibration, "adjudication": second}
    return {name: path for name, path in named.items() if path}


@dataclass
class EvaluationRun:
    """The models that answer, and the judges of their replies."""

    arms: Mapping[Arm, EvaluatedModel]
    plan: Plan
    gate: GateParams
    engine: Engine
    first: CalibratedJudge
    second: CalibratedJudge | None
    in_full: set[Arm] = field(default_factory=set)

    def rows(self, block: Sequence[Prompt], *, twice: bool) -> list[dict[str, Any]]:
        """Rows of ``judgements.jsonl`` for some prompts, a model after the other, the candidate ``twice`` if wished."""
        arms: list[Arm] = []
        for arm in self.arms:
            arms += ["candidate", "repeat"] if twice and arm == "candidate" else [arm]
        return [
            row
            for arm in arms
            for kind in sorted({row.kind for row in block})
            for row in self._judged(arm, [one for one in block if one.kind == kind])
        ]

    def finished(self, rows: Sequence[dict[str, Any]], known: Mapping[str, Prompt]) -> list[dict[str, Any]]:
        """The rows, stopped replies finished where stopping cannot be relied on.

        These are all of a model whose audit does not hold, then and from then on, and those in which the judge sees no
        refusal.
        """
        rule, done = self.plan.decoding["stop"], list(rows)
        for arm in sorted({row["model"] for row in rows}) if rule else ():
            done = self._whole(done, arm, known, only="unscored")  # first, since the audit reads them too
            found = audit_stopping(row for row in done if row["model"] == arm)
            if not found.holds(rule["limit"]):
                log.warning("%s: %s: every reply of it is finished in full", arm, found)
                self.in_full.add(arm)
                done = self._whole(done, arm, known)
        return done

    def _whole(
        self, rows: Sequence[dict[str, Any]], arm: Arm, known: Mapping[str, Prompt], only: str = ""
    ) -> list[dict[str, Any]]:
        """The rows, the arm's stopped replies finished: all, or those labelled ``only``."""
        stopped = [row for row in rows if row["model"] == arm and row["stopped"] and only in ("", row["harmful"])]
        ended = {row["prompt"] for row in stopped}
        kept = [row for row in rows if row["model"] != arm or row["prompt"] not in ended]
        return kept + (self._judged(arm, [known[row["prompt"]] for row in stopped], whole=True) if stopped else [])

    def judge_again(self, rows: Sequence[dict[str, Any]]) -> None:
        """Put the adjudicator's label beside the first where it is due and not there yet."""
        if self.second is None:
            return
        wanted = set(replies_to_adjudicate(self.plan, self.gate, index_judgements(map(judgement_of, rows))))
        self.second.judge_again(
            [row for row in rows if row["again"] is None and (row["prompt"], row["model"]) in wanted]
        )

    def _judged(self, arm: Arm, some: Sequence[Prompt], *, whole: bool = False) -> list[dict[str, Any]]:
        decoding = dict(self.plan.decoding)
        if whole or arm in self.in_full or some[0].kind not in STOPPED_KINDS:
            decoding["stop"] = None
        if arm == "repeat":  # other batches of the same
            decoding["batch_size"] = max(1, min(decoding["batch_size"], len(some)) // 2)
        who: Arm = "candidate" if arm == "repeat" else arm
        replies = self.engine.replies(who, self.arms[who], some, decoding)
        return self.first.rows(arm, self.arms[who].digest, some, replies)


def _run_sequential(ask: EvaluationRun, known: Mapping[str, Prompt], gate: GateParams) -> list[dict[str, Any]]:
    """Ask block after block until the verdict is clear or every prompt was asked."""
    rows: list[dict[str, Any]] = []
    done: list[str] = []
    verdict = None
    while block := next_block(ask.plan, gate, done, verdict):
        rows += ask.rows([known[one.id] for one in block], twice=not done)
        rows = ask.finished(rows, known)
        ask.judge_again(rows)
        done += [one.id for one in block]
        verdict = decide([judgement_of(row) for row in rows], ask.plan, gate)
        log.info("%d of %d prompts asked: %s so far", len(done), len(ask.plan.prompts), verdict.outcome)
    for name, instrument in (("judge", ask.first), ("adjudicator", ask.second)):
        if instrument is not None:
            log_cost(name, instrument.judge)
    return rows


def _write(
    out: Path, plan: Plan, rows: Sequence[dict[str, Any]], *, params: dict[str, Any], inputs: dict[str, Path | str]
) -> Manifest:
    with write_artefact(out, stage="evaluate", params=params, inputs=inputs) as draft:
        (draft.path / "plan.json").write_bytes(canonical_json(plan.to_json()) + b"\n")
        lines = b"".join(canonical_json(row) + b"\n" for row in rows)
        (draft.path / "judgements.jsonl").write_bytes(lines)
        unscored = sum(row["kind"] != "task" and row["harmful"] == "unscored" for row in rows)
        asked = len({row["prompt"] for row in rows})
        draft.facts["stopping"] = _stopping(plan, rows)
        draft.facts.update(
            prompts=asked, planned=len(plan.prompts), models=sorted(plan.models), replies=len(rows), unscored=unscored
        )
    return draft.done


def _stopping(plan: Plan, rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Model -> what the audit of its stopped replies found; empty where none may be stopped."""
    found = {arm: audit_stopping(row for row in rows if row["model"] == arm) for arm in sorted(plan.models)}
    return {arm: one.to_json() for arm, one in found.items()} if plan.decoding["stop"] else {}


def _arms(
    aligned: Path, target: Path, candidate: Path, incumbent: Path | None, fetch: FetchParams | None
) -> dict[Arm, EvaluatedModel]:
    """Every model that answers. The candidate's adapter loads on the full checkpoint under the target."""
    _require_made_from(candidate, target=target, aligned=aligned)
    family = _contender(aligned, None, fetch)
    before = _contender(target, aligned, fetch)
    arms: dict[Arm, EvaluatedModel] = {"before": before, "candidate": _adapted(before, candidate), "aligned": family}
    release = open_incumbent(read_incumbent(incumbent), incumbent.resolve().parents[3]) if incumbent else None
    if release is not None:
        old = _contender(release / "target", release / "aligned", fetch)
        arms["incumbent"] = _adapted(old, release / "candidate")
    return arms


def _contender(artefact: Path, family: Path | None, fetch: FetchParams | None) -> EvaluatedModel:
    record = read_record(artefact)
    model = local_checkpoint(artefact, fetch, family=family)
    contents = (record.digest,) if record.base is None else (record.base, record.digest)
    return EvaluatedModel(model.root, model.adapters, contents)


def _adapted(before: EvaluatedModel, candidate: Path) -> EvaluatedModel:
    read_manifest(candidate)
    if not all((candidate / name).is_file() for name in ADAPTER):
        raise ArtifactError(f"expected {' and '.join(ADAPTER)}, got no such files, in {candidate}")
    return EvaluatedModel(before.root, (candidate,), (before.contents[0], digest_files(candidate, ADAPTER)))


def _require_made_from(candidate: Path, **artefacts: Path) -> None:
    made = read_manifest(candidate).inputs
    for name, at in artefacts.items():
        now = read_manifest(at).digest
        if made.get(name) != now:
            raise StaleArtifact(
                f"expected a candidate made from the {name} {now}, got one from {made.get(name)}, in {candidate}",
                remedy="run `safegene run`, which calibrates again",
            )


def _decoding(params: EvaluateParams, dtype: str, policy: str) -> dict[str, Any]:
    early = params.early_stop and params.server is None
    rule = refusal_stop(after=params.stop_after_tokens).to_json() if early else None
    lot = {"share": params.audit_share, "limit": params.audit_limit, "policy": policy}
    limits = {"max_new_tokens": params.max_new_tokens, "batch_size": params.batch_size}
    return {"greedy": True, **limits, "stop": rule and rule | lot, "engine": Engine(dtype, params.server).to_json()}


def _planned(row: Prompt) -> PlannedPrompt:
    text = digest_bytes(normalised(row.prompt).encode())
    return PlannedPrompt(row.id, row.kind, row.category, row.behaviour, text)


def _require_distinct(plan: Plan, prompts: Path, task: Path) -> None:
    counts = Counter(prompt.id for prompt in plan.prompts)
    if twice := sorted(name for name, count in counts.items() if count > 1):
        raise FormatError(f"expected ids that differ between both sets, got {twice[:3]} in both, in {prompts}, {task}")
