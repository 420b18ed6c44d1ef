"""Audit: verify a ledger and a workspace, trace what is live, list what happened. Needs a public key and no network.

`verify` reads everything and changes nothing. A *problem* is something that is not what a signed record says; a *note*
is something to know: a record that a crash left unlinked, say. Every finding names its file.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safegene.errors import LedgerError, SafegeneError
from safegene.ledger import (
    PUBLISHING,
    Ledger,
    LiveRecord,
    Record,
    channel_key,
    live_channels,
    live_record,
    open_ledger,
    record_key,
    release_uri,
    require_release_of,
)
from safegene.workspace.digest import digest_file
from safegene.workspace.layout import Workspace
from safegene.workspace.manifest import NAME, read_manifest

if TYPE_CHECKING:
    from rich.tree import Tree

ATTEMPTS = ("pass", "fail", "inconclusive", "error", "superseded")


@dataclass(frozen=True)
class AuditReport:
    """What an audit found, and how much it read."""

    problems: tuple[str, ...]
    notes: tuple[str, ...]
    records: int
    releases: int
    artefacts: int

    @property
    def summary(self) -> str:
        """What was verified, in words; that there was nothing to verify, where that is so."""
        if not self.records:
            return f"nothing on record yet; {self.artefacts} artefacts verified"
        return f"verified {self.records} records, {self.releases} releases, {self.artefacts} artefacts"


def verify_ledger(workspace: Workspace, ledger: Ledger) -> AuditReport:
    """Verify the chain, every pointer, every release that a record names, and every artefact of the workspace.

    Args:
        workspace: whose artefacts are read.
        ledger: without a cache, so that every record is read from its store.
    """
    problems: list[str] = []
    notes: list[str] = []
    chain = _chain(ledger, problems)
    orphans = _orphans(ledger, chain, problems, notes)
    lives = _channels(ledger, chain, (*chain, *orphans), problems, notes)
    releases = {(str(record.release), tuple(record.artefacts.items())) for record in chain if record.release}
    for release, names in sorted(releases):
        _try(problems, lambda release=release, names=names: require_release_of(ledger.store, release, dict(names)))
    artefacts = _artefacts(workspace, problems)
    _recorded(workspace, chain, lives, artefacts, problems)
    notes += _absent(workspace, chain)
    return AuditReport(
        tuple(problems), tuple(notes), len(chain), len({release for release, _ in releases}), len(artefacts)
    )


def audit_workspace(workspace: Workspace) -> AuditReport:
    """`verify` with the workspace's own ledger and pinned key.

    Example:
        >>> report = safegene.audit(ws)
        >>> report.problems
        ()
        >>> report.summary
        'verified 1 records, 1 releases, 10 artefacts'
    """
    try:
        ledger = open_ledger(workspace.params.promote, workspace.root)
    except SafegeneError as error:
        return AuditReport((error.message,), (), 0, 0, 0)
    return verify_ledger(workspace, ledger)


def trace_live(ledger: Ledger, target: str, channel: str) -> dict[str, Any]:
    """The lineage of what is live for a target, as plain JSON values, from the release down to the commit.

    Raises:
        LedgerError: nothing is live, or the chain or the pointer is broken.
    """
    now = live_record(ledger, target, channel)
    if now is None:
        raise LedgerError(
            f"expected something live for {target} on {channel}, got nothing, in {ledger.store.uri}",
            remedy=f"see what was tried: `safegene audit history {target}`",
        )
    record, content = now.record, now.record.predicate
    return {
        "target": target,
        "channel": channel,
        "live": {
            "release": now.release,
            "uri": release_uri(ledger.store, now.release),
            "record": record.digest,
            "sequence": record.sequence,
            "outcome": record.outcome,
            "reason": record.reason,
            "signed by": content["chain"]["key"],
            "revoked": now.revoked or "no",
        },
        "verdict": content["verdict"],
        "rates": content["rates"],
        "judge": content["judge"],
        "policy": content["policy"],
        "replies": content["replies"],
        "candidate": {
            "digest": record.artefacts.get("candidate"),
            "coefficients": content["vector"].get("coefficients"),
        },
        "vector": content["vector"],
        "checkpoints": {"target": content["model"], "aligned": content["base"]},
        "datasets": content["datasets"],
        "artefacts": dict(record.artefacts),
        "code": content["code"],
        "run": content["run"],
    }


def trace_workspace(workspace: Workspace, target: str, channel: str | None = None) -> "Tree":
    """`show` as a tree for the terminal."""
    params = workspace.params.promote
    content = trace_live(open_ledger(params, workspace.root), target, channel or params.channel)
    return _tree(f"{content.pop('target')} on {content.pop('channel')}", content)


def history(ledger: Ledger, target: str) -> list[dict[str, Any]]:
    """Every attempt for a target, the newest first: ``sequence, outcome, channel, reason, when, record, live``."""
    lives = {now.record.digest for now in _lives(ledger, target)}
    return [
        {
            "sequence": record.sequence,
            "outcome": record.outcome,
            "channel": record.channel,
            "reason": record.reason,
            "when": record.predicate["run"].get("start", ""),
            "record": record.digest,
            "live": record.digest in lives,
        }
        for record in ledger.walk()
        if record.target in (target, "*")
    ]


def _lives(ledger: Ledger, target: str) -> Iterator[LiveRecord]:
    for channel, named in ledger.channels():
        if named == target and (now := live_record(ledger, target, channel)):
            yield now


def _chain(ledger: Ledger, problems: list[str]) -> tuple[Record, ...]:
    """The chain as far as it is sound, newest first; what breaks it is a problem."""
    found = []
    try:
        for record in ledger.walk():
            found.append(record)
    except SafegeneError as error:
        problems.append(error.message)
    return tuple(found)


def _orphans(ledger: Ledger, chain: tuple[Record, ...], problems: list[str], notes: list[str]) -> list[Record]:
    """Records off the chain: one that follows it is a crash's or a lost race's, one that does not was cut off."""
    linked, found = {record.digest for record in chain}, list[Record]()
    broken = bool(problems)
    for digest in ledger.records():
        if digest in linked:
            continue
        place = ledger.where(record_key(digest))
        try:
            record = ledger.read(digest)
        except SafegeneError as error:
            if error.message not in problems:
                problems.append(error.message)
            continue
        found.append(record)
        follows = record.previous is None or record.previous in linked
        again = any(one.outcome == "revocation" and one.revokes == record.revokes for one in chain)
        if follows and record.outcome == "revocation" and not again:
            problems.append(
                f"expected revocation {record.sequence} on the chain, got a chain without it: its writer stopped, or "
                f"the tip was set back; it holds, and revoking {record.revokes} again puts it on the chain, in {place}"
            )
        elif follows:
            notes.append(f"record {record.sequence} was never linked: its writer stopped or lost a race, in {place}")
        elif not broken:
            problems.append(f"expected record {record.sequence} on the chain, got a chain without it, in {place}")
    return found


def _channels(
    ledger: Ledger,
    chain: tuple[Record, ...],
    revoked: tuple[Record, ...],
    problems: list[str],
    notes: list[str],
) -> dict[tuple[str, str], Record]:
    """(channel, target) -> the record that is live, for each pointer that may be trusted."""
    found: dict[tuple[str, str], Record] = {}
    for channel, target in ledger.channels():
        where = ledger.where(channel_key(channel, target))
        try:
            pointer = ledger.pointer(channel, target)
            if pointer is None:
                raise LedgerError(f"expected a pointer, got none, in {where}")
            now = live_channels(ledger, chain, revoked, pointer, channel=channel, target=target)
        except SafegeneError as error:
            problems.append(error.message)
            continue
        found[channel, target] = now.record
        if now.revoked:
            notes.append(f"{target} on {channel} is live though {now.revoked}, in {where}")
    _unpublished(ledger, chain, {at: record.sequence for at, record in found.items()}, problems)
    return found


def _unpublished(
    ledger: Ledger, chain: tuple[Record, ...], pointed: dict[tuple[str, str], int], problems: list[str]
) -> None:
    """Newer publishing records than the pointer: a promotion was interrupted, or the pointer was set back."""
    beaten = {record.replaces for record in chain if record.outcome == "superseded"}
    for record in chain:
        at = pointed.get((record.channel, record.target), -1)
        if record.outcome in PUBLISHING and record.sequence > at and record.digest not in beaten:
            where = ledger.where(channel_key(record.channel, record.target))
            what, again = ("rollback", "roll back") if record.outcome == "rollback" else ("promotion", "promote")
            problems.append(
                f"expected a pointer to record {record.sequence} or later, got {at if at >= 0 else 'none'}: a "
                f"{what} was interrupted ({again} {record.target} again), or the pointer was set back, in {where}"
            )
            pointed[record.channel, record.target] = record.sequence


def _artefacts(workspace: Workspace, problems: list[str]) -> dict[Path, str]:
    """Digest of every artefact below ``data/`` that is whole, byte for byte; a problem for each that is not."""
    found = {}
    for path in sorted(workspace.data.rglob(NAME)):
        if any(part.startswith(".") for part in path.relative_to(workspace.data).parts):
            continue
        try:
            found[path.parent] = read_manifest(path.parent).digest
        except SafegeneError as error:
            problems.append(error.message)
    return found


def _recorded(
    workspace: Workspace,
    chain: tuple[Record, ...],
    lives: Mapping[tuple[str, str], Record],
    artefacts: Mapping[Path, str],
    problems: list[str],
) -> None:
    """Artefacts and data whose digest is neither that of the target's last attempt nor that of what is live."""
    for target in sorted({record.target for record in chain if record.outcome in ATTEMPTS}):
        last = next(r for r in chain if r.target == target and r.outcome in ATTEMPTS)
        allowed = [last, *(record for (_, named), record in lives.items() if named == target)]
        for name, folder in workspace.artefacts(target).items():
            known = {one.artefacts[name] for one in allowed if name in one.artefacts}
            _require_known(artefacts.get(folder), known, folder / NAME, last, problems)
        for name in last.predicate["datasets"]:
            path = workspace.data / name
            known = {one.predicate["datasets"].get(name) for one in allowed}
            if name != "not_recorded" and path.is_file():
                _require_known(digest_file(path), known, path, last, problems)


def _absent(workspace: Workspace, chain: tuple[Record, ...]) -> list[str]:
    """Artefacts that a target's last attempt names and the workspace does not hold: not verified, and said so."""
    notes = []
    for target in sorted({record.target for record in chain if record.outcome in ATTEMPTS}):
        last = next(r for r in chain if r.target == target and r.outcome in ATTEMPTS)
        for name, folder in workspace.artefacts(target).items():
            if name in last.artefacts and not (folder / NAME).is_file():
                where = folder.relative_to(workspace.root)
                notes.append(
                    f"not verified, since it is not here (`dvc pull`): {where}, named by record {last.sequence}"
                )
    return notes


def _require_known(got: str | None, known: set[str], where: Path, last: Record, problems: list[str]) -> None:
    if got and known and got not in known:
        finding = (
            f"expected {' or '.join(sorted(known))}, as record {last.sequence} says, got {got}: changed after it "
            f"(run `safegene run`, or `dvc checkout`), in {where}"
        )
        if finding not in problems:
            problems.append(finding)


def _try(problems: list[str], check: Any) -> None:
    try:
        check()
    except SafegeneError as error:
        problems.append(error.message)


def _tree(title: str, content: Mapping[str, Any]) -> "Tree":
    from rich.markup import escape
    from rich.tree import Tree

    def add(branch: Tree, name: str, value: Any) -> None:
        if isinstance(value, Mapping):
            below = branch.add(f"[bold]{escape(name)}[/]")
            for key, item in value.items():
                add(below, str(key), item)
        else:
            branch.add(f"{escape(name)}: {escape(_plain(value))}")

    tree = Tree(f"[bold]{escape(title)}[/]")
    for name, value in content.items():
        add(tree, name, value)
    return tree


def _plain(value: Any) -> str:
    """A value as one line without control characters, which a checkpoint's name could hold."""
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return "".join(character if character.isprintable() else "?" for character in text)
