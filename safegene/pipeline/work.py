"""Work in flight: one run at a time evaluates a target's present state, over all workspaces that share a ledger.

The *work* is the digest of what an evaluation depends on: the fine-tune's content, the aligned checkpoint, the safety
vector, the policy and the suites. A run holds the lease on its work (`safegene.ledger.lease`) from calibration to
promotion. So an event that arrives a hundred times is evaluated once: a second run waits for the first, and takes its
recorded result. A ledger inside of the workspace has one writer, whose runs follow one another by the workspace's lock
and find every stage up to date; there is no lease then.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from safegene.errors import LedgerError
from safegene.ledger.chain import Ledger, open_ledger
from safegene.ledger.evidence import present_artefacts
from safegene.ledger.lease import Lease, WorkLease
from safegene.ledger.live import live_record
from safegene.ledger.record import Record
from safegene.ledger.store import LocalStore
from safegene.workspace.digest import digest_json
from safegene.workspace.layout import Workspace, cache_folder
from safegene.workspace.manifest import input_digest

DECIDED = ("pass", "fail", "inconclusive", "pending")
log = logging.getLogger(__name__)


@dataclass
class Work:
    """The work of a run on one target.

    Attributes:
        run: the ``run`` fields of its records, with the work and the fencing number.
        decided: the outcome that another run reached on the same work; "" where this run must work.
        by: number of that run's record.
        finished: whether this run reached an outcome.
    """

    run: dict[str, str]
    decided: str = ""
    by: int = 0
    finished: bool = field(default=False)


def work_digest(ws: Workspace, target: str) -> str:
    """The digest of what an evaluation of the target depends on; to be asked once the target is fetched."""
    params, made = ws.params, present_artefacts(ws, target)
    task = ws.tasks / f"{ws.targets.targets[target].task}.jsonl"
    parts = {
        "target": [target, params.promote.channel],
        "checkpoint": [made.get("target"), made.get("aligned")],
        "vector": [made.get("vector"), made.get("selection")],
        "policy": [section.model_dump(mode="json") for section in (params.calibrate, params.evaluate, params.gate)],
        "suite": [input_digest(ws.prompts), input_digest(task)],
    }
    return digest_json(parts)


@contextmanager
def working_alone(ws: Workspace, target: str, run: dict[str, str]) -> Iterator[Work]:
    """Hold the lease on the target's work for the block, unless another run has decided it already.

    Raises:
        StoreError: the ledger's store failed.
    """
    ledger = open_ledger(ws.params.promote, ws.root, cache=cache_folder() / "records")
    if isinstance(ledger.store, LocalStore) and ledger.store.root.resolve().is_relative_to(ws.root.resolve()):
        yield Work(run)
        return
    lease = WorkLease(ledger.store, work_digest(ws, target), target, run.get("run_id", ""))
    done = lease.acquire(
        lambda other: log.info("%s: waiting for %s, which works on the same", target, other.named),
        lambda other: _decision(ws, ledger, other) is not None,
    )
    if done is not None:
        record = _decision(ws, ledger, done)
        assert record is not None, "acquire accepts only what has a decision"
        yield Work(run, record.outcome, record.sequence)
        return
    work = Work({**run, "work": lease.work, "fence": str(lease.fence)})
    try:
        with lease.renewed():
            yield work
    finally:
        lease.end(_newest_record(ws, ledger, target) if work.finished else None)


def _decision(ws: Workspace, ledger: Ledger, lease: Lease) -> Record | None:
    """The record that finished work ended in, if it still counts and this workspace has not the same verdict itself."""
    try:
        record = ledger.read(lease.record or "")
    except LedgerError:
        return None
    if record.target != lease.target or record.outcome not in DECIDED:
        return None
    if record.artefacts.get("verdict") == present_artefacts(ws, lease.target).get("verdict"):
        return None
    live = live_record(ledger, record.target, record.channel)
    same = (live.record.digest if live else None) in (record.digest, record.replaces)
    return record if same and not (live and live.revoked) else None


def _newest_record(ws: Workspace, ledger: Ledger, target: str) -> str | None:
    """Digest of the newest record of the present verdict; None where there is none."""
    verdict = present_artefacts(ws, target).get("verdict")
    for record in ledger.walk():
        if record.target == target and record.outcome in DECIDED and record.artefacts.get("verdict") == verdict:
            return record.digest
    return None
