"""Sources in folders: verified copies by content, stale targets, limits."""

import json
import os
import shutil
from pathlib import Path

import pytest
from torch import ones

from safegene.checkpoints import sources
from safegene.checkpoints.checkpoint import open_checkpoint
from safegene.checkpoints.export.adapter import write_adapter
from safegene.checkpoints.record import read_record
from safegene.checkpoints.sources import cache, fingerprint, local_checkpoint
from safegene.errors import (
    ArtifactError,
    CheckpointError,
    DigestMismatch,
    ShapeMismatch,
    SourceError,
    StaleArtifact,
    TensorMissing,
    UnsafeCheckpoint,
)
from safegene.pipeline.stages.fetch import fetch
from safegene.vectors.linalg import LowRank
from safegene.workspace.digest import canonical_json, digest_json
from safegene.workspace.params import FetchParams
from tests.factories.llamas import copy, save_llama

LIMITS = FetchParams()
pytestmark = pytest.mark.usefixtures("box")


def test_a_folder_becomes_a_verified_copy_named_by_its_content(llama: Path, box: Path) -> None:
    local = sources.fetch(f"file://{llama}", limits=LIMITS)
    assert local.root == box / "checkpoints" / local.digest.removeprefix("sha256:")
    assert local.kind == "full"
    assert local.digest == open_checkpoint(local.root).digest
    assert set(local.files) == {path.name for path in llama.iterdir()}
    assert local.fingerprint == fingerprint(f"file://{llama}") == local.digest
    assert list((box / "parts").glob("*[!k]")) == []


def test_files_that_are_no_part_of_a_checkpoint_stay_behind(llama: Path, tmp_path: Path) -> None:
    other = copy(llama, tmp_path / "other")
    (other / "modeling_evil.py").write_text("raise SystemExit")
    (other / "train.log").write_text("x")
    (other / ".git").mkdir()
    local = sources.fetch(f"file://{other}", limits=LIMITS)
    assert local.digest == sources.fetch(f"file://{llama}", limits=LIMITS).digest


def test_fetching_again_copies_nothing(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = sources.fetch(f"file://{llama}", limits=LIMITS)
    monkeypatch.setattr("safegene.checkpoints.sources.local.FolderSource.copy", lambda *_: pytest.fail("copied"))
    assert sources.fetch(f"file://{llama}", limits=LIMITS) == first


def test_a_digest_is_kept_only_while_the_file_cannot_have_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"one")
    first = cache.known_digest(path)
    monkeypatch.setattr(cache, "SETTLED_S", -1.0)
    assert cache.known_digest(path) == first
    monkeypatch.setattr(cache, "digest_file", lambda _: pytest.fail("read again"))
    assert cache.known_digest(path) == first
    monkeypatch.undo()
    monkeypatch.setenv("SAFEGENE_CACHE", str(tmp_path / "cache"))
    times = path.stat()
    path.write_bytes(b"two")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert cache.known_digest(path) != first


def test_a_planted_note_does_not_hide_other_bytes(tmp_path: Path, box: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who may write the cache and has no key notes the digest of the weights that were there before."""
    monkeypatch.setattr(cache, "SETTLED_S", -1.0)
    path = tmp_path / "file"
    path.write_bytes(b"one")
    first = cache.known_digest(path)
    (note,) = (box / "stats").iterdir()
    path.write_bytes(b"two")
    content = json.loads(note.read_bytes())
    content["note"]["identity"] = cache._identity(path)
    for planted in (content, content | {"seal": digest_json(content["note"])}, content["note"]):
        note.write_bytes(canonical_json(planted))
        assert cache.known_digest(path) != first


def test_a_planted_note_does_not_name_another_checkpoint_for_a_source(llama: Path, box: Path, tmp_path: Path) -> None:
    uri = f"file://{llama}"
    local = sources.fetch(uri, limits=LIMITS)
    other = copy(llama, tmp_path / "other")
    (other / "generation_config.json").write_text("{}")
    planted = sources.fetch(f"file://{other}", limits=LIMITS)
    mine, theirs = (cache._note(at, one.fingerprint) for at, one in ((uri, local), (f"file://{other}", planted)))
    assert cache.find_cached(uri, local.fingerprint) == local
    shutil.copy(theirs, mine)
    assert cache.find_cached(uri, local.fingerprint) is None
    assert sources.fetch(uri, limits=LIMITS) == local


def test_a_damaged_copy_is_replaced(llama: Path) -> None:
    local = sources.fetch(f"file://{llama}", limits=LIMITS)
    (local.root / "config.json").write_text("{}")
    again = sources.fetch(f"file://{llama}", limits=LIMITS)
    assert again.digest == local.digest
    assert open_checkpoint(again.root).digest == local.digest


def test_what_changed_since_it_was_named_is_stale(llama: Path, tmp_path: Path) -> None:
    other, out = copy(llama, tmp_path / "other"), tmp_path / "artefact"
    pin = fingerprint(f"file://{other}")
    fetch(f"file://{other}", out=out, fingerprint=pin, params=LIMITS)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-5}))
    with pytest.raises(StaleArtifact, match="has changed since it was named") as stale:
        fetch(f"file://{other}", out=out, fingerprint=pin, params=LIMITS)
    assert "watch" in stale.value.remedy
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(DigestMismatch, match="expected a checkpoint with sha256:"):
        local_checkpoint(out)


def test_the_artefact_says_what_was_fetched(llama: Path, lora: Path, tmp_path: Path) -> None:
    aligned, target = tmp_path / "aligned", tmp_path / "target"
    fetch(f"file://{llama}", out=aligned, params=LIMITS)
    manifest = fetch(f"file://{lora}", out=target, family=aligned, params=LIMITS)
    family, record = read_record(aligned), read_record(target)
    assert family.tensors == open_checkpoint(llama).shapes
    assert record.kind == "lora"
    assert record.base == family.digest
    assert record.parameters == family.parameters == open_checkpoint(llama).parameters
    assert record.adapter_parameters == manifest.facts["adapter_parameters"] > 0
    assert manifest.inputs["source"] == record.digest


def test_bytes_come_back_from_the_source_where_the_cache_has_lost_them(llama: Path, lora: Path, tmp_path: Path) -> None:
    aligned, target = tmp_path / "aligned", tmp_path / "target"
    fetch(f"file://{llama}", out=aligned, params=LIMITS)
    fetch(f"file://{lora}", out=target, family=aligned, params=LIMITS)
    here = local_checkpoint(target, LIMITS, family=aligned)
    assert here == local_checkpoint(target, LIMITS, family=aligned)
    shutil.rmtree(tmp_path / "cache")
    model = local_checkpoint(target, LIMITS, family=aligned)
    assert model == here
    assert open_checkpoint(model.root).digest == open_checkpoint(llama).digest
    assert len(model.adapters) == 1
    assert local_checkpoint(aligned).adapters == ()
    with pytest.raises(ArtifactError, match="expected the family"):
        local_checkpoint(target)


def test_an_adapter_of_another_family_is_stale(llama: Path, lora: Path, tmp_path: Path) -> None:
    aligned, other, target = tmp_path / "aligned", tmp_path / "other", tmp_path / "target"
    fetch(f"file://{llama}", out=aligned, params=LIMITS)
    fetch(f"file://{lora}", out=target, family=aligned, params=LIMITS)
    fetch(f"file://{save_llama(tmp_path / 'b', seed=9)}", out=other, params=LIMITS)
    with pytest.raises(StaleArtifact, match="expected the aligned model sha256:"):
        local_checkpoint(target, family=other)


def test_a_target_of_another_architecture_is_refused_before_arithmetic(llama: Path, lora: Path, tmp_path: Path) -> None:
    aligned, out = tmp_path / "aligned", tmp_path / "out"
    fetch(f"file://{llama}", out=aligned, params=LIMITS)

    def refused(folder: Path, error: type[Exception], match: str) -> None:
        with pytest.raises(error, match=match):
            fetch(f"file://{folder}", out=out, family=aligned, params=LIMITS)
        assert not out.exists()

    heads = save_llama(tmp_path / "heads", heads=8)
    refused(heads, ShapeMismatch, "num_attention_heads 4, got 8")
    words = copy(llama, tmp_path / "words")
    (words / "tokenizer.json").write_text((llama / "tokenizer.json").read_text().replace("w7", "other"))
    refused(words, ShapeMismatch, "family's vocabulary")
    name = "model.layers.0.self_attn.q_proj.weight"
    write_adapter({name: LowRank(ones(64, 1), ones(1, 32))}, base_model="x", out=tmp_path / "misfit")
    refused(tmp_path / "misfit", ShapeMismatch, rf"\[64, 64\] for {name}, got \[64, 32\]")
    write_adapter({name.replace("0", "7"): LowRank(ones(64, 1), ones(1, 64))}, base_model="x", out=tmp_path / "deep")
    refused(tmp_path / "deep", TensorMissing, "layers.7")
    with pytest.raises(CheckpointError, match="got a LoRA adapter"):
        fetch(f"file://{lora}", out=out, params=LIMITS)


def test_limits_on_size_and_model_type(llama: Path) -> None:
    with pytest.raises(SourceError, match="expected at most 1073 bytes"):
        sources.fetch(f"file://{llama}", limits=FetchParams(max_gibibytes=1e-6))
    with pytest.raises(UnsafeCheckpoint, match=rf"model_type .*'llama'.* in file://{llama}/config.json"):
        sources.fetch(f"file://{llama}", limits=FetchParams(model_types=("qwen2",)))


def test_the_tiny_family_is_a_source(monkeypatch: pytest.MonkeyPatch, llama: Path) -> None:
    monkeypatch.setattr("safegene.tiny.build.build", lambda name, seed: llama)
    local = sources.fetch("tiny://aligned?seed=3", limits=LIMITS)
    assert local.digest == open_checkpoint(llama).digest
    assert local.fingerprint == fingerprint("tiny://aligned?seed=3") != fingerprint("tiny://aligned")
