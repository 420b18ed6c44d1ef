"""A ledger, its pointers or its keys set back or exchanged together with everything in the tree that names them."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest

from safegene.errors import LedgerError
from safegene.ledger.audit import audit_workspace
from safegene.ledger.chain import Ledger
from safegene.ledger.key_changes import pin_key
from safegene.ledger.keys import create_key, load_signer, public_key, write_public_key
from safegene.ledger.pins import read_pinned_keys
from safegene.ledger.pointers import SEEN
from safegene.ledger.store import open_store
from safegene.pipeline.keys import pin
from safegene.pipeline.stages.promote import promote, resolve, revoke, rollback
from safegene.workspace.digest import digest_json
from safegene.workspace.git import git
from safegene.workspace.layout import Workspace
from tests.factories.commands import run
from tests.factories.ledger import (
    TARGET,
    attempt,
    copy_workspace,
    live_digest,
    make_workspace,
    problems_of,
    records,
)


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    """Two promotions, in Git."""
    ws = make_workspace(tmp_path / "ws")
    attempt(ws)
    attempt(ws, alpha=2.0)
    git(ws.root, "init", "--quiet", "--initial-branch=main")
    for key, value in (("user.name", "a"), ("user.email", "a@localhost")):
        git(ws.root, "config", key, value)
    commit(ws)
    return ws


def commit(ws: Workspace) -> None:
    git(ws.root, "add", "--all")
    git(ws.root, "commit", "--quiet", "-m", "all")


def forget() -> None:
    """As on a machine that has not seen the ledger."""
    shutil.rmtree(os.environ["SAFEGENE_STATE"])


def refused(ws: Workspace, expected: str) -> None:
    """Nothing is served or recorded, and an audit names it."""
    assert re.search(expected, "\n".join(problems_of(ws)))
    for call in (resolve, promote, rollback):
        with pytest.raises(LedgerError, match=expected):
            call(ws, TARGET)
    with pytest.raises(LedgerError, match=expected):
        revoke(ws, digest_json("a vector"), "again")


def test_a_commit_with_a_revocation_that_git_takes_back_is_remembered(ws: Workspace) -> None:
    release = str(live_digest(ws))
    revocation = revoke(ws, release, "poisoned").record
    commit(ws)
    git(ws.root, "reset", "--quiet", "--hard", "HEAD~1")
    assert live_release_of(ws) == release
    refused(ws, f"expected the record {revocation.digest}, number 2, seen before, on the chain")
    shown = run(ws.root, "audit", "verify", code=1).stdout
    assert revocation.digest in shown
    assert revocation.digest in run(ws.root, "resolve", TARGET, code=1).stderr
    git(ws.root, "reset", "--quiet", "--hard", "HEAD@{1}")
    assert problems_of(ws) == []


def live_release_of(ws: Workspace) -> str:
    """What the pointer in the store says, without asking anything else."""
    return str(json.loads((ws.root / "ledger" / "channels" / "production" / TARGET).read_bytes())["release"])


def test_a_ledger_set_back_with_what_the_workspace_remembers_is_found_without_git(tmp_path: Path) -> None:
    ws = make_workspace(tmp_path / "ws")
    attempt(ws)
    before = copy_workspace(ws, tmp_path / "before")
    attempt(ws, alpha=2.0)
    newest = records(ws)[0]
    for name in ("ledger", SEEN):
        remove, put = (shutil.rmtree, shutil.copytree) if name == "ledger" else (Path.unlink, shutil.copyfile)
        remove(ws.root / name)
        put(before.root / name, ws.root / name)
    memory = os.environ["SAFEGENE_STATE"]
    refused(ws, f"expected the record {newest.digest}, number 1, seen before, on the chain, as {memory}")


def test_an_uncommitted_set_back_is_found_on_a_machine_without_a_memory(ws: Workspace) -> None:
    git(ws.root, "checkout", "--quiet", "HEAD", "--", ".")
    attempt(ws, alpha=3.0)
    newest = records(ws)[0]
    commit(ws)
    git(ws.root, "checkout", "--quiet", "HEAD~1", "--", "ledger", SEEN)
    shutil.rmtree(ws.root / "ledger")
    git(ws.root, "checkout", "--quiet", "HEAD~1", "--", "ledger")
    forget()
    refused(ws, f"expected the record {newest.digest}, number 2, seen before, on the chain, as {SEEN} at Git's HEAD")


@pytest.mark.parametrize("how", ["exchanged", "added"])
def test_a_key_that_is_not_committed_is_not_trusted(ws: Workspace, tmp_path: Path, how: str) -> None:
    """The attacker's key is pinned, and everything is signed again with it, or goes on with it."""
    file = ws.root / "ledger.pub"
    if how == "exchanged":
        file.unlink()
        shutil.rmtree(ws.root / "ledger")
        (ws.root / SEEN).unlink()
    write_public_key(create_key(), file)
    forget()
    refused(ws, f"expected the public keys that Git's HEAD pins, got others that no record vouches for.* in {file}")
    commit(ws)
    assert attempt(ws, alpha=3.0) == "pass", "reviewed and committed, another key is trusted"


def test_a_change_of_keys_on_record_is_trusted_before_it_is_committed(ws: Workspace) -> None:
    committed = (ws.root / "ledger.pub").read_bytes()
    pin(ws, create_key(), owner="Ada")
    assert (ws.root / "ledger.pub").read_bytes() != committed
    assert resolve(ws, TARGET).release == live_digest(ws)
    assert attempt(ws, alpha=3.0) == "pass"
    assert problems_of(ws) == []


def test_a_change_of_keys_that_its_own_key_signed_is_not_trusted(ws: Workspace, tmp_path: Path) -> None:
    before = (ws.root / "ledger.pub").read_bytes()
    keyid = create_key(tmp_path / "attacker")
    write_public_key(keyid, ws.root / "ledger.pub", tmp_path / "attacker")
    both = read_pinned_keys(ws.root / "ledger.pub")
    ledger = Ledger(open_store("ledger", base=ws.root), both.keys)
    attacker = load_signer([key for key in both.keys if key.keyid == keyid], tmp_path / "attacker")
    (ws.root / "ledger.pub").write_bytes(before)
    pin_key(ledger, attacker, ws.root / "ledger.pub", public_key(keyid, tmp_path / "attacker"), fields={})
    refused(ws, "got others that no record vouches for: expected record 2, which changes the pinned keys, to be signed")


def test_a_ledger_that_another_key_signed_again_is_another_ledger(ws: Workspace) -> None:
    """Even where everything is committed: this machine knows which ledger was here."""
    first = records(ws)[-1].digest
    (ws.root / "ledger.pub").unlink()
    (ws.root / SEEN).unlink()
    shutil.rmtree(ws.root / "ledger")
    write_public_key(create_key(), ws.root / "ledger.pub")
    commit(ws)
    state = Path(os.environ["SAFEGENE_STATE"])
    kept = state.rename(state.with_name("kept"))
    assert attempt(ws, alpha=2.0) == "pass"
    shutil.rmtree(state)
    kept.rename(state)
    refused(ws, f"expected the ledger {first}, seen before, at {ws.root / 'ledger'}.*the ledger was exchanged")


def test_an_audit_says_whose_keys_it_trusts(ws: Workspace) -> None:
    (key,) = json.loads((ws.root / "ledger.pub").read_bytes())["keys"]
    shown = run(ws.root, "audit", "verify").stdout
    assert f"key {key['keyid']}: signed 2 records" in shown
    assert "ledger.pub is as Git's HEAD has it" in shown
    assert "this machine remembers record 1 of this ledger" in shown
    git(ws.root, "rm", "--quiet", "--cached", "ledger.pub")
    git(ws.root, "commit", "--quiet", "-m", "untracked")
    assert "ledger.pub is not in Git" in run(ws.root, "audit", "verify").stdout


def test_a_second_machine_trusts_what_it_finds_and_says_so(ws: Workspace, caplog: pytest.LogCaptureFixture) -> None:
    forget()
    (ws.root / SEEN).unlink()
    commit(ws)
    assert "this machine has not seen this ledger before" in "\n".join(audit_workspace(ws).trust)
    forget()
    assert resolve(ws, TARGET).release == live_digest(ws)
    assert "its 2 records are trusted as they are now" in caplog.text
    assert "this machine remembers record 1" in "\n".join(audit_workspace(ws).trust)


def test_a_clone_that_is_behind_is_refused_until_it_is_up_to_date(ws: Workspace, tmp_path: Path) -> None:
    git(ws.root, "clone", "--quiet", ".", str(tmp_path / "clone"))
    clone = Workspace(tmp_path / "clone")
    assert resolve(clone, TARGET).release == live_digest(ws)
    revoke(ws, str(live_digest(ws)), "poisoned")
    commit(ws)
    with pytest.raises(LedgerError, match="number 2, seen before") as behind:
        resolve(clone, TARGET)
    assert "git pull" in behind.value.remedy
    git(clone.root, "pull", "--quiet")
    assert problems_of(clone) == []


def test_a_pointer_that_was_removed_serves_nothing(ws: Workspace) -> None:
    (ws.root / "ledger" / "channels" / "production" / TARGET).unlink()
    with pytest.raises(LedgerError, match=r"promoted .* on production, got no pointer"):
        resolve(ws, TARGET)
    assert "got no pointer" in "\n".join(problems_of(ws))
    assert promote(ws, TARGET).message.endswith("the interrupted promotion is complete now")
    assert resolve(ws, TARGET).release == live_digest(ws)
