import os
from pathlib import Path

import pytest

from safegene.workspace import atomic
from safegene.workspace.atomic import draft_folder, write_file


def test_a_file_is_replaced_whole_and_no_draft_is_left(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    write_file(path, "one")
    write_file(path, b"two", durable=True)
    assert path.read_bytes() == b"two"
    assert [p.name for p in path.parent.iterdir()] == ["file"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_file(path, "old")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        write_file(path, "new", durable=True)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_folder_is_replaced_whole_or_stays(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with draft_folder(out) as draft:
        (draft / "a").write_text("1")
    with pytest.raises(FileNotFoundError), draft_folder(out) as draft:
        (draft / "absent" / "b").write_text("2")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert [p.name for p in out.iterdir()] == ["a"]
    with draft_folder(out) as draft:
        (draft / "c").write_text("3")
    assert [p.name for p in out.iterdir()] == ["c"]


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_folder_is_replaced_where_the_system_cannot_exchange_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchanges: bool
) -> None:
    out, seen = tmp_path / "out", list[bool]()
    real = atomic._exchange

    def exchange(one: Path, other: Path) -> bool:
        done = exchanges and real(one, other)
        seen.append(done)
        if done:
            assert [path.name for path in other.iterdir()] == ["new"], "at once"
        return done

    monkeypatch.setattr(atomic, "_exchange", exchange)
    for name in ("old", "new"):
        with draft_folder(out) as draft:
            (draft / name).touch()
    assert seen == [exchanges]
    assert [path.name for path in out.iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_draft_of_a_killed_writer_is_removed_and_a_living_ones_is_kept(tmp_path: Path) -> None:
    dead, living = tmp_path / ".out.999999999.draft", tmp_path / f".out.{os.getppid()}.draft"
    dead.mkdir()
    living.mkdir()
    with draft_folder(tmp_path / "out"):
        pass
    assert not dead.exists()
    assert living.exists()
