"""Git, DVC, the ledger and its keys: without them a run computes everything and then cannot record it."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from safegene.errors import LedgerError, SafegeneError
from safegene.ledger import open_store
from safegene.ledger.chain import Ledger, open_ledger
from safegene.ledger.keys import load_signer
from safegene.ledger.pins import owner_of
from safegene.ledger.snapshot import read_state
from safegene.ledger.store import LocalStore, require_conditions
from safegene.pipeline.doctor.finding import Examined, Finding
from safegene.workspace.git import committed, git, head_commit
from safegene.workspace.layout import Workspace, cache_folder

READ_BY_DVC = ("params.yaml", "data/targets.yaml", "dvc.yaml")
NAMES = 'git config user.name "YOUR NAME" && git config user.email "YOU@EXAMPLE.ORG"'


def check_yaml(ws: Workspace) -> Iterator[Finding]:
    """The files that DVC reads, read by DVC's own parser."""
    from dvc.utils.serialize import YAMLFileCorruptedError, parse_yaml

    for name in READ_BY_DVC:
        path = ws.root / name
        if not path.is_file():
            yield Finding("parameters", f"expected {path}, got no such file", _restore(ws, name))
            continue
        try:
            parse_yaml(path.read_text(encoding="utf-8"), str(path))
        except (YAMLFileCorruptedError, UnicodeDecodeError) as error:
            reason = " ".join(str(error.__cause__ or error).split())[:200]
            message = f"expected YAML that DVC reads too in {path}, got {reason}"
            yield Finding("parameters", message, "put text that holds ':' in double quotes")


def check_git(examined: Examined) -> Iterator[Finding]:
    """A repository of Git and DVC, and who commits."""
    root, check = examined.workspace.root, "repository"
    try:
        git(root, "rev-parse", "--show-toplevel")
    except SafegeneError as error:
        text = f"expected a Git repository with the workspace in it, got: {error.message}"
        begin = 'git init && git add --all && git commit -m "workspace"'
        yield Finding(
            check, text, error.remedy or (f"cd {root} && {begin}" if "not a git" in text else "see the message")
        )
        return
    if not (root / ".dvc" / "config").is_file():
        yield Finding(
            check, f"expected a DVC repository, got no {root}/.dvc/config", _restore(examined.workspace, ".dvc/config")
        )
    commits = examined.signs and examined.params.flow.commit
    if commits and (reason := _no_identity(root)):
        yield Finding(check, f"expected Git to know who commits a run's results, got: {reason}", NAMES)
    if commits and examined.params.flow.push_commits:
        try:
            git(root, "rev-parse", "--abbrev-ref", "@{upstream}")
        except SafegeneError:
            message = "expected an upstream of the branch, since flow.push_commits is true, got none: commits stay here"
            yield Finding(check, message, f"git -C {root} push --set-upstream REMOTE HEAD", stops=False)


def _no_identity(root: Path) -> str:
    """Why Git would refuse a commit here; empty where it would not."""
    for name in ("GIT_AUTHOR_IDENT", "GIT_COMMITTER_IDENT"):
        done = subprocess.run(["git", "-C", str(root), "var", name], capture_output=True, text=True, check=False)
        if done.returncode:
            lines = [line.removeprefix("fatal: ") for line in done.stderr.splitlines() if line.startswith("fatal:")]
            return " ".join(lines)[:200] or "no user.name and user.email"
    return ""


def check_ledger(examined: Examined) -> Iterator[Finding]:
    """The pinned keys, the chain, the key that signs, and where records are written."""
    root, params = examined.workspace.root, examined.params.promote
    pinned = root / params.public_key
    if not pinned.is_file():
        message = f"expected the ledger's pinned public keys in {pinned}, got no such file"
        yield Finding("ledger", message, _restore(examined.workspace, params.public_key.as_posix()))
        return
    try:
        ledger = open_ledger(params, root, cache=cache_folder() / "records")
    except SafegeneError as error:
        yield Finding.of("ledger", error)
        return
    try:
        read_state(ledger)
    except SafegeneError as error:
        yield Finding.of("ledger", error)
    if examined.signs:
        yield from _signer(ledger, params.signatures)
        yield from _store(params.ledger, root)


def _signer(ledger: Ledger, asked: int) -> Iterator[Finding]:
    try:
        signer = load_signer(ledger.keys)
    except LedgerError as error:
        yield Finding.of("signing key", error)
        return
    needed = max(asked, ledger.signatures[-1][1] if ledger.signatures else 1)
    if needed > 1 and not owner_of(signer.public_key):
        key = signer.public_key.keyid[:12]
        message = f"expected a signing key with an owner, since {needed} persons must sign, got {key}.. without one"
        yield Finding("signing key", message, f"safegene keys pin {key} --owner NAME")


def _store(place: str, root: Path) -> Iterator[Finding]:
    store = open_store(place, base=root)
    if isinstance(store, LocalStore):
        folder = next(path for path in (store.root, *store.root.parents) if path.exists())
        if not (folder.is_dir() and os.access(folder, os.W_OK)):
            message = f"expected to write the ledger in {store.root}, got no permission for {folder}"
            yield Finding("ledger", message, f"chown or chmod {folder}, or set promote.ledger in params.yaml")
        return
    try:
        require_conditions(store)
    except SafegeneError as error:
        yield Finding.of("ledger", error)


def _restore(ws: Workspace, name: str) -> str:
    """The command that brings a file of the workspace back from Git, or what else gives it."""
    if Path(name).is_absolute():
        return f"bring the file {name}: it lies outside of the repository"
    if name in committed(ws.root, name):
        return f"git -C {ws.root} restore --source HEAD --staged --worktree {name}"
    if head_commit(ws.root):
        last = git(ws.root, "log", "--all", "-1", "--format=%H", "--diff-filter=AM", "--", name)
        if last:
            return f"git -C {ws.root} restore --source {last[:12]} --staged --worktree {name}"
    if name == ".dvc/config":
        return f"cd {ws.root} && dvc init"
    return f"`safegene init DIR` makes a workspace that has {name}"
