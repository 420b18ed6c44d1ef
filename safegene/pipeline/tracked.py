"""What Git tracks of a workspace, and what DVC does.

Git tracks what machines write in small files (targets, locks, metrics, plots, the ledger), by name, so that no ignore
rule can leave a part of it out; and what users keep in ``data``, as far as their ignore rules let it. Artefacts are
DVC's alone: DVC refuses to run a stage whose output Git tracks.
"""

import re
from pathlib import Path

from safegene.ledger import SEEN, is_ledger_key, open_store
from safegene.pipeline.table import PIPELINE
from safegene.workspace.git import git, head_commit
from safegene.workspace.layout import Workspace

ALWAYS = ("data/targets.yaml", "dvc.lock", SEEN, ".gitignore")
_OUTPUTS = (re.escape(stage.output).replace(re.escape("{target}"), "[^/]+") for stage in PIPELINE if stage.output)
_OUTPUT = re.compile(rf"(?:{'|'.join(_OUTPUTS)})(?=/|$)")
_DRAFT = re.compile(r"\..*\.draft")
_WRITTEN = re.compile(r"data/(?:metrics|plots)/.+|data/targets/[^/]+/incumbent\.json|data/(?:.+/)?\.gitignore")


def tracked_files(ws: Workspace) -> list[str]:
    """Files, relative to the workspace, that a commit after a run holds."""
    here = [name for name in ALWAYS if (ws.root / name).is_file()]
    data = sorted(_below(ws, ws.data))
    users = set(git(ws.root, "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", "data").split("\0"))
    return [*here, *(name for name in data if _WRITTEN.fullmatch(name) or name in users), *_ledger_files(ws)]


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


def _ledger_files(ws: Workspace) -> list[str]:
    place = ws.params.promote.ledger
    if "://" in place or Path(place).is_absolute():
        return []
    store = open_store(place, base=ws.root)
    return [f"{Path(place).as_posix()}/{key}" for key in store.list("") if is_ledger_key(key)]
