"""Bad input through the whole pipeline: its own error, a nonzero exit, nothing promoted, what is live untouched."""

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.factories.commands import run, status

pytestmark = pytest.mark.timeout(600)
CANARY = "canaryQ7x9Zt4Lm2Kp8Rv3Wn6"
SECRETS = dict.fromkeys(
    ("SAFEGENE_JUDGE_KEY", "SAFEGENE_SERVER_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "PREFECT_API_KEY"), CANARY
)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A healthy fine-tune in a folder of its own."""
    from safegene.tiny.build import build

    shutil.copytree(build("sentiment", 0), tmp_path / "model")
    return tmp_path / "model"


def pickle_weights(model: Path) -> None:
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(b"\x80\x04cposix\nsystem\n.")


def truncated(model: Path) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4096])


def not_a_number(model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    name = next(n for n in tensors if n.endswith("q_proj.weight"))
    tensors[name] = tensors[name].copy()
    tensors[name][0, 0] = np.nan
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})


def another_architecture(model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    kept = {n: t for n, t in tensors.items() if ".layers.3." not in n}
    save_file(kept, model / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))


def code_in_the_config(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "evil.Model"}}))


def huge_header(model: Path) -> None:
    (model / "model.safetensors").write_bytes(struct.pack("<Q", 2**63) + b"{}")


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (pickle_weights, "UnsafeCheckpoint"),
        (truncated, "FormatError"),
        (not_a_number, "CheckpointError"),
        (another_architecture, "ShapeMismatch"),
        (code_in_the_config, "UnsafeCheckpoint"),
        (huge_header, "UnsafeCheckpoint"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_bad_checkpoints(copy: Path, model: Path, prefect_api: str, damage: Callable[[Path], None], error: str) -> None:
    damage(model)
    added = run(copy, "target", "add", "bad", f"file://{model}", "--task", "sentiment", code=(0, 1))
    if added.returncode == 0:
        why = f"https://ci:{CANARY}@ci.example.org/job/7"
        done = run(copy, "run", "bad", "--trigger", why, code=1, PREFECT_API_URL=prefect_api, **SECRETS)
        without_canary(copy, Path(os.environ["PREFECT_HOME"]))
        assert CANARY not in done.stdout + done.stderr
        recorded = [json.loads(p.read_text()) for p in (copy / "ledger/records").glob("*.json")]
        assert len(recorded) == 2, "the refusal must be on record"
    else:
        done = added
    assert error in done.stderr, done.stderr
    unharmed(copy)


def without_canary(*folders: Path) -> None:
    """The canary is in no file: neither in records, reports and artefacts, nor in Prefect's database of runs."""
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    assert any(path.suffix == ".db" for path in files), "Prefect's database is among them"
    assert not [path for path in files if CANARY.encode() in path.read_bytes()]


def unharmed(ws: Path) -> None:
    targets = status(ws)
    assert targets["sentiment"]["live"].startswith("sha256:")
    assert targets.get("bad", {}).get("live") is None
    assert not list((ws / "ledger").glob("channels/*/bad*"))


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(path: Path, content: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content))


def empty_gate(ws: Path) -> None:
    (ws / "data/prompts/gate.jsonl").write_text("")


def overlapping_gate(ws: Path) -> None:
    gate, safety = ws / "data/prompts/gate.jsonl", ws / "data/prompts/safety.jsonl"
    shot = next(row for row in rows(safety) if row["kind"] == "harmful")
    taken = rows(gate)
    first = next(i for i, row in enumerate(taken) if row["kind"] == "harmful")
    taken[first] = {**taken[first], "prompt": shot["prompt"]}
    write(gate, taken)


def duplicate_ids(ws: Path) -> None:
    gate = ws / "data/prompts/gate.jsonl"
    taken = rows(gate)
    write(gate, [*taken, taken[0]])


def missing_judge(ws: Path) -> None:
    path = ws / "params.yaml"
    path.write_text(path.read_text().replace("{kind: grammar}", "{kind: classifier}"))


def unreachable_model(ws: Path) -> None:
    path = ws / "params.yaml"
    path.write_text(path.read_text().replace("tiny://aligned?seed=0", "file:///no/such/folder"))
    targets = ws / "data/targets.yaml"
    lines = targets.read_text().splitlines(keepends=True)
    targets.write_text("".join("aligned: null\n" if line.startswith("aligned:") else line for line in lines))


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (empty_gate, "expected at least one prompt, got an empty set"),
        (overlapping_gate, "ContaminatedSample"),
        (duplicate_ids, "FormatError"),
        (missing_judge, "JudgeError"),
        (unreachable_model, "SourceError"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_bad_data_and_parameters(copy: Path, prefect_api: str, damage: Callable[[Path], None], error: str) -> None:
    before = status(copy)["sentiment"]["live"]
    damage(copy)
    done = run(copy, "run", code=1, PREFECT_API_URL=prefect_api)
    assert error in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    assert json.loads(run(copy, "resolve", "sentiment", "production").stdout)["release"] == before
