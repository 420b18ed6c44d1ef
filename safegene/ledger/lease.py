"""Leases on work in flight, so that two runs never evaluate the same work.

``leases/<work>`` in the ledger's store says who works on it, with a *fencing number* that grows by one with every new
holder. The holder replaces the object every few seconds, always conditionally: so it notices at once that another one
took over, and a holder that was stopped or cut off cannot promote afterwards.

No clock is compared with another machine's, and none can be set: who waits takes a lease over once it did not change
for `SECONDS` of the waiter's own monotonic clock, or at once where the holder's process on this machine has ended.
Finished work says so, with the record that it ended in, and is not done again.
"""

import logging
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from uuid import uuid4

from pydantic import NonNegativeInt, PositiveInt

from safegene.errors import PreconditionFailed, PromotionRefused, StoreError
from safegene.ledger.store import ObjectMissing, Store
from safegene.workspace.digest import PREFIX, canonical_json, digest_bytes
from safegene.workspace.fields import Digest
from safegene.workspace.parsing import Strict, parse_json

SECONDS = 60.0
log = logging.getLogger(__name__)


class Lease(Strict):
    """The content of ``leases/<work>``.

    Attributes:
        work: digest of what the work depends on.
        target: the target's name, for people.
        fence: the fencing number: 1 for the first holder.
        state: ``held``, ``free`` (its holder stopped before the end) or ``done``.
        holder: a nonce of the holder.
        host: name of its machine.
        machine: digest that identifies the machine since its last start, and the process table there.
        process: its process id there.
        run: id of its run.
        beat: grows with every renewal.
        record: digest of the record that finished work ended in.
    """

    work: Digest
    target: str
    fence: PositiveInt
    state: Literal["held", "free", "done"]
    holder: str
    host: str
    machine: str
    process: NonNegativeInt
    run: str
    beat: NonNegativeInt = 0
    record: Digest | None = None

    @property
    def named(self) -> str:
        """Who holds it, for messages."""
        run = f"run {self.run} " if self.run else ""
        return f"{run}(process {self.process} on {self.host}, fencing number {self.fence})"


@dataclass
class WorkLease:
    """The lease of one run on one work.

    Attributes:
        store: the ledger's store.
        work: digest of what the work depends on.
        target: the target's name.
        run: id of the run.
        seconds: after which a lease that did not change is taken over.
        sleep: waits for some seconds.
        clock: a clock that cannot be set, in seconds.
    """

    store: Store
    work: str
    target: str
    run: str = ""
    seconds: float = SECONDS
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic
    _held: tuple[Lease, str] | None = field(default=None, init=False, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    @property
    def fence(self) -> int:
        """The fencing number of this run; 0 where it holds no lease."""
        return self._held[0].fence if self._held else 0

    def acquire(
        self,
        waiting: Callable[[Lease], None] = lambda lease: None,
        counts: Callable[[Lease], bool] = lambda lease: True,
    ) -> Lease | None:
        """Wait until the lease is this run's (None), or the work is done by another one (its lease).

        Args:
            waiting: called once for each holder that is waited for.
            counts: whether finished work still counts; otherwise it is done again.

        Raises:
            StoreError: the store failed.
        """
        seen: tuple[str, float] = ("", 0.0)
        told = 0
        while True:
            present = self._read()
            if present is not None and present[0].state == "done" and counts(present[0]):
                return present[0]
            if present is None or present[0].state != "held":
                taken = self._take(present)
            else:
                lease, etag = present
                seen = seen if seen[0] == etag else (etag, self.clock())
                silent = self.clock() - seen[1] >= self.seconds
                taken = (silent or _has_ended(lease)) and self._take(present)
                if not taken and lease.fence != told:
                    told = lease.fence
                    waiting(lease)
            if taken:
                return None
            self.sleep(self.seconds / 20)

    def confirm(self) -> None:
        """Renew the lease, which proves that this run still holds it.

        Raises:
            PromotionRefused: another run took it over; names it.
            StoreError: the store failed.
        """
        with self._lock:
            if self._held is None:
                raise PromotionRefused(f"expected this run to hold the lease on {self.target}, got none")
            lease, etag = self._held
            try:
                self._replace(lease.model_copy(update={"beat": lease.beat + 1}), etag)
            except PreconditionFailed:
                present = self._read()
                winner = present[0].named if present else "nobody"
                error = PromotionRefused(
                    f"expected this run to work on {self.target} alone, with fencing number {lease.fence}, got that "
                    f"it was taken over by {winner} while this run did not answer",
                    remedy="the other run's result counts: `safegene status`",
                )
                error.exit_code = 1
                raise error from None

    def end(self, record: str | None) -> None:
        """Say that the work is done, by ``record``, or free for another run; without effect where the lease is lost."""
        with self._lock, suppress(PreconditionFailed, StoreError):
            if self._held is not None:
                lease, etag = self._held
                self._held = None
                change = {"state": "done" if record else "free", "record": record, "beat": lease.beat + 1}
                self._write(lease.model_copy(update=change), etag)

    @contextmanager
    def renewed(self) -> Iterator[None]:
        """Renew the lease in the background while the block runs; a renewal that fails is tried again."""
        stop = threading.Event()

        def renew() -> None:
            while not stop.wait(self.seconds / 6):
                try:
                    self.confirm()
                except StoreError as error:
                    log.warning("the lease on %s was not renewed: %s", self.target, error.message)
                except PromotionRefused as error:
                    log.warning("%s", error.message)
                    return

        thread = threading.Thread(target=renew, daemon=True, name="safegene-lease")
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def _take(self, present: tuple[Lease, str] | None) -> bool:
        lease = Lease(
            work=self.work,
            target=self.target,
            fence=present[0].fence + 1 if present else 1,
            state="held",
            holder=uuid4().hex,
            host=platform.node(),
            machine=_machine(),
            process=os.getpid(),
            run=self.run,
        )
        try:
            self._replace(lease, present[1] if present else None)
        except PreconditionFailed:
            return False
        return True

    def _replace(self, lease: Lease, etag: str | None) -> None:
        self._held = lease, self._write(lease, etag)

    def _write(self, lease: Lease, etag: str | None) -> str:
        data = canonical_json(lease.model_dump(mode="json"))
        return (
            self.store.put_if_absent(self._key, data)
            if etag is None
            else self.store.put_if_match(self._key, data, etag)
        )

    def present(self) -> Lease | None:
        """The lease in the store."""
        found = self._read()
        return found[0] if found else None

    def _read(self) -> tuple[Lease, str] | None:
        try:
            data, etag = self.store.get(self._key)
        except ObjectMissing:
            return None
        return parse_json(Lease, data, where=f"{self.store.uri}/{self._key}"), etag

    @property
    def _key(self) -> str:
        return f"leases/{self.work.removeprefix(PREFIX)}"


def require_fence(store: Store, run: Mapping[str, str]) -> None:
    """Check, before something goes live, that the run still has its work to itself.

    Args:
        store: the ledger's store.
        run: the ``run`` fields of the record; without ``work`` there is no lease, as in a promotion by hand.

    Raises:
        PromotionRefused: another run took the work over; names it.
        StoreError: the store failed.
    """
    if "work" not in run:
        return
    present = WorkLease(store, run["work"], "").present()
    if present is None or (present.state, str(present.fence)) != ("held", run.get("fence")):
        error = PromotionRefused(
            f"expected this run to hold its work with fencing number {run.get('fence')}, got "
            + (f"{present.named}, which took it over" if present else "no lease"),
            remedy="the other run's result counts: `safegene status`",
        )
        error.exit_code = 1
        raise error


def _machine() -> str:
    """A digest of what tells process tables apart; "" where the system does not say."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
        return digest_bytes(f"{platform.node()}\n{boot}\n{os.readlink('/proc/self/ns/pid')}".encode())
    except OSError:
        return ""


def _has_ended(lease: Lease) -> bool:
    """Whether the holder's process ran on this machine and has ended."""
    if not lease.machine or lease.machine != _machine():
        return False
    try:
        os.kill(lease.process, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False
