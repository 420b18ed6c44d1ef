"""The script of the audit page verifies a ledger with securesystemslib alone, and names what is wrong with it."""

import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from safegene.ledger.keys import create_key, public_key, write_public_key
from safegene.ledger.pins import APPROVE, PinnedKeys, read_pinned_keys, with_extras, write_pinned_keys
from safegene.pipeline.stages.promote import approve, promote
from safegene.workspace.layout import Workspace
from tests.factories.ledger import TARGET, attempt, flip_byte, make_workspace, records, share_cache_key
from tests.factories.outsider import verify_as_outsider

ARCHIVE = Path(__file__).parents[1] / "goldens" / "demo-e86ff8d" / "workspace.tar.xz"


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    """Two records of one target, the second of them live."""
    ws = make_workspace(tmp_path / "ws")
    assert [attempt(ws, alpha=1.0), attempt(ws, alpha=2.0)] == ["pass", "pass"]
    return ws


def test_a_sound_ledger_verifies(ws: Workspace) -> None:
    done = verify_as_outsider(ws.root)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "live: sentiment on production, by record 1: all 6 endpoints pass" in done.stdout
    assert "verified 2 records, 2 of them on the chain" in done.stdout


def test_the_ledger_of_an_earlier_demo_verifies(tmp_path: Path) -> None:
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    done = verify_as_outsider(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "verified 4 records, 4 of them on the chain" in done.stdout


def _edit_record(ws: Workspace) -> None:
    flip_byte(_path(ws, 0), 40)


def _delete_record(ws: Workspace) -> None:
    _path(ws, 0).unlink()


def _other_number(ws: Workspace) -> None:
    tip = ws.root / "ledger" / "tip"
    tip.write_text(json.dumps({**json.loads(tip.read_text()), "sequence": 7}))


def _other_key(ws: Workspace) -> None:
    (ws.root / "ledger.pub").unlink()
    write_public_key(create_key(), ws.root / "ledger.pub")


def _pointer_of_another_target(ws: Workspace) -> None:
    channel = ws.root / "ledger" / "channels" / "production"
    shutil.copy(channel / "sentiment", channel / "topic")


def _pointer_set_back(ws: Workspace) -> None:
    old = next(record for record in records(ws) if record.sequence == 0)
    content = {"record": old.digest, "release": old.release, "sequence": 0}
    (ws.root / "ledger" / "channels" / "production" / "sentiment").write_text(json.dumps(content))


def _release_byte(ws: Workspace) -> None:
    flip_byte(_release(ws) / "candidate" / "adapter_model.safetensors")


def _planted_file(ws: Workspace) -> None:
    (_release(ws) / ".github").mkdir()
    (_release(ws) / ".github" / "x").write_text("x")


def _path(ws: Workspace, sequence: int) -> Path:
    digest = next(record.digest for record in records(ws) if record.sequence == sequence)
    return ws.root / "ledger" / "records" / f"{digest.removeprefix('sha256:')}.json"


def _release(ws: Workspace) -> Path:
    return ws.root / "ledger" / "releases" / str(records(ws)[0].release).removeprefix("sha256:")


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (_edit_record, "was edited"),
        (_delete_record, "record 0, sha256:"),
        (_other_number, "out of order: expected number 7"),
        (_other_key, "not signed by a trusted key"),
        (_pointer_of_another_target, "topic names a record, and the chain says that nothing is live there"),
        (_pointer_set_back, "sentiment was set back or forged: the chain says that record 1 is live"),
        (_release_byte, "adapter_model.safetensors was changed"),
        (_planted_file, "files that nobody signed"),
    ],
)
def test_what_is_wrong_is_named(ws: Workspace, damage: Any, word: str) -> None:
    damage(ws)
    done = verify_as_outsider(ws.root)
    assert done.returncode == 1
    assert word in done.stderr


@pytest.fixture
def two_signatures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A workspace in which promotions need two persons: Ada promotes, Grace approves."""
    for name in ("ada", "grace"):
        share_cache_key(tmp_path / name)
    monkeypatch.setenv("SAFEGENE_KEYS", str(tmp_path / "ada"))
    ws = make_workspace(tmp_path / "ws", keys=tmp_path / "ada")
    (ada,) = read_pinned_keys(ws.root / "ledger.pub").keys
    grace = with_extras(public_key(create_key(tmp_path / "grace"), tmp_path / "grace"), owner="Grace", roles=[APPROVE])
    write_pinned_keys(ws.root / "ledger.pub", PinnedKeys((with_extras(ada, owner="Ada"), grace), ((0, 2),)))
    asked = promote(ws, TARGET)
    assert asked.outcome == "pending"
    monkeypatch.setenv("SAFEGENE_KEYS", str(tmp_path / "grace"))
    assert approve(ws, str(asked.record)).outcome == "pass"
    monkeypatch.setenv("SAFEGENE_KEYS", str(tmp_path / "ada"))
    return ws


def test_an_approved_promotion_verifies(two_signatures: Workspace) -> None:
    done = verify_as_outsider(two_signatures.root)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "live: sentiment on production, by record 1" in done.stdout
    assert {"Ada", "Grace"} <= set(done.stdout.split())


def test_signatures_that_are_missing_are_named(two_signatures: Workspace) -> None:
    path = two_signatures.root / "ledger.pub"
    pinned = json.loads(path.read_text())
    path.write_text(json.dumps({**pinned, "signatures": [{"from": 0, "count": 3}]}))
    assert "record 1 lacks the signatures that it needs" in verify_as_outsider(two_signatures.root).stderr
    for key in pinned["keys"]:
        key["owner"] = "Ada"
    path.write_text(json.dumps(pinned))
    assert "record 1 lacks the signatures that it needs" in verify_as_outsider(two_signatures.root).stderr


def test_a_retired_key_signs_for_what_came_before(ws: Workspace) -> None:
    path = ws.root / "ledger.pub"
    pinned = json.loads(path.read_text())
    for until, code in ((2, 0), (1, 1)):
        path.write_text(json.dumps({"keys": [{**pinned["keys"][0], "until": until}]}))
        done = verify_as_outsider(ws.root)
        assert done.returncode == code, done.stdout + done.stderr
    assert "names a record of a revoked key" in done.stderr


def test_nothing_of_this_project_is_needed(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import sys; sys.modules['safegene'] = None; import safegene.ledger"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert "ModuleNotFoundError" in done.stderr  # what `verify_as_outsider` relies on
