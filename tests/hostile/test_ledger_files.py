"""Files that no writer of ours leaves in a ledger: they are named, and stop nothing."""

import shutil
from pathlib import Path

import pytest

from safegene.errors import DigestMismatch
from safegene.ledger.audit import audit_workspace
from safegene.pipeline.stages.promote import promote_attempt, resolve, revoke, rollback
from safegene.workspace.layout import Workspace
from tests.factories.commands import run
from tests.factories.ledger import TARGET, attempt, live_digest, make_workspace

NAMES = (
    ".DS_Store",
    "x (1).json",
    ".nfs000000000001",
    "a.json~",
    ".a.json.swp",
    "#a.json#",
    "Thumbs.db",
    "desktop.ini",
    "._a.json",
    ".gitignore",
    "a copy.json",
    "ä.json",
    "line\nbreak",
)
PLACES = ("", "records", "channels", "channels/production", "snapshots", "revocations", "objects")


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    """Two promotions."""
    ws = make_workspace(tmp_path / "ws")
    attempt(ws)
    attempt(ws, alpha=2.0)
    return ws


@pytest.mark.parametrize("place", PLACES)
def test_stray_files_are_named_and_stop_nothing(ws: Workspace, place: str) -> None:
    folder = ws.root / "ledger" / place
    folder.mkdir(exist_ok=True)
    for name in NAMES:
        (folder / name).write_text("?")
    audit = audit_workspace(ws)
    assert audit.problems == ()
    for name in NAMES:
        assert f"not of the ledger, and ignored: {folder / name}" in audit.notes
    run(ws.root, "audit", "verify")
    assert resolve(ws, TARGET).release == live_digest(ws)
    assert rollback(ws, TARGET).outcome == "rollback"
    revocation = revoke(ws, str(live_digest(ws)), "poisoned")
    assert [live.record.target for live in revocation.affected] == [TARGET]
    assert revocation.unread == ()
    assert attempt(ws, alpha=3.0) == "pass"
    assert audit_workspace(ws).problems == ()


def test_a_copy_of_a_record_under_another_name_is_no_record(ws: Workspace) -> None:
    record = next((ws.root / "ledger" / "records").iterdir())
    for name in (f"{record.stem} (1).json", f"{record.name}.bak", f"{record.stem[:10]}.json", f"{record.stem}.JSON"):
        shutil.copyfile(record, record.with_name(name))
    audit = audit_workspace(ws)
    assert (audit.problems, len(audit.notes)) == ((), 4)
    assert promote_attempt(ws, TARGET) == "pass"


def test_a_copy_of_a_pointer_is_no_target(ws: Workspace) -> None:
    pointer = ws.root / "ledger" / "channels" / "production" / TARGET
    for name in (f"{TARGET} (1)", f"{TARGET}.orig", f"{TARGET.upper()}"):
        shutil.copyfile(pointer, pointer.with_name(name))
    audit = audit_workspace(ws)
    assert (audit.problems, len(audit.notes)) == ((), 3)


def test_a_file_planted_in_a_release_stops_it(ws: Workspace) -> None:
    """A release is signed as a whole: a server would load what lies in it."""
    release = Path(resolve(ws, TARGET).path)
    (release / ".github").mkdir()
    (release / ".github" / "x").write_text("?")
    assert ".github/x" in "\n".join(audit_workspace(ws).problems)
    with pytest.raises(DigestMismatch, match=r"\.github/x"):
        resolve(ws, TARGET)
