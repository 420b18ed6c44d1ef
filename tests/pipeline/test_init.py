"""New workspaces: of the tiny family, and of one's own; what is still missing is said, and nothing else is copied."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from safegene.cli.start import ask_for_family, next_steps
from safegene.errors import ParamsError, SafegeneError
from safegene.pipeline.init import OwnFamily, init, template_folder
from safegene.workspace.layout import Workspace
from tests.factories.commands import git


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace for a family in a folder, without prompts."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "model").mkdir()
    (folder / "model" / "model.safetensors").write_bytes(b"")
    return init(folder / "ws", family=OwnFamily(str(folder / "model"), judge="guard", judge_model="/models/guard"))


def test_the_own_family_is_in_params_and_the_tiny_one_nowhere(own: Workspace) -> None:
    params = own.params
    assert params.family.aligned == f"file://{own.root.parent}/model"
    assert (params.evaluate.judge.kind, params.evaluate.judge.model) == ("guard", "/models/guard")
    assert params.evaluate.judge.calibration == Path("data/judges/judge.json")
    assert params.evaluate.max_new_tokens == 256
    assert not list(own.data.rglob("*.jsonl"))
    assert git(own.root, "status", "--porcelain") == ""
    template = (template_folder() / "params.yaml").read_text().splitlines()
    changed = [line for line in (own.root / "params.yaml").read_text().splitlines() if line not in template]
    assert len(changed) == 4, "only what was asked for is changed"


def test_what_is_missing_is_said_with_the_commands(own: Workspace, tmp_path: Path) -> None:
    steps = next_steps(own)
    for name in ("degrade", "safety", "pool", "gate"):
        assert sum(f"data/prompts/{name}.jsonl" in step for step in steps) == 1
    for word in (
        "data/tasks/NAME.jsonl",
        "safegene data split",
        "safegene target add NAME SOURCE --task TASK",
        "safegene judge calibrate",
    ):
        assert any(word in step for step in steps), word
    assert steps[-1].strip() == "safegene run"
    shutil.copytree(own.root, tmp_path / "ws", symlinks=True)
    added = Workspace(tmp_path / "ws")
    shutil.copyfile(template_folder() / "data/prompts/safety.jsonl", added.prompts / "safety.jsonl")
    assert not any("got no such file" in step and "safety.jsonl" in step for step in next_steps(added))


def test_own_data_is_copied(tmp_path: Path) -> None:
    (tmp_path / "mine/prompts").mkdir(parents=True)
    (tmp_path / "mine/tasks").mkdir()
    for name in ("prompts/gate.jsonl", "safety.jsonl", "tasks/routing.jsonl", "notes.jsonl"):
        (tmp_path / "mine" / name).write_text(json.dumps({"id": name}))
    ws = init(tmp_path / "ws", family=OwnFamily("org/model", data=tmp_path / "mine"))
    assert sorted(path.relative_to(ws.data).as_posix() for path in ws.data.rglob("*.jsonl")) == [
        "prompts/gate.jsonl",
        "prompts/safety.jsonl",
        "tasks/routing.jsonl",
    ]
    assert ws.params.family.aligned == "hf://org/model"


@pytest.mark.parametrize(
    "family",
    [OwnFamily("nonsense"), OwnFamily("org/model", judge="vibes"), OwnFamily("org/model", data=Path("/no/such/data"))],
)
def test_what_cannot_be_leaves_no_folder(tmp_path: Path, family: OwnFamily) -> None:
    with pytest.raises(SafegeneError, match="expected"):
        init(tmp_path / "ws", family=family)
    assert not (tmp_path / "ws").exists()


def test_the_questions_ask_only_for_what_is_needed() -> None:
    def answers(*given: str) -> Any:
        left = list(given)
        return lambda text, default: left.pop(0) or default

    assert ask_for_family(answers("")) is None
    assert ask_for_family(answers("org/model", "", "")) == OwnFamily("org/model")
    asked = ask_for_family(answers("/m", "guard", "ORG/GUARD", "abc", "~/data"))
    assert asked == OwnFamily("/m", "guard", "ORG/GUARD", "abc", Path("~/data").expanduser())


def test_a_ledger_is_written_into_params_whatever_it_holds(tmp_path: Path) -> None:
    with pytest.raises(ParamsError):
        init(tmp_path / "ws", ledger="data")
    assert init(tmp_path / "ws", ledger="records").params.promote.ledger == "records"
