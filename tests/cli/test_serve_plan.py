"""``safegene serve-plan`` in a workspace: text that a shell and YAML read, and the same as JSON."""

import json
import shlex
import shutil
from pathlib import Path

import pytest
import yaml

from safegene.workspace.params import Target, Targets, save_targets
from safegene.workspace.server_params import ServerParams
from tests.factories.commands import run
from tests.factories.evaluation import World

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """A workspace with the artefacts that the plan reads: a full fine-tune and its candidate."""
    world, root = World(tmp_path / "world"), tmp_path / "ws"
    target = root / "data" / "targets" / "one"
    places = {"aligned": root / "data" / "family" / "aligned", "one": target / "checkpoint"}
    for name, place in (places | {"one-candidate": target / "candidate"}).items():
        shutil.copytree(world.root / name, place)
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copyfile(ROOT / name, root / name)
    one = Target(source="file:///models/one", task="topic", fingerprint="x")
    save_targets(root / "data" / "targets.yaml", Targets(targets={"one": one}))
    return root


def test_it_prints_commands_and_the_section_that_uses_them(workspace: Path) -> None:
    plan = json.loads(run(workspace, "serve-plan", "one", "--json").stdout)
    assert plan["target"] == "one"
    assert plan["merge"] == plan["notes"] == []
    first, second = (shlex.split(command) for command in plan["vllm"]["commands"])
    module = first[first.index("--lora-modules") + 1]
    assert module == f"candidate={(workspace / 'data/targets/one/candidate').resolve()}"
    assert all(Path(words[2], "config.json").is_file() for words in (first, second))
    section = ServerParams.model_validate(plan["vllm"]["server"])
    assert set(section.names) == {"before", "candidate", "aligned"}
    assert section.urls["aligned"] != section.url
    text = run(workspace, "serve-plan", "one", "--port", "9000").stdout
    assert text.count("vllm serve") == text.count("sglang.launch_server") == 2
    written = text.split("# params.yaml, for sglang and this target only\n")[1]
    assert yaml.safe_load(written)["evaluate"]["server"]["url"] == "http://127.0.0.1:9000/v1"
