"""Fields that people state, and operations that are counted."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from safegene.ledger.compute import FORMULA, compute_field
from safegene.ledger.evidence import Evidence, gather_evidence
from safegene.ledger.record_fields import Stated
from safegene.pipeline.stages.promote import promote
from safegene.workspace.digest import canonical_json
from safegene.workspace.git import git
from safegene.workspace.layout import Workspace
from tests.factories.ledger import TARGET, records

STATED = """
record: {use: "support chat", limits: ["no advice"], licence: Apache-2.0, risks: [R-7], retention: ten years,
  base_training_tokens: 1.0e6}
"""


@pytest.fixture(autouse=True)
def _no_user_of_git(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine where Git knows nobody."""
    for name in ("GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM"):
        monkeypatch.setenv(name, os.devnull)


def field(ws: Workspace, name: str) -> Any:
    return records(ws)[0].predicate.fields()[name]


def test_what_nobody_stated_says_how_it_could_be(ws: Workspace) -> None:
    promote(ws, TARGET)
    for name, how in {
        "responsible": "--responsible",
        "use": "record.use",
        "risks": "record.risks",
        "retention": "record.retention",
        "incident": "--incident",
    }.items():
        assert how in field(ws, name)["not_recorded"]
    assert "--change" in field(ws, "change")["summary"]["not_recorded"]


def test_what_people_state_is_in_the_record(ws: Workspace) -> None:
    with (ws.root / "params.yaml").open("a") as file:
        file.write(STATED)
    promote(ws, TARGET, stated=Stated("Ada", "more shots", "https://example.org/7"))
    assert field(ws, "responsible")["person"] == "Ada"
    assert field(ws, "use") == {"intended_use": "support chat", "limits": ["no advice"], "licence": "Apache-2.0"}
    assert field(ws, "risks") == {"mitigated": ["R-7"]}
    assert field(ws, "retention") == {"class": "ten years"}
    assert field(ws, "change") == {"class": "candidate", "summary": "more shots"}
    assert field(ws, "incident") == {"link": "https://example.org/7"}


def test_the_user_of_git_is_responsible_where_nobody_else_is_named(ws: Workspace) -> None:
    git(ws.root, "init", "--quiet")
    git(ws.root, "config", "user.name", "Grace")
    git(ws.root, "config", "user.email", "grace@example.org")
    promote(ws, TARGET)
    said = field(ws, "responsible")
    assert (said["person"], said["stated_by"]) == ("Grace <grace@example.org>", "Git's user.name and user.email")


@pytest.fixture
def evidence(ws: Workspace, tmp_path: Path) -> Evidence:
    """Evidence of a target with 1,000 parameters and counts of tokens: replies of 7 tokens each."""
    found = gather_evidence(ws, TARGET)
    folders = {**found.folders, "target": tmp_path / "target", "judgements": tmp_path / "judgements"}
    shutil.copytree(found.folders["judgements"], folders["judgements"])
    rows = [json.loads(line) for line in (folders["judgements"] / "judgements.jsonl").read_bytes().splitlines()]
    lines = b"".join(canonical_json({**row, "tokens": 7}) + b"\n" for row in rows)
    (folders["judgements"] / "judgements.jsonl").write_bytes(lines)
    folders["target"].mkdir()
    (folders["target"] / "checkpoint.json").write_bytes(canonical_json({"parameters": 1000}))
    candidate = found.manifests["candidate"]
    facts = {**candidate.facts, "tokens": {"forward": 10, "trained": 100}}
    manifests = {**found.manifests, "candidate": candidate.model_copy(update={"facts": facts})}
    return replace(found, folders=folders, manifests=manifests)


def test_operations_follow_from_tokens_and_parameters(ws: Workspace, evidence: Evidence) -> None:
    said = compute_field(evidence, ws.params)
    rows = (evidence.folders["judgements"] / "judgements.jsonl").read_bytes().count(b"\n")
    assert said["formula"] == FORMULA
    assert said["calibration"]["flops"] == 1000 * (2 * 10 + 6 * 100)
    assert said["evaluation"]["flops"] == 2 * 1000 * 7 * rows
    assert "states no counts of tokens" in said["extraction"]["not_recorded"]
    assert said["total_flops"] == said["calibration"]["flops"] + said["evaluation"]["flops"]
    assert said["running_total_flops"] == said["total_flops"]
    assert "record.base_training_tokens" in said["share_of_base_training"]["not_recorded"]


def test_the_running_total_counts_each_artefact_once_and_is_stated_as_a_share(
    ws: Workspace, evidence: Evidence
) -> None:
    with (ws.root / "params.yaml").open("a") as file:
        file.write(STATED)
    first = compute_field(evidence, ws.params)
    assert compute_field(evidence, ws.params, first)["running_total_flops"] == first["total_flops"]
    candidate = evidence.manifests["candidate"]
    other = candidate.model_copy(update={"params": {**candidate.params, "seed": 9}})
    again = compute_field(replace(evidence, manifests={**evidence.manifests, "candidate": other}), ws.params, first)
    assert again["running_total_flops"] == first["total_flops"] + again["calibration"]["flops"]
    assert again["share_of_base_training"] == again["running_total_flops"] / (6 * 1000 * 1.0e6)
    assert compute_field(evidence, ws.params, {"not_recorded": "x"})["running_total_flops"] == first["total_flops"]


def test_a_checkpoint_without_a_number_of_parameters_says_so(ws: Workspace) -> None:
    promote(ws, TARGET)
    assert "number of parameters" in field(ws, "compute")["not_recorded"]
