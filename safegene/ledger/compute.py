"""Field ``compute`` of a record: floating-point operations, from counted tokens and the number of parameters.

With N parameters, a forward pass costs 2 N operations per token, and a training step 6 N (forward 2 N, backward 4 N):
Kaplan et al., "Scaling Laws for Neural Language Models", https://arxiv.org/abs/2001.08361, section 2.1. Attention over
the context, an adapter's own parameters and the judge are left out. Only tokens that an artefact states are counted, so
a stage that states none is ``not_recorded`` and the total is a lower bound.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import JsonValue

from safegene.gate import evidence_from
from safegene.ledger.evidence import Evidence
from safegene.workspace.params import Params

FORWARD = 2
TRAINING = 6
FORMULA = (
    "2 N per token of a forward pass, 6 N per token of training, with N parameters (arXiv:2001.08361, 2.1); totals are "
    "lower bounds: only tokens that an artefact states are counted"
)
PART_OF = {"extraction": "degraded", "calibration": "candidate"}
"""Part -> the artefact whose manifest states its tokens."""


def compute_field(evidence: Evidence, params: Params, before: JsonValue = None) -> dict[str, Any]:
    """Operations of extraction, calibration and evaluation, and their running total over a target's records.

    Args:
        evidence: with the manifests of the artefacts.
        params: ``record.base_training_tokens``, of the base model, to state the running total as a share.
        before: field ``compute`` of the target's record before this one; a part whose artefact it counted already is
            not added to the running total again.
    """
    size = int(evidence.payload("target", "checkpoint.json").get("parameters") or 0)
    if not size:
        return {"not_recorded": "the checkpoint does not state its number of parameters"}
    parts = {name: _stage(evidence, artefact, size) for name, artefact in PART_OF.items()}
    if evidence.publication:
        parts["extraction"] = {"not_recorded": "the vector was made by its publisher"}
    parts["evaluation"] = _evaluation(evidence, size)
    total = sum(part.get("flops", 0) for part in parts.values())
    known: Mapping[str, Any] = before if isinstance(before, Mapping) else {}
    running = int(known.get("running_total_flops", 0)) + sum(
        part.get("flops", 0) for name, part in parts.items() if part.get("artefact") != _artefact(known.get(name))
    )
    stated: dict[str, Any] = {"formula": FORMULA, "parameters": size, **parts, "total_flops": total}
    return {**stated, "running_total_flops": running, **_share(running, size, params)}


def _artefact(part: Any) -> Any:
    return part.get("artefact") if isinstance(part, Mapping) else None


def _stage(evidence: Evidence, artefact: str, size: int) -> dict[str, Any]:
    manifest = evidence.manifests.get(artefact)
    tokens: Any = manifest.facts.get("tokens") if manifest else None
    if manifest is None or not isinstance(tokens, Mapping):
        return {"not_recorded": f"the artefact {artefact} states no counts of tokens"}
    forward, trained = int(tokens["forward"]), int(tokens["trained"])
    flops = size * (FORWARD * forward + TRAINING * trained)
    return {"artefact": manifest.digest, "tokens": dict(tokens), "flops": flops}


def _evaluation(evidence: Evidence, size: int) -> dict[str, Any]:
    """Of the replies: one token, one forward pass. Prompts are read once, and are not counted."""
    folder = evidence.folders["judgements"]
    files = [(folder / name).read_bytes() for name in ("plan.json", "judgements.jsonl")]
    rows, _ = evidence_from(*files, where=str(folder))
    tokens = sum(row.tokens for row in rows)
    digest = evidence.manifests["judgements"].digest
    return {"artefact": digest, "tokens": {"generated": tokens}, "flops": FORWARD * size * tokens}


def _share(running: int, size: int, params: Params) -> dict[str, Any]:
    base = params.record.base_training_tokens
    if base is None:
        return {"share_of_base_training": {"not_recorded": "params.yaml states no record.base_training_tokens"}}
    return {"base_training_tokens": base, "share_of_base_training": running / (TRAINING * size * base)}
