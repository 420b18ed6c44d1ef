"""Each checkpoint's bytes are read once per content; weights of a local folder are not copied."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from safegene.checkpoints import sources
from safegene.checkpoints.checkpoint import open_checkpoint
from safegene.checkpoints.record import read_record
from safegene.checkpoints.sources import cache, local_checkpoint
from safegene.errors import CheckpointError, DigestMismatch
from safegene.pipeline.stages.fetch import fetch
from safegene.workspace.params import FetchParams
from tests.factories.hub import HubStandIn
from tests.factories.llamas import CHAT_TEMPLATE, copy, files_of

LIMITS = FetchParams()
pytestmark = pytest.mark.usefixtures("box", "settled")


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files count as unchanged although they are younger than two seconds."""
    monkeypatch.setattr(cache, "SETTLED_S", -10.0)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of 34 MB in several shards, so that headers and configs do not count."""
    folder = tmp_path_factory.mktemp("large") / "large"
    shape = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 2, "num_attention_heads": 8}
    LlamaForCausalLM(LlamaConfig(vocab_size=50, **shape)).save_pretrained(folder, max_shard_size="10MB")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    return folder


def weights_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def bytes_read(run: Callable[[], object]) -> int:
    """How many bytes this process reads from files meanwhile."""

    def count() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    before = count()
    run()
    return count() - before


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="bytes are counted by Linux")
def test_a_folder_is_read_once_and_no_stage_reads_it_again_to_verify_it(
    llama: Path, large: Path, tmp_path: Path
) -> None:
    fetch(f"file://{llama}", out=tmp_path / "imports")
    artefact, size = tmp_path / "artefact", weights_of(large)
    fetched = bytes_read(lambda: fetch(f"file://{large}", out=artefact))
    assert size <= fetched < 1.2 * size
    for again in (
        lambda: local_checkpoint(artefact),
        lambda: fetch(f"file://{large}", out=tmp_path / "again"),
        lambda: sources.fingerprint(f"file://{large}"),
        lambda: sources.discover(f"file://{large.parent}"),
    ):
        assert bytes_read(again) < 0.1 * size


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="bytes are counted by Linux")
def test_a_download_is_read_once(llama: Path, large: Path, hub: HubStandIn) -> None:
    sources.fetch(f"file://{llama}", limits=LIMITS)
    hub.publish("org/one", files_of(llama))
    sources.fetch("hf://org/one", limits=LIMITS)
    hub.publish("org/large", files_of(large))
    size = weights_of(large)
    read = bytes_read(lambda: sources.fetch("hf://org/large", limits=LIMITS))
    assert size <= read < 1.2 * size, "what comes through the socket is not counted"


def test_weights_of_a_folder_are_used_in_place(llama: Path, box: Path, tmp_path: Path) -> None:
    other = copy(llama, tmp_path / "other")
    local = sources.fetch(f"file://{other}", limits=LIMITS)
    for path in local.root.iterdir():
        assert path.is_symlink() == path.name.endswith(".safetensors")
        assert path.resolve().parent == (other if path.is_symlink() else local.root)
    assert open_checkpoint(local.root).digest == local.digest
    assert sum(path.lstat().st_size for path in local.root.iterdir()) < weights_of(other)


def test_a_change_in_place_is_found_and_refused(llama: Path, tmp_path: Path) -> None:
    other, artefact = copy(llama, tmp_path / "other"), tmp_path / "artefact"
    fetch(f"file://{other}", out=artefact)
    local_checkpoint(artefact)
    shard = next(other.glob("model-00002-*"))
    times = shard.stat()
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    os.utime(shard, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(DigestMismatch, match=f"got sha256:.* from file://{other}"):
        local_checkpoint(artefact)
    data[-1] ^= 1
    shard.write_bytes(data)
    local_checkpoint(artefact)
    shutil.rmtree(other)
    copy(llama, tmp_path / "moved")
    fetch(f"file://{tmp_path}/moved", out=tmp_path / "elsewhere")
    assert local_checkpoint(artefact).root.name == read_record(artefact).digest.removeprefix("sha256:")


def test_a_link_is_accepted_from_the_cache_only(llama: Path, tmp_path: Path) -> None:
    local = sources.fetch(f"file://{llama}", limits=LIMITS)
    moved = Path(shutil.copytree(local.root, tmp_path / "moved", symlinks=True))
    with pytest.raises(CheckpointError, match="got the link or device 'model-00001-of"):
        open_checkpoint(moved)
    config = local.root / "config.json"
    config.unlink()
    config.symlink_to(llama / "config.json")
    with pytest.raises(CheckpointError, match=r"got the link or device 'config\.json'"):
        open_checkpoint(local.root)
    assert not sources.fetch(f"file://{llama}", limits=LIMITS).root.joinpath("config.json").is_symlink()


def test_a_digest_found_without_the_numbers_does_not_excuse_them(llama: Path, tmp_path: Path) -> None:
    other = copy(llama, tmp_path / "other")
    shard = next(other.glob("model-00002-*"))
    tensors = load_file(shard)
    name = next(iter(tensors))
    save_file(tensors | {name: torch.full_like(tensors[name], float("nan"))}, shard, metadata={"format": "pt"})
    sources.fingerprint(f"file://{other}")
    for _ in range(2):
        with pytest.raises(CheckpointError, match=f"finite numbers in {name}, got NaN"):
            sources.fetch(f"file://{other}", limits=LIMITS)
