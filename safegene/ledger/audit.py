"""Audit: verify a ledger and the artefacts of a workspace. It needs the public key and no network.

An audit reads everything and changes nothing. A *problem* is something that is not what a signed record says. A *note*
is something to know, such as a record that a crash left off the chain. Each of them names its file.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from safegene.errors import SafegeneError
from safegene.ledger.attempts import tried_by
from safegene.ledger.audit_releases import READERS, verify_releases
from safegene.ledger.chain import Ledger, open_ledger, stored_apart
from safegene.ledger.evidence import publication_of
from safegene.ledger.key_changes import verify_keys
from safegene.ledger.live import live_in, revocations
from safegene.ledger.memory import RevokedDigest
from safegene.ledger.pointers import channel_key, record_key
from safegene.ledger.record import Record
from safegene.ledger.snapshot import (
    ATTEMPTS,
    ChainState,
    Folded,
    Reading,
    open_snapshot,
    read_state,
    revoked_by,
)
from safegene.ledger.store import LocalStore
from safegene.ledger.trust import signed_in_time, written_on
from safegene.text import counted
from safegene.workspace.digest import digest_file
from safegene.workspace.git import committed
from safegene.workspace.layout import Workspace
from safegene.workspace.manifest import NAME, read_manifest


@dataclass(frozen=True)
class AuditReport:
    """The result of an audit.

    Attributes:
        problems: what is not as a signed record says, a sentence each; empty for a sound ledger.
        notes: what else to know, a sentence each.
        records: number of records on the chain that were verified.
        releases: number of releases that were verified.
        artefacts: number of artefacts below ``data`` that were verified.
        trust: whose signatures were accepted, and what else vouches for the ledger, a sentence each.
    """

    problems: tuple[str, ...]
    notes: tuple[str, ...]
    records: int
    releases: int
    artefacts: int
    trust: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        """One sentence on what was verified."""
        if not self.records:
            return f"nothing on record yet; {counted(self.artefacts, 'artefact')} verified"
        counts = ((self.records, "record"), (self.releases, "release"), (self.artefacts, "artefact"))
        return f"verified {', '.join(counted(*one) for one in counts)}"


def verify_ledger(workspace: Workspace, ledger: Ledger) -> AuditReport:
    """Verify the chain, every pointer, every release that a record names, and every artefact of the workspace.

    Args:
        workspace: whose artefacts are read.
        ledger: without a cache, so that every record is read from its store.
    """
    problems: list[str] = []
    notes: list[str] = [f"not of the ledger, and ignored: {ledger.where(key)}" for key in ledger.strays()]
    with ThreadPoolExecutor(1) as beside:  # hashing releases the interpreter lock
        hashing = beside.submit(_verify_artefacts, workspace)
        chain = _verify_chain(ledger, problems)
        orphans = _verify_orphans(ledger, chain, problems, notes)
        reading = _verify_snapshots(ledger, chain, orphans, problems)
        live = _verify_pointers(ledger, reading, orphans, problems, notes)
        wrong, more = verify_keys(ledger, chain)
        problems += wrong
        notes += more
        releases, publishers = verify_releases(ledger, chain, problems)
        artefacts, changed = hashing.result()
    problems += changed
    _compare_with_records(workspace, chain, live, artefacts, problems)
    problems += _publication_problems(workspace)
    notes += [*_missing_artefacts(workspace, chain), *_wrong_clocks(chain)]
    return AuditReport(
        tuple(problems),
        tuple(notes),
        len(chain),
        len(releases),
        len(artefacts),
        (*_signers(ledger, chain), *_publishers(workspace, publishers), *_memories(ledger, chain)),
    )


def _wrong_clocks(chain: Sequence[Record]) -> Iterator[str]:
    """Records whose days do not follow those before them, or are to come. Nothing but an override's end is a day."""
    later, today = date.max, datetime.now(UTC).date()
    for at, record in enumerate(chain):
        if (day := written_on(record)) is None:
            continue
        if (day - min(later, today)).days > 1:
            other = f"record {chain[at - 1].sequence} after it on {later}" if later <= today else f"today is {today}"
            yield f"record {record.sequence} says that it was written on {day}; {other}: a clock was wrong"
        later = day


def _signers(ledger: Ledger, chain: Sequence[Record]) -> list[str]:
    signed = Counter(record.predicate.chain.key for record in chain)
    return [f"key {key.keyid}: signed {counted(signed[key.keyid], 'record')}" for key in ledger.keys]


def _publishers(workspace: Workspace, releases: Mapping[str, int]) -> list[str]:
    """Whose signatures on fetched vectors were accepted: those that a signed record names."""
    pinned = workspace.params.family.publisher
    return [
        f"key {keyid}: published the safety vector of {counted(count, 'release')}; params.yaml "
        f"{'pins it' if keyid == pinned else 'does not pin it now'}"
        for keyid, count in sorted(releases.items())
    ]


def _publication_problems(workspace: Workspace) -> list[str]:
    """Why the fetched vector of the workspace is not what its pinned publisher signed; none where none is here."""
    if not (workspace.published / NAME).is_file():
        return []
    try:
        publication_of(workspace)
    except SafegeneError as error:
        return [error.message]
    return []


def _memories(ledger: Ledger, chain: Sequence[Record]) -> list[str]:
    """What the chain was compared with beside its own signatures."""
    known = ledger.memory.recall(chain[-1].digest) if ledger.memory and chain and not chain[-1].sequence else None
    if known:
        return [f"this machine remembers record {known.sequence} of this ledger"]
    return ["this machine has not seen this ledger before: nothing but its own records says how long it is"]


def audit_workspace(workspace: Workspace) -> AuditReport:
    """`verify_ledger` with the ledger and the public key that ``params.yaml`` names; their absence is a problem too.

    Example:
        >>> report = safegene.audit(ws)
        >>> report.problems
        ()
        >>> report.summary
        'verified 1 record, 1 release, 10 artefacts'
    """
    try:
        ledger = open_ledger(workspace.params.promote, workspace.root)
    except SafegeneError as error:
        return AuditReport((error.message,), (), 0, 0, 0)
    with _downloaded(ledger) as copies:
        report = verify_ledger(workspace, copies)
    if not report.problems:
        with suppress(SafegeneError):
            read_state(ledger)  # remembers the newest record
    file = workspace.params.promote.public_key
    at_head = not file.is_absolute() and file.as_posix() in committed(workspace.root, file.as_posix())
    pinned = f"{file} is as Git's HEAD has it" if at_head else f"{file} is not in Git: compare the ids of its keys"
    return replace(report, trust=(*report.trust, pinned))


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
    stored = {digest: kind for kind in ("revocations", "records") for digest in ledger.records(kind)}
    for digest, kind in stored.items():
        if digest in linked:
            continue
        place = ledger.where(record_key(digest, kind))
        try:
            record = ledger.read(digest, kind=kind)
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


def _verify_snapshots(
    ledger: Ledger, chain: tuple[Record, ...], orphans: Sequence[Record], problems: list[str]
) -> Reading | None:
    """The state that the chain gives; a snapshot that says anything else is a problem, and a missing object."""
    if not chain:
        return None
    folded, whole = Folded(), chain[-1].sequence == 0
    stored = set(ledger.records("snapshots"))
    unlinked = {revoked_by(record) for record in orphans if record.outcome == "revocation"}
    pages, touched, objects = dict[str, str](), set[str](), set[str]()
    for record in reversed(chain):
        if not whole:
            folded.assume(record)
        folded.apply(record)
        touched |= {tried[0] for tried in (tried_by(record),) if tried}
        objects |= stored_apart(record)
        if whole and record.digest in stored:
            pages |= folded.digests_of_pages(touched)
            touched = set()
            _verify_snapshot(ledger, folded, pages, unlinked, problems)
    for digest in sorted(stored - {record.digest for record in chain} if whole else ()):
        where = ledger.where(record_key(digest, "snapshots"))
        problems.append(f"expected the record {digest} on the chain, got a snapshot of a chain with it, in {where}")
    for digest in sorted(objects | set(pages.values())):
        try:
            ledger.object(digest)
        except SafegeneError as error:
            problems.append(error.message)
    return Reading(folded, None)


def _verify_snapshot(
    ledger: Ledger,
    folded: Folded,
    pages: Mapping[str, str],
    unlinked: Set[RevokedDigest],
    problems: list[str],
) -> None:
    where = ledger.where(record_key(str(folded.at and folded.at.digest), "snapshots"))
    expected = folded.state(pages)
    try:
        found = open_snapshot(ledger, ledger.store.get(where.removeprefix(f"{ledger.store.uri}/"))[0], where=where)
    except SafegeneError as error:
        problems.append(error.message)
        return
    kept = tuple(revoked for revoked in found.revocations if revoked not in unlinked)
    if differ := [
        name
        for name in ChainState.model_fields
        if getattr(found.model_copy(update={"revocations": kept}), name) != getattr(expected, name)
    ]:
        problems.append(f"expected a snapshot that says what the records say, got another {differ[0]}, in {where}")


def _verify_pointers(
    ledger: Ledger,
    reading: Reading | None,
    orphans: Sequence[Record],
    problems: list[str],
    notes: list[str],
) -> dict[tuple[str, str], Record]:
    """(channel, target) -> the record that is live, for every sound pointer; the others are problems."""
    records: dict[tuple[str, str], Record] = {}
    left = [revoked_by(record) for record in orphans if record.outcome == "revocation"]
    left = [entry for entry in left if signed_in_time(entry, ledger.keys)]
    revoked = (*left, *revocations(ledger, reading)) if reading else ()
    for channel, target in sorted({*(reading.channels if reading else ()), *ledger.channels()}):
        where = ledger.where(channel_key(channel, target))
        try:
            pointer = ledger.pointer(channel, target)
            live = live_in(ledger, reading, revoked, pointer, channel=channel, target=target)
        except SafegeneError as error:
            problems.append(error.message)
            continue
        if live is None:
            continue
        records[channel, target] = live.record
        if live.unsettled:
            again = "roll back" if live.record.outcome == "rollback" else "promote"
            problems.append(f"{live.unsettled} ({again} {target} again)")
        if live.revoked:
            notes.append(f"{target} on {channel} is live although {live.revoked}, in {where}")
    return records


@contextmanager
def _downloaded(ledger: Ledger) -> Iterator[Ledger]:
    """The ledger with a fresh copy of every record of a remote store; one by one, each would take a round trip."""
    if isinstance(ledger.store, LocalStore):
        yield ledger
        return

    def read(digest: str) -> None:
        with suppress(SafegeneError):  # found again, and named, where the chain is read
            copies.read(digest)

    with TemporaryDirectory(prefix="safegene-audit-") as folder, ThreadPoolExecutor(READERS) as readers:
        copies = replace(ledger, cache=Path(folder))
        with suppress(SafegeneError):
            list(readers.map(read, ledger.records()))
        yield copies


def _verify_artefacts(workspace: Workspace) -> tuple[dict[Path, str], list[str]]:
    """Folder -> digest of every artefact below ``data`` whose files are all unchanged; and why the others are not."""
    digests, problems = dict[Path, str](), list[str]()
    for path in sorted(workspace.data.rglob(NAME)):
        if any(part.startswith(".") for part in path.relative_to(workspace.data).parts):
            continue
        try:
            digests[path.parent] = read_manifest(path.parent).digest
        except SafegeneError as error:
            problems.append(error.message)
    return digests, problems


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
