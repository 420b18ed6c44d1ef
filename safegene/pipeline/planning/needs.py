"""How many prompts a pass needs at this judge's error and margins, and how many a run is likely to ask."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from safegene.datasets.prompts import Prompt, read_prompts
from safegene.evaluation.judges.calibration import calibration_from
from safegene.gate import Calibration, Plan
from safegene.gate.decision import level_share
from safegene.gate.endpoints import EXACT, MeasuredError, joint_error
from safegene.gate.further import DECISION, MARGINS, margin_and_limit, units_for_pass
from safegene.gate.ordering import ENDPOINT_KINDS
from safegene.ledger.incumbent import read_incumbent
from safegene.workspace.layout import Workspace
from safegene.workspace.params import GateParams, JudgeParams, Params

EXACT_KINDS = ("grammar",)


@dataclass(frozen=True)
class Need:
    """What a pass of one endpoint needs.

    Attributes:
        endpoint: its name.
        kinds: the kinds of prompts that decide it.
        units: independent prompts (behaviours) that a pass needs where both models do equally well; None where no
            number is enough: the judge's error leaves nothing of the margin.
        available: independent prompts that the sets hold.
        measured: whether the error of the judge that decides it is known; otherwise ``units`` are those of a judge that
            never errs, and any other judge needs more.
        margin: its margin or cap in ``params.yaml``.
        limit: what the judge's error leaves of it; a pass needs an observed difference (or rate) below.
        units_exact: ``units`` of a judge that never errs.
        attempt: the number of the attempt on its fine-tune that the count is for; each must prove more than the last.
    """

    endpoint: str
    kinds: tuple[str, ...]
    units: int | None
    available: int
    measured: bool = True
    margin: float = 0.0
    limit: float = 0.0
    units_exact: int | None = None
    attempt: int = 1

    @property
    def key(self) -> str:
        """The parameter that holds the margin or cap."""
        return f"gate.{MARGINS.get(self.endpoint, 'cap_hrr')}"

    @property
    def missing(self) -> int:
        """How many independent prompts a pass lacks; 0 where no number is enough."""
        return max(0, (self.units or 0) - self.available)

    @property
    def sentence(self) -> str:
        """What a pass needs beside what there is."""
        enough = "any number is too few" if self.units is None else f"a pass needs about {self.units}{self.unmeasured}"
        return f"{self.endpoint}: {enough}, the sets hold {self.available} ({', '.join(self.kinds)})"

    @property
    def effect(self) -> str:
        """What the judge's error does to the endpoint's limit, and to the number of prompts of a pass."""
        left = "nothing" if self.limit <= 0 else f"{100 * self.limit:.1f} points"
        limit = f"{self.endpoint}: the judge's error leaves {left} of {self.key}, {100 * self.margin:.1f} points"
        if self.units is None:
            return f"{limit}; no number of prompts gives a pass"
        exact = f", not {self.units_exact}" if self.units_exact != self.units else ""
        return f"{limit}; a pass needs about {self.units} prompts{exact}; the sets hold {self.available}"

    @property
    def unmeasured(self) -> str:
        """What ``units`` take for granted, in words to put behind them; "" for nothing."""
        return "" if self.measured else " (with a judge that never errs; this one's error is not measured)"


def needs(ws: Workspace, params: Params, prompts: tuple[Prompt, ...], attempt: int = 1) -> tuple[Need, ...]:
    """What each endpoint needs for a pass, on these prompts of the gate's set and of a task set."""
    alpha = params.gate.alpha * level_share(attempt)
    errors: dict[str, MeasuredError] = {
        decision: joint_error(_stub(ws, params), decision, alpha) for decision in _decisions()
    }
    units = units_by_kind(prompts)
    found = list[Need]()
    for name, kinds in ENDPOINT_KINDS.items():
        error = errors.get(DECISION.get(name, ""), EXACT)
        count, exact = (units_for_pass(name, params.gate, alpha, one) for one in (error, EXACT))
        margin, limit = margin_and_limit(name, params.gate, error)
        found.append(Need(name, kinds, count, _units(kinds, units), error.known, margin, limit, exact, attempt))
    return tuple(found)


def attempt_of(ws: Workspace, target: str, *, anew: bool) -> int:
    """The number that a run's attempt on the target's fine-tune will have; the highest where that is not known yet.

    Args:
        ws: the workspace.
        target: the target.
        anew: whether the run will make another candidate.
    """
    path = ws.incumbent(target)
    return read_incumbent(path).attempt + anew if path.is_file() else 1


def most_attempts(ws: Workspace, *, anew: bool) -> int:
    """`attempt_of` the target that has the most; 1 where there is none."""
    names = ws.targets.targets if ws.targets_file.is_file() else ()
    return max((attempt_of(ws, name, anew=anew) for name in names), default=1)


def needs_of(ws: Workspace, *, anew: bool) -> tuple[Need, ...]:
    """What each endpoint needs for a pass, on the gate's set and the smallest task set; a missing set counts as empty.

    It is counted for the target with the most attempts on its fine-tune.

    Args:
        ws: the workspace.
        anew: whether the next run will make other candidates, since the sets have changed.

    Raises:
        FormatError: a set is malformed.
    """
    gate, tasks = ws.prompts / "gate.jsonl", sorted(ws.tasks.glob("*.jsonl"))
    rows = [read_prompts(path).where(split="test", required=False) for path in tasks]
    tested = read_prompts(gate).where(split="test", required=False) if gate.is_file() else ()
    return needs(ws, ws.params, (*tested, *min(rows, key=len, default=())), most_attempts(ws, anew=anew))


def shortages(found: Iterable[Need]) -> dict[str, tuple[Need, ...]]:
    """Kind -> the endpoints for whose pass it lacks prompts, the one that lacks most first.

    A shortage of wrapped prompts that is no larger than that of harmful ones follows from it: `data split` asks each
    harmful prompt inside a wrapper too. Coherence counts prompts of every kind, and has no shortage of its own.
    """
    short = dict[str, list[Need]]()
    for need in found:
        if need.missing and len(need.kinds) == 1:
            short.setdefault(need.kinds[0], []).append(need)
    if max_missing(short.get("wrapped", ())) <= max_missing(short.get("harmful", ())):
        short["harmful"] = [*short.get("harmful", ()), *short.pop("wrapped", ())]
    return {kind: tuple(sorted(some, key=lambda one: -one.missing)) for kind, some in short.items() if some}


def max_missing(some: Iterable[Need]) -> int:
    """The prompts that the endpoint lacks that lacks most."""
    return max((need.missing for need in some), default=0)


def _decisions() -> tuple[Literal["harmful", "refusal"], ...]:
    return ("harmful", "refusal")


def _stub(ws: Workspace, params: Params) -> Plan:
    """A plan that holds only the judges' calibrations, which is all that their error is read from."""
    judge = _calibration(ws, params.evaluate.judge, "judge")
    other = params.evaluate.adjudicator
    return Plan(
        prompts=(),
        models={},
        judge="judge",
        calibration=judge,
        policy="",
        adjudicator="adjudicator" if other else "",
        adjudication=_calibration(ws, other, "adjudicator") if other else None,
    )


def _calibration(ws: Workspace, params: JudgeParams, name: str) -> Calibration | None:
    if params.kind in EXACT_KINDS:
        return Calibration(name, exact=True)
    path = params.calibration and ws.root / params.calibration
    if path is None or not path.is_file():
        return None
    read = calibration_from(path)
    return Calibration(name, harmful=read.harmful, refusal=read.refusal, labels=read.labels)


def units_by_kind(prompts: tuple[Prompt, ...]) -> dict[str, int]:
    """Kind -> number of independent prompts: behaviours, or texts where a prompt has none."""
    found: dict[str, set[str]] = defaultdict(set)
    for prompt in prompts:
        found[prompt.kind].add(prompt.behaviour or prompt.prompt)
    return {kind: len(units) for kind, units in found.items()}


def _units(kinds: tuple[str, ...], counts: Mapping[str, int]) -> int:
    """Independent prompts of several kinds; a wrapped prompt shares its behaviour with a direct one."""
    direct = [counts.get(kind, 0) for kind in ("harmful", "wrapped") if kind in kinds]
    others = sum(counts.get(kind, 0) for kind in kinds if kind not in ("harmful", "wrapped"))
    return max(direct, default=0) + others


def prompts_expected(found: tuple[Need, ...], available: Mapping[str, int], policy: GateParams) -> dict[str, int]:
    """Kind -> how many prompts a run asks until it passes, block by block; all of them where that is not enough."""
    if policy.test == "fixed":
        return dict(available)
    asked = dict.fromkeys(available, 0)
    while True:
        still_open = [need for need in found if need.units is None or _units(need.kinds, asked) < need.units]
        kinds = {kind for need in still_open or (found if not any(asked.values()) else ()) for kind in need.kinds}
        more = {kind for kind in kinds & set(available) if asked[kind] < available[kind]}
        if not more:
            return asked
        for kind in more:
            asked[kind] = min(available[kind], asked[kind] + policy.block_prompts)
