"""Checkpoints below a folder, a prefix or an organisation are discovered once they are complete."""

import json
from pathlib import Path

import pytest

from safegene.checkpoints import sources
from safegene.checkpoints.checkpoint import open_checkpoint
from safegene.checkpoints.sources import discover, fingerprint
from safegene.errors import (
    SourceError,
)
from safegene.workspace.params import FetchParams
from tests.factories.hub import HubStandIn, Upload
from tests.factories.llamas import copy, files_of

LIMITS = FetchParams()
pytestmark = pytest.mark.usefixtures("box")


def test_only_complete_folders_are_discovered(llama: Path, lora: Path, tmp_path: Path) -> None:
    watched = tmp_path / "watched"
    copy(llama, watched / "My Model")
    copy(lora, watched / "adapter")
    copy(llama, watched / "writing")
    shard = watched / "writing" / "model-00003-of-00004.safetensors"
    shard.write_bytes(shard.read_bytes()[:-10])
    copy(llama, watched / "missing")
    (watched / "missing" / "model-00003-of-00004.safetensors").unlink()
    copy(llama, watched / "trainer")
    (watched / "trainer" / "training_args.bin").write_bytes(b"never")
    copy(llama, watched / "pickled")
    for weights in (watched / "pickled").glob("*.safetensors"):
        weights.rename(weights.with_suffix(".bin"))
    (watched / "empty").mkdir()
    odd = copy(lora, watched / "odd") / "adapter_config.json"
    odd.write_text(json.dumps(json.loads(odd.read_text()) | {"rank_pattern": [1]}))
    copy(llama, watched / "hf_mistral7b")
    (watched / "link").symlink_to(llama)
    found, skipped = discover(f"file://{watched}")
    plain = sources.discovery.target_name("My Model")
    assert [one.name for one in found] == ["adapter", "hf_mistral7b", plain, "trainer"]
    assert found[0].fingerprint == fingerprint(found[0].uri) == fingerprint(f"file://{lora}")
    assert sources.fetch(found[2].uri, limits=LIMITS).digest == open_checkpoint(llama).digest
    assert set(skipped) == {"writing", "missing", "pickled", "empty", "link", "odd"}
    assert "truncated" in skipped["writing"]
    shard.write_bytes((llama / shard.name).read_bytes())
    assert "writing" in {one.name for one in discover(f"file://{watched}")[0]}
    with pytest.raises(SourceError, match="expected a folder to watch"):
        discover(f"file://{tmp_path}/absent")
    with pytest.raises(SourceError, match="expected a folder, prefix or organisation"):
        discover("tiny://aligned")


def test_names_of_discovered_targets_stay_apart() -> None:
    names = [sources.discovery.target_name(name) for name in ("Llama_SFT", "llama_sft", "llama sft", "..", "x" * 90)]
    assert len(set(names)) == 5
    assert names[1] == "llama_sft"
    assert names[2].startswith("llama-sft-")


def test_prefixes_of_a_bucket_are_discovered(llama: Path, lora: Path, upload: Upload, tmp_path: Path) -> None:
    short = copy(llama, tmp_path / "short")
    (short / "model-00003-of-00004.safetensors").unlink()
    for folder, name in ((llama, "one"), (lora, "two"), (short, "three")):
        upload(folder, f"fine-tunes/{name}")
    base = f"s3://{upload.bucket}/fine-tunes"
    found, skipped = discover(f"{base}/")
    assert [one.uri for one in found] == [f"{base}/one", f"{base}/two"]
    assert found[0].fingerprint == fingerprint(f"{base}/one")
    assert "model-00003-of-00004.safetensors" in skipped["three"]


def test_models_of_an_organisation_are_discovered(llama: Path, lora: Path, hub: HubStandIn) -> None:
    commit = hub.publish("org/one", files_of(llama))
    hub.publish("org/two", files_of(lora))
    hub.publish("org/gguf", {"README.md": b""})
    hub.publish("other/one", files_of(llama))
    found, skipped = discover("hf://org")
    assert [one.uri for one in found] == ["hf://org/one", "hf://org/two"]
    assert found[0].fingerprint == f"commit:{commit}"
    assert set(skipped) == {"gguf"}
    assert sources.fetch(found[1].uri, limits=LIMITS).kind == "lora"
