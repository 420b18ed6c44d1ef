"""Questions to a ledger for people: what is live and why, what one record says, how two differ, every attempt."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from safegene.errors import LedgerError
from safegene.ledger.chain import Ledger, open_ledger
from safegene.ledger.live import LiveRecord, find_record, live_record
from safegene.ledger.record import EVERY, Record, RecordOutcome
from safegene.ledger.release import release_uri
from safegene.workspace.layout import Workspace

if TYPE_CHECKING:
    from rich.tree import Tree


def trace_live(ledger: Ledger, target: str, channel: str) -> dict[str, Any]:
    """The lineage of what is live for a target, as plain JSON values, from the release down to the commit.

    Raises:
        LedgerError: nothing is live, or the chain or the pointer is broken.
    """
    live = live_record(ledger, target, channel)
    if live is None:
        last = next((record for record in ledger.walk() if record.target == target), None)
        attempts = (
            f"`safegene audit show {last.sequence}` shows the last attempt" if last else "there was no attempt yet"
        )
        raise LedgerError(
            f"expected something live for {target} on {channel}, got nothing, in {ledger.store.uri}",
            remedy=f"{attempts}; `safegene run {target}` makes another and promotes it if it passes",
        )
    record, content = live.record, live.record.predicate
    return {
        "target": target,
        "channel": channel,
        "live": {
            "release": live.release,
            "uri": release_uri(ledger.store, live.release),
            "record": record.digest,
            "sequence": record.sequence,
            "outcome": record.outcome,
            "reason": record.reason,
            "signed by": content.chain.key,
            "revoked": live.revoked or "no",
        },
        "verdict": content.verdict,
        "rates": content.rates,
        "judge": content.judge,
        "policy": content.policy,
        "replies": content.replies,
        "candidate": {
            "digest": record.artefacts.get("candidate"),
            "coefficients": content.vector.get("coefficients"),
        },
        "vector": content.vector,
        "checkpoints": {"target": content.model, "aligned": content.base},
        "datasets": content.datasets,
        "artefacts": dict(record.artefacts),
        "code": content.code,
        "run": content.run,
    }


def trace_workspace(workspace: Workspace, name: str, channel: str | None = None) -> dict[str, Any]:
    """`trace_live` of a target, or `record_content` of a record; the channel is by default that of ``params.yaml``."""
    params = workspace.params.promote
    ledger = open_ledger(params, workspace.root)
    if channel is None and not _is_target(ledger, name) and (record := find_record(name, tuple(ledger.walk()))):
        return record_content(record)
    return trace_live(ledger, name, channel or params.channel)


def record_content(record: Record) -> dict[str, Any]:
    """Everything that a record says, as plain JSON values, with its digest."""
    return {"record": record.digest, **record.predicate.model_dump(mode="json", exclude={"nonce"})}


def named_record(ledger: Ledger, name: str, channel: str) -> Record:
    """The record that puts a target live now, or the record with that number or digest (see `find_record`).

    Raises:
        LedgerError: nothing is live for the target, and no record has that name; or the chain is broken.
    """
    live = live_record(ledger, name, channel) if _is_target(ledger, name) else None
    if record := live.record if live else find_record(name, tuple(ledger.walk())):
        return record
    raise LedgerError(
        f"expected a target that is live on {channel}, or the number or at least 8 digits of the digest of a record, "
        f"got {name!r}, in {ledger.store.uri}",
        remedy="`safegene audit history TARGET` lists the records of a target by their numbers",
    )


@dataclass(frozen=True)
class FieldDifference:
    """A value in which two records differ.

    Attributes:
        place: where in the record, such as ``policy.params.margin_hrr``.
        first: the value in the first record, as plain JSON; `MISSING` where it has none.
        second: the same of the second record.
    """

    place: str
    first: Any
    second: Any


MISSING = "(not there)"


def diff_records(first: Record, second: Record) -> tuple[FieldDifference, ...]:
    """Every value in which two records differ, by place; the random ``nonce`` is left out."""
    one, other = dict(leaves(record_content(first))), dict(leaves(record_content(second)))
    places = (
        place for place in sorted(one.keys() | other.keys()) if one.get(place, MISSING) != other.get(place, MISSING)
    )
    return tuple(FieldDifference(place, one.get(place, MISSING), other.get(place, MISSING)) for place in places)


def leaves(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """(place, value) of every value that is no mapping; a list is one value."""
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from leaves(item, f"{place}.{key}" if place else str(key))
    else:
        yield place, value


def _is_target(ledger: Ledger, name: str) -> bool:
    """Whether a target of that name has a pointer on some channel; it comes before a record of that number."""
    return any(target == name for _, target in ledger.channels())


@dataclass(frozen=True)
class RecordedAttempt:
    """A record as `history` lists it.

    Attributes:
        sequence: the record's number.
        outcome: how the attempt ended.
        channel: the channel's name.
        reason: one sentence.
        when: when the run started, in ISO 8601; empty where unknown.
        record: the record's digest.
        live: whether it is live now.
    """

    sequence: int
    outcome: RecordOutcome
    channel: str
    reason: str
    when: str
    record: str
    live: bool


def history(ledger: Ledger, target: str) -> list[RecordedAttempt]:
    """Every record of a target, and every revocation, the newest first."""
    live = {now.record.digest for now in _live_records(ledger, target)}
    return [
        RecordedAttempt(
            record.sequence,
            record.outcome,
            record.channel,
            record.reason,
            str(record.predicate.run.get("start", "")),
            record.digest,
            record.digest in live,
        )
        for record in ledger.walk()
        if record.target in (target, EVERY)
    ]


def _live_records(ledger: Ledger, target: str) -> Iterator[LiveRecord]:
    for channel, named in ledger.channels():
        if named == target and (live := live_record(ledger, target, channel)):
            yield live


def content_tree(content: Mapping[str, Any]) -> "Tree":
    """What `trace_workspace` returned, as a tree for the terminal; long lists of tensors are counted."""
    named = ("target", "channel") if "live" in content else ("record",)
    rest = {name: value for name, value in content.items() if name not in named}
    return _tree(" on ".join(str(content[name]) for name in named), rest)


def _tree(title: str, content: Mapping[str, Any]) -> "Tree":
    from rich.markup import escape
    from rich.tree import Tree

    def add(branch: Tree, name: str, value: Any) -> None:
        if name == "tensors" and isinstance(value, Mapping):
            branch.add(f"tensors: {len(value)} (all of them with --json)")
        elif isinstance(value, Mapping):
            below = branch.add(f"[bold]{escape(name)}[/]")
            for key, item in value.items():
                add(below, str(key), item)
        else:
            branch.add(f"{escape(name)}: {escape(_line(value))}")

    tree = Tree(f"[bold]{escape(title)}[/]")
    for name, value in content.items():
        add(tree, name, value)
    return tree


def _line(value: Any) -> str:
    """A value on one line, with ``?`` for each control character, which a checkpoint's name could hold."""
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return "".join(character if character.isprintable() else "?" for character in text)
