"""Exports of real records load in the readers of those formats: schema, client, huggingface_hub, gto."""

import json
import tarfile
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from jsonschema import Draft7Validator
from openlineage.client import event_v2, facet_v2
from openlineage.client.generated import base
from openlineage.client.serde import Serde
from referencing import Registry, Resource

from safegene.errors import LedgerError
from safegene.ledger.chain import Ledger, open_ledger
from safegene.ledger.exports.cyclonedx import cyclonedx_bom
from safegene.ledger.exports.gto import adding_commits, create_tags, gto_tags
from safegene.ledger.exports.model_card import model_card
from safegene.ledger.exports.openlineage import openlineage_events
from safegene.ledger.record import PUBLISHING, Record
from safegene.pipeline.stages.promote import revoke, rollback
from safegene.workspace.git import git
from safegene.workspace.layout import Workspace
from safegene.workspace.manifest import read_manifest
from tests.factories.commands import run
from tests.factories.ledger import TARGET, attempt, ledger_of, make_workspace, records

ARCHIVE = Path(__file__).parents[1] / "goldens" / "demo-e86ff8d" / "workspace.tar.xz"


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The demo of an earlier commit: three promotions and a refusal, measured on real models."""
    root = tmp_path_factory.mktemp("demo")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(root, filter="data")
    return Workspace(root)


@pytest.fixture(scope="module")
def ledger(demo: Workspace) -> Ledger:
    return open_ledger(demo.params.promote, demo.root)


@pytest.fixture
def every_outcome(ws: Workspace) -> Workspace:
    """A ledger with a pass, a fail, an error, a rollback and a revocation."""
    assert [attempt(ws, alpha=1.0), attempt(ws, alpha=2.0)] == ["pass", "pass"]
    assert attempt(ws, alpha=3.0, outcome="fail") == "fail"
    rollback(ws, TARGET)
    revoke(ws, read_manifest(ws.candidate(TARGET)).digest, "poisoned")
    return ws


def of(ledger: Ledger, target: str) -> Record:
    return next(record for record in ledger.walk() if record.target == target)


FACETS = {
    "nominalTime": facet_v2.nominal_time_run.NominalTimeRunFacet,
    "processing_engine": facet_v2.processing_engine_run.ProcessingEngineRunFacet,
    "errorMessage": facet_v2.error_message_run.ErrorMessageRunFacet,
    "jobType": facet_v2.job_type_job.JobTypeJobFacet,
    "version": facet_v2.dataset_version_dataset.DatasetVersionDatasetFacet,
}


def facets(raw: dict[str, Any], own: Any) -> dict[str, Any]:
    """The client's own object for each facet that the specification has, with the schema that the client states."""
    loaded = {}
    for name, content in raw.items():
        values = {key: value for key, value in content.items() if not key.startswith("_")}
        if name.startswith("safegene_"):
            loaded[name] = own(producer=content["_producer"]).with_additional_properties(**values)
            loaded[name]._schemaURL = content["_schemaURL"]
        else:
            loaded[name] = FACETS[name](**values, producer=content["_producer"])
            assert content["_schemaURL"] == loaded[name]._schemaURL, name
    return loaded


def load(raw: dict[str, Any]) -> event_v2.RunEvent:
    """The event as the client's objects, which check times, ids and types."""

    def dataset(kind: Any, item: dict[str, Any], more: str) -> Any:
        assert set(item) == {"namespace", "name", "facets", more}
        return kind(item["namespace"], item["name"], facets=facets(item["facets"], base.DatasetFacet))

    event = event_v2.RunEvent(
        eventTime=raw["eventTime"],
        eventType=event_v2.RunState(raw["eventType"]),
        producer=raw["producer"],
        run=event_v2.Run(raw["run"]["runId"], facets=facets(raw["run"]["facets"], base.RunFacet)),
        job=event_v2.Job(
            raw["job"]["namespace"], raw["job"]["name"], facets=facets(raw["job"]["facets"], base.JobFacet)
        ),
        inputs=[dataset(event_v2.InputDataset, item, "inputFacets") for item in raw["inputs"]],
        outputs=[dataset(event_v2.OutputDataset, item, "outputFacets") for item in raw["outputs"]],
    )
    assert event.schemaURL == raw["schemaURL"]
    return event


def without_empty(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_empty(item) for key, item in value.items() if item not in ({}, None)}
    return [without_empty(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("which", ["demo", "every_outcome"])
def test_openlineage_events_are_those_that_the_client_writes(which: str, request: pytest.FixtureRequest) -> None:
    """Loaded into the client's objects and written by its serialiser, each event has the same content."""
    ws: Workspace = request.getfixturevalue(which)
    chain = list(ledger_of(ws).walk())[::-1]
    events = [json.loads(line) for line in openlineage_events(chain, store="s3://bucket/prefix").splitlines()]
    assert len(events) == 2 * len(chain)
    for raw in events:
        assert without_empty(json.loads(Serde.to_json(load(raw)))) == without_empty(raw)
    ends = {"error": "FAIL", "superseded": "ABORT"}
    for record, start, end in zip(chain, events[::2], events[1::2], strict=True):
        assert (start["eventType"], end["eventType"]) == ("START", ends.get(record.outcome, "COMPLETE"))
        assert start["run"]["runId"] == end["run"]["runId"]
        assert [item["namespace"] for item in end["outputs"]] == ["s3://bucket"] * (record.outcome in PUBLISHING)
    assert len({raw["run"]["runId"] for raw in events}) == len(chain)


def test_an_event_names_what_the_attempt_read(ledger: Ledger) -> None:
    record = of(ledger, "topic")
    raw = json.loads(openlineage_events([record], store="ledger").splitlines()[1])
    versions = {item["name"]: item["facets"]["version"]["datasetVersion"] for item in raw["inputs"]}
    assert versions["data/family/vector"] == record.artefacts["vector"]
    assert versions["data/prompts/gate.jsonl"] == record.predicate.datasets["prompts/gate.jsonl"]
    assert {"aligned?seed=0", "topic?seed=0"} <= set(versions)
    assert raw["run"]["facets"]["safegene_verdict"]["outcome"] == "pass"
    assert raw["run"]["facets"]["safegene_record"]["record"] == record.digest


def cyclonedx_problems(bom: dict[str, Any]) -> list[str]:
    """What the schema of CycloneDX 1.6 has against a bill of materials."""
    folder = files("cyclonedx.schema._res")
    schemas = {
        f"http://cyclonedx.org/schema/{name}.schema.json": json.loads(
            folder.joinpath(f"{name}.SNAPSHOT.schema.json").read_text(encoding="utf-8")
        )
        for name in ("bom-1.6", "spdx", "jsf-0.82")
    }
    registry: Any = Registry().with_resources((uri, Resource.from_contents(one)) for uri, one in schemas.items())
    validator = Draft7Validator(schemas["http://cyclonedx.org/schema/bom-1.6.schema.json"], registry=registry)
    return [f"{error.json_path}: {error.message[:200]}" for error in validator.iter_errors(bom)]


@pytest.mark.parametrize("target", ["group", "topic", "adversarial"])
def test_a_bill_of_materials_fits_the_schema(ledger: Ledger, target: str) -> None:
    record = of(ledger, target)
    bom = json.loads(json.dumps(cyclonedx_bom(record), allow_nan=False))
    assert cyclonedx_problems(bom) == []
    model = bom["metadata"]["component"]
    metrics = model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    (after,) = [m for m in metrics if m["type"] == "harmful-response rate" and m["slice"].startswith("repaired")]
    assert float(after["value"]) == record.predicate.rates["hrr"]["after"]["rate"]  # type: ignore[call-overload, index]
    refs = {part["bom-ref"] for part in bom["components"]}
    assert {item["ref"] for item in model["modelCard"]["modelParameters"]["datasets"]} <= refs
    assert set(bom["dependencies"][0]["dependsOn"]) == refs
    assert f"vector:{record.artefacts['vector']}" in refs
    outcome = {p["name"]: p["value"] for p in bom["metadata"]["properties"]}["safegene:outcome"]
    assert outcome == ("fail" if target == "adversarial" else "pass")


def test_the_schema_finds_what_is_wrong(ledger: Ledger) -> None:
    bom = json.loads(json.dumps(cyclonedx_bom(of(ledger, "group"))))
    bom["metadata"]["component"]["modelCard"]["performance"] = 1
    assert any("performance" in problem for problem in cyclonedx_problems(bom))


def test_what_a_record_does_not_say_is_left_out(every_outcome: Workspace) -> None:
    revocation = records(every_outcome)[0]
    with pytest.raises(LedgerError, match="got record 4 of outcome 'revocation'"):
        cyclonedx_bom(revocation)
    with pytest.raises(LedgerError, match="expected a record with a release"):
        model_card(records(every_outcome)[2], ledger_of(every_outcome).store)
    rolled_back = cyclonedx_bom(records(every_outcome)[1])
    assert cyclonedx_problems(json.loads(json.dumps(rolled_back))) == []


def test_a_model_card_has_base_model_relation_and_results(ledger: Ledger) -> None:
    record = of(ledger, "group")
    card = ModelCard(model_card(record, ledger.store))
    data: Any = card.data
    assert data.base_model == "tiny://group?seed=0"
    assert data.base_model_relation == "adapter"
    assert data.library_name == "peft"
    results = {one.metric_type: one for one in data.eval_results or []}
    rates: Any = record.predicate.rates
    assert {name: one.metric_value for name, one in results.items()} == {
        name: arms["after"]["rate"] for name, arms in rates.items()
    }
    assert results["hrr"].metric_args["interval_95"] == rates["hrr"]["after"]["interval"]
    assert results["utility"].dataset_revision == record.predicate.suite["suites"]["task"]  # type: ignore[call-overload, index]
    assert "**pass**" in card.text
    assert str(record.release) in card.text


def test_gto_reads_the_tags(every_outcome: Workspace) -> None:
    """Two releases, then the first one again: GTO itself finds the versions and what the channel holds."""
    from gto.api import show
    from gto.tag import parse_name

    ws = every_outcome
    git(ws.root, "init", "--quiet", "--initial-branch=main")
    for key, value in (("user.name", "a"), ("user.email", "a@localhost")):
        git(ws.root, "config", key, value)
    chain = records(ws)
    commits = {}
    for record in reversed(chain):
        git(ws.root, "commit", "--quiet", "--allow-empty", "-m", f"record {record.sequence}")
        commits[record.digest] = git(ws.root, "rev-parse", "HEAD")
    tags = gto_tags(chain, commits=commits)
    names = [tag.name for tag in tags]
    assert names == [
        f"{TARGET}@v1.0.0",
        f"{TARGET}#production#1",
        f"{TARGET}@v2.0.0",
        f"{TARGET}#production#2",
        f"{TARGET}#production#3",
    ]
    assert all(parse_name(name)["name"] == TARGET for name in names)
    assert tags[4].commit == tags[0].commit == commits[chain[-1].digest]
    assert create_tags(ws.root, tags) == tags
    assert create_tags(ws.root, tags) == ()
    shown = show(str(ws.root))[TARGET]
    assert (shown["version"], shown["stage"]) == ("v2.0.0", {"production": "v1.0.0"})
    git(ws.root, "tag", "--force", "--annotate", "-m", "moved", f"{TARGET}@v1.0.0", "HEAD")
    with pytest.raises(LedgerError, match=f"expected the tag {TARGET}@v1.0.0 on"):
        create_tags(ws.root, tags)


def test_a_tag_is_on_the_commit_that_added_the_record(ws: Workspace) -> None:
    git(ws.root, "init", "--quiet", "--initial-branch=main")
    for key, value in (("user.name", "a"), ("user.email", "a@localhost")):
        git(ws.root, "config", key, value)
    git(ws.root, "add", "--all")
    git(ws.root, "commit", "--quiet", "-m", "before")
    assert attempt(ws) == "pass"
    started = git(ws.root, "rev-parse", "HEAD")
    assert {tag.commit for tag in gto_tags(records(ws))} == {started}
    git(ws.root, "add", "--all")
    git(ws.root, "commit", "--quiet", "-m", "after")
    commits = adding_commits(ws.root, "ledger", records(ws))
    assert {tag.commit for tag in gto_tags(records(ws), commits=commits)} == {git(ws.root, "rev-parse", "HEAD")}
    assert adding_commits(ws.root, "s3://bucket/prefix", records(ws)) == {}
    with pytest.raises(LedgerError, match="expected a release that was live for nobody"):
        gto_tags(records(ws), target="nobody")


def test_the_commands_write_to_a_file_or_to_standard_output(demo: Workspace, tmp_path: Path) -> None:
    events = run(demo.root, "audit", "export", "openlineage").stdout.splitlines()
    assert len([json.loads(line) for line in events]) == 8
    bom = tmp_path / "bom.json"
    run(demo.root, "audit", "export", "cyclonedx", "topic", "--out", str(bom))
    assert cyclonedx_problems(json.loads(bom.read_text())) == []
    assert run(demo.root, "audit", "export", "model-card", "1").stdout.startswith("---\n")
    lines = run(make_workspace(tmp_path / "empty").root, "audit", "export", "gto", code=1).stderr
    assert "expected a release that was live, got none" in lines
