"""Stage ``gate``: the verdict, from judgements and policy alone. It loads no model and takes about a second.

It exits 0 whatever the verdict: a failing verdict is a value, and DVC records it. A second run gives the same bytes.
"""

from pathlib import Path

from safegene.gate import VerdictFile, evidence_from, verdict_payload
from safegene.workspace.digest import canonical_json
from safegene.workspace.manifest import Manifest, read_manifest, write_artefact
from safegene.workspace.params import GateParams
from safegene.workspace.staleness import require_current


def decide(candidate: Path, judgements: Path, *, out: Path, params: GateParams | None = None) -> Manifest:
    """Decide on the judgements; write ``verdict.json``, and for DVC its numbers as ``metrics.json`` and ``rates.csv``.

    Raises:
        StaleArtifact: the judgements are of another candidate.
        DigestMismatch: a byte of either artefact has changed.
        FormatError: plan or judgements are malformed.
        EmptySample: there is no judgement.

    Example:
        >>> manifest = safegene.decide(
        ...     ws.candidate("sentiment"), ws.judgements("sentiment"), out=ws.verdict("sentiment")
        ... )
        >>> manifest.facts["outcome"]
        'pass'
    """
    params = params or GateParams()
    repaired = read_manifest(candidate)
    judged = read_manifest(judgements, stage="evaluate")
    require_current("judgements", judgements, judged, {"candidate": repaired.digest}, required=["candidate"])
    files = (judgements / name for name in ("plan.json", "judgements.jsonl"))
    rows, plan = evidence_from(*(path.read_bytes() for path in files), where=str(judgements))
    verdict = verdict_payload(
        rows,
        plan,
        params,
        candidate=repaired.digest,
        judgements=judged.digest,
        extra_params=repaired.facts.get("extra_params"),
        stopping=judged.facts.get("stopping"),
    )
    inputs: dict[str, Path | str] = {"candidate": candidate, "judgements": judgements}
    with write_artefact(out, stage="gate", params=params.model_dump(mode="json"), inputs=inputs) as draft:
        (draft.path / "verdict.json").write_bytes(verdict.to_bytes())
        (draft.path / "metrics.json").write_bytes(canonical_json(_metrics(verdict)) + b"\n")
        (draft.path / "rates.csv").write_text(_table(verdict), encoding="utf-8")
        draft.facts.update(outcome=verdict.outcome, reason=verdict.reason)
    return draft.done


def _table(verdict: VerdictFile) -> str:
    """The known rates with their intervals, one row each, for `dvc plots`."""
    lines = ["endpoint,rate,low,high"]
    for measure, arms in verdict.rates.items():
        for arm, rate in arms.items():
            if rate.rate is not None and rate.interval is not None:
                lines.append(f"{measure} {arm},{rate.rate},{rate.interval[0]},{rate.interval[1]}")
    return "\n".join(lines) + "\n"


def _metrics(verdict: VerdictFile) -> dict[str, float]:
    """Numbers, one level deep, for `dvc metrics`; an unknown number is absent, never zero."""
    metrics = {
        f"{measure}_{arm}": rate.rate
        for measure, arms in verdict.rates.items()
        for arm, rate in arms.items()
        if rate.rate is not None
    }
    others = {"extra_params": verdict.extra_params, "recovery": verdict.recovery}
    metrics |= {name: value for name, value in others.items() if value is not None}
    return metrics | {"passed": float(verdict.outcome == "pass")}
