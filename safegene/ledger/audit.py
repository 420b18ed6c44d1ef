"""Audit: verify a ledger and the artefacts of a workspace. It needs the public key and no network.

An audit reads everything and changes nothing. A *problem* is something that is not what a signed record says. A *note*
is something to know, such as a record that a crash left off the chain. Each of them names its file.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safegene.errors import LedgerError, SafegeneError
from safegene.ledger.chain import Ledger, channel_key, open_ledger, record_key
from safegene.ledger.key_changes import verify_keys
from safegene.ledger.live import follow_pointer, superseded_records
from safegene.ledger.record import PUBLISHING, Record
from safegene.ledger.release import require_release_of
from safegene.workspace.digest import digest_file
from safegene.workspace.layout import Workspace
from safegene.workspace.manifest import NAME, read_manifest

ATTEMPTS = ("pass", "override", "pending", "fail", "inconclusive", "error", "superseded")


@dataclass(frozen=True)
class AuditReport:
    """The result of an audit.

    Attributes:
        problems: what is not as a signed record says, a sentence each; empty for a sound ledger.
        notes: what else to know, a sentence each.
        records: number of records on the chain that were verified.
        releases: number of releases that were verified.
        artefacts: number of artefacts below ``data`` that were verified.
    """

    problems: tuple[str, ...]
    notes: tuple[str, ...]
    records: int
    releases: int
    artefacts: int

    @property
    def summary(self) -> str:
        """One sentence on what was verified."""
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
    chain = _verify_chain(ledger, problems)
    orphans = _verify_orphans(ledger, chain, problems, notes)
    live = _verify_pointers(ledger, chain, (*chain, *orphans), problems, notes)
    wrong, more = verify_keys(ledger, chain)
    problems += wrong
    notes += more
    releases = {(record.release, tuple(record.artefacts.items())) for record in chain if record.release}
    for release, names in sorted(releases):
        _verify_release(ledger, release, dict(names), problems)
    artefacts = _verify_artefacts(workspace, problems)
    _compare_with_records(workspace, chain, live, artefacts, problems)
    notes += _missing_artefacts(workspace, chain)
    return AuditReport(
        tuple(problems), tuple(notes), len(chain), len({release for release, _ in releases}), len(artefacts)
    )


def audit_workspace(workspace: Workspace) -> AuditReport:
    """`verify_ledger` with the ledger and the public key that ``params.yaml`` names; their absence is a problem too.

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


def _verify_chain(ledger: Ledger, problems: list[str]) -> tuple[Record, ...]:
    """The records from the newest back to the first broken link, which is a problem."""
    chain = []
    try:
        for record in ledger.walk():
            chain.append(record)
    except SafegeneError as error:
        problems.append(error.message)
    return tuple(chain)


def _verify_orphans(ledger: Ledger, chain: tuple[Record, ...], problems: list[str], notes: list[str]) -> list[Record]:
    """Records that are not on the chain.

    One whose previous record is on the chain was left by a crash, or lost a race: a note, but a problem for a
    revocation. Another one was cut off the chain: a problem.
    """
    linked, orphans = {record.digest for record in chain}, list[Record]()
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
        orphans.append(record)
        follows = record.previous is None or record.previous in linked
        repeated = any(other.outcome == "revocation" and other.revokes == record.revokes for other in chain)
        if follows and record.outcome == "revocation" and not repeated:
            problems.append(
                f"expected revocation {record.sequence} on the chain, got a chain without it: its writer stopped, or "
                f"the tip was set back; the revocation holds; revoke {record.revokes} again to put it on the chain, "
                f"in {place}"
            )
        elif follows:
            notes.append(
                f"record {record.sequence} is not on the chain: its writer stopped, or another writer was first, "
                f"in {place}"
            )
        elif not broken:
            problems.append(f"expected record {record.sequence} on the chain, got a chain without it, in {place}")
    return orphans


def _verify_pointers(
    ledger: Ledger,
    chain: tuple[Record, ...],
    revoked: tuple[Record, ...],
    problems: list[str],
    notes: list[str],
) -> dict[tuple[str, str], Record]:
    """(channel, target) -> the record that is live, for every sound pointer; the others are problems."""
    records: dict[tuple[str, str], Record] = {}
    for channel, target in ledger.channels():
        where = ledger.where(channel_key(channel, target))
        try:
            pointer = ledger.pointer(channel, target)
            if pointer is None:
                raise LedgerError(f"expected a pointer, got none, in {where}")
            live = follow_pointer(ledger, chain, revoked, pointer, channel=channel, target=target)
        except SafegeneError as error:
            problems.append(error.message)
            continue
        records[channel, target] = live.record
        if live.revoked:
            notes.append(f"{target} on {channel} is live although {live.revoked}, in {where}")
    _verify_latest(ledger, chain, {at: record.sequence for at, record in records.items()}, problems)
    return records


def _verify_latest(
    ledger: Ledger, chain: tuple[Record, ...], pointed: dict[tuple[str, str], int], problems: list[str]
) -> None:
    """A publishing record that is newer than its pointer is a problem."""
    superseded = superseded_records(chain)
    for record in chain:
        at = pointed.get((record.channel, record.target), -1)
        if record.outcome in PUBLISHING and record.sequence > at and record.digest not in superseded:
            where = ledger.where(channel_key(record.channel, record.target))
            what, again = ("rollback", "roll back") if record.outcome == "rollback" else ("promotion", "promote")
            problems.append(
                f"expected a pointer to record {record.sequence} or later, got {at if at >= 0 else 'none'}: a "
                f"{what} was interrupted ({again} {record.target} again), or the pointer was set back, in {where}"
            )
            pointed[record.channel, record.target] = record.sequence


def _verify_release(ledger: Ledger, release: str, artefacts: Mapping[str, str], problems: list[str]) -> None:
    try:
        require_release_of(ledger.store, release, artefacts)
    except SafegeneError as error:
        problems.append(error.message)


def _verify_artefacts(workspace: Workspace, problems: list[str]) -> dict[Path, str]:
    """Folder -> digest of every artefact below ``data`` whose files are all unchanged; the others are problems."""
    digests = {}
    for path in sorted(workspace.data.rglob(NAME)):
        if any(part.startswith(".") for part in path.relative_to(workspace.data).parts):
            continue
        try:
            digests[path.parent] = read_manifest(path.parent).digest
        except SafegeneError as error:
            problems.append(error.message)
    return digests


def _compare_with_records(
    workspace: Workspace,
    chain: tuple[Record, ...],
    live: Mapping[tuple[str, str], Record],
    artefacts: Mapping[Path, str],
    problems: list[str],
) -> None:
    """An artefact or data set is a problem unless its target's last attempt, or what is live, names its digest."""
    for target, last in _last_attempts(chain).items():
        allowed = [last, *(record for (_, named), record in live.items() if named == target)]
        for name, folder in workspace.artefacts(target).items():
            known = {record.artefacts[name] for record in allowed if name in record.artefacts}
            _compare(artefacts.get(folder), known, folder / NAME, last, problems)
        for name in last.predicate.datasets:
            path = workspace.data / name
            if name != "not_recorded" and path.is_file():
                known = {str(record.predicate.datasets.get(name)) for record in allowed}
                _compare(digest_file(path), known, path, last, problems)


def _missing_artefacts(workspace: Workspace, chain: tuple[Record, ...]) -> list[str]:
    """A note for each artefact that a last attempt names and the workspace does not hold."""
    named: dict[str, list[int]] = {}
    for target, last in _last_attempts(chain).items():
        for name, folder in workspace.artefacts(target).items():
            if name in last.artefacts and not (folder / NAME).is_file():
                named.setdefault(folder.relative_to(workspace.root).as_posix(), []).append(last.sequence)
    return [
        f"not verified, since it is not here (get it with `dvc pull`): {folder}, named by "
        f"{'record' if len(numbers) == 1 else 'records'} {', '.join(map(str, numbers))}"
        for folder, numbers in named.items()
    ]


def _last_attempts(chain: tuple[Record, ...]) -> dict[str, Record]:
    """Target -> its newest record that is an attempt to promote."""
    attempts = {record.target: record for record in reversed(chain) if record.outcome in ATTEMPTS}
    return dict(sorted(attempts.items()))


def _compare(got: str | None, known: set[str], where: Path, last: Record, problems: list[str]) -> None:
    if got and known and got not in known:
        problem = (
            f"expected {' or '.join(sorted(known))}, as record {last.sequence} says, got {got}: it was changed after "
            f"the record (run `safegene run`, or `dvc checkout`), in {where}"
        )
        if problem not in problems:
            problems.append(problem)
