"""A record as a CycloneDX 1.6 bill of materials of a machine-learning model (ML-BOM), with its model card."""

from collections.abc import Iterator, Mapping
from typing import Any

from safegene.errors import LedgerError
from safegene.ledger.exports.facts import (
    ARM_WORDS,
    RATE_WORDS,
    DataSet,
    data_sets,
    hexdigest,
    mapping,
    measured_rates,
    stable_uuid,
)
from safegene.ledger.record import Record
from safegene.version import __version__
from safegene.workspace.digest import is_digest

LIMITS = (
    "A pass says that on the gate's prompts, with this judge and its measured error, the candidate met this policy; it "
    "does not say that the model is safe.",
    "The repair fits exactly the checkpoint that is named here.",
)


def cyclonedx_bom(record: Record) -> dict[str, Any]:
    """The bill of materials of the candidate that a record is about, as plain JSON values.

    Raises:
        LedgerError: the record is about no candidate.
    """
    candidate = record.artefacts.get("candidate")
    if candidate is None or not mapping(record.predicate.model):
        raise LedgerError(
            f"expected a record of a candidate, got record {record.sequence} of outcome {record.outcome!r}",
            remedy="choose a record of outcome pass, fail, inconclusive or rollback: `safegene audit history TARGET`",
        )
    sets = data_sets(record)
    model, parts = _model(record, sets), [*_components(record, sets)]
    timestamp = str(record.predicate.run.get("end") or record.predicate.run.get("start") or "")
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{stable_uuid(record.digest)}",
        "version": 1,
        "metadata": {
            **({"timestamp": timestamp} if timestamp else {}),
            "tools": {"components": [{"type": "application", "name": "safegene", "version": __version__}]},
            "component": model,
            "properties": _properties(record),
        },
        "components": parts,
        "dependencies": [
            {"ref": model["bom-ref"], "dependsOn": [part["bom-ref"] for part in parts]},
            *({"ref": part["bom-ref"], "dependsOn": []} for part in parts),
        ],
    }


def _model(record: Record, sets: tuple[DataSet, ...]) -> dict[str, Any]:
    subject = record.release or record.artefacts["candidate"]
    return {
        "type": "machine-learning-model",
        "bom-ref": subject,
        "name": record.target,
        "version": f"record-{record.sequence}",
        "description": "A fine-tune with a low-rank repair of its safety, as it was judged.",
        "hashes": _hashes(subject),
        **_licences(mapping(record.predicate.use)),
        "modelCard": _card(record, sets),
    }


def _card(record: Record, sets: tuple[DataSet, ...]) -> dict[str, Any]:
    config = mapping(mapping(record.predicate.model).get("config"))
    use = mapping(record.predicate.use)
    kind = str(config.get("model_type", ""))
    parameters: dict[str, Any] = {"task": "text-generation", "datasets": [{"ref": _data_ref(item)} for item in sets]}
    if kind:
        parameters |= {"architectureFamily": "transformer", "modelArchitecture": kind}
    considerations: dict[str, Any] = {"technicalLimitations": [*LIMITS, *_texts(use.get("limits"))]}
    if cases := _texts(use.get("intended_use")):
        considerations["useCases"] = cases
    return {
        "modelParameters": parameters,
        "quantitativeAnalysis": {
            "performanceMetrics": [
                {
                    "type": RATE_WORDS.get(one.name, one.name),
                    "value": repr(one.rate),
                    "slice": f"{ARM_WORDS.get(one.arm, one.arm)}, n = {one.n}",
                    "confidenceInterval": {"lowerBound": repr(one.low), "upperBound": repr(one.high)},
                }
                for one in measured_rates(record)
            ]
        },
        "considerations": considerations,
    }


def _components(record: Record, sets: tuple[DataSet, ...]) -> Iterator[dict[str, Any]]:
    """What the model was made from: checkpoints, safety vector, data sets."""
    for role, checkpoint in (("base", mapping(record.predicate.base)), ("fine-tune", mapping(record.predicate.model))):
        if is_digest(digest := checkpoint.get("digest")):
            yield {
                "type": "machine-learning-model",
                "bom-ref": f"{role}:{digest}",
                "name": str(checkpoint.get("source", role)),
                "description": "The aligned model of the family." if role == "base" else "The fine-tune.",
                "hashes": _hashes(str(digest)),
                "properties": [
                    {"name": f"safegene:{name}", "value": str(checkpoint[name])}
                    for name in ("fingerprint", "kind", "artefact")
                    if name in checkpoint
                ],
            }
    if is_digest(vector := record.artefacts.get("vector")):
        yield {
            "type": "data",
            "bom-ref": f"vector:{vector}",
            "name": "safety vector",
            "hashes": _hashes(str(vector)),
            "data": [{"type": "other", "name": "low-rank factors"}],
            **_publisher(mapping(record.predicate.vector.get("publisher"))),
        }
    for item in sets:
        yield {
            "type": "data",
            "bom-ref": _data_ref(item),
            "name": f"data/{item.name}",
            "hashes": _hashes(item.digest),
            "data": [{"type": "dataset", "name": item.name}],
            **_licences(item.more),
        }


def _publisher(said: Mapping[str, Any]) -> dict[str, Any]:
    """Who published the vector, and under which licence; nothing for one that was made in the workspace."""
    return {"publisher": f"key {said['key']}", **_licences(said)} if "key" in said else {}


def _licences(more: Mapping[str, Any]) -> dict[str, Any]:
    name = more.get("licence")
    return {"licenses": [{"license": {"name": name}}]} if isinstance(name, str) and name else {}


def _properties(record: Record) -> list[dict[str, str]]:
    values = {
        "record": record.digest,
        "sequence": str(record.sequence),
        "outcome": record.outcome,
        "reason": record.reason,
        "channel": record.channel,
        "policy": mapping(record.predicate.policy).get("digest"),
        "judge": mapping(record.predicate.judge).get("identity"),
        "verdict": record.artefacts.get("verdict"),
        "signed_by": record.predicate.chain.key,
    }
    return [{"name": f"safegene:{name}", "value": str(value)} for name, value in values.items() if value is not None]


def _hashes(digest: str) -> list[dict[str, str]]:
    return [{"alg": "SHA-256", "content": hexdigest(digest)}]


def _data_ref(item: DataSet) -> str:
    return f"data:{item.name}:{item.digest}"


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value] if value else []
    return [str(item) for item in value] if isinstance(value, list | tuple) else []
