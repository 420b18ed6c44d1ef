"""What ``safegene audit ...`` prints."""

import json
from pathlib import Path

from safegene.workspace.manifest import read_manifest
from tests.factories.commands import run
from tests.factories.ledger import TARGET, attempt, make_workspace


def test_a_revocation_names_what_to_roll_back_and_history_lists_it(tmp_path: Path) -> None:
    ws = make_workspace(tmp_path / "ws")
    assert attempt(ws) == "pass"
    verified = run(ws.root, "audit", "verify").stdout.splitlines()[-1]
    assert verified == "verified 1 record, 1 release, 8 artefacts"
    digest = read_manifest(ws.vector).digest
    revoked = run(ws.root, "audit", "revoke", digest, "--reason", "wrong labels").stdout.splitlines()
    assert revoked[0].startswith(f"revoked {digest}, record sha256:")
    assert revoked[1].startswith(f"affected {TARGET} is live on production and rests on it; no earlier release of")
    assert f"`safegene run {TARGET}`" in revoked[1]
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


def test_blast_diff_and_show_print_records_and_revoke_rolls_back(tmp_path: Path) -> None:
    ws = make_workspace(tmp_path / "ws")
    assert (attempt(ws, alpha=1.0), attempt(ws, alpha=2.0)) == ("pass", "pass")
    digest = read_manifest(ws.candidate(TARGET)).digest
    blast = run(ws.root, "audit", "blast", digest).stdout.splitlines()
    assert blast[1].split()[:5] == ["1", "pass", TARGET, "production", "yes"]
    assert blast[-1] == f"1 record touched; live: {TARGET} on production"
    assert json.loads(run(ws.root, "audit", "blast", digest, "--json").stdout)["live"] == [
        {"target": TARGET, "channel": "production"}
    ]
    shown = json.loads(run(ws.root, "audit", "show", "0", "--json").stdout)
    assert (shown["chain"]["sequence"], shown["target"]) == (0, TARGET)
    assert f"release: {shown['release']}" in run(ws.root, "audit", "show", shown["record"][:20]).stdout
    diff = run(ws.root, "audit", "diff", TARGET, "0").stdout
    assert f"artefacts.candidate\n  1: {digest}\n  0: {shown['artefacts']['candidate']}\n" in diff
    revoked = run(ws.root, "audit", "revoke", digest, "--reason", "wrong", "--rollback").stdout.splitlines()
    assert revoked[1].startswith(f"affected {TARGET}: rolled back on production to the release of record 0")
    assert json.loads(run(ws.root, "resolve", TARGET).stdout)["release"] == shown["release"]
    assert "expected a target that is live" in run(ws.root, "audit", "diff", TARGET, "99", code=1).stderr
