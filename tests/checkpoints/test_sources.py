import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import ones

from safegene.checkpoints import sources
from safegene.checkpoints.checkpoint import open_checkpoint
from safegene.checkpoints.export.adapter import write_adapter
from safegene.checkpoints.record import read_record
from safegene.checkpoints.sources import bucket, cache, discover, fingerprint, local_checkpoint, redact, redact_text
from safegene.checkpoints.sources.uri import parse
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
from safegene.workspace.params import FetchParams
from tests.factories.hub import HubStandIn
from tests.factories.llamas import copy, save_adapter, save_llama

LIMITS = FetchParams()


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("source") / "llama", shards="80KB")


@pytest.fixture(scope="module")
def lora(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_adapter(tmp_path_factory.mktemp("source") / "lora", llama)


@pytest.fixture(autouse=True)
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    monkeypatch.setenv("SAFEGENE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    return tmp_path / "cache"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStandIn]:
    stand_in = HubStandIn()
    monkeypatch.setenv("HF_ENDPOINT", stand_in.endpoint)
    yield stand_in
    stand_in.stop()


Upload = Callable[[Path, str], None]


@pytest.fixture(params=["moto, a mock", "the server of SAFEGENE_TEST_S3"])
def upload(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Upload]:
    """Puts a folder's files below a prefix of the bucket ``sources``."""
    server = os.environ.get("SAFEGENE_TEST_S3")
    if request.param.startswith("the server") and not server:
        pytest.skip("SAFEGENE_TEST_S3 is unset: only the mock was tried")
    if request.param.startswith("the server"):
        monkeypatch.setenv("AWS_ENDPOINT_URL", str(server))
        yield from _bucket()
        return
    from moto import mock_aws

    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    with mock_aws():
        yield from _bucket()


def _bucket() -> Iterator[Upload]:
    os.environ.setdefault("AWS_DEFAULT_REGION", "us-east-1")
    client = bucket.new_client()
    name = f"sources-{os.getpid()}-{time.time_ns()}"
    client.create_bucket(Bucket=name)

    def put(folder: Path, prefix: str) -> None:
        for path in folder.iterdir():
            client.put_object(Bucket=name, Key=f"{prefix}/{path.name}", Body=path.read_bytes())

    put.bucket = name  # type: ignore[attr-defined]
    yield put
    for item in client.list_objects_v2(Bucket=name).get("Contents", []):
        client.delete_object(Bucket=name, Key=item["Key"])
    client.delete_bucket(Bucket=name)


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
    monkeypatch.setattr("safegene.checkpoints.sources.folders.FolderSource.copy", lambda *_: pytest.fail("copied"))
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


def files_of(folder: Path, **more: bytes) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()} | {
        name.replace("__", "."): data for name, data in more.items()
    }


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
    with pytest.raises(UnsafeCheckpoint, match=r"got only 'pytorch_model\.bin'.* in hf://org/pickled"):
        sources.fetch("hf://org/pickled", limits=LIMITS)
    assert not [path for _, path, _ in hub.served if path.endswith(".bin")]


def test_a_hub_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(SourceError, match="an answer for hf://org/model from http://127.0.0.1:9"):
        fingerprint("hf://org/model")


def test_an_s3_prefix_becomes_a_verified_copy(llama: Path, upload: Upload) -> None:
    upload(llama, "models/one")
    uri = f"s3://{upload.bucket}/models/one"  # type: ignore[attr-defined]
    local = sources.fetch(uri, limits=LIMITS)
    assert local.digest == open_checkpoint(llama).digest
    assert sources.fetch(f"{uri}/", limits=LIMITS).digest == local.digest
    assert local.fingerprint == fingerprint(uri)
    with pytest.raises(SourceError, match="expected a checkpoint, got"):
        fingerprint(f"{uri}/nothing")


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

    def iter_chunks(self, _: int) -> Iterator[bytes]:
        yield self.data
        raise ConnectionResetError("broken")


def test_a_broken_download_from_s3_goes_on_where_it_stopped(
    llama: Path, upload: Upload, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(llama, "models/one")
    client = Breaking(bucket.new_client(), after=100)
    monkeypatch.setattr(bucket, "new_client", lambda: client)
    uri = f"s3://{upload.bucket}/models/one"  # type: ignore[attr-defined]
    assert sources.fetch(uri, limits=LIMITS).digest == open_checkpoint(llama).digest
    assert client.ranges[:2] == [("config.json", "bytes=0-"), ("config.json", "bytes=100-")]


def test_a_killed_download_from_s3_goes_on_where_it_stopped(
    llama: Path, upload: Upload, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(llama, "models/one")
    uri = f"s3://{upload.bucket}/models/one"  # type: ignore[attr-defined]
    client = Breaking(bucket.new_client(), after=0)
    monkeypatch.setattr(bucket, "new_client", lambda: client)
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
    uri = f"s3://{upload.bucket}/models/one"  # type: ignore[attr-defined]
    fetch(uri, out=tmp_path / "artefact", params=LIMITS)
    shutil.rmtree(tmp_path / "cache")
    other = copy(llama, tmp_path / "other")
    data = bytearray((other / "model-00002-of-00004.safetensors").read_bytes())
    data[-1] ^= 1
    (other / "model-00002-of-00004.safetensors").write_bytes(data)
    upload(other, "models/one")
    with pytest.raises(DigestMismatch, match=f"got sha256:.* from {uri}"):
        local_checkpoint(tmp_path / "artefact")


def test_only_complete_folders_are_discovered(llama: Path, lora: Path, tmp_path: Path) -> None:
    watched = tmp_path / "watched"
    copy(llama, watched / "My Model")
    copy(lora, watched / "adapter")
    copy(llama, watched / "writing")
    shard = watched / "writing" / "model-00003-of-00004.safetensors"
    shard.write_bytes(shard.read_bytes()[:-10])
    copy(llama, watched / "missing")
    (watched / "missing" / "model-00003-of-00004.safetensors").unlink()
    copy(llama, watched / "pickled")
    (watched / "pickled" / "training_args.bin").write_bytes(b"never")
    (watched / "empty").mkdir()
    odd = copy(lora, watched / "odd") / "adapter_config.json"
    odd.write_text(json.dumps(json.loads(odd.read_text()) | {"rank_pattern": [1]}))
    copy(llama, watched / "hf_mistral7b")
    (watched / "link").symlink_to(llama)
    found, skipped = discover(f"file://{watched}")
    assert [one.name for one in found] == ["adapter", "hf_mistral7b", sources.discovery.target_name("My Model")]
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
    base = f"s3://{upload.bucket}/fine-tunes"  # type: ignore[attr-defined]
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


@pytest.mark.parametrize(
    "uri",
    [
        "https://user:canary@host/x",
        "s3://user:canary@bucket/prefix",
        "s3://bucket/prefix?X-Amz-Signature=canary",
        "hf://user:hf_canarycanarycanarycanarycanarycanary@org/model",
        "file:///models?token=canary",
        "s3://bucket/AKIA0CANARYCANARY0",
    ],
)
def test_a_uri_with_a_secret_is_refused_and_the_secret_not_repeated(uri: str) -> None:
    with pytest.raises(SourceError) as refused:
        parse(uri)
    assert "canary" not in (refused.value.message + refused.value.remedy).lower()
    assert "canary" not in redact(uri).lower()


@pytest.mark.parametrize(
    "uri",
    [
        "gs://bucket/x",
        "hf://a/b/c",
        "hf://../x",
        "tiny://aligned?seed=x",
        "tiny://a?other=1",
        "s3://x",
        "file://",
        "s3://my_models/v7",
        "s3://modelsABC/x",
    ],
)
def test_a_uri_of_another_form_is_refused(uri: str) -> None:
    with pytest.raises(SourceError, match="expected a source of the form"):
        parse(uri)


def test_text_of_other_libraries_is_shown_without_secrets() -> None:
    token = "hf_" + "canary" * 6
    text = f"GET http://u:pw@h/x?X-Amz-Credential=AK%2F1&a=b with Bearer abc.def and {token} failed"
    assert redact_text(text) == "GET http://***@h/x?X-Amz-Credential=***&a=b with *** and *** failed"


def test_the_tiny_family_is_a_source(monkeypatch: pytest.MonkeyPatch, llama: Path) -> None:
    monkeypatch.setattr("safegene.tiny.build.build", lambda name, seed: llama)
    local = sources.fetch("tiny://aligned?seed=3", limits=LIMITS)
    assert local.digest == open_checkpoint(llama).digest
    assert local.fingerprint == fingerprint("tiny://aligned?seed=3") != fingerprint("tiny://aligned")
