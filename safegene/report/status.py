"""Where a workspace stands, from its artefacts and its ledger: what exists, what verifies, what it says.

Nothing is computed here, and absent stays absent. An artefact that is altered, or made from something that has changed
since, gives no number and no outcome, only the reason.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safegene.errors import SafegeneError
from safegene.gate.decision import policy_digest
from safegene.ledger.evidence import data_digests, is_data
from safegene.text import visible
from safegene.workspace.digest import strict_json
from safegene.workspace.layout import Workspace, cache_folder
from safegene.workspace.manifest import NAME, Manifest, read_manifest

if TYPE_CHECKING:
    from rich.table import Table

RATES = ("hrr", "asr", "over_refusal", "utility")
ARMS = ("before", "after", "aligned")
OUTCOMES = ("pass", "fail", "inconclusive")

# Artefact -> its name as an input of later stages. Only artefacts; data sets are checked by their own digests.
FAMILY = ("aligned", "degraded", "delta", "vector", "selection")
TARGET = ("target", "candidate", "judgements", "verdict")
LARGE = ("degraded", "delta")  # gigabytes for a real family: `safegene audit verify` reads them, a page need not


@dataclass(frozen=True)
class RecordedArtefact:
    """One artefact as it lies there.

    Attributes:
        name: what later stages call it.
        path: its folder.
        manifest: its receipt; None when it is absent or unusable.
        problem: why it is unusable; empty when it is fine or absent.
        payload: its main JSON file, where a reader of status needs one; {} otherwise.
    """

    name: str
    path: Path
    manifest: Manifest | None = None
    problem: str = ""
    payload: Mapping[str, Any] | None = None

    @property
    def digest(self) -> str | None:
        """The artefact's digest; None when it is absent or unusable."""
        return self.manifest.digest if self.manifest else None


@dataclass(frozen=True)
class LiveRelease:
    """What is live for a target: the release's digest, that of the candidate in it, and why it is revoked, if it is."""

    release: str
    candidate: str | None
    revoked: str = ""


LiveReleases = Callable[[str], LiveRelease | None]


@dataclass(frozen=True)
class TargetState:
    """One fine-tune: its artefacts by name, what is live for it, and why that is unknown (empty when it is known)."""

    name: str
    source: str
    task: str
    artefacts: Mapping[str, RecordedArtefact]
    live: LiveRelease | None
    unknown: str = ""

    @property
    def verdict(self) -> Mapping[str, Any]:
        """The verdict's payload; {} when there is none that may be believed."""
        return self.artefacts["verdict"].payload or {}

    @property
    def outcome(self) -> str | None:
        """pass, fail or inconclusive; None when there is no believable verdict."""
        outcome = self.verdict.get("outcome")
        return outcome if outcome in OUTCOMES else None

    @property
    def alphas(self) -> Mapping[str, float]:
        """Matrix name -> coefficient of the candidate; {} when there is none."""
        payload = self.artefacts["candidate"].payload or {}
        found = payload.get("alphas")
        return {str(k): float(v) for k, v in found.items()} if isinstance(found, Mapping) else {}

    @property
    def unrepaired(self) -> bool:
        """Whether the candidate is the fine-tune as it came: every coefficient is 0."""
        return bool(self.alphas) and not any(self.alphas.values())

    @property
    def candidate_is_live(self) -> bool:
        """Whether what is live is the candidate that lies here."""
        digest = self.artefacts["candidate"].digest
        return self.live is not None and digest is not None and self.live.candidate == digest and not self.live.revoked

    @property
    def problems(self) -> tuple[str, ...]:
        """Why artefacts are unusable, in the pipeline's order; and why what is live is not to be relied on."""
        revoked = (f"what is live is not served: {self.live.revoked}",) if self.live and self.live.revoked else ()
        return (*(one.problem for one in self.artefacts.values() if one.problem), *revoked)

    def rate(self, name: str, arm: str) -> tuple[float | None, tuple[float, float] | None]:
        """A rate (share in 0..1) of ``before``, ``after`` or ``aligned``, and its 95% interval; None where unknown."""
        found = inside(self.verdict, "rates", name, arm)
        return share(inside(found, "rate")), _interval(inside(found, "interval"))


@dataclass(frozen=True)
class WorkspaceState:
    """Everything that a report, a table or ``status`` shows."""

    root: Path
    family: Mapping[str, RecordedArtefact]
    targets: tuple[TargetState, ...]


def read_state(
    workspace: Workspace, *, targets: Sequence[str] | None = None, live: LiveReleases | None = None
) -> WorkspaceState:
    """Read and verify a workspace's artefacts.

    Args:
        workspace: the pipeline repository.
        targets: which fine-tunes; None for all of ``data/targets.yaml``.
        live: what is live for a target; None asks the ledger, verified against the pinned public key.

    Raises:
        ParamsError: ``data/targets.yaml`` is unusable.

    Example:
        >>> [target] = safegene.status(ws).targets
        >>> target.outcome, target.candidate_is_live
        ('pass', True)
    """
    known = workspace.targets.targets
    paths = (workspace.aligned, workspace.degraded, workspace.delta, workspace.vector, workspace.selection)
    payloads = {"selection": "selection.json", "aligned": "checkpoint.json", "vector": "vector.json"}
    present = _present(workspace)
    family = _chain(dict(zip(FAMILY, paths, strict=True)), payloads, {}, present)
    ask, unknown = (live, "") if live else recorded(workspace)
    rows = []
    for name in known if targets is None else [one for one in targets if one in known]:
        own = (workspace.checkpoint, workspace.candidate, workspace.judgements, workspace.verdict)
        at = {kind: path(name) for kind, path in zip(TARGET, own, strict=True)}
        wanted = {
            "target": "checkpoint.json",
            "candidate": "coefficients.json",
            "judgements": "plan.json",
            "verdict": "verdict.json",
        }
        artefacts = _chain(at, wanted, family, present)
        rows.append(TargetState(name, known[name].source, known[name].task, artefacts, ask(name), unknown))
    return WorkspaceState(workspace.root, family, tuple(rows))


def summary(workspace: Workspace, *, live: LiveReleases | None = None) -> list[dict[str, Any]]:
    """One mapping per target: the ``targets`` of ``safegene status --json``.

    Rates are shares in 0..1 with ``<arm>_interval`` beside them, ``extra_params`` a share of all parameters, ``live`` a
    digest; whatever is not known is None. ``problems`` says why something that exists cannot be believed.
    """
    return [_summarise(target) for target in read_state(workspace, live=live).targets]


def table(entries: Sequence[Mapping[str, Any]]) -> "Table":
    """`summary` as a table for people: rates in percent, three lines per target, "-" for what was not measured."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, caption_justify="left")
    for name in ("target", "", "HRR %", "ASR %", "over-ref. %", "utility %", "extra %", "verdict", "live"):
        made.add_column(name, justify="right" if name.endswith("%") else "left", no_wrap=name != "target")
    for entry in entries:
        for arm in ARMS:
            first = arm == "before"
            extra = _percent(entry["extra_params"], 2) if first else ""
            style = {"pass": "green", "fail": "red"}.get(entry["outcome"] or "", "yellow")
            verdict = f"[{style}]{entry['outcome'] or 'not run'}[/]" if first else ""
            live = (entry["live"] or "nothing").removeprefix("sha256:")[:12] if first else ""
            others = (_percent(entry[name][arm]) for name in ("asr", "over_refusal", "utility"))
            harm = _with_interval(entry["hrr"][arm], entry["hrr"][f"{arm}_interval"])
            made.add_row(
                entry["name"] if first else "", arm, harm, *others, extra, verdict, live, end_section=arm == ARMS[-1]
            )
    notes = [f"{entry['name']}: {escape(visible(problem))}" for entry in entries for problem in entry["problems"]]
    made.caption = "\n".join(["HRR with 95% intervals; HRR, ASR and over-refusal: less is better", *notes])
    return made


def _with_interval(rate: float | None, interval: Sequence[float] | None) -> str:
    spread = f" ({100 * interval[0]:.1f}-{100 * interval[1]:.1f})" if interval else ""
    return _percent(rate) + spread


def _percent(rate: float | None, digits: int = 1) -> str:
    return "-" if rate is None else f"{100 * rate:.{digits}f}"


def share(value: object) -> float | None:
    """The value as a share in 0..1; None when it is anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value) if 0 <= value <= 1 else None


def recorded(workspace: Workspace) -> tuple[LiveReleases, str]:
    """What the ledger says is live, each record verified once; and why nothing can be said, where that is so."""
    from safegene.ledger import live_channels, open_ledger, revocations

    found: dict[str, LiveRelease] = {}
    try:
        params = workspace.params.promote
        ledger = open_ledger(params, workspace.root, cache=cache_folder() / "records")
        chain, revoked = tuple(ledger.walk()), revocations(ledger)
        for channel, target in ledger.channels():
            pointer = ledger.pointer(channel, target)
            if channel != params.channel or pointer is None:
                continue
            now = live_channels(ledger, chain, revoked, pointer, channel=channel, target=target)
            found[target] = LiveRelease(now.release, now.record.artefacts.get("candidate"), now.revoked)
    except (SafegeneError, OSError) as error:
        return (lambda _: None), f"what is live is unknown: {error}"
    return found.get, ""


def _summarise(target: TargetState) -> dict[str, Any]:
    row: dict[str, Any] = {"name": target.name}
    for name in RATES:
        row[name] = {}
        for arm in ARMS:
            rate, interval = target.rate(name, arm)
            row[name] |= {arm: rate, f"{arm}_interval": None if interval is None else list(interval)}
    extra = share(target.verdict.get("extra_params"))
    problems = [*target.problems, *([target.unknown] if target.unknown else [])]
    live = target.live.release if target.live else None
    return row | {"extra_params": extra, "outcome": target.outcome, "live": live, "problems": problems}


@dataclass(frozen=True)
class Present:
    """What a workspace holds now that artefacts must have been made from: its sets' digests, and its policy's."""

    data: frozenset[str]
    policy: str


def _present(workspace: Workspace) -> Present:
    try:
        policy = policy_digest(workspace.params.gate)
    except SafegeneError as error:
        policy = f"(unknown: {error.message})"
    return Present(frozenset(data_digests(workspace).values()), policy)


def _chain(
    paths: Mapping[str, Path], payloads: Mapping[str, str], upstream: Mapping[str, RecordedArtefact], present: Present
) -> dict[str, RecordedArtefact]:
    """Artefacts in the pipeline's order, each refused when what it was made from has changed since."""
    found: dict[str, RecordedArtefact] = {}
    for name, path in paths.items():
        found[name] = _read(name, path, payloads.get(name), {**upstream, **found}, present)
    return found


def _read(
    name: str, path: Path, payload: str | None, upstream: Mapping[str, RecordedArtefact], present: Present
) -> RecordedArtefact:
    if not (path / NAME).is_file():
        return RecordedArtefact(name, path)
    try:
        manifest = read_manifest(path, verify=name not in LARGE)
        content = _payload(path / payload) if payload else None
    except (SafegeneError, OSError) as error:
        return RecordedArtefact(name, path, problem=str(error))
    for used, digest in manifest.inputs.items():
        if used in upstream and (why := _stale(upstream[used], digest)):
            return RecordedArtefact(
                name, path, problem=f"expected {name} made from the present {used}, got {why}, in {path}"
            )
        if is_data(used) and digest not in present.data:
            return RecordedArtefact(
                name, path, problem=f"expected {name} made from the present {used}, got another, in {path}"
            )
    if name == "verdict" and (used := inside(content, "policy")) != present.policy:
        why = f"expected a verdict under the present policy {present.policy}, got one under {used}, in {path}"
        return RecordedArtefact(name, path, problem=why)
    return RecordedArtefact(name, path, manifest, payload=content)


def _stale(used: RecordedArtefact, digest: str) -> str:
    if used.problem:
        return f"an unusable {used.name}"
    if used.manifest is None:  # a family's parts need not be pulled; what was judged must lie beside its verdict
        return f"no {used.name}" if used.name in ("candidate", "judgements") else ""
    return "" if digest == used.digest else f"one made from {digest} while {used.name} is {used.digest}"


def _payload(path: Path) -> Mapping[str, Any]:
    raw = strict_json(path.read_bytes(), where=str(path))
    return raw if isinstance(raw, dict) else {}


def inside(value: object, *keys: str) -> Any:
    """The value under nested keys; None where one is missing."""
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _interval(value: object) -> tuple[float, float] | None:
    if not isinstance(value, Sequence) or len(value) != 2:
        return None
    low, high = share(value[0]), share(value[1])
    return None if low is None or high is None or low > high else (low, high)
