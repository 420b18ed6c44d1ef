"""One safety vector for the whole family: where each was used, with what effect, and what one more target costs.

Read from the ledger, every record verified, and from the workspace's verified artefacts for what is not on record yet.
A vector is named by the digest of its artefact. What a record does not hold is None, never zero.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from safegene.ledger import Record, open_ledger, revocation, revocations
from safegene.ledger.audit import ATTEMPTS
from safegene.report.status import TARGET, LiveReleases, WorkspaceState, inside, read_state, recorded, share
from safegene.text import visible
from safegene.workspace.costs import cost_of
from safegene.workspace.layout import Workspace, cache_folder

if TYPE_CHECKING:
    from rich.table import Table

RATES = ("hrr", "asr", "over_refusal", "utility")
PARTS = ("degraded", "delta", "vector", "selection")  # what is made once per family
ARMS = ("before", "after")
UNRECORDED = "not recorded"


@dataclass(frozen=True)
class TargetUse:
    """A vector applied to a target: the last attempt on record, or the candidate that lies in the workspace.

    Attributes:
        target: its name.
        outcome: of the attempt; ``not recorded`` for a candidate without one.
        record: the record's number; None without one.
        attempts: records of this vector on this target.
        rates: name -> (before, after), shares in 0..1.
        extra_params: share of the model's parameters that the repair adds.
        live: digest of the release, where this vector is in what is live for the target.
        cpu_seconds: what calibrating cost here; None where it was not measured.
        cpu_seconds_gated: the same with fetching, evaluating and gating.
    """

    target: str
    outcome: str
    record: int | None
    attempts: int
    rates: Mapping[str, tuple[float | None, float | None]]
    extra_params: float | None
    live: str | None
    cpu_seconds: float | None
    cpu_seconds_gated: float | None


@dataclass(frozen=True)
class VectorUse:
    """A safety vector and everything it was used for.

    Attributes:
        vector: its digest.
        present: whether it is the workspace's.
        revoked: why it may not be relied on; empty where it may.
        uses: one per target, by name.
        made: part of the family -> CPU seconds of making it; empty but for the workspace's vector.
    """

    vector: str
    present: bool
    revoked: str
    uses: tuple[TargetUse, ...]
    made: Mapping[str, float | None]

    @property
    def once(self) -> float | None:
        """CPU seconds of making the vector; None unless every part was measured."""
        return _sum(tuple(self.made.values()))

    @property
    def each(self) -> float | None:
        """CPU seconds of calibrating one more target: the mean of those measured; None without any."""
        return _mean([one.cpu_seconds for one in self.uses])

    @property
    def each_gated(self) -> float | None:
        """The same with fetching, evaluating and gating."""
        return _mean([one.cpu_seconds_gated for one in self.uses])


def reuse(workspace: Workspace) -> tuple[VectorUse, ...]:
    """Every vector of the ledger and the workspace's own, which comes first; then the most lately used.

    Raises:
        LedgerError: the chain is broken, or no key is pinned.
        ParamsError: ``data/targets.yaml`` is unusable.
    """
    ledger = open_ledger(workspace.params.promote, workspace.root, cache=cache_folder() / "records")
    chain, revoked = tuple(ledger.walk()), revocations(ledger)
    live, _ = recorded(workspace)
    state = read_state(workspace, live=live)
    present = state.family["vector"].digest
    found: dict[str, list[TargetUse]] = {present: []} if present else {}
    for vector, use in (*_on_record(workspace, chain, live), *_unrecorded(workspace, state, chain)):
        found.setdefault(vector, []).append(use)
    made = {name: cost_of(workspace.root, state.family[name].digest) for name in PARTS}
    return tuple(
        VectorUse(
            vector,
            vector == present,
            revocation(revoked, frozenset([vector])),
            tuple(sorted(uses, key=lambda use: use.target)),
            made if vector == present else {},
        )
        for vector, uses in found.items()
    )


def _on_record(workspace: Workspace, chain: Sequence[Record], live: LiveReleases) -> Iterator[tuple[str, TargetUse]]:
    """(vector, its last attempt on a target), the newest first."""
    attempts: dict[tuple[str, str], list[Record]] = {}
    for record in chain:
        vector = record.artefacts.get("vector")
        if vector and record.outcome in ATTEMPTS:
            attempts.setdefault((vector, record.target), []).append(record)
    vector_of = {record.artefacts.get("candidate"): record.artefacts.get("vector") for record in chain}
    for (vector, target), records in attempts.items():
        last, now = records[0], live(target)
        yield (
            vector,
            TargetUse(
                target=target,
                outcome=last.outcome,
                record=last.sequence,
                attempts=len(records),
                rates=_rates(inside(last.predicate, "rates")),
                extra_params=share(inside(last.predicate, "vector", "calibration", "facts", "extra_params")),
                live=now.release if now and vector_of.get(now.candidate) == vector else None,
                **_costs(workspace, last.artefacts),
            ),
        )


def _unrecorded(
    workspace: Workspace, state: WorkspaceState, chain: Sequence[Record]
) -> Iterator[tuple[str, TargetUse]]:
    """(vector, the candidate that lies in the workspace) for each target whose candidate no record names."""
    known = {record.artefacts.get("candidate") for record in chain}
    for target in state.targets:
        candidate = target.artefacts["candidate"].manifest
        if candidate is None or candidate.digest in known or "vector" not in candidate.inputs:
            continue
        yield (
            candidate.inputs["vector"],
            TargetUse(
                target=target.name,
                outcome=f"{target.outcome}, {UNRECORDED}" if target.outcome else UNRECORDED,
                record=None,
                attempts=0,
                rates=_rates(target.verdict.get("rates")),
                extra_params=share(candidate.facts.get("extra_params")),
                live=None,
                **_costs(workspace, {name: one.digest for name, one in target.artefacts.items() if one.digest}),
            ),
        )


def _costs(workspace: Workspace, artefacts: Mapping[str, str]) -> dict[str, float | None]:
    found = {name: cost_of(workspace.root, artefacts.get(name)) for name in TARGET}
    return {"cpu_seconds": found["candidate"], "cpu_seconds_gated": _sum(tuple(found.values()))}


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known and len(known) == len(values) else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _rates(found: object) -> dict[str, tuple[float | None, float | None]]:
    return {
        name: (share(inside(found, name, "before", "rate")), share(inside(found, name, "after", "rate")))
        for name in RATES
    }


def plain(found: Sequence[VectorUse]) -> list[dict[str, Any]]:
    """`reuse` as JSON values: rates and shares in 0..1, null for what is not known."""
    rows = []
    for one in found:
        uses = [
            asdict(use) | {"rates": {name: dict(zip(ARMS, pair, strict=True)) for name, pair in use.rates.items()}}
            for use in one.uses
        ]
        cost = {"cpu_seconds_once": one.once, "made": dict(one.made)}
        cost |= {"cpu_seconds_each": one.each, "cpu_seconds_each_gated": one.each_gated}
        rows.append({"vector": one.vector, "present": one.present, "revoked": one.revoked, **cost, "uses": uses})
    return rows


def table(one: VectorUse) -> "Table":
    """A vector's uses for people: rates in percent, before -> after; over-refusal is in `plain`."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    state = "the workspace's" if one.present else "of earlier"
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left", caption_justify="left")
    made.title = f"vector {one.vector.removeprefix('sha256:')[:12]}, {state}"
    for name in ("target", "HRR %", "ASR %", "utility %", "extra %", "outcome", "live", "CPU s"):
        made.add_column(name, justify="right" if name[-1] in "%s" else "left", no_wrap=name != "target")
    for use in one.uses:
        rates = [_arrow(use.rates[name]) for name in ("hrr", "asr", "utility")]
        extra = "-" if use.extra_params is None else f"{100 * use.extra_params:.2f}"
        outcome = use.outcome if use.record is None else f"{use.outcome}, record {use.record}"
        live = (use.live or "no").removeprefix("sha256:")[:12]
        made.add_row(escape(visible(use.target)), *rates, extra, outcome, live, seconds(use.cpu_seconds))
    made.caption = "\n".join([escape(line) for line in _caption(one)])
    return made


def _caption(one: VectorUse) -> Iterator[str]:
    if one.revoked:
        yield f"revoked: {visible(one.revoked)}"
    if one.present:
        yield f"CPU seconds of making the vector, once: {seconds(one.once)}"
    yield f"CPU seconds of calibrating one more target: {_of([use.cpu_seconds for use in one.uses])}"
    yield f"with fetching, evaluating and gating: {_of([use.cpu_seconds_gated for use in one.uses])}"
    yield "measured as run here: what a cache already held cost nothing"


def _of(values: Sequence[float | None]) -> str:
    measured = len([value for value in values if value is not None])
    return f"{seconds(_mean(values))} (the mean of {measured})" if measured else seconds(None)


def seconds(value: float | None) -> str:
    """Seconds as text."""
    return "not measured" if value is None else f"{value:.1f}"


def _arrow(pair: tuple[float | None, float | None]) -> str:
    return "-" if pair == (None, None) else " -> ".join("-" if rate is None else f"{100 * rate:.1f}" for rate in pair)
