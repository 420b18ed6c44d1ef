"""A verdict is believed only with complete, unchanged and current evidence."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from safegene.errors import ArtifactError, DigestMismatch, PromotionRefused, StaleArtifact
from safegene.ledger.evidence import gather_evidence
from safegene.pipeline.runner import run_stage
from safegene.pipeline.stages.gate import decide
from safegene.pipeline.stages.promote import confirmed_outcome, pin_incumbent, promote
from safegene.pipeline.table import stage_named
from safegene.workspace.digest import canonical_json, digest_file, digest_json, strict_json
from safegene.workspace.layout import Workspace
from safegene.workspace.manifest import read_manifest, write_artefact
from safegene.workspace.params import Targets, save_targets
from safegene.workspace.seal import _artefact_note, seal_artefact
from tests.factories.ledger import (
    TARGET,
    attempt,
    flip_byte,
    live_digest,
    make_candidate,
    make_family,
    make_receipt,
    make_target,
    make_verdict,
    records,
)


@pytest.mark.parametrize(
    "file",
    [
        "family/vector/vector.safetensors",
        "family/aligned/checkpoint.json",
        f"targets/{TARGET}/candidate/adapter_model.safetensors",
        f"targets/{TARGET}/judgements/judgements.jsonl",
        f"targets/{TARGET}/verdict/verdict.json",
    ],
)
def test_a_changed_byte_of_the_evidence_is_refused_on_record(ws: Workspace, file: str) -> None:
    flip_byte(ws.data / file)
    with pytest.raises(DigestMismatch, match=file):
        promote(ws, TARGET)
    (record,) = records(ws)
    assert record.outcome == "error"
    assert file in record.reason
    assert live_digest(ws) is None


def test_a_missing_verdict_is_refused_on_record(ws: Workspace) -> None:
    (ws.verdict(TARGET) / "manifest.json").unlink()
    with pytest.raises(ArtifactError, match="verdict"):
        promote(ws, TARGET)
    assert [record.outcome for record in records(ws)] == ["error"]


def another_vector(ws: Workspace) -> None:
    make_family(ws, rank=2)


def another_candidate(ws: Workspace) -> None:
    make_candidate(ws, alpha=5.0)


def another_policy(ws: Workspace) -> None:
    path = ws.root / "params.yaml"
    path.write_text(path.read_text().replace("cap_hrr: 0.2", "cap_hrr: 0.15"))


def another_gate_suite(ws: Workspace) -> None:
    (ws.prompts / "gate.jsonl").write_bytes(b'{"id": "z"}\n')


def another_incumbent_file(ws: Workspace) -> None:
    ws.incumbent(TARGET).write_text('{"live":null,"release":null,"candidate":null}')
    make_verdict(ws)
    ws.incumbent(TARGET).write_text('{"live":null,"release":null,"candidate":"x"}')


@pytest.mark.parametrize(
    "change", [another_vector, another_candidate, another_policy, another_gate_suite, another_incumbent_file]
)
def test_a_verdict_of_something_else_is_stale(ws: Workspace, change: Callable[[Workspace], None]) -> None:
    change(ws)
    with pytest.raises(StaleArtifact) as caught:
        promote(ws, TARGET)
    assert "safegene run" in caught.value.remedy
    assert [record.outcome for record in records(ws)] == ["error"]


def test_a_verdict_measured_against_what_is_no_longer_live_is_stale(ws: Workspace) -> None:
    pin_incumbent(ws, TARGET)
    make_verdict(ws)
    elsewhere = Workspace(ws.root.parent / "elsewhere")
    shutil.copytree(ws.root, elsewhere.root)
    ledger = elsewhere.root / "ledger"
    ledger.symlink_to(ws.root / "ledger")
    (ws.root / "ledger").mkdir()
    assert attempt(elsewhere, alpha=2.0) == "pass"
    with pytest.raises(StaleArtifact, match="measured, nothing was live; now sha256:.* is live on production"):
        promote(ws, TARGET)
    assert [record.outcome for record in records(ws)] == ["error", "pass"]


def test_a_candidate_that_was_not_compared_with_what_is_live_is_refused(ws: Workspace) -> None:
    attempt(ws, alpha=1.0)
    ws.incumbent(TARGET).unlink()
    make_target(ws, alpha=2.0)  # judged as if nothing were live
    pin_incumbent(ws, TARGET)
    with pytest.raises(StaleArtifact, match="made from the present incumbent"):
        promote(ws, TARGET)


def test_judgements_of_sets_that_were_not_validated_are_refused(ws: Workspace) -> None:
    (ws.prompts / "gate.jsonl").write_bytes(b'{"id": "z"}\n')
    make_target(ws)  # judged by hand on the new set
    make_receipt(ws)
    with pytest.raises(StaleArtifact, match="made from the present validation"):
        promote(ws, TARGET)
    shutil.rmtree(ws.validation)
    with pytest.raises(ArtifactError, match="validation"):
        promote(ws, TARGET)


def test_another_tasks_receipt_leaves_a_verdict_valid(ws: Workspace) -> None:
    (ws.tasks / "new.jsonl").write_bytes(b'{"id": "d"}\n')
    make_receipt(ws)
    seal_artefact(read_manifest(ws.validation).digest)
    promote(ws, TARGET)
    assert [record.outcome for record in records(ws)] == ["pass"]


def test_judgements_of_earlier_versions_name_the_whole_receipt(ws: Workspace) -> None:
    judged, whole = read_manifest(ws.judgements(TARGET)), digest_file(ws.validation / "receipt.json")
    earlier = judged.model_copy(update={"inputs": {**judged.inputs, "validation": whole}})
    (ws.judgements(TARGET) / "manifest.json").write_bytes(earlier.content)
    decide(ws.candidate(TARGET), ws.judgements(TARGET), out=ws.verdict(TARGET), params=ws.params.gate)
    evidence = gather_evidence(ws, TARGET)
    assert evidence.manifests["judgements"].inputs["validation"] == whole
    (ws.tasks / "new.jsonl").write_bytes(b'{"id": "d"}\n')
    make_receipt(ws)
    with pytest.raises(StaleArtifact, match="made from the present validation"):
        gather_evidence(ws, TARGET)


@pytest.mark.parametrize("endpoints", ["kept", "passing"])
def test_a_forged_pass_is_found_by_deciding_again(ws: Workspace, endpoints: str) -> None:
    """The forger has rewritten the verdict and its manifest, so that every digest fits."""
    make_verdict(ws, outcome="fail")
    verdict = ws.verdict(TARGET) / "verdict.json"
    content = strict_json(verdict.read_bytes(), where="verdict") | {"outcome": "pass"}
    if endpoints == "passing":
        content["endpoints"] = [one | {"outcome": "pass"} for one in content["endpoints"]]
    inputs: dict[str, Path | str] = {"candidate": ws.candidate(TARGET), "judgements": ws.judgements(TARGET)}
    with write_artefact(ws.verdict(TARGET), stage="gate", params={}, inputs=inputs) as draft:
        (draft.path / "verdict.json").write_bytes(canonical_json(content))
    with pytest.raises(StaleArtifact, match="which the judgements give"):
        promote(ws, TARGET)
    assert [record.outcome for record in records(ws)] == ["error"]


def test_a_verdict_with_invented_rates_is_refused(ws: Workspace) -> None:
    content = strict_json((ws.verdict(TARGET) / "verdict.json").read_bytes(), where="verdict")
    content["rates"] = {"hrr": {"after": {"rate": 0.0, "interval": [0.0, 0.0]}}}
    inputs: dict[str, Path | str] = {"candidate": ws.candidate(TARGET), "judgements": ws.judgements(TARGET)}
    with write_artefact(ws.verdict(TARGET), stage="gate", params={}, inputs=inputs) as draft:
        (draft.path / "verdict.json").write_bytes(canonical_json(content))
    with pytest.raises(StaleArtifact, match="expected rates = "):
        promote(ws, TARGET)
    with pytest.raises(StaleArtifact, match="expected rates = "):
        confirmed_outcome(ws, TARGET)


@pytest.mark.parametrize("outcome", ["pass", "fail", "inconclusive"])
def test_an_outcome_is_confirmed_without_a_record(ws: Workspace, outcome: str) -> None:
    make_verdict(ws, outcome=outcome)
    assert confirmed_outcome(ws, TARGET) == outcome
    assert not records(ws)


def test_a_pass_on_evidence_that_nobody_sealed_is_not_confirmed(ws: Workspace) -> None:
    _artefact_note(read_manifest(ws.judgements(TARGET)).digest).unlink()
    with pytest.raises(ArtifactError):
        confirmed_outcome(ws, TARGET)


FOLDERS = ("checkpoint", "candidate", "judgements", "verdict")


def two_targets(ws: Workspace, *, task: str = "sentiment") -> None:
    """Beside the passing target another one, which fails."""
    make_target(ws, "other", outcome="fail")
    entry = ws.targets.targets["other"].model_copy(update={"task": task})
    save_targets(ws.targets_file, Targets(targets={**ws.targets.targets, "other": entry}))


def copy_evidence(ws: Workspace, *folders: str) -> None:
    for name in folders:
        shutil.rmtree(ws.target("other") / name)
        shutil.copytree(ws.target(TARGET) / name, ws.target("other") / name)


def test_evidence_of_another_target_is_refused_by_both_names(ws: Workspace) -> None:
    two_targets(ws)
    copy_evidence(ws, *FOLDERS)
    with pytest.raises(StaleArtifact, match=f"artefacts of target other, .* got those of target {TARGET},") as caught:
        promote(ws, "other")
    assert "safegene run other" in caught.value.remedy
    assert [record.outcome for record in records(ws)] == ["error"]
    for stage in ("calibrate", "evaluate", "gate"):
        with pytest.raises(StaleArtifact, match=f"artefacts of target other, .* got those of target {TARGET},"):
            run_stage(stage_named(stage), ws, "other")


@pytest.mark.parametrize("folders", [FOLDERS[1:], FOLDERS[2:], FOLDERS[:1], FOLDERS[:3]], ids="+".join)
def test_a_part_of_the_evidence_of_another_target_is_refused(ws: Workspace, folders: tuple[str, ...]) -> None:
    two_targets(ws)
    copy_evidence(ws, *folders)
    with pytest.raises(StaleArtifact):
        promote(ws, "other")
    assert [record.outcome for record in records(ws)] == ["error"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"source": "tiny://another?seed=0"}, "the source tiny://another"),
        ({"fingerprint": digest_json("another")}, "the fingerprint sha256:"),
        ({"task": "another"}, "the task another"),
    ],
)
def test_evidence_of_another_entry_of_the_same_name_is_refused(
    ws: Workspace, change: dict[str, str], named: str
) -> None:
    entry = ws.targets.targets[TARGET].model_copy(update=change)
    save_targets(ws.targets_file, Targets(targets={TARGET: entry}))
    with pytest.raises(StaleArtifact, match=named):
        promote(ws, TARGET)


def test_the_same_checkpoint_under_two_names_is_evidence_for_one(ws: Workspace) -> None:
    """Source, fingerprint and task are equal: the name alone differs."""
    two_targets(ws)
    same = ws.targets.targets[TARGET]
    save_targets(ws.targets_file, Targets(targets={TARGET: same, "other": same}))
    copy_evidence(ws, *FOLDERS)
    with pytest.raises(StaleArtifact, match=f"the name other, got those of target {TARGET}, made for the name"):
        promote(ws, "other")


def test_an_earlier_checkpoint_without_its_entry_is_bound_by_source_and_fingerprint(ws: Workspace) -> None:
    path = ws.checkpoint(TARGET) / "checkpoint.json"
    content = path.read_bytes()
    with write_artefact(ws.checkpoint(TARGET), stage="fetch", params={}, inputs={"aligned": ws.aligned}) as draft:
        (draft.path / "checkpoint.json").write_bytes(content)
    make_candidate(ws)
    make_verdict(ws)
    assert promote(ws, TARGET).outcome == "pass"
    entry = ws.targets.targets[TARGET].model_copy(update={"fingerprint": "another"})
    save_targets(ws.targets_file, Targets(targets={TARGET: entry}))
    with pytest.raises(StaleArtifact, match=r"target \(unknown\)|target sentiment"):
        promote(ws, TARGET)


def test_evidence_on_another_task_set_is_refused(ws: Workspace) -> None:
    """A set of the workspace, but not that of the target's task."""
    (ws.tasks / "sentiment.jsonl").rename(ws.tasks / "topic.jsonl")
    (ws.tasks / "sentiment.jsonl").write_bytes(b'{"id": "other"}\n')
    make_receipt(ws)
    with pytest.raises(StaleArtifact, match="present task|present .*validation"):
        promote(ws, TARGET)


def rewrite(folder: Path, name: str, old: bytes, new: bytes) -> None:
    """Edit a file of an artefact and rewrite the manifest, as somebody can who may write the workspace."""
    path = folder / name
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new))
    manifest = read_manifest(folder, verify=False)
    forged = manifest.model_copy(update={"files": {**manifest.files, name: digest_file(path)}})
    (folder / "manifest.json").write_bytes(forged.content)


def test_judgements_edited_with_their_manifest_are_refused(ws: Workspace) -> None:
    """The forger turns a fail into a pass and makes the verdict anew; every digest fits, only the seal is missing."""
    make_target(ws, alpha=7.0, outcome="fail")
    rewrite(ws.judgements(TARGET), "judgements.jsonl", b'"harmful":"yes"', b'"harmful":"no"')
    decide(ws.candidate(TARGET), ws.judgements(TARGET), out=ws.verdict(TARGET), params=ws.params.gate)
    with pytest.raises(StaleArtifact, match="expected judgements made by a holder of the key") as caught:
        promote(ws, TARGET)
    assert f"safegene run {TARGET}" in caught.value.remedy
    assert [record.outcome for record in records(ws)] == ["error"]
    seal_artefact(read_manifest(ws.judgements(TARGET)).digest)  # the forger had the key: nothing else was wrong
    assert promote(ws, TARGET).outcome == "pass"


@pytest.mark.parametrize("name", ["aligned", "target", "validation", "judgements"])
def test_a_pass_needs_a_seal_of_this_key_on_what_it_rests_on(ws: Workspace, name: str) -> None:
    folder = {"aligned": ws.aligned, "target": ws.checkpoint(TARGET), "validation": ws.validation}
    digest = read_manifest(folder.get(name, ws.judgements(TARGET))).digest
    _artefact_note(digest).unlink()
    with pytest.raises(StaleArtifact, match=f"expected {name} made by a holder of the key"):
        promote(ws, TARGET)
    assert live_digest(ws) is None


def test_a_refusal_needs_no_seal(ws: Workspace) -> None:
    make_verdict(ws, outcome="fail")
    _artefact_note(read_manifest(ws.judgements(TARGET)).digest).unlink()
    with pytest.raises(PromotionRefused):
        promote(ws, TARGET)
    assert [record.outcome for record in records(ws)] == ["fail"]
