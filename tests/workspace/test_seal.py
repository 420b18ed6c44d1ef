"""Only a holder of the key can write what the cache gives back."""

import os
from pathlib import Path

import pytest

from safegene.workspace import seal as seals
from safegene.workspace.resume_log import ResumeLog
from safegene.workspace.seal import BYTES, KEY, is_artefact_sealed, is_sealed, key_id, seal, seal_artefact


@pytest.fixture
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for keys, and an empty cache."""
    folder = tmp_path / "user" / "keys"
    monkeypatch.setenv("SAFEGENE_KEYS", str(folder))
    monkeypatch.setenv("SAFEGENE_CACHE", str(tmp_path / "cache"))
    seals._key.cache_clear()
    return folder


def test_the_key_is_made_once_and_only_its_owner_can_read_it(keys: Path) -> None:
    first = seal({"a": [1, 0.5, None]})
    assert is_sealed({"a": [1, 0.5, None]}, first)
    assert not is_sealed({"a": [1, 0.5, False]}, first)
    assert not any(is_sealed({"a": [1, 0.5, None]}, other) for other in (None, "", 1, "é", first.upper()))
    assert (keys / KEY).stat().st_mode & 0o777 == 0o600
    assert len(bytes.fromhex((keys / KEY).read_text())) == BYTES
    seals._key.cache_clear()
    assert seal({"a": [1, 0.5, None]}) == first
    assert [path.name for path in keys.iterdir()] == [KEY]


def test_another_key_gives_another_seal_and_does_not_say_which_it_is(keys: Path, tmp_path: Path) -> None:
    first, name = seal(1), key_id()
    assert name not in (keys / KEY).read_text()
    (keys / KEY).unlink()
    seals._key.cache_clear()
    assert seal(1) != first
    assert key_id() != name


@pytest.mark.parametrize("fault", ["readable", "short", "no text", "folder is a file", "in a repository"])
def test_without_a_key_that_can_be_kept_the_cache_serves_this_process_only(
    keys: Path, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    if fault == "folder is a file":
        keys.parent.mkdir()
        keys.write_text("")
    elif fault == "in a repository":
        (keys.parent / ".git").mkdir(parents=True)
    else:
        keys.mkdir(parents=True)
        (keys / KEY).write_bytes({"readable": b"5e" * BYTES, "short": b"5e", "no text": b"\xff" * 64}[fault])
        (keys / KEY).chmod(0o644 if fault == "readable" else 0o600)
    assert is_sealed("x", first := seal("x"))
    assert "serves this process only" in caplog.text
    seals._key.cache_clear()
    assert not is_sealed("x", first)


def test_an_artefact_is_sealed_by_a_note_that_only_a_holder_of_the_key_can_write(keys: Path, tmp_path: Path) -> None:
    digest, other = "sha256:" + "a" * 64, "sha256:" + "b" * 64
    assert not is_artefact_sealed(digest)
    seal_artefact(digest)
    assert is_artefact_sealed(digest)
    (note,) = (tmp_path / "cache" / "sealed").iterdir()
    note.rename(note.with_name(note.name.replace("a" * 64, "b" * 64)))
    assert not is_artefact_sealed(other)
    note.with_name(note.name.replace("a" * 64, "b" * 64)).write_bytes(b"\xff")
    assert not is_artefact_sealed(other)


def test_a_cache_that_cannot_be_written_leaves_an_artefact_unsealed(keys: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "sealed").write_text("a file in the folder's place")
    seal_artefact("sha256:" + "a" * 64)
    assert not is_artefact_sealed("sha256:" + "a" * 64)


def test_machines_that_share_the_key_share_the_cache_and_others_compute_again(
    keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ResumeLog(tmp_path, {"model": "a"}).append({"p": "mine"})
    shared, other = tmp_path / "shared", tmp_path / "other"
    shared.mkdir()
    (shared / KEY).touch(0o600)
    (shared / KEY).write_text((keys / KEY).read_text())
    monkeypatch.setenv("SAFEGENE_KEYS", str(shared))
    assert ResumeLog(tmp_path, {"model": "a"}).read() == {"p": "mine"}
    monkeypatch.setenv("SAFEGENE_KEYS", str(other))
    log = ResumeLog(tmp_path, {"model": "a"})
    assert log.read() == {}
    log.append({"p": "theirs"})
    assert log.read() == {"p": "theirs"}
    monkeypatch.setenv("SAFEGENE_KEYS", str(shared))
    assert ResumeLog(tmp_path, {"model": "a"}).read() == {"p": "mine"}


def test_two_processes_that_make_the_key_at_once_agree(keys: Path) -> None:
    """The second to write finds the first's key, and uses it."""
    seals._make(keys / KEY)
    first = (keys / KEY).read_text()
    seals._make(keys / KEY)
    assert (keys / KEY).read_text() == first
    assert not [name for name in os.listdir(keys) if name != KEY]
