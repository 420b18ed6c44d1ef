"""What Git tracks of a workspace, and what DVC does.

Git tracks what machines write in small files (targets, locks, metrics, plots, the ledger), by name, so that no ignore
rule can leave a part of it out; and what people write and a run reads (`ALWAYS`, `READ`), as far as their ignore rules
let it. A run commits no other file of theirs, and no change of the pinned keys: who edits those must commit them, so
that it is seen. Artefacts are DVC's alone: DVC refuses to run a stage whose output Git tracks.
"""

import re
from pathlib import Path

from safegene.errors import SafegeneError
from safegene.ledger import SEEN, is_ledger_key, open_store
from safegene.pipeline.table import PIPELINE
from safegene.workspace.git import commit_files, git, head_commit
from safegene.workspace.layout import Workspace

ALWAYS = ("params.yaml", "dvc.yaml", "data/targets.yaml", "dvc.lock", SEEN, ".gitignore")
READ = ("data/prompts", "data/tasks", "data/judges", "data/suites")
"""Folders of people's data that a run reads."""
_OUTPUTS = (re.escape(stage.output).replace(re.escape("{target}"), "[^/]+") for stage in PIPELINE if stage.output)
_OUTPUT = re.compile(rf"(?:{'|'.join(_OUTPUTS)})(?=/|$)")
_DRAFT = re.compile(r"\..*\.draft")
_WRITTEN = re.compile(
    r"data/(?:metrics|plots)/.+|data/targets/[^/]+/(?:incumbent|drift)\.json|data/(?:.+/)?\.gitignore"
)


def tracked_files(ws: Workspace) -> list[str]:
    """Files, relative to the workspace, that a commit after a run holds."""
    here = [name for name in ALWAYS if (ws.root / name).is_file()]
    data = sorted(_below(ws, ws.data))
    listed = ("ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *READ)
    users = set(git(ws.root, *listed).split("\0"))
    data = [name for name in data if _WRITTEN.fullmatch(name) or name in users]
    return list(dict.fromkeys([*here, *data, *ledger_files(ws)]))


def commit_ledger(ws: Workspace, message: str) -> str:
    """Commit the ledger and nothing else; a sentence on what was committed, or on what is left to commit.

    Where ``flow.commit`` is false, or Git refuses, nothing is committed: what the ledger holds is valid all the same.
    """
    files, place = ledger_files(ws), ws.params.promote.ledger
    if not files:
        return ""
    names = f"{place} and {SEEN}" if files != [SEEN] else SEEN
    by_hand = f"commit it: `git add --force {names.replace(' and ', ' ')} && git commit -m '{message}'`"
    if not ws.params.flow.commit:
        return f"the ledger is not committed, since flow.commit is false; {by_hand}"
    before = head_commit(ws.root)
    try:
        after = commit_files(ws.root, message, files)
    except SafegeneError as error:
        return f"the ledger is not committed: {' '.join(error.message.split())}; {by_hand}"
    return f"committed {names} as {after[:12]}" if after != before else ""


def committed_artefacts(ws: Workspace) -> list[str]:
    """Outputs of stages that Git's HEAD holds, by mistake."""
    if not head_commit(ws.root):
        return []
    return _artefacts(git(ws.root, "ls-tree", "-r", "-z", "--name-only", "HEAD", "data"))


def indexed_artefacts(ws: Workspace) -> list[str]:
    """Outputs of stages in Git's index, which makes DVC refuse to run them."""
    return _artefacts(git(ws.root, "ls-files", "-z", "--", "data")) if (ws.root / ".git").exists() else []


def _artefacts(names: str) -> list[str]:
    return sorted({found[0] for name in names.split("\0") if (found := _OUTPUT.match(name))})


def _below(ws: Workspace, folder: Path) -> list[str]:
    """Files below a folder, relative to the workspace, without artefacts, drafts and links."""
    files = list[str]()
    for path in folder.iterdir() if folder.is_dir() else ():
        name = path.relative_to(ws.root).as_posix()
        if path.is_symlink() or _OUTPUT.fullmatch(name) or _DRAFT.fullmatch(path.name):
            continue
        files += _below(ws, path) if path.is_dir() else [name]
    return files


def ledger_files(ws: Workspace) -> list[str]:
    """Files of the ledger and of `SEEN`, relative to the workspace; a ledger elsewhere has none."""
    place, seen = ws.params.promote.ledger, [SEEN] if (ws.root / SEEN).is_file() else []
    if "://" in place or Path(place).is_absolute():
        return seen
    store = open_store(place, base=ws.root)
    return [*seen, *(f"{Path(place).as_posix()}/{key}" for key in store.list("") if is_ledger_key(key))]
