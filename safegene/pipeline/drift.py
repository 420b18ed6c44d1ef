"""Drift: what is live is evaluated again, against the present suite, judge and policy.

The release that is live answers as it is served: its own target, adapter and aligned model, verified byte for byte. The
verdict is the gate's, on the gate's present prompts. Nothing is repaired, and the ledger's records stay as they are.
``data/targets/<target>/drift.json`` says what the newest check found, and Git keeps the earlier ones. Nothing is
evaluated again while nothing that the result depends on has changed, and its verdict is still here.
"""

from contextlib import suppress
from pathlib import Path

from safegene.errors import ArtifactError, PromotionRefused, SafegeneError
from safegene.gate import VerdictFile
from safegene.gate.decision import policy_digest
from safegene.ledger.chain import open_ledger
from safegene.ledger.drift import DriftCheck, drift_file, read_drift
from safegene.ledger.live import LiveRecord, live_record
from safegene.ledger.promotion import AttemptResult
from safegene.ledger.record_fields import Run, now
from safegene.ledger.release import open_release
from safegene.pipeline.stages.gate import decide
from safegene.pipeline.stages.promote import rollback
from safegene.workspace.atomic import write_file
from safegene.workspace.digest import canonical_json, digest_json
from safegene.workspace.layout import Workspace, cache_folder
from safegene.workspace.manifest import input_digest, read_manifest


def check_drift(ws: Workspace, target: str) -> DriftCheck | None:
    """Evaluate what is live for a target, unless the newest check here was of the same; None where nothing is live.

    Stage ``validate`` must be up to date.

    Raises:
        ParamsError: there is no such target.
        ArtifactError, DigestMismatch: the release is incomplete or changed, or the suite was not validated.
        JudgeError, SourceError: a judge, or the release's checkpoint, is not there.
        LedgerError, StoreError: the ledger cannot be read.
    """
    ws.require_target(target)
    live = _live(ws, target)
    if live is None:
        return None
    made, params = ws.root / ".safegene" / "drift" / target, ws.params
    before, basis = _before(ws, target, made / "verdict"), _basis(ws, target, live.release)
    if before is not None and before.basis == basis:
        return before
    from safegene.pipeline.stages.evaluate import evaluate  # with torch, which a check of what is unchanged needs not

    release = open_release(live.ledger.store, live.release, cache=cache_folder())
    made.mkdir(parents=True, exist_ok=True)
    judged = evaluate(
        aligned=release / "aligned",
        target=release / "target",
        candidate=release / "candidate",
        validation=ws.validation,
        prompts=ws.prompts,
        task=_task(ws, target),
        out=made / "judgements",
        params=params.evaluate,
        gate=params.gate,
        limits=params.fetch,
        dtype=params.family.dtype,
    )
    gated = decide(release / "candidate", made / "judgements", out=made / "verdict", params=params.gate)
    verdict = _verdict(made / "verdict")
    check = DriftCheck(
        target=target,
        channel=params.promote.channel,
        release=live.release,
        record=live.record.sequence,
        checked=now(),
        outcome=verdict.outcome,
        reason=verdict.reason,
        basis=basis,
        policy=policy_digest(params.gate),
        judgements=judged.digest,
        verdict=gated.digest,
    )
    write_file(drift_file(ws, target), canonical_json(check.model_dump(mode="json")) + b"\n")
    return check


def roll_back_drifted(ws: Workspace, check: DriftCheck, run: Run) -> AttemptResult:
    """Put live what was live before a release that no longer passes; the record names the check's verdict.

    Raises:
        PromotionRefused: the check found no failure, nothing was live before, or something else is live by now.
    """
    if check.outcome != "fail":
        raise PromotionRefused(f"expected a release that no longer passes, got one whose check is {check.outcome}")
    live = _live(ws, check.target)
    if live is None or live.release != check.release:
        raise PromotionRefused(
            f"expected {check.release} live for {check.target}, which was checked, got "
            f"{live.release if live else 'nothing'}",
            remedy=f"`safegene drift {check.target}` checks what is live now",
        )
    return rollback(ws, check.target, run={**run, "drift": check.verdict})


def _live(ws: Workspace, target: str) -> LiveRecord | None:
    params = ws.params.promote
    live = live_record(open_ledger(params, ws.root, cache=cache_folder() / "records"), target, params.channel)
    return None if live is None or live.revoked else live


def _before(ws: Workspace, target: str, folder: Path) -> DriftCheck | None:
    """The newest check, if its verdict is in ``folder`` and says the same: a check's file alone is not relied on."""
    with suppress(SafegeneError, OSError):
        check = read_drift(ws, target)
        if check and read_manifest(folder).digest == check.verdict and _verdict(folder).outcome == check.outcome:
            return check
    return None


def _verdict(folder: Path) -> VerdictFile:
    file = folder / "verdict.json"
    return VerdictFile.parse(file.read_bytes(), where=str(file))


def _basis(ws: Workspace, target: str, release: str) -> str:
    params = ws.params
    files = [ws.prompts / "gate.jsonl", _task(ws, target), *_calibrations(ws)]
    sections = [params.evaluate.model_dump(mode="json"), params.gate.model_dump(mode="json"), params.family.dtype]
    return digest_json([release, params.promote.channel, sections, [_digest(file) for file in files]])


def _calibrations(ws: Workspace) -> list[Path]:
    judges = (ws.params.evaluate.judge, ws.params.evaluate.adjudicator)
    return [ws.root / judge.calibration for judge in judges if judge is not None and judge.calibration is not None]


def _digest(path: Path) -> str | None:
    try:
        return input_digest(path)
    except ArtifactError:
        return None


def _task(ws: Workspace, target: str) -> Path:
    return ws.tasks / f"{ws.require_target(target).task}.jsonl"
