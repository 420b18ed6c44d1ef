"""Stage ``gate``: the verdict, from judgements and policy alone; a second's work without a model.

It exits 0 whatever it found: a failing verdict is a value, and DVC records it. Retrying it gives the same bytes.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safegene.errors import StaleArtifact
from safegene.gate import evidence_from, verdict_payload
from safegene.workspace.digest import canonical_json
from safegene.workspace.manifest import Manifest, read_manifest, write_artefact
from safegene.workspace.params import GateParams


def decide(candidate: Path, judgements: Path, *, out: Path, params: GateParams | None = None) -> Manifest:
    """Decide on the judgements: ``verdict.json``, and for DVC its numbers in ``metrics.json`` and ``rates.csv``.

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
    if judged.inputs.get("candidate") != repaired.digest:
        raise StaleArtifact(
            f"expected judgements of the candidate {repaired.digest}, got those of {judged.inputs.get('candidate')}, "
            f"in {judgements}",
            remedy="run `safegene run`, which evaluates again",
        )
    files = (judgements / name for name in ("plan.json", "judgements.jsonl"))
    rows, plan = evidence_from(*(path.read_bytes() for path in files), where=str(judgements))
    extra = repaired.facts.get("extra_params")
    payload = verdict_payload(
        rows,
        plan,
        params,
        candidate=repaired.digest,
        judgements=judged.digest,
        extra_params=extra,
        stopping=judged.facts.get("stopping"),
    )
    inputs: dict[str, Path | str] = {"candidate": candidate, "judgements": judgements}
    with write_artefact(out, stage="gate", params=params.model_dump(mode="json"), inputs=inputs) as draft:
        (draft.path / "verdict.json").write_bytes(canonical_json(payload) + b"\n")
        (draft.path / "metrics.json").write_bytes(canonical_json(_metrics(payload)) + b"\n")
        (draft.path / "rates.csv").write_text(_table(payload), encoding="utf-8")
        draft.facts.update(outcome=payload["outcome"], reason=payload["reason"])
    return draft.done


def _table(payload: Mapping[str, Any]) -> str:
    """The known rates with their intervals, a row each, for `dvc plots`."""
    lines = ["endpoint,rate,low,high"]
    for name, arms in payload["rates"].items():
        for arm, one in arms.items():
            if one["rate"] is not None:
                low, high = one["interval"]
                lines.append(f"{name} {arm},{one['rate']},{low},{high}")
    return "\n".join(lines) + "\n"


def _metrics(payload: Mapping[str, Any]) -> dict[str, float]:
    """Numbers only, one level deep; what is not known is absent, never zero."""
    flat = {
        f"{name}_{arm}": one["rate"]
        for name, arms in payload["rates"].items()
        for arm, one in arms.items()
        if one["rate"] is not None
    }
    flat |= {name: payload[name] for name in ("extra_params", "recovery") if payload[name] is not None}
    return flat | {"passed": float(payload["outcome"] == "pass")}
