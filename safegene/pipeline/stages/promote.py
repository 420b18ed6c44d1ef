"""Stage ``promote``: check the evidence again, put the candidate live if its verdict allows it, and record the attempt.

A promotion needs a passing verdict for exactly these digests. So every artefact from the aligned checkpoint to the
verdict is read and verified byte for byte, each must have been made from the present ones under the present policy, the
judgements must give that verdict again (`safegene.ledger.evidence`), and what was live when it was measured
(``incumbent.json``) must be live still. DVC does not run this stage: an experiment must not promote.
"""

import getpass
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from datetime import UTC, datetime
from typing import Any

from safegene.errors import (
    ArtifactError,
    LedgerError,
    ParamsError,
    PromotionRefused,
    SafegeneError,
    StoreError,
)
from safegene.ledger import Ledger, LiveRecord, Record, keep_seen, live_record, load_signer, open_ledger, release_files
from safegene.ledger.evidence import OPTIONAL, Evidence, confirm_verdict, gather_evidence
from safegene.ledger.promotion import (
    Promotion,
    PromotionClaim,
    record_promotion,
    record_refusal,
    record_revocation,
    record_rollback,
    resolve,
)
from safegene.version import __version__
from safegene.workspace.digest import canonical_json, digest_json
from safegene.workspace.git import head_commit
from safegene.workspace.layout import Workspace, cache_folder
from safegene.workspace.manifest import read_manifest
from safegene.workspace.params import load_yaml

Run = Mapping[str, str]

WHOLE = ("target", "candidate", "judgements", "verdict", "aligned")
RECEIPTS = ("vector", "selection")
DECIDED = ("pass", "fail", "inconclusive")


def promote(
    workspace: Workspace,
    target: str,
    *,
    channel: str | None = None,
    run: Run | None = None,
    dry_run: bool = False,
) -> Promotion:
    """Put the target's candidate live on a channel if its verdict allows it; a signed record either way.

    Args:
        workspace: the pipeline repository; its ``promote`` section names channel, ledger and public key.
        target: the target's name.
        channel: another channel than the section's.
        run: ``run_id``, ``trigger``, ``git_commit`` (the commit that the run started from), as far as known.
        dry_run: say what would happen, and write nothing.

    Raises:
        PromotionRefused: the verdict is not a pass (exit code 3, or 4 if inconclusive), or another promotion won.
        ParamsError: there is no such target.
        ArtifactError: an artefact is absent, altered, or was made from something that has changed since.
        LedgerError, StoreError: the ledger cannot be read or written; then there is no record.

    Example:
        >>> promotion = safegene.promote(ws, "sentiment")
        >>> promotion.outcome
        'pass'
    """
    _require_target(workspace, target)
    ledger, channel = _open(workspace), channel or workspace.params.promote.channel
    signer = load_signer(ledger.keys)
    try:
        claim = _claim(workspace, target, {"start": _now(), **(run or {})})
    except SafegeneError as error:
        if not dry_run:
            record_error(workspace, target, error, channel=channel, run=run)
        raise
    with nullcontext() if dry_run else _remembering(ledger, workspace):
        return record_promotion(ledger, signer, claim, channel, dry_run=dry_run)


def promote_attempt(workspace: Workspace, target: str, *, run: Run | None = None) -> str:
    """As `promote`, with a refusal as a word: ``pass``, ``fail`` or ``inconclusive``; anything else raises."""
    try:
        return promote(workspace, target, run=run).outcome
    except PromotionRefused as refused:
        words = {3: "fail", 4: "inconclusive"}
        if refused.exit_code not in words:
            raise
        return words[refused.exit_code]


def record_error(
    workspace: Workspace, target: str, error: SafegeneError, *, channel: str | None = None, run: Run | None = None
) -> None:
    """Record that an attempt ended in an error, once an error; where that fails too, the error's remedy says so."""
    if error.record:
        return
    known = {"run": _run(run), "code": _code(workspace, target, run)}
    claim = PromotionClaim(target, "error", error.summary, _present(workspace, target), known)
    try:
        ledger, channel = _open(workspace), channel or workspace.params.promote.channel
        error.record = record_refusal(ledger, load_signer(ledger.keys), claim, channel).digest
        keep_seen(ledger, workspace.root)
    except (LedgerError, StoreError) as why:
        error.remedy = f"{error.remedy}; the attempt is not on record either: {why.message}".removeprefix("; ")


def rollback(
    workspace: Workspace,
    target: str,
    *,
    to: str | None = None,
    channel: str | None = None,
    run: Run | None = None,
) -> Promotion:
    """Put live again what was live before; see `safegene.ledger.promotion.rollback`."""
    ledger, channel = _open(workspace), channel or workspace.params.promote.channel
    changed = {"run": _run(run)}
    with _remembering(ledger, workspace):
        return record_rollback(ledger, load_signer(ledger.keys), target, channel, fields=changed, to=to)


def revoke(
    workspace: Workspace, digest: str, reason: str, *, run: Run | None = None
) -> tuple[Record, tuple[LiveRecord, ...], tuple[str, ...]]:
    """Put on record that something may not be relied on; see `safegene.ledger.promotion.revoke`."""
    ledger = _open(workspace)
    with _remembering(ledger, workspace):
        return record_revocation(ledger, load_signer(ledger.keys), digest, reason, fields={"run": _run(run)})


def _open(workspace: Workspace) -> Ledger:
    return open_ledger(workspace.params.promote, workspace.root, cache=cache_folder() / "records")


@contextmanager
def _remembering(ledger: Ledger, workspace: Workspace) -> Iterator[None]:
    """Remember afterwards how far the ledger goes, also where the attempt was refused."""
    try:
        yield
    except SafegeneError:
        with suppress(LedgerError, StoreError):  # the refusal is what its caller must hear of
            keep_seen(ledger, workspace.root)
        raise
    keep_seen(ledger, workspace.root)


def _require_target(workspace: Workspace, target: str) -> None:
    known = workspace.targets.targets
    if target not in known:
        raise ParamsError(f"expected one of the targets {sorted(known)}, got {target!r}, in {workspace.targets_file}")


def resolve_live(workspace: Workspace, target: str, *, channel: str | None = None) -> dict[str, Any]:
    """What a server should load; see `safegene.ledger.promotion.resolve`."""
    return resolve(_open(workspace), target, channel or workspace.params.promote.channel)


def live_digest(workspace: Workspace, target: str) -> str | None:
    """Digest of the release that is live for a target on the workspace's channel; None when nothing is."""
    now = live_record(_open(workspace), target, workspace.params.promote.channel)
    return now.release if now else None


def pin_incumbent(workspace: Workspace, target: str) -> str | None:
    """Write what is live for the target to ``incumbent.json``, which ``evaluate`` depends on; the digest that is live.

    The file is left alone where the candidate in the workspace *is* what is live: comparing it with itself would say
    nothing, and its verdict, measured against what was live before it, stands. What was revoked is no reference: then
    nothing is pinned, and the aligned model is. ``earlier`` are the other candidates of this very fine-tune that a
    verdict was recorded for before this one's: each further one may spend less of alpha.
    """
    ledger, params = _open(workspace), workspace.params.promote
    now = live_record(ledger, target, params.channel)
    now = None if now and now.revoked else now
    path, present = workspace.incumbent(target), _present(workspace, target)
    candidate = present.get("candidate")
    if path.is_file() and now and now.record.artefacts.get("candidate") == candidate:
        return now.release
    pinned: dict[str, Any] = {"live": None, "release": None, "candidate": None}
    if now:
        place = f"{params.ledger.rstrip('/')}/releases/{now.release.removeprefix('sha256:')}"
        pinned = {"live": now.release, "release": place, "candidate": now.record.artefacts.get("candidate")}
    pinned["earlier"] = _earlier(ledger, target, present)
    content = canonical_json(pinned) + b"\n"
    if not path.is_file() or path.read_bytes() != content:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.draft")
        draft.write_bytes(content)
        draft.replace(path)
    return now.release if now else None


def _earlier(ledger: Ledger, target: str, present: Mapping[str, str]) -> list[str]:
    """Digests, oldest first; what is on record after this candidate's own first verdict does not count against it."""
    found: list[str] = []
    for record in sorted(ledger.walk(), key=lambda one: one.sequence):
        same = record.target == target and record.artefacts.get("target") == present.get("target")
        tried = record.artefacts.get("candidate") if same and record.outcome in DECIDED else None
        if tried and tried == present.get("candidate"):
            break
        found += [tried] if tried and tried not in found else []
    return found


def _claim(workspace: Workspace, target: str, run: Run) -> PromotionClaim:
    evidence = gather_evidence(workspace, target)
    verdict = evidence.payload("verdict", "verdict.json")
    outcome = confirm_verdict(evidence, verdict, workspace.params)
    return PromotionClaim(
        target=target,
        outcome=outcome,
        reason=str(verdict.get("reason") or outcome),
        artefacts=evidence.digests,
        fields=_fields(evidence, verdict, workspace, target, run),
        files=release_files(
            {name: (evidence.folders[name], evidence.manifests[name]) for name in WHOLE},
            {name: (evidence.folders[name], evidence.manifests[name]) for name in RECEIPTS},
        ),
        measured_against=evidence.incumbent,
    )


def _present(workspace: Workspace, target: str) -> dict[str, str]:
    """Digests of the artefacts that can be read, for the record of an attempt that failed."""
    found = {}
    for name, folder in workspace.artefacts(target).items():
        try:
            found[name] = read_manifest(folder, verify=False).digest
        except ArtifactError:
            continue
    return found


def _fields(
    evidence: Evidence, verdict: Mapping[str, Any], workspace: Workspace, target: str, run: Run
) -> dict[str, Any]:
    """The record's fields, each from the artefact that knows; see `safegene.ledger.FIELDS`."""
    plan, digests = evidence.payload("judgements", "plan.json"), evidence.digests
    manifests, present = evidence.manifests, "the present form of the pipeline does not ask for it"
    failed = [one["name"] for one in verdict.get("endpoints", ()) if one.get("outcome") != "pass"]
    return {
        "model": {"artefact": digests["target"], **evidence.payload("target", "checkpoint.json")},
        "base": {"artefact": digests["aligned"], **evidence.payload("aligned", "checkpoint.json")},
        "vector": {
            "digest": digests["vector"],
            "recipe": {name: dict(m.params) for name, m in manifests.items() if name in (*OPTIONAL, "vector")},
            "layers": evidence.payload("selection", "selection.json").get("kept", []),
            "coefficients": manifests["candidate"].files.get("coefficients.json", ""),
            "made_from": {name: dict(m.inputs) for name, m in manifests.items() if name in (*OPTIONAL, *RECEIPTS)},
            "calibration": {"params": dict(manifests["candidate"].params), "facts": dict(manifests["candidate"].facts)},
        },
        "datasets": dict(evidence.data),
        "suite": {name: plan.get(name, {}) for name in ("suites", "decoding")}
        | {"prompts": len(plan.get("prompts", ()))},
        "judge": verdict.get("judge") or plan.get("judge"),
        "rates": verdict.get("rates"),
        "policy": {"digest": verdict["policy"], "params": workspace.params.gate.model_dump(mode="json")},
        "replies": {"digest": digests["judgements"], "place": "the release's folder judgements/"},
        "verdict": {"digest": digests["verdict"], "outcome": verdict["outcome"], "not_passed": failed},
        "responsible": {"not_recorded": "the pipeline's key signs; " + present},
        "approval": {"not_recorded": "promotion needs one signature; " + present},
        "use": {"not_recorded": present},
        "change": {"not_recorded": present},
        "compute": {"not_recorded": present},
        "risks": {"not_recorded": present},
        "code": _code(workspace, target, run),
        "run": {**_run(run), "end": _now()},
        "security": {"verified": sorted(digests), "chain": "each made from the present others"},
        "incident": {"not_recorded": "none linked"},
        "retention": {"not_recorded": present},
    }


def _run(run: Run | None) -> dict[str, str]:
    try:
        actor = getpass.getuser()
    except (KeyError, OSError):
        actor = "unknown"
    known = {"trigger": "manual", "actor": actor, "host": platform.node(), "start": _now()}
    return {**known, **{name: value for name, value in (run or {}).items() if name != "git_commit"}}


def _code(workspace: Workspace, target: str, run: Run | None) -> dict[str, Any]:
    """Where the code and its inputs stood; ``dvc_lock`` is the digest of the entries upstream of this target."""
    commit = (run or {}).get("git_commit") or head_commit(workspace.root)
    lock = workspace.root / "dvc.lock"
    stages = (load_yaml(lock) or {}).get("stages", {}) if lock.is_file() else {}
    upstream = {name: entry for name, entry in stages.items() if name.partition("@")[2] in ("", target)}
    return {
        "safegene": __version__,
        "git_commit": commit or {"not_recorded": "the workspace has no commit"},
        "dvc_lock": digest_json(upstream) if upstream else {"not_recorded": "DVC has not run these stages"},
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
