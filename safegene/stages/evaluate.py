"""Stage ``evaluate``: every reply of the target before and after repair, of the aligned and the live model, judged.

The plan (which prompts, which weights, which judge, which policy) is fixed before the first reply and kept beside the
judgements, so that the gate can refuse judgements of anything else. A reply is kept in a journal under everything that
influences it: the content of weights, adapters, tokenizer and chat template, the decoding, the engine, and the prompts
of its batch. So a killed run goes on with the next batch, the aligned model answers once for all targets, and another
checkpoint under the same name never answers for this one.

Prompts are asked in blocks, in the order that the policy fixes, until the verdict on the replies so far is clear: a
harmless candidate and a very harmful one need few. The gate finds the same verdict again from what is written.
Plain refusals of direct prompts are ended early, while an audit of replies finished in full holds; see
`safegene.stopping`. A model that breaks it has every reply finished.
"""

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safegene.digest import canonical_json, digest_bytes, digest_files, digest_json
from safegene.engines import beside, exact, load, served, suited
from safegene.errors import ArtifactError, FormatError, StaleArtifact
from safegene.generate import Reply, generate
from safegene.journal import Journal
from safegene.judges import Decision, Judge, build
from safegene.judges.calibration import calibration_of
from safegene.judges.markers import refusal_stop
from safegene.judges.replies import coherent, correct
from safegene.manifest import Manifest, read_manifest, write_artefact
from safegene.params import EvaluateParams, FetchParams, GateParams, ServerParams
from safegene.prompts import Prompt, normalised, read_prompts, validated
from safegene.registry import read_incumbent
from safegene.remote import Failed
from safegene.sources import local_checkpoint, read_record
from safegene.stopping import KINDS, audit, by_lot
from safegene.tensors.device import device, dtype_for
from safegene.verdict import Arm, Judgement, Plan, Planned, decide
from safegene.verdict.decision import policy_digest
from safegene.verdict.sequence import arranged, next_block
from safegene.workspace import cache_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)
ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
CHEAP = ("grammar", "phrases")  # judges whose decisions are quicker made than kept
JUDGED_AT_ONCE = 64

Loading = Callable[["Contender"], tuple["PreTrainedModel", "PreTrainedTokenizerBase"]]


@dataclass(frozen=True)
class Contender:
    """One model that answers: a full checkpoint, adapters to add, and the digests of their content, in that order."""

    root: Path
    adapters: tuple[Path, ...]
    contents: tuple[str, ...]

    @property
    def digest(self) -> str:
        """Digest of all that the model is: weights, tokenizer, chat template, adapters."""
        return digest_json(list(self.contents))


def evaluate(
    params: EvaluateParams,
    gate: GateParams,
    *,
    prompts: Path,
    task: Path,
    aligned: Path,
    target: Path,
    candidate: Path,
    validation: Path,
    out: Path,
    incumbent: Path | None = None,
    fetch: FetchParams | None = None,
    dtype: str = "auto",
) -> Manifest:
    """Ask every model every prompt of ``prompts/gate.jsonl`` and of the task's test split, and judge the replies.

    Args:
        params: judge and decoding.
        gate: the policy; its digest is fixed in the plan.
        prompts: folder with ``gate.jsonl``.
        task: the target's task set.
        aligned: artefact of the family's aligned checkpoint.
        target: artefact of the fine-tune.
        candidate: artefact with the repair as a PEFT adapter.
        validation: artefact of stage ``validate``, whose receipt must be of these very sets.
        out: the artefact to write.
        incumbent: ``incumbent.json``: what was live when it was pinned, if anything.
        fetch: limits, where a checkpoint must be fetched again.
        dtype: of the models; ``auto`` is float32 on a CPU and bfloat16 on a GPU.

    Raises:
        StaleArtifact: the candidate was made from another target or another aligned model, or a set was not validated.
        JudgeError: the judge is missing or its calibration is another's.
        EmptySample: a set has no test prompt.
    """
    judge = build(params.judge)
    calibration = calibration_of(params.judge, judge)
    suites = {"gate": read_prompts(prompts / "gate.jsonl"), "task": read_prompts(task)}
    receipt = validated(validation, {"gate": suites["gate"].digest, f"task-{task.stem}": suites["task"].digest})
    asked = {"gate": suites["gate"].where(split="test"), "task": suites["task"].where(kind="task", split="test")}
    arms = _arms(aligned, target, candidate, incumbent, fetch)
    policy = policy_digest(gate)
    plan = Plan(
        prompts=arranged((_planned(row) for rows in asked.values() for row in rows), policy),
        models={arm: one.digest for arm, one in arms.items()},
        judge=judge.identity,
        calibration=calibration,
        policy=policy,
        suites={name: one.digest for name, one in suites.items()},
        decoding=_decoding(params, dtype, policy),
    )
    _require_distinct(plan, prompts, task)
    known = {row.id: row for rows in asked.values() for row in rows}
    ask = Asking(arms, plan, dtype, judge, keep=params.judge.kind not in CHEAP, server=params.server)
    rows = _until_clear(ask, known, gate)
    inputs: dict[str, Path | str] = {"prompts": plan.suites["gate"], "task": plan.suites["task"]}
    inputs |= {"aligned": aligned, "target": target, "candidate": candidate, "validation": receipt}
    inputs |= {"incumbent": incumbent} if incumbent and incumbent.is_file() else {}
    inputs |= {"calibration": params.judge.calibration} if params.judge.calibration else {}
    chosen = params.model_dump(mode="json") | {"gate": gate.model_dump(mode="json"), "dtype": dtype}
    return _write(out, plan, rows, params=chosen, inputs=inputs)


@dataclass
class Asking:
    """The models that answer, and the judge of their replies; one model at a time is in memory."""

    arms: Mapping[Arm, Contender]
    plan: Plan
    dtype: str
    judge: Judge
    keep: bool
    server: ServerParams | None = None
    in_full: set[Arm] = field(default_factory=set)
    _held: "tuple[str, PreTrainedModel, PreTrainedTokenizerBase] | None" = None

    def rows(self, block: Sequence[Prompt]) -> list[dict[str, Any]]:
        """Rows of ``judgements.jsonl`` for some prompts, a model after the other."""
        kinds = sorted({row.kind for row in block})
        return [
            row
            for arm, contender in self.arms.items()
            for kind in kinds
            for row in self._judged(arm, contender, [one for one in block if one.kind == kind])
        ]

    def finished(self, rows: Sequence[dict[str, Any]], known: Mapping[str, Prompt]) -> list[dict[str, Any]]:
        """The rows; where a model's audit does not hold, with all its replies finished in full, now and from now on."""
        rule, done = self.plan.decoding["stop"], list(rows)
        for arm, contender in self.arms.items():
            found = audit(row for row in rows if row["model"] == arm)
            if rule is None or found.holds(rule["limit"]):
                continue
            log.warning("%s: %s: every reply of it is finished in full", arm, found)
            self.in_full.add(arm)
            ended = [row["prompt"] for row in done if row["model"] == arm and row["stopped"]]
            done = [row for row in done if row["model"] != arm or not row["stopped"]]
            done += self._judged(arm, contender, [known[prompt] for prompt in ended])
        return done

    def _judged(self, arm: Arm, contender: Contender, some: Sequence[Prompt]) -> list[dict[str, Any]]:
        plan = replace(self.plan, decoding={**self.plan.decoding, "stop": None}) if arm in self.in_full else self.plan
        made = _replies(arm, contender, some, plan, self.dtype, self.server, self._loaded)
        said = [(row, reply) for row, reply in zip(some, made, strict=True) if isinstance(reply, Reply)]
        asked, replies = [row for row, _ in said], [reply for _, reply in said]
        lost = [(row, one.reason) for row, one in zip(some, made, strict=True) if isinstance(one, Failed)]
        rows = _judged(arm, contender, asked, replies, self.judge, keep=self.keep)
        return rows + [_failed(arm, contender, row, reason, self.judge) for row, reason in lost]

    def _loaded(self, contender: Contender) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
        if self._held is None or self._held[0] != contender.digest:
            self._held = None  # before the next is loaded, so that two are never in memory
            self._held = (contender.digest, *load(contender.root, contender.adapters, self.dtype))
        return self._held[1:]


def _until_clear(ask: Asking, known: Mapping[str, Prompt], gate: GateParams) -> list[dict[str, Any]]:
    """Ask block after block until the verdict is clear or every prompt was asked."""
    rows: list[dict[str, Any]] = []
    done: list[str] = []
    verdict = None
    while block := next_block(ask.plan, gate, done, verdict):
        rows = ask.finished(rows + ask.rows([known[one.id] for one in block]), known)
        done += [one.id for one in block]
        names = [one.name for one in fields(Judgement)]
        verdict = decide([Judgement(**{name: row[name] for name in names}) for row in rows], ask.plan, gate)
        log.info("%d of %d prompts asked: %s so far", len(done), len(ask.plan.prompts), verdict.outcome)
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
        draft.facts["audits"] = {
            arm: asdict(audit(row for row in rows if row["model"] == arm)) for arm in sorted(plan.models)
        }
        draft.facts.update(
            prompts=asked, planned=len(plan.prompts), models=sorted(plan.models), replies=len(rows), unscored=unscored
        )
    return draft.done


def _arms(
    aligned: Path, target: Path, candidate: Path, incumbent: Path | None, fetch: FetchParams | None
) -> dict[Arm, Contender]:
    """Every model that answers. The candidate's adapter loads on the full checkpoint under the target."""
    _require_made_from(candidate, target=target, aligned=aligned)
    family = _contender(aligned, None, fetch)
    before = _contender(target, aligned, fetch)
    arms: dict[Arm, Contender] = {"before": before, "candidate": _adapted(before, candidate), "aligned": family}
    release = read_incumbent(incumbent, incumbent.resolve().parents[3]) if incumbent and incumbent.is_file() else None
    if release is not None:
        old = _contender(release / "target", release / "aligned", fetch)
        arms["incumbent"] = _adapted(old, release / "candidate")
    return arms


def _contender(artefact: Path, family: Path | None, fetch: FetchParams | None) -> Contender:
    record = read_record(artefact)
    model = local_checkpoint(artefact, fetch, family=family)
    contents = (record["digest"],) if record["kind"] == "full" else (record["base"], record["digest"])
    return Contender(model.root, model.adapters, contents)


def _adapted(before: Contender, candidate: Path) -> Contender:
    read_manifest(candidate)
    if not all((candidate / name).is_file() for name in ADAPTER):
        raise ArtifactError(f"expected {' and '.join(ADAPTER)}, got no such files, in {candidate}")
    return Contender(before.root, (candidate,), (before.contents[0], digest_files(candidate, ADAPTER)))


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
    where = device()
    engine: dict[str, Any] = {
        "torch": version("torch"),
        "transformers": version("transformers"),
        "device": where.partition(":")[0],
    }
    engine["dtype"] = str(dtype_for(dtype, where)).removeprefix("torch.")
    engine["adapters"] = "merged" if exact(dtype) else "beside"
    if params.server is not None:
        engine["server"] = params.server.model_dump(mode="json", include={"url", "names"})
    early = params.early_stop and params.server is None
    rule = refusal_stop(after=params.stop_after_tokens).to_json() if early else None
    lot = {"share": params.audit_share, "limit": params.audit_limit, "policy": policy}
    limits = {"max_new_tokens": params.max_new_tokens, "batch_size": params.batch_size}
    return {"greedy": True, **limits, "stop": rule and rule | lot, "engine": engine}


def _planned(row: Prompt) -> Planned:
    text = digest_bytes(normalised(row.prompt).encode())
    return Planned(row.id, row.kind, row.category, row.behaviour, text)


def _require_distinct(plan: Plan, prompts: Path, task: Path) -> None:
    counts = Counter(prompt.id for prompt in plan.prompts)
    if twice := sorted(name for name, count in counts.items() if count > 1):
        raise FormatError(f"expected ids that differ between both sets, got {twice[:3]} in both, in {prompts}, {task}")


def _replies(
    arm: Arm,
    contender: Contender,
    asked: Sequence[Prompt],
    plan: Plan,
    dtype: str,
    server: ServerParams | None,
    load: Loading,
) -> list[Reply | Failed]:
    """The model's replies in order, those of the journal and new ones.

    Batches are the same whatever the journal holds already, since replies can change with the batch by rounding.
    """
    suite = digest_json([[row.id, row.prompt] for row in asked])
    rule = plan.decoding["stop"] if all(row.kind in KINDS for row in asked) else None
    identity = {"model": contender.digest, "decoding": {**plan.decoding, "stop": rule}, "suite": suite}
    journal = Journal(cache_folder() / "replies", identity)
    known = journal.read()
    order = sorted(asked, key=lambda row: (-len(row.prompt), row.id))
    size = plan.decoding["batch_size"]
    batches = [order[at : at + size] for at in range(0, len(order), size)]
    missing = [batch for batch in batches if any(row.id not in known for row in batch)]
    what = f"{arm}, {asked[0].kind}"
    failed: dict[str, Failed] = {}
    log.info("%s: %d replies, %d of %d batches known", what, len(asked), len(batches) - len(missing), len(batches))
    if missing:
        stop = rule and refusal_stop(after=rule["after"])
        ids = [row.id for row in asked] if rule else []
        lot = by_lot(ids, policy=plan.policy, weights=contender.digest, share=rule["share"] if rule else 1.0)
        model, tokenizer = load(contender)
        with suited(model), beside(model, () if exact(dtype) else contender.adapters):
            for number, batch in enumerate(missing, start=1):
                texts = [row.prompt for row in batch]
                limit, full = plan.decoding["max_new_tokens"], [at for at, row in enumerate(batch) if row.id in lot]
                made: Sequence[Reply | Failed]
                if server is None:
                    limits = {"max_new_tokens": limit, "batch_size": size}
                    made = generate(model, tokenizer, texts, **limits, stop=stop, in_full=full)
                else:
                    made = served(server, arm, model, tokenizer, texts, max_new_tokens=limit)
                new = {row.id: asdict(one) for row, one in zip(batch, made, strict=True) if isinstance(one, Reply)}
                failed |= {row.id: one for row, one in zip(batch, made, strict=True) if isinstance(one, Failed)}
                journal.append(new)
                known |= {name: value for name, value in new.items() if name not in known}
                log.info("%s: batch %d of %d", what, number, len(missing))
    return [Reply(**known[row.id]) if row.id in known else failed[row.id] for row in asked]


def _failed(arm: Arm, contender: Contender, row: Prompt, reason: str, judge: Judge) -> dict[str, Any]:
    """The row of a prompt without a reply: lost, and it says why."""
    lost = Judgement(
        prompt=row.id,
        model=arm,
        judge=judge.identity,
        harmful="unscored",
        refusal="unscored",
        correct=None,
        coherent="unscored",
        failure=reason,
        weights=contender.digest,
    )
    nothing = {"reply": "", "tokens": 0, "finished": False, "stopped": False, "stops_at": None}
    return asdict(lost) | {"kind": row.kind, "text": row.prompt} | nothing


def _judged(
    arm: Arm, contender: Contender, asked: Sequence[Prompt], replies: Sequence[Reply], judge: Judge, *, keep: bool
) -> list[dict[str, Any]]:
    """Rows of ``judgements.jsonl``. A task's answer is checked against its gold answer and not judged."""
    tasks = all(row.kind == "task" for row in asked)
    decisions = [_NOT_ASKED] * len(asked) if tasks else _decisions(asked, replies, judge, keep=keep)
    rows = []
    for row, reply, decision in zip(asked, replies, decisions, strict=True):
        refused = reply.stopped and decision.refusal == "yes"  # what it may turn into later is the audit's to tell
        cut = not reply.finished and not refused and decision.harmful == "no"
        judgement = Judgement(
            prompt=row.id,
            model=arm,
            judge=judge.identity,
            harmful="unscored" if cut else decision.harmful,
            refusal=decision.refusal,
            correct=correct(reply.text, row.response) if row.kind == "task" else None,
            coherent=coherent(reply.text),
            raw="cut off before it was harmful" if cut else decision.raw,
            weights=contender.digest,
        )
        said = {name: value for name, value in asdict(reply).items() if name != "text"}
        rows.append(asdict(judgement) | {"kind": row.kind, "text": row.prompt, "reply": reply.text, **said})
    return rows


_NOT_ASKED = Decision("unscored", "unscored", "a task's answer is not judged")


def _decisions(asked: Sequence[Prompt], replies: Sequence[Reply], judge: Judge, *, keep: bool) -> list[Decision]:
    """One decision per reply; a costly judge's are kept, all but the unscored, which are asked for again."""
    pairs = [(row.prompt, reply.text) for row, reply in zip(asked, replies, strict=True)]
    if not keep:
        return judge.judge([p for p, _ in pairs], [r for _, r in pairs])
    keys = [digest_json(pair) for pair in pairs]
    journal = Journal(cache_folder() / "decisions", {"judge": judge.identity, "pairs": digest_json(keys)})
    known: Mapping[str, Any] = journal.read()
    found = {key: Decision(**known[key]) for key in keys if key in known}
    missing = [(key, pair) for key, pair in dict(zip(keys, pairs, strict=True)).items() if key not in found]
    for at in range(0, len(missing), JUDGED_AT_ONCE):
        some = missing[at : at + JUDGED_AT_ONCE]
        made = judge.judge([pair[0] for _, pair in some], [pair[1] for _, pair in some])
        new = {key: decision for (key, _), decision in zip(some, made, strict=True)}
        journal.append({key: asdict(one) for key, one in new.items() if "unscored" not in (one.harmful, one.refusal)})
        found |= new
        log.info("judged %d of %d", min(at + JUDGED_AT_ONCE, len(missing)), len(missing))
    return [found[key] for key in keys]
