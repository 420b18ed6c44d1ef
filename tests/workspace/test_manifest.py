import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from safegene.errors import ArtifactError, DigestMismatch, FormatError
from safegene.workspace.digest import canonical_json, digest_file, digest_json, digest_tree, strict_json
from safegene.workspace.manifest import Manifest, input_digest, read_manifest, write_artefact


def make(out: Path, payload: bytes = b"payload", **params: int) -> Manifest:
    with write_artefact(out, stage="compress", params=params, inputs={"delta": "sha256:" + "0" * 64}) as draft:
        (draft.path / "payload.bin").write_bytes(payload)
        draft.facts["energy"] = 0.5
    return draft.done


def test_same_content_same_digest_wherever_it_lies(tmp_path: Path) -> None:
    assert make(tmp_path / "a", rank=4).digest == make(tmp_path / "b", rank=4).digest
    assert make(tmp_path / "a", rank=4).digest != make(tmp_path / "c", rank=8).digest
    assert input_digest(tmp_path / "a") == make(tmp_path / "d", rank=4).digest


def test_a_failure_leaves_the_old_artefact_and_no_draft(tmp_path: Path) -> None:
    old = make(tmp_path / "a")
    with (
        pytest.raises(FileNotFoundError),
        write_artefact(tmp_path / "a", stage="x", params={}, inputs={}) as draft,
    ):
        (draft.path / "missing" / "half").write_text("")
    assert read_manifest(tmp_path / "a") == old
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_what_a_killed_writer_left_goes_and_what_another_writes_stays(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left, other = (tmp_path / f".a.{pid}.draft" for pid in (dead.pid, os.getppid()))
    for folder in (left, other):
        folder.mkdir()
        (folder / "half").write_text("")
    make(tmp_path / "a")
    assert not left.exists()
    assert (other / "half").exists()


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (lambda a: (a / "payload.bin").write_bytes(b"paylaod"), DigestMismatch),
        (lambda a: (a / "payload.bin").unlink(), DigestMismatch),
        (lambda a: (a / "extra").write_text(""), DigestMismatch),
        (lambda a: (a / "manifest.json").unlink(), ArtifactError),
        (lambda a: (a / "manifest.json").write_text("{"), FormatError),
        (lambda a: (a / "manifest.json").write_text("{}"), FormatError),
        (lambda a: edit(a, lambda m: m["files"].update({"../outside": "sha256:" + "0" * 64})), FormatError),
    ],
)
def test_damage_is_refused_and_named(
    tmp_path: Path, damage: Callable[[Path], object], error: type[ArtifactError]
) -> None:
    make(tmp_path / "a")
    damage(tmp_path / "a")
    with pytest.raises(error) as caught:
        read_manifest(tmp_path / "a")
    assert str(tmp_path / "a") in caught.value.message


def edit(artefact: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = artefact / "manifest.json"
    raw = json.loads(path.read_text())
    change(raw)
    path.write_text(json.dumps(raw))


def test_an_artefact_of_another_stage_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "a")
    with pytest.raises(FormatError, match="'gate'"):
        read_manifest(tmp_path / "a", stage="gate")


def test_a_missing_input_is_an_error_before_anything_is_written(tmp_path: Path) -> None:
    with (
        pytest.raises(ArtifactError),
        write_artefact(tmp_path / "a", stage="x", params={}, inputs={"delta": tmp_path / "none"}),
    ):
        pytest.fail("the block must not run")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, object()])
def test_canonical_json_refuses_what_json_has_no_form_for(value: object) -> None:
    with pytest.raises(FormatError):
        canonical_json({"a": value})


@pytest.mark.parametrize("text", ['{"a":1,"a":2}', "[NaN]", "[1e999]", "{", "[" * 100_000])
def test_strict_json_refuses(text: str) -> None:
    with pytest.raises(FormatError, match="somewhere"):
        strict_json(text, where="somewhere")


def test_digests_do_not_depend_on_key_order_and_refuse_symlinks(tmp_path: Path) -> None:
    assert digest_json({"a": 1, "b": 2}) == digest_json({"b": 2, "a": 1})
    (tmp_path / "file").write_bytes(b"abc")
    assert digest_file(tmp_path / "file").endswith("f20015ad")
    (tmp_path / "link").symlink_to("file")
    with pytest.raises(FormatError, match="symlink"):
        digest_tree(tmp_path)
