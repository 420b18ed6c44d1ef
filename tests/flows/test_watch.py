"""What a watch sees: new checkpoints and changed ones; nothing that is broken keeps it from seeing the rest."""

import shutil
from pathlib import Path

import pytest

from flows.watch import look, look_twice
from safegene.errors import ParamsError
from safegene.workspace.layout import Workspace
from safegene.workspace.params import Target, Targets, save_targets
from tests.factories.llamas import copy, save_llama

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("llama") / "llama")


@pytest.fixture
def ws(tmp_path: Path, llama: Path) -> Workspace:
    """A workspace that watches the folder ``models``."""
    (tmp_path / "models").mkdir()
    (tmp_path / "data").mkdir()
    copy(llama, tmp_path / "aligned")
    text = (ROOT / "params.yaml").read_text().replace("tiny://aligned?seed=0", f"file://{tmp_path}/aligned")
    text = text.replace("folders: []", f"folders: ['file://{tmp_path}/models']").replace("task: null", "task: topic")
    (tmp_path / "params.yaml").write_text(text)
    save_targets(tmp_path / "data" / "targets.yaml", Targets())
    return Workspace(tmp_path)


def test_a_new_folder_becomes_a_target_once_and_a_changed_one_gets_another_fingerprint(
    ws: Workspace, llama: Path
) -> None:
    copy(llama, ws.root / "models" / "fresh")
    first = look(ws)
    assert first.targets["fresh"].task == "topic"
    save_targets(ws.targets_file, first)
    assert look(ws) == first
    shutil.rmtree(ws.root / "models" / "fresh")
    save_llama(ws.root / "models" / "fresh", seed=1)
    assert look(ws).targets["fresh"].fingerprint != first.targets["fresh"].fingerprint


def test_what_cannot_be_read_is_said_and_the_rest_is_seen(
    ws: Workspace, llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = Target(source=f"file://{ws.root}/gone", task="topic", fingerprint="pinned")
    save_targets(ws.targets_file, Targets(targets={"gone": gone}))
    copy(llama, ws.root / "models" / "fresh")
    (ws.root / "models" / "half").mkdir()
    seen = look(ws).targets
    assert set(seen) == {"gone", "fresh"}
    assert seen["gone"] == gone
    said = capsys.readouterr().err
    assert "not read gone: expected" in said
    assert "skipped half: expected" in said


def test_two_folders_of_one_name_stay_two_targets(ws: Workspace, llama: Path) -> None:
    watch_more(ws)
    copy(llama, ws.root / "models" / "same")
    save_llama(ws.root / "more" / "same", seed=1)
    seen = look(Workspace(ws.root))
    assert set(seen.targets) == {"same", "same-2"}
    assert seen.aliases == {}


def watch_more(ws: Workspace) -> None:
    """Watch the folder ``more`` too."""
    (ws.root / "more").mkdir()
    text = (ws.root / "params.yaml").read_text()
    (ws.root / "params.yaml").write_text(text.replace("/models']", f"/models', 'file://{ws.root}/more']"))


def test_one_digest_in_two_folders_is_one_target_with_two_names(
    ws: Workspace, llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    watch_more(ws)
    for place in ("models/first", "more/second", "more/third"):
        copy(llama, ws.root / place)
    seen = look(ws)
    sources = [f"file://{ws.root}/more/{name}" for name in ("second", "third")]
    assert set(seen.targets) == {"first"}
    assert seen.aliases == dict.fromkeys(sources, "first")
    assert f"same {sources[0]}: it has the content of first" in capsys.readouterr().err
    save_targets(ws.targets_file, seen)
    assert look(ws) == seen
    assert capsys.readouterr().err == "", "said once"
    shutil.rmtree(ws.root / "more" / "third")
    save_llama(ws.root / "more" / "third", seed=1)
    changed = look(ws)
    assert set(changed.targets) == {"first", "third"}, "with another content it is a target of its own"
    assert changed.aliases == {sources[0]: "first"}


def test_a_watched_folder_without_a_task_is_refused(ws: Workspace) -> None:
    (ws.root / "params.yaml").write_text((ws.root / "params.yaml").read_text().replace("task: topic", "task: null"))
    with pytest.raises(ParamsError, match=r"expected watch\.task"):
        look(Workspace(ws.root))


def test_what_changes_between_two_looks_is_left_for_the_next(
    ws: Workspace, llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An upload that replaces a complete checkpoint shard by shard is complete all the time."""
    save_llama(ws.root / "models" / "steady", seed=5)
    copy(llama, ws.root / "models" / "changing")
    before, pauses = ws.targets, list[float]()

    def upload(seconds: float) -> None:
        pauses.append(seconds)
        shutil.rmtree(ws.root / "models" / "changing")
        save_llama(ws.root / "models" / "changing", seed=len(pauses))

    seen = look_twice(ws, before, upload)
    assert (set(seen.targets), pauses) == ({"steady"}, [10.0])
    assert "not settled changing" in capsys.readouterr().err
    save_targets(ws.targets_file, seen)
    both = look_twice(ws, seen, pauses.append)
    assert set(both.targets) == {"steady", "changing"}
    save_targets(ws.targets_file, both)
    assert look_twice(ws, both, upload) == both, "nothing is new, and nobody waits"
    shutil.rmtree(ws.root / "models" / "steady")
    save_llama(ws.root / "models" / "steady", seed=7)
    kept = look_twice(ws, both, lambda _: shutil.rmtree(ws.root / "models" / "steady"))
    assert kept.targets["steady"] == both.targets["steady"]
