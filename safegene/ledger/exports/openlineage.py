"""Records as OpenLineage run events (specification 2-0-2), one JSON object a line.

Each record gives two events of one run: START, with what the attempt read, and COMPLETE (a verdict was reached,
whatever it was), FAIL (an error) or ABORT (another promotion was first), with what it published. The file is what the
file transport of OpenLineage's client writes; ``safegene_record`` and ``safegene_verdict`` are custom facets.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from safegene.ledger.exports.facts import data_sets, hexdigest, mapping, measured_rates, stable_uuid
from safegene.ledger.record import PREDICATE, PUBLISHING, Record
from safegene.version import __version__
from safegene.workspace.digest import is_digest

SPEC = "https://openlineage.io/spec"
EVENT = f"{SPEC}/2-0-2/OpenLineage.json#/$defs/RunEvent"
PRODUCER = f"https://safegene.dev/{__version__}"
ENDS = {"error": "FAIL", "superseded": "ABORT"}
WORKSPACE = "safegene.workspace"


def openlineage_events(records: Iterable[Record], *, store: str) -> str:
    """The events as NDJSON, in the order of the records.

    Args:
        records: verified records.
        store: the ledger's place: an S3 URI or a folder.
    """
    lines = (json.dumps(event, sort_keys=True, allow_nan=False) for r in records for event in _events(r, store))
    return "".join(f"{line}\n" for line in lines)


def _events(record: Record, store: str) -> Iterator[dict[str, Any]]:
    run = record.predicate.run
    start, end = str(run.get("start") or run.get("end") or ""), str(run.get("end") or run.get("start") or "")
    if not start:
        return  # an event must have a time
    common = {
        "producer": PRODUCER,
        "schemaURL": EVENT,
        "run": {"runId": stable_uuid(record.digest), "facets": _run_facets(record, start, end)},
        "job": _job(record),
    }
    inputs = list(_inputs(record))
    yield {**common, "eventType": "START", "eventTime": start, "inputs": inputs, "outputs": []}
    ended = {"eventType": ENDS.get(record.outcome, "COMPLETE"), "eventTime": end}
    yield {**common, **ended, "inputs": inputs, "outputs": list(_outputs(record, store))}


def _job(record: Record) -> dict[str, Any]:
    what = record.outcome if record.outcome in ("rollback", "revocation") else "realign"
    kind = {"processingType": "BATCH", "integration": "SAFEGENE", "jobType": "TASK"}
    return {
        "namespace": "safegene",
        "name": what if record.target == "*" else f"{what}.{record.target}",
        "facets": {"jobType": _facet("facets/2-0-4/JobTypeJobFacet.json#/$defs/JobTypeJobFacet", kind)},
    }


def _run_facets(record: Record, start: str, end: str) -> dict[str, Any]:
    code, verdict = mapping(record.predicate.code), mapping(record.predicate.verdict)
    facets = {
        "nominalTime": _facet(
            "facets/1-0-1/NominalTimeRunFacet.json#/$defs/NominalTimeRunFacet",
            {"nominalStartTime": start, "nominalEndTime": end},
        ),
        "processing_engine": _facet(
            "facets/1-1-1/ProcessingEngineRunFacet.json#/$defs/ProcessingEngineRunFacet",
            {"version": str(code.get("safegene", __version__)), "name": "safegene"},
        ),
        "safegene_record": _own(
            {
                "record": record.digest,
                "sequence": record.sequence,
                "channel": record.channel,
                "outcome": record.outcome,
                "reason": record.reason,
                "gitCommit": code.get("git_commit") if isinstance(code.get("git_commit"), str) else None,
                "signedBy": record.predicate.chain.key,
            }
        ),
        "safegene_verdict": _own(
            {
                "outcome": verdict.get("outcome"),
                "notPassed": verdict.get("not_passed"),
                "policy": mapping(record.predicate.policy).get("digest"),
                "judge": mapping(record.predicate.judge).get("identity"),
                "rates": [vars(rate) for rate in measured_rates(record)],
            }
        ),
    }
    if not verdict:
        del facets["safegene_verdict"]
    if record.outcome == "error":
        facets["errorMessage"] = _facet(
            "facets/1-0-1/ErrorMessageRunFacet.json#/$defs/ErrorMessageRunFacet",
            {"message": record.reason, "programmingLanguage": "Python"},
        )
    return facets


def _inputs(record: Record) -> Iterator[dict[str, Any]]:
    """The checkpoints, the data sets and the safety vector that an attempt read."""
    for checkpoint in (mapping(record.predicate.base), mapping(record.predicate.model)):
        if source := checkpoint.get("source"):
            yield _dataset(*_namespace(str(source)), str(checkpoint.get("digest", "")), inputFacets={})
    for item in data_sets(record):
        yield _dataset(WORKSPACE, f"data/{item.name}", item.digest, inputFacets={})
    if vector := record.artefacts.get("vector"):
        yield _dataset(WORKSPACE, "data/family/vector", vector, inputFacets={})


def _outputs(record: Record, store: str) -> Iterator[dict[str, Any]]:
    """The release that the record put live."""
    if record.outcome in PUBLISHING and record.release:
        namespace, name = _namespace(f"{store.rstrip('/')}/releases/{hexdigest(record.release)}")
        yield _dataset(namespace, name, record.release, outputFacets={})


def _dataset(namespace: str, name: str, version: str, **more: Any) -> dict[str, Any]:
    facet = _facet(
        "facets/1-0-1/DatasetVersionDatasetFacet.json#/$defs/DatasetVersionDatasetFacet", {"datasetVersion": version}
    )
    return {"namespace": namespace, "name": name, "facets": {"version": facet} if is_digest(version) else {}, **more}


def _namespace(uri: str) -> tuple[str, str]:
    """Namespace and name of a dataset: ``s3://bucket`` and the key; ``file`` and the path."""
    parts = urlsplit(uri)
    if parts.scheme in ("", "file"):
        return "file", parts.path
    if parts.scheme == "s3":
        return f"s3://{parts.netloc}", parts.path.strip("/")
    return parts.scheme, uri.removeprefix(f"{parts.scheme}://")


def _facet(schema: str, content: Mapping[str, Any]) -> dict[str, Any]:
    return {"_producer": PRODUCER, "_schemaURL": f"{SPEC}/{schema}", **content}


def _own(content: Mapping[str, Any]) -> dict[str, Any]:
    """A custom facet; ``_schemaURL`` names the format of our records."""
    return {
        "_producer": PRODUCER,
        "_schemaURL": PREDICATE,
        **{name: value for name, value in content.items() if value is not None},
    }
