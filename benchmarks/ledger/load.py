"""Promoters at once, a part of them killed with SIGKILL between their writes, and what must hold afterwards.

Each promoter is a process that promotes one candidate after the other. A killed promoter is replaced by another one,
which goes on with the next candidate, as a scheduled run would.
"""

import json
import multiprocessing
import os
import random
import signal
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from safegene.errors import PromotionRefused, SafegeneError, StaleArtifact
from safegene.ledger import Ledger, Record, live_record, load_signer, open_ledger
from safegene.ledger.promotion import record_promotion
from safegene.ledger.rules import PromotionClaim
from safegene.ledger.snapshot import effective_records, keep_seen
from safegene.ledger.store import Store, require_conditions
from safegene.workspace.digest import digest_file, digest_json
from safegene.workspace.operation_params import PromoteParams

CHANNEL = "production"
KILLED_AFTER = ("releases/", "records/", "tip")
"""A promoter is killed right after it wrote an object of one of these prefixes, before its next write."""
LAYERS = 32  # of the model whose tensors the records name


@dataclass(frozen=True)
class Load:
    """What is asked of a ledger.

    Attributes:
        promoters: processes at once.
        attempts: promotions in all.
        killed: share of them that are killed.
        targets: between which the promotions are spread.
        seed: which attempts are killed, and where.
    """

    promoters: int = 8
    attempts: int = 1000
    killed: float = 0.3
    targets: int = 5
    seed: int = 0

    def deaths(self) -> dict[int, str]:
        """Attempt -> the prefix after whose write it is killed."""
        draw = random.Random(self.seed)
        chosen = draw.sample(range(self.attempts), round(self.killed * self.attempts))
        return {attempt: draw.choice(KILLED_AFTER) for attempt in chosen}


@dataclass(frozen=True)
class LoadResult:
    """How a load ended.

    Attributes:
        ended: attempt -> ``pass``, ``superseded``, ``error``, or ``killed``.
        records: attempt -> its record, of the attempts that were told of one.
    """

    ended: dict[int, str]
    records: dict[int, str]

    def count(self, outcome: str) -> int:
        """Attempts that ended so."""
        return list(self.ended.values()).count(outcome)


@dataclass(frozen=True)
class Faults:
    """What must be empty after a load.

    Attributes:
        lost: attempts that were told of a record which is not on the chain, or of a promotion that took no effect.
        double: candidates that took effect twice, and records that were replaced twice.
        problems: what is wrong with the chain.
    """

    lost: tuple[int, ...]
    double: tuple[str, ...]
    problems: tuple[str, ...]


@dataclass(frozen=True)
class DeadlyStore:
    """A store whose writer is killed right after the first write below a prefix."""

    inner: Store
    prefix: str

    @property
    def uri(self) -> str:
        """The place of the store."""
        return self.inner.uri

    def get(self, key: str) -> tuple[bytes, str]:
        """See `Store`."""
        return self.inner.get(key)

    def put_if_absent(self, key: str, data: bytes) -> str:
        """See `Store`."""
        return self._die(key, self.inner.put_if_absent(key, data))

    def put_if_match(self, key: str, data: bytes, etag: str) -> str:
        """See `Store`."""
        return self._die(key, self.inner.put_if_match(key, data, etag))

    def list(self, prefix: str) -> Iterator[str]:
        """See `Store`."""
        return self.inner.list(prefix)

    def discard(self, key: str) -> None:
        """See `Store`."""
        self.inner.discard(key)

    def _die(self, key: str, etag: str) -> str:
        if key.startswith(self.prefix):
            os.kill(os.getpid(), signal.SIGKILL)
        return etag


def run_load(load: Load, params: PromoteParams, root: Path) -> LoadResult:
    """Run a load on the ledger of a workspace; the private key is in ``SAFEGENE_KEYS``."""
    require_conditions(open_ledger(params, root).store)  # once: the promoters are forked from here
    context, deaths = multiprocessing.get_context("fork"), load.deaths()
    waiting = [list(range(first, load.attempts, load.promoters)) for first in range(load.promoters)]
    logs = [root / f"promoter-{number}.log" for number in range(load.promoters)]
    running = dict[int, multiprocessing.process.BaseProcess]()
    while running or any(waiting):
        for number, attempts in enumerate(waiting):
            if attempts and number not in running:
                arguments = (load, params, root, tuple(attempts), deaths, logs[number])
                running[number] = context.Process(target=_promote_all, args=arguments)
                running[number].start()
        done = multiprocessing.connection.wait([process.sentinel for process in running.values()])
        for number, process in list(running.items()):
            if process.sentinel in done:
                process.join()
                waiting[number] = _left(waiting[number], logs[number], process.exitcode)
                del running[number]
    return _result(logs)


def find_faults(ledger: Ledger, result: LoadResult) -> Faults:
    """Compare what the promoters were told with what the chain says; every record is verified."""
    problems, chain = [], list[Record]()
    try:
        chain += ledger.walk()
    except SafegeneError as error:
        problems.append(error.message)
    effective, linked = effective_records(chain), {record.digest for record in chain}
    lost = [
        attempt
        for attempt, record in result.records.items()
        if record not in linked or (result.ended[attempt] == "pass" and record not in effective)
    ]
    went_live = [record for record in chain if record.digest in effective]
    candidates = [record.artefacts["candidate"] for record in went_live]
    replaced = [f"{record.target} {record.replaces}" for record in went_live]
    double = [name for names in (candidates, replaced) for name in set(names) if names.count(name) > 1]
    return Faults(tuple(lost), tuple(double), tuple(problems))


def target_of(load: Load, attempt: int) -> str:
    """The target of an attempt."""
    return f"target-{attempt % load.targets}"


def promote_once(ledger: Ledger, root: Path, target: str, candidate: int) -> tuple[str, str | None]:
    """One promotion, as stage ``promote`` makes it once the evidence is verified; outcome and record."""
    signer = load_signer(ledger.keys)
    live = live_record(ledger, target, CHANNEL)
    claim = PromotionClaim(
        target,
        "pass",
        "a load",
        {"candidate": digest_json(candidate), "target": digest_json(target)},
        {"model": _model(target), "base": _model("base")},
        _files(root, candidate),
        measured_against=live.release if live else None,
    )
    try:
        record = record_promotion(ledger, signer, claim, CHANNEL).record
        keep_seen(ledger, root)
        return "pass", record
    except StaleArtifact as error:
        return "error", error.record
    except PromotionRefused as error:
        return "superseded", error.record


def _promote_all(
    load: Load, params: PromoteParams, root: Path, attempts: Sequence[int], deaths: dict[int, str], log: Path
) -> None:
    with log.open("a", buffering=1) as lines:
        ledger = open_ledger(params, root, cache=root / "cache")
        for attempt in attempts:
            lines.write(json.dumps({"begun": attempt}) + "\n")
            own = ledger
            if attempt in deaths:
                own = replace(ledger, store=DeadlyStore(ledger.store, deaths[attempt]))
            try:
                outcome, record = promote_once(own, root, target_of(load, attempt), attempt)
            except Exception:
                lines.write(json.dumps({"failed": attempt, "why": traceback.format_exc()}) + "\n")
                raise
            lines.write(json.dumps({"ended": attempt, "outcome": outcome, "record": record}) + "\n")
    os._exit(0)  # what the parent registered for its own end, such as Prefect's services, fails in a forked process


def _left(attempts: list[int], log: Path, exitcode: int | None) -> list[int]:
    if exitcode == 0:
        return []
    if exitcode != -signal.SIGKILL:
        last = log.read_text().splitlines()[-1:]
        raise RuntimeError(f"expected a promoter to end or to be killed, got exit {exitcode}, after {last}, in {log}")
    begun = [line["begun"] for line in map(json.loads, log.read_text().splitlines()) if "begun" in line]
    return attempts[attempts.index(begun[-1]) + 1 :]


def _result(logs: Sequence[Path]) -> LoadResult:
    lines = [json.loads(line) for log in logs for line in log.read_text().splitlines()]
    ended = {line["begun"]: "killed" for line in lines if "begun" in line}
    ended |= {line["ended"]: line["outcome"] for line in lines if "ended" in line}
    return LoadResult(ended, {line["ended"]: line["record"] for line in lines if line.get("record")})


def _files(root: Path, candidate: int) -> dict[str, tuple[Path, str]]:
    path = root / "candidates" / str(candidate)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(digest_json(candidate).encode() * 200)
    return {"candidate/adapter_model.safetensors": (path, digest_file(path))}


def _model(name: str) -> dict[str, object]:
    """Field ``model`` of an 8B model: its files, and the shapes of its tensors."""
    shapes = {f"self_attn.{part}_proj": [4096, 4096] for part in "qkvo"}
    shapes |= {f"mlp.{part}_proj": [14336, 4096] for part in ("gate", "up", "down")}
    shapes |= {"input_layernorm": [4096], "post_attention_layernorm": [4096]}
    tensors = {f"model.layers.{n}.{part}.weight": shape for n in range(LAYERS) for part, shape in shapes.items()}
    files = {f"model-{n:05}-of-00004.safetensors": digest_json([name, n]) for n in range(1, 5)}
    return {"digest": digest_json(name), "files": files, "tensors": tensors}
