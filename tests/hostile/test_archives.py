"""Archives are never unpacked, and a packed file is read up to its limit only."""

import gzip
import io
import lzma
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from safegene.checkpoints import sources
from safegene.datasets.suites.formats import SUITE_FORMATS
from safegene.datasets.suites.loading import LoadOptions
from safegene.datasets.suites.tables import decompress
from safegene.errors import FormatError, SafegeneError
from safegene.workspace.params import FetchParams

LIMIT = 1 << 20


def tar() -> bytes:
    """Members that lead out of the folder, a link and a device."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name in ("../out", "/absolute", "data.csv"):
            info = tarfile.TarInfo(name)
            info.size = 1
            archive.addfile(info, io.BytesIO(b"x"))
        for kind, name in ((tarfile.SYMTYPE, "link"), (tarfile.CHRTYPE, "device")):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
    return out.getvalue()


def zipped() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("../out", "x")
    return out.getvalue()


@pytest.mark.parametrize("name", ["model.tar.gz", "model.zip", "model.safetensors.gz"])
def test_an_archive_in_place_of_a_checkpoint_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("SAFEGENE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / name).write_bytes(zipped() if name.endswith("zip") else tar())
    (tmp_path / "model" / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(SafegeneError, match=r"expected a checkpoint with safetensors weights, got .* in /"):
        sources.fetch(f"file://{tmp_path / 'model'}", limits=FetchParams())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [tar(), zipped(), gzip.decompress(tar())], ids=["tar.gz", "zip", "tar"])
@pytest.mark.parametrize("form", ["advbench", "gsm8k", "catqa"])
def test_an_archive_in_place_of_a_set_is_refused(form: str, content: bytes) -> None:
    with pytest.raises(FormatError, match="expected text, got a NUL byte"):
        list(SUITE_FORMATS[form].load(content, "w", LoadOptions()))


@pytest.mark.parametrize(("name", "pack"), [("set.csv.gz", gzip.compress), ("set.csv.xz", lzma.compress)])
def test_a_packed_file_of_a_thousand_times_its_size_is_read_up_to_the_limit(name: str, pack: type) -> None:
    bomb = pack(bytes(200 * LIMIT))
    assert len(bomb) < LIMIT
    tracemalloc.start()
    with pytest.raises(FormatError, match=f"expected at most {LIMIT} bytes, got more"):
        decompress(name, bomb, limit=LIMIT)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 16 * LIMIT
