"""What ``safegene audit ...`` prints."""

from pathlib import Path

from safegene.workspace.manifest import read_manifest
from tests.factories.commands import run
from tests.factories.ledger import TARGET, attempt, make_workspace


def test_a_revocation_names_what_to_roll_back_and_history_lists_it(tmp_path: Path) -> None:
    ws = make_workspace(tmp_path / "ws")
    assert attempt(ws) == "pass"
    assert run(ws.root, "audit", "verify").stdout == "verified 1 records, 1 releases, 8 artefacts\n"
    digest = read_manifest(ws.vector).digest
    revoked = run(ws.root, "audit", "revoke", digest, "--reason", "wrong labels").stdout.splitlines()
    assert revoked[0].startswith(f"revoked {digest}, record sha256:")
    assert (
        revoked[1]
        == f"affected {TARGET} is live on production and rests on it; roll it back: safegene rollback {TARGET}"
    )
    rows = [line.split() for line in run(ws.root, "audit", "history", TARGET).stdout.splitlines()]
    assert [(row[0], row[1], row[-1]) for row in rows] == [
        ("sequence", "outcome", "live"),
        ("1", "revocation", "no"),
        ("0", "pass", "yes"),
    ]
    assert run(ws.root, "audit", "history", "nobody").stdout.count("revocation") == 1
    assert "although record 1 revoked" in run(ws.root, "audit", "verify").stdout


def test_a_problem_is_printed_and_gives_exit_code_1(tmp_path: Path) -> None:
    ws = make_workspace(tmp_path / "ws")
    attempt(ws)
    (ws.root / "ledger" / "tip").unlink()
    assert "\nproblem expected the record " in run(ws.root, "audit", "verify", code=1).stdout
