import json
from pathlib import Path

import pytest
from rich.console import Console

from safegene.errors import LedgerError
from safegene.ledger import RecordDraft, live_record, load_signer, record_key
from safegene.ledger.audit import audit_workspace, verify_ledger
from safegene.ledger.trace import content_tree, history, trace_live, trace_workspace
from safegene.pipeline.stages.promote import pin_incumbent, promote_attempt, revoke, rollback
from safegene.workspace.layout import Workspace
from safegene.workspace.manifest import read_manifest
from safegene.workspace.params import Targets, save_targets
from tests.factories.ledger import (
    TARGET,
    attempt,
    flip_byte,
    ledger_of,
    live_digest,
    make_candidate,
    make_checkpoint,
    make_family,
    make_target,
    make_verdict,
    make_workspace,
    problems_of,
)


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    """One target promoted, another refused."""
    ws = make_workspace(tmp_path / "ws")
    assert attempt(ws) == "pass"
    assert attempt(ws, "adversarial", outcome="fail") == "fail"
    return ws


def test_a_sound_workspace_has_no_findings(ws: Workspace) -> None:
    audit = audit_workspace(ws)
    assert audit.problems == ()
    assert audit.notes == ()
    assert (audit.records, audit.releases) == (2, 1)
    assert audit.artefacts == 4 + 2 * 4
    assert problems_of(ws) == []


def test_an_empty_workspace_has_no_findings(tmp_path: Path) -> None:
    assert problems_of(make_workspace(tmp_path / "ws")) == []


@pytest.mark.parametrize(
    "file",
    [
        "family/aligned/checkpoint.json",
        "family/vector/vector.safetensors",
        "family/vector/manifest.json",
        "family/selection/selection.json",
        f"targets/{TARGET}/candidate/adapter_model.safetensors",
        f"targets/{TARGET}/judgements/judgements.jsonl",
        f"targets/{TARGET}/verdict/verdict.json",
        "targets/adversarial/verdict/verdict.json",
    ],
)
def test_a_flipped_byte_of_an_artefact_is_named(ws: Workspace, file: str) -> None:
    flip_byte(ws.data / file, at=-3)
    assert any(problem.endswith(f"in {ws.data / file}") for problem in problems_of(ws)), problems_of(ws)


def test_a_flipped_byte_of_every_file_of_a_release_is_named(ws: Workspace) -> None:
    (release,) = (ws.root / "ledger" / "releases").iterdir()
    files = [path for path in release.rglob("*") if path.is_file()]
    assert len(files) > 10
    for file in files:
        flip_byte(file)
        assert any(str(file) in problem for problem in problems_of(ws)), file
        flip_byte(file)
    assert problems_of(ws) == []


def test_a_file_planted_in_a_release_or_an_artefact_is_named(ws: Workspace) -> None:
    (release,) = (ws.root / "ledger" / "releases").iterdir()
    (release / "candidate" / ".git").write_text("x")
    (ws.vector / ".github").write_text("x")
    found = "\n".join(problems_of(ws))
    assert f"got also ['.github'], in {ws.vector}" in found
    assert "got also ['candidate/.git']" in found


def test_an_artefact_made_again_after_its_record_is_named(ws: Workspace) -> None:
    make_target(ws, alpha=7.0)
    problems = problems_of(ws)
    assert any(
        f"in {ws.candidate(TARGET)}/manifest.json" in problem and "changed after the record" in problem
        for problem in problems
    )
    assert attempt(ws, alpha=7.0) == "pass"
    assert problems_of(ws) == []


def test_a_replayed_old_vector_is_named(ws: Workspace) -> None:
    make_family(ws, rank=2)
    attempt(ws)
    attempt(ws, "adversarial", outcome="fail")
    assert problems_of(ws) == []
    make_family(ws, rank=4)
    assert any(f"in {ws.vector}/manifest.json" in problem for problem in problems_of(ws))


def test_changed_data_is_named(ws: Workspace) -> None:
    path = ws.prompts / "gate.jsonl"
    path.write_bytes(b'{"id": "other"}\n')
    assert any(problem.endswith(f"in {path}") for problem in problems_of(ws))


def test_what_is_live_may_lie_in_the_workspace_though_a_later_attempt_failed(ws: Workspace) -> None:
    attempt(ws, alpha=2.0, outcome="fail")
    assert problems_of(ws) == []
    make_target(ws, alpha=1.0)
    pin_incumbent(ws, TARGET)
    live_again = live_record(ledger_of(ws), TARGET, "production")
    assert live_again
    assert live_again.record.artefacts["candidate"] == read_manifest(ws.candidate(TARGET)).digest


def test_without_a_public_key_nothing_is_verified(ws: Workspace) -> None:
    (ws.root / "ledger.pub").unlink()
    (problem,) = problems_of(ws)
    assert "expected the pinned public key" in problem


def test_a_rolled_back_ledger_is_sound(ws: Workspace) -> None:
    attempt(ws, alpha=2.0)
    rollback(ws, TARGET)
    assert problems_of(ws) == []


def test_show_goes_from_what_is_live_down_to_the_commit(ws: Workspace) -> None:
    shown = trace_live(ledger_of(ws), TARGET, "production")
    assert shown["live"]["release"] == live_digest(ws)
    assert shown["live"]["revoked"] == "no"
    assert shown["verdict"]["outcome"] == "pass"
    assert shown["judge"]["identity"] == "grammar"
    assert shown["vector"]["digest"] == read_manifest(ws.vector).digest
    assert shown["checkpoints"]["target"]["source"] == f"tiny://{TARGET}?seed=0"
    assert shown["checkpoints"]["aligned"]["source"] == "tiny://aligned?seed=0"
    assert shown["datasets"]["prompts/gate.jsonl"].startswith("sha256:")
    assert shown["policy"]["params"]["cap_hrr"] == 0.2
    assert "git_commit" in shown["code"]
    json.dumps(shown)
    with pytest.raises(LedgerError, match="got nothing"):
        trace_live(ledger_of(ws), "adversarial", "production")


def test_show_prints_a_tree_without_control_characters(ws: Workspace) -> None:
    entry = ws.targets.targets[TARGET].model_copy(update={"source": "file://\x1b[31m[bold]evil\u202e"})
    save_targets(ws.targets_file, Targets(targets={TARGET: entry}))
    make_checkpoint(ws)
    make_candidate(ws, alpha=2.0)
    pin_incumbent(ws, TARGET)
    make_verdict(ws)
    assert promote_attempt(ws, TARGET) == "pass"
    console = Console(record=True, width=200, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(content_tree(trace_workspace(ws, TARGET)))
    text = console.export_text()
    assert "file://?[31m[bold]evil?" in text
    assert "\x1b" not in text
    console.file.close()


def test_history_lists_every_attempt_the_newest_first(ws: Workspace) -> None:
    attempt(ws, alpha=2.0, outcome="inconclusive")
    rows = history(ledger_of(ws), TARGET)
    assert [(row.sequence, row.outcome, row.live) for row in rows] == [
        (2, "inconclusive", False),
        (0, "pass", True),
    ]


def test_a_revocation_names_what_is_live_on_it(ws: Workspace) -> None:
    attempt(ws, "topic")
    digests = [read_manifest(at).digest for at in (ws.checkpoint("topic"), ws.vector)]
    affected = [revoke(ws, digest, "poisoned").affected for digest in digests]
    assert [{live.record.target for live in lives} for lives in affected] == [{"topic"}, {TARGET, "topic"}]
    audit = audit_workspace(ws)
    assert audit.problems == ()
    assert len([note for note in audit.notes if "poisoned" in note]) == 2


def test_a_thousand_records_are_verified(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("safegene.ledger.store.os.fsync", lambda descriptor: None)
    ledger = ledger_of(ws)
    signer = load_signer(ledger.keys)
    for number in range(998):
        ledger.append(RecordDraft("fail", "other", "production", str(number), {}, {}), signer)
    audit = verify_ledger(ws, ledger)
    assert audit.problems == ()
    assert audit.records == 1000
    middle = list(ledger.walk())[500]
    flip_byte(ws.root / "ledger" / record_key(middle.digest), at=300)
    assert f"the record was edited, in {ws.root / 'ledger' / record_key(middle.digest)}" in "\n".join(problems_of(ws))
