"""What a watch sees: new checkpoints and changed ones; nothing that is broken keeps it from seeing the rest."""

import shutil
from pathlib import Path

import pytest

from flows.watch import look
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
    (ws.root / "more").mkdir()
    for folder in ("models", "more"):
        copy(llama, ws.root / folder / "same")
    text = (ws.root / "params.yaml").read_text()
    (ws.root / "params.yaml").write_text(text.replace("/models']", f"/models', 'file://{ws.root}/more']"))
    assert set(look(Workspace(ws.root)).targets) == {"same", "same-2"}


def test_a_watched_folder_without_a_task_is_refused(ws: Workspace) -> None:
    (ws.root / "params.yaml").write_text((ws.root / "params.yaml").read_text().replace("task: topic", "task: null"))
    with pytest.raises(ParamsError, match=r"expected watch\.task"):
        look(Workspace(ws.root))
