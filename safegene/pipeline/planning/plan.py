"""The plan of a run: which stages are out of date, the work of each, and what it takes on this machine.

Times are those of the same stage's last run on this machine, in proportion to its work; where there was none, an
estimate from the model's size and `SPEED`, which is right within a factor of two or three only.
"""

from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any, Literal

from safegene.checkpoints.record import CheckpointRecord, read_record
from safegene.checkpoints.sources.cache import cached_folder
from safegene.checkpoints.sources.uri import open_source, parse
from safegene.datasets.prompts import PromptSet, read_prompts
from safegene.errors import ArtifactError, ParamsError, SafegeneError
from safegene.pipeline.foresee import stages_to_run
from safegene.pipeline.planning.needs import Need, attempt_of, needs, needs_of, prompts_expected
from safegene.pipeline.planning.work import (
    Counter,
    Work,
    calibrate_work,
    degrade_work,
    evaluate_work,
    factor_numbers,
    token_counter,
)
from safegene.pipeline.table import Stage, pipeline_of
from safegene.workspace.costs import StageCost, last_costs
from safegene.workspace.layout import Workspace
from safegene.workspace.params import Params

Basis = Literal["last run", "another target", "estimate"]
SPEED = 5.5e10  # floating-point operations a second, as the tiny family trains on two cores
TINY = 881_920  # parameters of a model of the tiny family, which is built on first use
REPLY_SECONDS = 1.5e-4  # per generated token, besides its operations
START = {  # seconds of a stage besides its work: a process, its libraries, reading and writing
    "validate": 6.0,
    "fetch": 1.8,
    "degrade": 6.0,
    "extract": 0.9,
    "compress": 0.8,
    "select": 2.5,
    "fetch-vector": 1.8,
    "fetch-target": 1.8,
    "calibrate": 5.5,
    "evaluate": 4.0,
    "gate": 1.0,
    "promote": 0.3,
}
FORWARD, TRAINING = 2, 6  # operations per parameter and token, see `safegene.ledger.compute`


@dataclass(frozen=True)
class PlannedStage:
    """One stage of the plan.

    Attributes:
        address: the stage as DVC names it.
        runs: whether it will run; otherwise it is up to date.
        work: the size of its work.
        seconds: that it takes; 0 where it does not run.
        basis: where ``seconds`` come from.
        disk_bytes: that it downloads or writes, as far as that is known.
        further_tokens: that it reads where it needs all of its attempts: of ``degrade`` every higher learning rate, of
            ``calibrate`` every round of mining.
        further_seconds: that these take.
    """

    address: str
    runs: bool
    work: Work
    seconds: float
    basis: Basis
    disk_bytes: int = 0
    further_tokens: int = 0
    further_seconds: float = 0.0


@dataclass(frozen=True)
class RunPlan:
    """What a run will do.

    Attributes:
        stages: in their order.
        needs: what a pass needs, by endpoint, of the target with the most attempts on its fine-tune, of these the one
            whose task set has the fewest prompts; of the smallest task set where there is no target.
        peak_bytes: stage -> main or GPU memory at its peak; empty where the model is not at hand.
    """

    stages: tuple[PlannedStage, ...]
    needs: tuple[Need, ...]
    peak_bytes: Mapping[str, int]

    @property
    def seconds(self) -> float:
        """Seconds of all stages that run."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def tokens(self) -> int:
        """Tokens of all stages that run."""
        return sum(stage.work.tokens for stage in self.stages if stage.runs)

    @property
    def further_tokens(self) -> int:
        """Tokens besides, where every stage that runs needs all of its attempts."""
        return sum(stage.further_tokens for stage in self.stages if stage.runs)

    @property
    def further_seconds(self) -> float:
        """Seconds of these."""
        return sum(stage.further_seconds for stage in self.stages if stage.runs)

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON values."""
        return {
            "seconds": round(self.seconds, 1),
            "tokens": self.tokens,
            "further_tokens": self.further_tokens,
            "further_seconds": round(self.further_seconds, 1),
            "bytes": sum(stage.disk_bytes for stage in self.stages if stage.runs),
            "stages": [
                {
                    "stage": stage.address,
                    "runs": stage.runs,
                    "prompts": stage.work.prompts,
                    "forward_tokens": stage.work.forward,
                    "trained_tokens": stage.work.trained,
                    "generated_tokens": stage.work.generated,
                    "replies": stage.work.replies,
                    "seconds": round(stage.seconds, 1),
                    "basis": stage.basis,
                    "bytes": stage.disk_bytes,
                    "peak_bytes": self.peak_bytes.get(stage.address.partition("@")[0]),
                }
                for stage in self.stages
            ],
            "needs": [
                {
                    "endpoint": one.endpoint,
                    "kinds": list(one.kinds),
                    "units": one.units,
                    "available": one.available,
                    "judge_measured": one.measured,
                    "attempt": one.attempt,
                }
                for one in self.needs
            ],
        }


def plan_run(ws: Workspace, targets: Collection[str] | None = None) -> RunPlan:
    """Plan a run of these targets (default: all); nothing is written, and no model is loaded.

    Raises:
        ParamsError: there is no such target.
        ArtifactError: a prompt set is missing.
    """
    params, known = ws.params, ws.targets.targets
    if unknown := sorted(set(targets or ()) - set(known)):
        raise ParamsError(f"expected targets among {sorted(known)}, got {unknown}, for {ws.targets_file}")
    names = tuple(sorted(targets or known))
    record, root = _aligned(ws)
    size, costs = _Size(record, params.family.aligned), last_costs(ws.root)
    due = _due(ws, names)
    works, further, found = _works(ws, params, names, token_counter(root), due)
    stages = []
    for stage, name in _in_order(params, names):
        address = stage.address(name)
        work = works.get(address, Work())
        seconds, basis = _seconds(stage, address, work, costs, size)
        disk = _disk(ws, params, stage, name, size) if address in due else 0
        every = further.get(address, work)
        later = _seconds(stage, address, every, costs, size)[0] - seconds if address in due else 0.0
        more = max(0, every.tokens - work.tokens), max(0.0, later)
        seconds = seconds if address in due else 0.0
        stages.append(PlannedStage(address, address in due, work, seconds, basis, disk, *more))
    return RunPlan(tuple(stages), found or needs_of(ws, anew=True), _peaks(root, params, size))


def _in_order(params: Params, names: tuple[str, ...]) -> Iterator[tuple[Stage, str]]:
    stages = pipeline_of(params)
    yield from ((stage, "") for stage in stages if not stage.per_target)
    yield from ((stage, name) for name in names for stage in stages if stage.per_target and stage.tracked)


@dataclass(frozen=True)
class _Size:
    """The aligned model, as far as it is known: its record, or the source that its files' sizes are asked of."""

    record: CheckpointRecord | None
    uri: str

    @cached_property
    def parameters(self) -> int:
        """Numbers of the model; before it is fetched, from the bytes of its weights, taken for 16-bit ones."""
        if self.record:
            return self.record.parameters
        try:
            place = parse(self.uri)
            sizes = {} if place.scheme == "tiny" else open_source(place).sizes()
        except SafegeneError:
            return 0
        weights = sum(size for name, size in sizes.items() if name.endswith(".safetensors"))
        return TINY if place.scheme == "tiny" else weights // 2

    def factors(self, rank: int) -> int:
        """Numbers of factors of that rank for the matrices of the layers."""
        tensors = self.record.tensors if self.record else {}
        return factor_numbers([shape for name, shape in tensors.items() if ".layers." in name], rank)


def _aligned(ws: Workspace) -> tuple[CheckpointRecord | None, Path | None]:
    """The aligned model's record, and the folder of its files, where it is fetched or a local folder."""
    try:
        record = read_record(ws.aligned)
    except SafegeneError:
        record = None
    folder = cached_folder(record.digest) if record else None
    if folder is None or not folder.is_dir():
        place = parse(ws.params.family.aligned)
        folder = Path(place.path) if place.scheme == "file" and Path(place.path).is_dir() else None
    return record, folder


def _works(
    ws: Workspace, params: Params, names: tuple[str, ...], count: Counter, due: Collection[str]
) -> tuple[dict[str, Work], dict[str, Work], tuple[Need, ...]]:
    """Address -> work of the stages that read tokens, and with all of their attempts; what a pass needs at most."""
    safety, gate = (read_prompts(ws.prompts / f"{name}.jsonl") for name in ("safety", "gate"))
    pools = read_prompts(ws.prompts / "degrade.jsonl") if params.family.vector is None else None
    works = {"degrade": degrade_work(ws, params, pools, safety, count)} if pools else {}
    rows = pools.rows if pools else ()
    mined = read_prompts(ws.prompts / "pool.jsonl") if params.calibrate.mining.rounds else None
    found: tuple[Need, ...] = ()
    further = {"degrade": degrade_work(ws, params, pools, safety, count, most=True)} if pools else {}
    for name in names:
        task = read_prompts(ws.tasks / f"{ws.targets.targets[name].task}.jsonl")
        given = params.calibrate
        works[f"calibrate@{name}"] = calibrate_work(given, safety, task, count, mined, rows)
        every = calibrate_work(given, safety, task, count, mined, rows, rounds=given.mining.rounds)
        further[f"calibrate@{name}"] = every
        attempt = attempt_of(ws, name, anew=f"calibrate@{name}" in due)
        asked, own = _asked(ws, params, gate, task, attempt)
        arms = 3 + ws.incumbent(name).is_file() * _has_live(ws.incumbent(name))
        most, block = params.evaluate.max_new_tokens, params.gate.block_prompts
        works[f"evaluate@{name}"] = evaluate_work(asked, arms, rows, task, count, most, block)
        found = min(found or own, own, key=lambda one: (-one[0].attempt, sum(need.available for need in one)))
    return works, further, found


def _asked(
    ws: Workspace, params: Params, gate: PromptSet, task: PromptSet, attempt: int
) -> tuple[dict[str, int], tuple[Need, ...]]:
    tested = (*gate.where(split="test", required=False), *task.where(kind="task", split="test", required=False))
    found = needs(ws, params, tested, attempt)
    kinds: set[str] = {prompt.kind for prompt in tested}
    available = {kind: sum(prompt.kind == kind for prompt in tested) for kind in sorted(kinds)}
    return prompts_expected(found, available, params.gate), found


def _has_live(incumbent: Path) -> bool:
    from safegene.ledger.incumbent import read_incumbent

    return read_incumbent(incumbent).live is not None


def _due(ws: Workspace, names: tuple[str, ...]) -> set[str]:
    """Addresses of the stages that will run; of all of them where DVC cannot say."""
    if (ws.root / "dvc.lock").is_file():
        with suppress(SafegeneError):
            return {address for stages in stages_to_run(ws, names).values() for address in stages}
    return {stage.address(name) for stage, name in _in_order(ws.params, names)}


def _seconds(
    stage: Stage, address: str, work: Work, costs: Mapping[str, StageCost], size: _Size
) -> tuple[float, Basis]:
    """Seconds of a stage, and where they come from."""
    start = START[stage.name]
    if (own := costs.get(address)) is not None:
        return _scaled(own, work, start), "last run"
    others = [cost for name, cost in costs.items() if name.partition("@")[0] == stage.name]
    if others:
        return median(_scaled(cost, work, start) for cost in others), "another target"
    operations = size.parameters * (FORWARD * (work.forward + work.generated) + TRAINING * work.trained)
    return start + operations / SPEED + REPLY_SECONDS * work.generated, "estimate"


def _scaled(cost: StageCost, work: Work, start: float) -> float:
    """A stage's last time, in proportion to its work as far as that took the time."""
    took = cost.cpu_seconds if cost.seconds is None else cost.seconds
    if not cost.work or not work.size or took <= start:
        return took
    return start + (took - start) * work.size / cost.work


def _disk(ws: Workspace, params: Params, stage: Stage, name: str, size: _Size) -> int:
    """Bytes that a stage downloads or writes, where they are more than a few megabytes."""
    if stage.name in ("fetch", "fetch-target"):
        uri = ws.targets.targets[name].source if name else params.family.aligned
        try:
            place = parse(uri)
            source: Any = open_source(place)
            return 0 if place.scheme == "tiny" or getattr(source, "in_place", False) else sum(source.sizes().values())
        except SafegeneError:
            return 0
    ranks = {"extract": params.extract.max_rank, "compress": params.compress.rank or params.extract.max_rank}
    if stage.name == "degrade" and not params.family.degraded:
        return 4 * sum(size.factors(one.rank) for one in params.degrade.surrogates.values())
    return 4 * size.factors(ranks[stage.name]) if stage.name in ranks else 0


def _peaks(root: Path | None, params: Params, size: _Size) -> dict[str, int]:
    """Stage -> bytes at its peak, from the headers of the aligned model; empty where it is not at hand."""
    from safegene.checkpoints.checkpoint import open_checkpoint
    from safegene.models.memory import size_of_checkpoint, stage_peak_bytes

    if root is None:
        return {}
    try:
        shape = size_of_checkpoint(open_checkpoint(root), params.family.dtype)
    except (ArtifactError, SafegeneError):
        return {}
    evaluate, calibrate = params.evaluate, params.calibrate
    peaks = stage_peak_bytes(
        shape,
        keep=calibrate.response_tokens,
        batch_size=evaluate.batch_size,
        new_tokens=evaluate.max_new_tokens,
        rows=calibrate.batch_size,
        factors=size.factors(params.compress.rank or params.extract.max_rank),
        bases=2,
    )
    return {**peaks, "fetch-target": peaks["fetch"]}
