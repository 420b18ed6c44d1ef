"""The safety vectors of a family: where each was used, with what effect, and what one more target costs.

The facts come from the ledger, every record verified, and from the workspace's verified artefacts for candidates that
are not on record yet. A vector is named by the digest of its artefact. What a record does not hold is None, never zero.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from safegene.ledger import Record, open_ledger, revocations, why_revoked
from safegene.ledger.memory import RevokedDigest
from safegene.ledger.snapshot import ATTEMPTS
from safegene.report.live import LiveLookup, read_ledger
from safegene.report.records import inside, recorded_rate, share
from safegene.report.state import TARGET, TargetState, WorkspaceState, read_state
from safegene.report.words import short
from safegene.text import visible
from safegene.workspace.costs import cost_of
from safegene.workspace.digest import PREFIX
from safegene.workspace.layout import Workspace, cache_folder

if TYPE_CHECKING:
    from rich.table import Table

RATES = ("hrr", "asr", "over_refusal", "utility")
PARTS = ("degraded", "delta", "vector", "selection")  # what is made once per family
ARMS = ("before", "after")
UNRECORDED = "not recorded"


@dataclass(frozen=True)
class TargetUse:
    """A vector applied to a target: the last attempt on record, or the workspace's candidate.

    Attributes:
        target: its name.
        outcome: of the attempt; ``not recorded`` for a candidate without a record.
        record: the record's number; None without one.
        attempts: records of this vector on this target.
        rates: name -> (before, after), shares in 0..1.
        extra_params: share of the model's parameters that the repair adds.
        live: digest of the release, where this vector is in what is live for the target.
        cpu_seconds: CPU time of calibrating on this machine; None where it was not measured.
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
    """A safety vector and its uses.

    Attributes:
        vector: its digest.
        present: whether it is the workspace's vector.
        revoked: why it is revoked; "" where it is not.
        uses: one for each target, by name.
        costs: artefact of the family -> CPU seconds of making it; empty unless it is the workspace's vector.
        publisher: id of the key of the team that published it; "" for a vector that was made here.
    """

    vector: str
    present: bool
    revoked: str
    uses: tuple[TargetUse, ...]
    costs: Mapping[str, float | None]
    publisher: str = ""

    @property
    def once(self) -> float | None:
        """CPU seconds of making the vector, or of fetching it; None unless all of its artefacts were measured."""
        return _sum(tuple(self.costs.values()))

    @property
    def each(self) -> float | None:
        """CPU seconds of calibrating one more target: the mean of the measured ones; None if none was measured."""
        return _mean([use.cpu_seconds for use in self.uses])

    @property
    def each_gated(self) -> float | None:
        """The same with fetching, evaluating and gating."""
        return _mean([use.cpu_seconds_gated for use in self.uses])


def reuse(workspace: Workspace) -> tuple[VectorUse, ...]:
    """The workspace's vector first, then the other vectors of the ledger, the last used first.

    Raises:
        LedgerError: the chain is broken, or no key is pinned.
        ParamsError: ``data/targets.yaml`` is unusable.
    """
    ledger = open_ledger(workspace.params.promote, workspace.root, cache=cache_folder() / "records")
    chain, revoked = tuple(ledger.walk()), revocations(ledger)
    live = read_ledger(workspace).live
    return vector_uses(workspace, read_state(workspace, live=live), chain, revoked, live)


def vector_uses(
    workspace: Workspace,
    state: WorkspaceState,
    chain: Sequence[Record],
    revoked: Sequence[RevokedDigest],
    live: LiveLookup,
) -> tuple[VectorUse, ...]:
    """`reuse` of what was read already.

    Args:
        workspace: for the costs.
        state: its artefacts.
        chain: the records, newest first.
        revoked: from `safegene.ledger.revocations`.
        live: a target's name -> what is live for it.
    """
    present = state.family["vector"].digest
    uses_of: dict[str, list[TargetUse]] = {present: []} if present else {}
    for vector, use in (*_on_record(workspace, chain, live), *_unrecorded(workspace, state, chain)):
        uses_of.setdefault(vector, []).append(use)
    parts = ("published",) if "published" in state.family else PARTS
    costs = {name: cost_of(workspace.root, state.family[name].digest) for name in parts}
    publishers = dict(_publishers(state, chain))
    return tuple(
        VectorUse(
            vector,
            vector == present,
            why_revoked(revoked, frozenset([vector])),
            tuple(sorted(uses, key=lambda use: use.target)),
            costs if vector == present else {},
            publishers.get(vector, ""),
        )
        for vector, uses in uses_of.items()
    )


def _publishers(state: WorkspaceState, chain: Sequence[Record]) -> Iterator[tuple[str, str]]:
    """(vector, id of its publisher's key), of vectors that were not made here."""
    for record in chain:
        if key := inside(record.predicate.vector, "publisher", "key"):
            yield str(record.predicate.vector.get("digest")), str(key).removeprefix(PREFIX)
    published = state.family["published"].manifest if "published" in state.family else None
    if published:
        yield published.inputs["vector"], str(published.params.get("publisher", ""))


def _on_record(workspace: Workspace, chain: Sequence[Record], live: LiveLookup) -> Iterator[tuple[str, TargetUse]]:
    """(vector, its last attempt on a target), newest first."""
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
                rates=_recorded_rates(last),
                extra_params=share(inside(last.predicate.vector, "calibration", "facts", "extra_params")),
                live=now.release if now and vector_of.get(now.candidate) == vector else None,
                **_target_costs(workspace, last.artefacts),
            ),
        )


def _unrecorded(
    workspace: Workspace, state: WorkspaceState, chain: Sequence[Record]
) -> Iterator[tuple[str, TargetUse]]:
    """(vector, its use) for each target whose candidate in the workspace is named by no record."""
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
                rates=_rates(target),
                extra_params=share(candidate.facts.get("extra_params")),
                live=None,
                **_target_costs(
                    workspace, {name: item.digest for name, item in target.artefacts.items() if item.digest}
                ),
            ),
        )


def _target_costs(workspace: Workspace, artefacts: Mapping[str, str]) -> dict[str, float | None]:
    costs = {name: cost_of(workspace.root, artefacts.get(name)) for name in TARGET}
    return {"cpu_seconds": costs["candidate"], "cpu_seconds_gated": _sum(tuple(costs.values()))}


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known and len(known) == len(values) else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _rates(target: TargetState) -> dict[str, tuple[float | None, float | None]]:
    return {name: (target.rate(name, "before").rate, target.rate(name, "after").rate) for name in RATES}


def _recorded_rates(record: Record) -> dict[str, tuple[float | None, float | None]]:
    before, after = ({name: recorded_rate(record, name, arm).rate for name in RATES} for arm in ARMS)
    return {name: (before[name], after[name]) for name in RATES}


def plain(vectors: Sequence[VectorUse]) -> list[dict[str, Any]]:
    """`reuse` as JSON values: rates and shares in 0..1, null for what is not known."""
    rows = []
    for vector in vectors:
        uses = [
            asdict(use) | {"rates": {name: dict(zip(ARMS, pair, strict=True)) for name, pair in use.rates.items()}}
            for use in vector.uses
        ]
        cost = {"cpu_seconds_once": vector.once, "made": dict(vector.costs)}
        cost |= {"cpu_seconds_each": vector.each, "cpu_seconds_each_gated": vector.each_gated}
        state = {"vector": vector.vector, "present": vector.present, "revoked": vector.revoked}
        state |= {"publisher": vector.publisher}
        rows.append({**state, **cost, "uses": uses})
    return rows


def table(vector: VectorUse) -> "Table":
    """A vector's uses for people: rates in percent, before -> after; over-refusal is in `plain`."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    state = "the workspace's" if vector.present else "not the workspace's"
    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left", caption_justify="left")
    drawn.title = f"vector {short(vector.vector)}, {state}"
    drawn.title += f", published by key {visible(vector.publisher)[:12]}" if vector.publisher else ""
    for name in ("target", "HRR %", "ASR %", "utility %", "extra %", "outcome", "live", "CPU s"):
        drawn.add_column(name, justify="right" if name[-1] in "%s" else "left", overflow="fold")
    for use in vector.uses:
        rates = [_arrow(use.rates[name]) for name in ("hrr", "asr", "utility")]
        extra = "-" if use.extra_params is None else f"{100 * use.extra_params:.2f}"
        outcome = use.outcome if use.record is None else f"{use.outcome}, record {use.record}"
        live = short(use.live) or "no"
        drawn.add_row(escape(visible(use.target)), *rates, extra, outcome, live, seconds(use.cpu_seconds))
    drawn.caption = "\n".join([escape(line) for line in _caption(vector)])
    return drawn


def _caption(vector: VectorUse) -> Iterator[str]:
    if vector.revoked:
        yield f"revoked: {visible(vector.revoked)}"
    if vector.present:
        verb = "fetching" if vector.publisher else "making"
        yield f"CPU seconds of {verb} the vector, once: {seconds(vector.once)}"
    yield f"CPU seconds of calibrating one more target: {_of([use.cpu_seconds for use in vector.uses])}"
    yield f"with fetching, evaluating and gating: {_of([use.cpu_seconds_gated for use in vector.uses])}"
    yield "measured in the runs of this workspace: what a cache already held cost nothing"


def _of(values: Sequence[float | None]) -> str:
    measured = len([value for value in values if value is not None])
    return f"{seconds(_mean(values))} (the mean of {measured})" if measured else seconds(None)


def seconds(value: float | None) -> str:
    """Seconds as text."""
    return "not measured" if value is None else f"{value:.1f}"


def _arrow(pair: tuple[float | None, float | None]) -> str:
    return "-" if pair == (None, None) else " -> ".join("-" if rate is None else f"{100 * rate:.1f}" for rate in pair)
