"""A workspace made by commit e86ff8d is verified, read and decided again by the present code."""

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from safegene.checkpoints.adapter import open_adapter
from safegene.ledger.evidence import confirm_verdict, gather_evidence
from safegene.pipeline.stages.gate import decide
from safegene.vectors.vector import read_vector
from safegene.workspace.layout import Workspace
from safegene.workspace.manifest import read_manifest
from tests.factories.commands import run

ARCHIVE = Path(__file__).parent / "demo-e86ff8d" / "workspace.tar.xz"
OUTCOMES = {"adversarial": "fail", "group": "pass", "sentiment": "pass", "topic": "pass"}
RELEASES = {"group": "372227ec671d", "sentiment": "49f2b642cc2a", "topic": "4709a498e438"}


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The workspace, unpacked; no test changes what it holds."""
    root = tmp_path_factory.mktemp("golden")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(root, filter="data")
    return Workspace(root)


def read_output(workspace: Workspace, *command: str) -> Any:
    return json.loads(run(workspace.root, *command).stdout)


def test_the_ledger_and_every_artefact_verify(golden: Workspace) -> None:
    output = run(golden.root, "audit", "verify").stdout
    assert "verified 4 records, 3 releases, 20 artefacts" in output
    assert "data/family/degraded" in output  # left out of the archive: named, and no reason to fail


def test_status_finds_every_verdict_current(golden: Workspace) -> None:
    rows = {row["name"]: row for row in read_output(golden, "status", "--json")["targets"]}
    assert {name: row["outcome"] for name, row in rows.items()} == OUTCOMES
    assert [row["problems"] for row in rows.values()] == [[], [], [], []]


@pytest.mark.parametrize("target", RELEASES)
def test_what_is_live_resolves_to_its_release(golden: Workspace, target: str) -> None:
    place = read_output(golden, "resolve", target, "production")
    assert place["release"].startswith(f"sha256:{RELEASES[target]}")
    assert (Path(place["path"]) / "candidate" / "adapter_model.safetensors").is_file()


def test_the_lineage_of_what_is_live_is_shown(golden: Workspace) -> None:
    shown = run(golden.root, "audit", "show", "topic").stdout
    assert RELEASES["topic"] in shown
    assert read_manifest(golden.vector).digest in shown


def test_a_refused_attempt_is_in_the_history(golden: Workspace) -> None:
    shown = run(golden.root, "audit", "history", "adversarial").stdout
    assert "hrr_direct" in shown
    assert run(golden.root, "resolve", "adversarial", code=1).stdout == ""


def test_verdict_and_report_are_shown(golden: Workspace) -> None:
    assert "all 6 endpoints pass" in run(golden.root, "gate", "show", "topic").stdout
    run(golden.root, "report")
    assert RELEASES["topic"] in (golden.root / "reports" / "targets" / "topic.html").read_text(encoding="utf-8")


def test_the_vector_loads(golden: Workspace) -> None:
    vector = read_vector(golden.vector)
    assert vector.factors
    assert set(vector.energy) == set(vector.factors)


@pytest.mark.parametrize("target", OUTCOMES)
def test_the_adapters_load_here_and_in_peft(golden: Workspace, target: str) -> None:
    from peft import PeftConfig
    from peft.utils.save_and_load import load_peft_weights

    folder = golden.candidate(target)
    adapter = open_adapter(folder)
    assert PeftConfig.from_pretrained(str(folder)).peft_type == "LORA"
    assert len(load_peft_weights(str(folder), device="cpu")) == 2 * len(adapter.shapes)


@pytest.mark.parametrize("target", OUTCOMES)
def test_the_judgements_give_the_same_verdict_byte_for_byte(golden: Workspace, target: str, tmp_path: Path) -> None:
    decide(
        candidate=golden.candidate(target),
        judgements=golden.judgements(target),
        out=tmp_path / "verdict",
        params=golden.params.gate,
    )
    for name in ("verdict.json", "metrics.json", "rates.csv"):
        assert (tmp_path / "verdict" / name).read_bytes() == (golden.verdict(target) / name).read_bytes(), name


@pytest.mark.parametrize("target", OUTCOMES)
def test_the_evidence_still_supports_a_promotion(golden: Workspace, target: str) -> None:
    verdict = confirm_verdict(gather_evidence(golden, target), golden.params)
    assert verdict.outcome == OUTCOMES[target]
