"""What an audit can ask of places outside of the workspace: the sources that records name, and the DVC remote.

Everything here is bounded in time, and what was not reached is said: it is a note, never a problem. A source that holds
other bytes than a record of what is live names is a problem, since a server would load the repair on other weights.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from safegene.checkpoints.sources import fingerprint
from safegene.errors import SafegeneError
from safegene.ledger.blast import live_records
from safegene.ledger.bundle_source import bundle_fingerprint
from safegene.ledger.chain import Ledger
from safegene.ledger.live import revocations
from safegene.ledger.record import Record
from safegene.ledger.snapshot import read_state
from safegene.text import redact
from safegene.workspace.digest import PREFIX
from safegene.workspace.layout import Workspace

SECONDS = 120
"""After these, no further source is asked; each request has a bound of its own."""
DVC_SECONDS = 60


@dataclass(frozen=True)
class OnlineReport:
    """What places outside of the workspace hold.

    Attributes:
        problems: a source that has changed since a live record, a sentence each.
        notes: what was not reached or is not there, a sentence each.
        sources: number of sources that hold what the records name.
    """

    problems: tuple[str, ...]
    notes: tuple[str, ...]
    sources: int


@dataclass(frozen=True)
class _Named:
    """A source and its content, as a record names them; ``publisher`` is the key of a published vector, else ""."""

    record: Record
    source: str
    fingerprint: str
    publisher: str = ""

    def present(self) -> str:
        """What the source holds now."""
        if self.publisher:
            return bundle_fingerprint(self.source, self.publisher)
        return fingerprint(self.source)


def check_online(workspace: Workspace, ledger: Ledger, *, seconds: float = SECONDS) -> OnlineReport:
    """Ask each source of what is live for its present content, and the DVC remote for the artefacts.

    Args:
        workspace: whose DVC remote is asked.
        ledger: the ledger.
        seconds: see `SECONDS`.

    Raises:
        LedgerError: the chain is broken.
    """
    problems, notes, sound = list[str](), list[str](), 0
    reading = read_state(ledger)
    live, _ = live_records(ledger, reading, revocations(ledger, reading))
    named = {(one.source, one.fingerprint): one for record in live for one in _sources(record.record)}
    start = time.monotonic()
    for number, one in enumerate(named.values()):
        if time.monotonic() - start > seconds:
            notes.append(f"not asked, since {seconds:.0f} s were over: {len(named) - number} of {len(named)} sources")
            break
        try:
            present = one.present()
        except SafegeneError as error:
            notes.append(f"not reached: {redact(one.source)}, named by record {one.record.sequence}: {error.message}")
            continue
        if present == one.fingerprint:
            sound += 1
        else:
            problems.append(
                f"expected {one.fingerprint}, as record {one.record.sequence} says, got {present}: the source was "
                f"changed after the record, at {redact(one.source)}"
            )
    return OnlineReport(tuple(problems), (*notes, *_remote(workspace)), sound)


def _sources(record: Record) -> Iterator[_Named]:
    for field in (record.predicate.base, record.predicate.model):
        if isinstance(field, Mapping) and {"source", "fingerprint"} <= field.keys():
            yield _Named(record, str(field["source"]), str(field["fingerprint"]))
    published = record.predicate.vector.get("publisher")
    if isinstance(published, Mapping) and {"source", "bundle", "key"} <= published.keys():
        key = str(published["key"]).removeprefix(PREFIX)
        yield _Named(record, str(published["source"]), str(published["bundle"]), key)


def _remote(workspace: Workspace) -> Iterator[str]:
    """A sentence if the DVC remote was not reached, and one on the artefacts that it does not hold."""
    command = [sys.executable, "-m", "dvc", "status", "--cloud", "--json"]
    try:
        done = subprocess.run(
            command, cwd=workspace.root, capture_output=True, text=True, check=False, timeout=DVC_SECONDS
        )
        states = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        yield f"not reached: the DVC remote did not answer in {DVC_SECONDS} s"
        return
    except ValueError:
        yield f"not reached: the DVC remote: {' '.join(done.stderr.split())[:300] or 'no answer'}"
        return
    folders = {
        path.relative_to(workspace.root).as_posix()
        for target in workspace.targets.targets
        for path in workspace.artefacts(target).values()
    }
    if absent := sorted(folders & {name for name, state in states.items() if state in ("new", "missing")}):
        yield f"not on the DVC remote, so that a clone cannot pull it (`dvc push`): {', '.join(absent)}"
