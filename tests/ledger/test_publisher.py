"""The publisher of a fetched vector in the ledger: recorded, verified, found, revoked."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from securesystemslib.signer import SSlibKey

from safegene.errors import DigestMismatch, PromotionRefused, StaleArtifact
from safegene.ledger import online
from safegene.ledger.audit import audit_workspace
from safegene.ledger.blast import blast_radius
from safegene.ledger.bundles import publisher_key, verify_publication
from safegene.ledger.exports.cyclonedx import cyclonedx_bom
from safegene.ledger.keys import PEM_VARIABLE, create_key, load_signer, public_key
from safegene.ledger.model_signature import sign_files, verify_files
from safegene.ledger.pins import parse_key
from safegene.ledger.release import release_manifests
from safegene.pipeline.replay_inputs import recorded_run
from safegene.pipeline.stages.promote import promote, resolve, revoke
from safegene.report.reuse import reuse
from safegene.workspace.digest import digest_json
from safegene.workspace.layout import Workspace, cache_folder, keys_folder
from safegene.workspace.manifest import read_manifest, write_artefact
from tests.factories.bundles import add_publication
from tests.factories.commands import call
from tests.factories.ledger import (
    TARGET,
    attempt,
    ledger_of,
    make_family,
    make_workspace,
    problems_of,
    records,
)


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    """A workspace up to its verdict, whose vector was published by a key of somebody else."""
    ws = make_workspace(tmp_path / "ws")
    add_publication(ws, create_key())
    return ws


def key_of(ws: Workspace) -> str:
    return str(ws.params.family.publisher)


def test_a_record_names_the_publisher_and_keeps_the_signature(ws: Workspace) -> None:
    promote(ws, TARGET)
    (record,) = records(ws)
    published: Any = record.predicate.vector["publisher"]
    assert published["key"] == f"sha256:{key_of(ws)}"
    assert published["source"] == "file:///vectors/v1"
    assert {"published", "vector", "selection"} <= set(record.artefacts)
    assert not {"degraded", "delta"} & set(record.artefacts)
    assert set(record.predicate.vector["recipe"]) == {"degraded", "delta", "vector"}  # type: ignore[arg-type]
    assert verify_publication(ledger_of(ws).store, record) == key_of(ws)
    run = recorded_run(record, release_manifests(ledger_of(ws).store, str(record.release)))
    assert not {"degrade", "extract", "compress", "select"} & set(run.params), "they are the publisher's"


def test_audit_blast_and_reuse_know_the_publisher(ws: Workspace) -> None:
    promote(ws, TARGET)
    assert problems_of(ws) == []
    assert any(line.startswith(f"key {key_of(ws)}: published") for line in audit_workspace(ws).trust)
    for name in (key_of(ws), key_of(ws)[:8], f"sha256:{key_of(ws)}"):
        radius = blast_radius(ledger_of(ws), name)
        assert [one.places for one in radius.touched] == [("vector.publisher.key",)], name
        assert [one.record.target for one in radius.live] == [TARGET]
    assert TARGET in call(ws.root, "audit", "blast", key_of(ws)[:8]).stdout
    assert [one.publisher for one in reuse(ws)] == [key_of(ws)]
    component = next(one for one in cyclonedx_bom(records(ws)[0])["components"] if one["name"] == "safety vector")
    assert component["publisher"] == f"key sha256:{key_of(ws)}"
    assert component["licenses"] == [{"license": {"name": "Apache-2.0"}}]


def test_a_key_that_published_and_signed_is_found_in_both_places(tmp_path: Path) -> None:
    ws = make_workspace(tmp_path / "ws")
    add_publication(ws, ledger_of(ws).keys[0].keyid)
    promote(ws, TARGET)
    for name in (key_of(ws), key_of(ws)[:8], f"sha256:{key_of(ws)}"):
        (one,) = blast_radius(ledger_of(ws), name).touched
        assert sorted(one.places) == ["signature", "vector.publisher.key"], name


def test_a_revoked_publisher_serves_and_promotes_nothing(ws: Workspace) -> None:
    promote(ws, TARGET)
    revocation = revoke(ws, f"sha256:{key_of(ws)}", "the publisher lost the key")
    assert [live.record.target for live in revocation.affected] == [TARGET]
    with pytest.raises(PromotionRefused, match="lost the key"):
        resolve(ws, TARGET)
    with pytest.raises(PromotionRefused, match="lost the key"):
        attempt_again(ws)


def test_a_rollback_of_what_the_publisher_made_has_nothing_to_go_back_to(ws: Workspace) -> None:
    promote(ws, TARGET)
    words = ("audit", "revoke", f"sha256:{key_of(ws)}", "--reason", "key lost", "--rollback")
    assert TARGET in call(ws.root, *words).stdout
    with pytest.raises(PromotionRefused, match="key lost"):
        resolve(ws, TARGET)


def attempt_again(ws: Workspace) -> None:
    if attempt(ws, alpha=2.0) != "pass":
        promote(ws, TARGET)


@pytest.mark.parametrize("fault", ["another key", "another vector", "another place", "another gate set", "no seal"])
def test_a_publication_that_is_not_the_pinned_one_promotes_nothing(ws: Workspace, fault: str) -> None:
    errors: tuple[type[Exception], ...] = (StaleArtifact, DigestMismatch)
    if fault == "another key":  # whoever can write artefacts, but not params.yaml
        pinned = (ws.root / "params.yaml").read_text()
        add_publication(ws, create_key())
        (ws.root / "params.yaml").write_text(pinned)
    elif fault == "another vector":
        make_family(ws, rank=2)
    elif fault == "another place":
        params = yaml.safe_load((ws.root / "params.yaml").read_text())
        params["family"]["vector"] = "file:///vectors/v2"
        (ws.root / "params.yaml").write_text(yaml.safe_dump(params))
    elif fault == "another gate set":
        manifest = read_manifest(ws.published)
        inputs = {**manifest.inputs, "prompts": digest_json("another")}
        kept = {name: (ws.published / name).read_bytes() for name in manifest.files}
        with write_artefact(ws.published, stage="fetch-vector", params=manifest.params, inputs=inputs) as draft:
            for name, data in kept.items():
                (draft.path / name).write_bytes(data)
    else:
        digest = read_manifest(ws.published).digest.removeprefix("sha256:")
        for note in (cache_folder() / "sealed").glob(f"{digest}-*"):
            note.unlink()
    with pytest.raises(errors, match="expected"):
        promote(ws, TARGET)
    assert not [record for record in records(ws) if record.outcome == "pass"]


def test_what_was_made_here_before_is_no_evidence_for_a_fetched_vector(ws: Workspace) -> None:
    with write_artefact(ws.delta, stage="extract", params={}, inputs={}) as draft:
        (draft.path / "delta.json").write_text("{}")
    promote(ws, TARGET)
    assert "delta" not in records(ws)[0].artefacts


def test_an_audit_names_a_bundle_of_another_key(ws: Workspace) -> None:
    promote(ws, TARGET)
    shutil.rmtree(ws.published)
    assert problems_of(ws) == []
    pinned = (ws.root / "params.yaml").read_text()
    add_publication(ws, create_key())
    (ws.root / "params.yaml").write_text(pinned)
    assert "expected a vector of the publisher" in "\n".join(problems_of(ws))


def test_an_online_audit_asks_the_publisher_s_place(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    promote(ws, TARGET)
    published: Any = records(ws)[0].predicate.vector["publisher"]
    held = {(published["source"], key_of(ws)): published["bundle"]}
    monkeypatch.setattr(online, "fingerprint", lambda uri: "sha256:0")
    monkeypatch.setattr(online, "bundle_fingerprint", lambda uri, key: held[uri, key])
    before = online.check_online(ws, ledger_of(ws))
    held[published["source"], key_of(ws)] = "sha256:another"
    after = online.check_online(ws, ledger_of(ws))
    assert not [problem for problem in before.problems if "vectors" in problem]
    assert [problem for problem in after.problems if "file:///vectors/v1" in problem]


def test_a_key_that_is_pinned_under_another_name_publishes_under_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """``ledger.pub`` may name a key as it likes; whoever fetches knows the id that follows from the key."""
    keyid = create_key()
    pem = (keys_folder() / f"{keyid}.pem").read_text()
    own = public_key(keyid)
    monkeypatch.setenv(PEM_VARIABLE, pem)
    signer = load_signer((SSlibKey("team1", own.keytype, own.scheme, own.keyval),))
    assert signer.public_key.keyid == "team1"
    key = publisher_key(signer)
    assert key["keyid"] == keyid
    files = {"vector.json": digest_json(1)}
    data = sign_files("vector", files, signer, keyid=keyid)
    verify_files(data, "vector", files, [parse_key(key, where="x")], where="x")
