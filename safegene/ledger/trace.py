"""Questions to a ledger for people: the lineage of what is live, and every attempt on a target."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from safegene.errors import LedgerError
from safegene.ledger.chain import Ledger, open_ledger
from safegene.ledger.live import LiveRecord, live_record
from safegene.ledger.record import EVERY, RecordOutcome
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
        raise LedgerError(
            f"expected something live for {target} on {channel}, got nothing, in {ledger.store.uri}",
            remedy=f"see the attempts so far: `safegene audit history {target}`",
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


def trace_workspace(workspace: Workspace, target: str, channel: str | None = None) -> "Tree":
    """`trace_live` as a tree for the terminal; the channel is that of ``params.yaml`` where none is given."""
    params = workspace.params.promote
    content = trace_live(open_ledger(params, workspace.root), target, channel or params.channel)
    return _tree(f"{content.pop('target')} on {content.pop('channel')}", content)


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


def _tree(title: str, content: Mapping[str, Any]) -> "Tree":
    from rich.markup import escape
    from rich.tree import Tree

    def add(branch: Tree, name: str, value: Any) -> None:
        if isinstance(value, Mapping):
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
