"""Sources on the Hub and in S3 buckets: downloads resume, and errors are one sentence."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from safegene.checkpoints import sources
from safegene.checkpoints.checkpoint import open_checkpoint
from safegene.checkpoints.sources import cache, fingerprint, local_checkpoint, s3
from safegene.errors import (
    DigestMismatch,
    SourceError,
    UnsafeCheckpoint,
)
from safegene.pipeline.stages.fetch import fetch
from safegene.workspace.params import FetchParams
from tests.factories.hub import HubStandIn, Upload
from tests.factories.llamas import copy, files_of

LIMITS = FetchParams()
pytestmark = pytest.mark.usefixtures("box")


def test_the_hub_is_asked_for_a_commit_and_only_for_what_is_needed(llama: Path, hub: HubStandIn) -> None:
    first = hub.publish("org/model", files_of(llama, pytorch_model__bin=b"never", modeling__py=b"never"))
    local = sources.fetch("hf://org/model", limits=LIMITS)
    assert local.fingerprint == f"commit:{first}" == fingerprint("hf://org/model@main")
    assert local.digest == open_checkpoint(llama).digest
    assert not [path for _, path, _ in hub.served if "pytorch_model" in path or "modeling" in path]
    hub.publish("org/model", files_of(llama, generation_config__json=b'{"eos_token_id": 9}'))
    assert fingerprint("hf://org/model") != local.fingerprint
    assert fingerprint(f"hf://org/model@{first}") == local.fingerprint


def test_a_broken_download_from_the_hub_goes_on_where_it_stopped(
    llama: Path, hub: HubStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)
    hub.publish("org/model", files_of(llama))
    hub.cut_after = 20_000
    assert sources.fetch("hf://org/model", limits=LIMITS).digest == open_checkpoint(llama).digest
    assert "bytes=20000-" in {ranged for _, _, ranged in hub.served}


def test_what_the_hub_cannot_give_is_one_sentence(llama: Path, hub: HubStandIn) -> None:
    hub.publish("org/model", files_of(llama))
    for uri in ("hf://org/absent", "hf://org/model@absent"):
        with pytest.raises(SourceError, match=f"expected {uri} on .* got 'not found'"):
            sources.fetch(uri, limits=LIMITS)
    hub.damaged = "model-00001-of-00004.safetensors"
    with pytest.raises(SourceError, match=r"expected model-00001.* with sha256:.* from hf://org/model"):
        sources.fetch("hf://org/model", limits=LIMITS)
    hub.damaged = ""
    assert sources.fetch("hf://org/model", limits=LIMITS).digest == open_checkpoint(llama).digest, "damage is not kept"
    hub.publish("org/pickled", {"config.json": b"{}", "pytorch_model.bin": b"never"})
    with pytest.raises(UnsafeCheckpoint, match=r"got pickle files such as 'pytorch_model\.bin'.* in hf://org/pickled"):
        sources.fetch("hf://org/pickled", limits=LIMITS)
    assert not [path for _, path, _ in hub.served if path.endswith(".bin")]


def test_a_hub_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(SourceError, match="an answer for hf://org/model from http://127.0.0.1:9"):
        fingerprint("hf://org/model")


def test_an_s3_prefix_becomes_a_verified_copy(llama: Path, upload: Upload) -> None:
    upload(llama, "models/one")
    uri = f"s3://{upload.bucket}/models/one"
    local = sources.fetch(uri, limits=LIMITS)
    assert local.digest == open_checkpoint(llama).digest
    assert sources.fetch(f"{uri}/", limits=LIMITS).digest == local.digest
    assert local.fingerprint == fingerprint(uri)
    with pytest.raises(SourceError, match="expected a checkpoint, got"):
        fingerprint(f"{uri}/nothing")


def test_a_prefix_that_is_half_uploaded_is_no_checkpoint_until_its_last_byte(llama: Path, upload: Upload) -> None:
    names, place, client = sorted(files_of(llama)), f"s3://{upload.bucket}/arriving", s3.new_client()
    shard = next(name for name in names if name.endswith(".safetensors"))
    ordered = [*(name for name in names if name != shard), shard]
    for name in ordered:
        assert sources.discover(place)[0] == []
        data = (llama / name).read_bytes()
        if name == shard:
            client.put_object(Bucket=upload.bucket, Key=f"arriving/one/{name}", Body=data[:-3])
            assert "truncated" in sources.discover(place)[1]["one"]
        client.put_object(Bucket=upload.bucket, Key=f"arriving/one/{name}", Body=data)
    (found,), skipped = sources.discover(place)
    assert (found.name, found.fingerprint, skipped) == ("one", fingerprint(f"{place}/one"), {})
    client.put_object(Bucket=upload.bucket, Key=f"arriving/one/{shard}", Body=data[:-3])
    known = {found.uri: found.fingerprint}
    assert sources.discover(place, known)[0] == [], "what was complete once, and has changed, is checked again"


class Breaking:
    """A client whose first body breaks after so many bytes."""

    def __init__(self, real: Any, after: int) -> None:
        self.real, self.after, self.ranges = real, after, list[tuple[str, str]]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def get_object(self, **request: Any) -> Any:
        self.ranges.append((request["Key"].rsplit("/")[-1], request["Range"]))
        reply = self.real.get_object(**request)
        if self.after:
            reply["Body"], self.after = BreakingBody(reply["Body"].read(self.after)), 0
        return reply


class BreakingBody:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def read(self, _: int) -> bytes:
        data, self.data = self.data, b""
        if not data:
            raise ConnectionResetError("broken")
        return data


def test_a_broken_download_from_s3_goes_on_where_it_stopped(
    llama: Path, upload: Upload, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(llama, "models/one")
    client = Breaking(s3.new_client(), after=10)
    monkeypatch.setattr(s3, "new_client", lambda: client)
    uri = f"s3://{upload.bucket}/models/one"
    assert sources.fetch(uri, limits=LIMITS).digest == open_checkpoint(llama).digest
    assert client.ranges[:2] == [("chat_template.jinja", "bytes=0-"), ("chat_template.jinja", "bytes=10-")]


def test_a_killed_download_from_s3_goes_on_where_it_stopped(
    llama: Path, upload: Upload, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(llama, "models/one")
    uri = f"s3://{upload.bucket}/models/one"
    client = Breaking(s3.new_client(), after=0)
    monkeypatch.setattr(s3, "new_client", lambda: client)
    part = cache.download_folder(uri, fingerprint(uri))
    part.mkdir(parents=True)
    (part / "config.json").write_bytes((llama / "config.json").read_bytes())
    (part / "tokenizer.json.part").write_bytes((llama / "tokenizer.json").read_bytes()[:50])
    assert sources.fetch(uri, limits=LIMITS).digest == open_checkpoint(llama).digest
    assert ("tokenizer.json", "bytes=50-") in client.ranges
    assert "config.json" not in dict(client.ranges)


def test_a_byte_changed_in_s3_is_found_when_the_copy_is_needed_again(
    llama: Path, upload: Upload, tmp_path: Path
) -> None:
    upload(llama, "models/one")
    uri = f"s3://{upload.bucket}/models/one"
    fetch(uri, out=tmp_path / "artefact", params=LIMITS)
    shutil.rmtree(tmp_path / "cache")
    other = copy(llama, tmp_path / "other")
    data = bytearray((other / "model-00002-of-00004.safetensors").read_bytes())
    data[-1] ^= 1
    (other / "model-00002-of-00004.safetensors").write_bytes(data)
    upload(other, "models/one")
    with pytest.raises(DigestMismatch, match=f"got sha256:.* from {uri}"):
        local_checkpoint(tmp_path / "artefact")


def test_other_files_stay_behind_and_the_index_names_the_shards_wherever_the_checkpoint_is(
    llama: Path, hub: HubStandIn, upload: Upload, tmp_path: Path
) -> None:
    folder = copy(llama, tmp_path / "odd")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    for shard in set(index["weight_map"].values()):
        (folder / shard).rename(folder / f"pytorch_{shard}")
    index["weight_map"] = {name: f"pytorch_{shard}" for name, shard in index["weight_map"].items()}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    wanted = set(files_of(folder))
    others = ("optimizer.pt", "training_args.bin", "model.onnx", "consolidated.safetensors", ".gitattributes")
    for name in others:
        (folder / name).write_bytes(b"never")
    upload(folder, "models/odd")
    hub.publish("org/odd", files_of(folder))
    places = [f"file://{folder}", "hf://org/odd", f"s3://{upload.bucket}/models/odd"]
    fetched = [sources.fetch(place, limits=LIMITS) for place in places]
    assert all(set(local.files) == wanted for local in fetched)
    assert len({local.digest for local in fetched}) == 1
    assert fetched[2].fingerprint == fingerprint(places[2])
    assert not [path for _, path, _ in hub.served if path.endswith(others)]
