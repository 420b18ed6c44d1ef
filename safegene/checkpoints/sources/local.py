"""Checkpoints in local folders: ``file://FOLDER``."""

import os
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from urllib.parse import quote, unquote

from safegene.checkpoints.adapter import open_adapter
from safegene.checkpoints.checkpoint import open_checkpoint
from safegene.checkpoints.sources import cache
from safegene.checkpoints.sources.uri import Scheme, SourceURI
from safegene.checkpoints.unsafe import check_folder
from safegene.checkpoints.wanted import ADAPTER_WEIGHTS
from safegene.errors import SourceError
from safegene.workspace.digest import digest_json


class FolderSource:
    """A folder on this machine, whose weights are used in place.

    Attributes:
        in_place: weights need no room in the cache.
    """

    in_place = True

    def __init__(self, root: Path) -> None:
        self.root = root

    def fingerprint(self) -> str:
        """Digest of the checkpoint's files."""
        names = check_folder(self._existing())
        if not any(name.endswith(".safetensors") for name in names):
            raise SourceError(f"expected a checkpoint with safetensors weights, got {names or 'none'}, in {self.root}")
        return digest_json(cache.digests(self.root, names))

    def sizes(self) -> Mapping[str, int]:
        """File name -> bytes; a folder whose weights are pickles or links is refused."""
        check_folder(self._existing())
        return {path.name: path.lstat().st_size for path in self.root.iterdir() if path.is_symlink() or path.is_file()}

    def copy(self, names: tuple[str, ...], into: Path) -> None:
        """Copy the files, and link to weights. They are verified later, so a file may change meanwhile."""
        for name in names:
            (into / name).unlink(missing_ok=True)
            if name.endswith(".safetensors"):
                (into / name).symlink_to((self.root / name).resolve())
            else:
                shutil.copyfile(self.root / name, into / name, follow_symlinks=False)

    def _existing(self) -> Path:
        if not os.path.isdir(self.root):  # False, too, for a name that no folder can have
            raise SourceError(f"expected a checkpoint folder, got none at {self.root}")
        return self.root


def parse(uri: str, rest: str) -> SourceURI | None:
    """Parse ``file://FOLDER``."""
    return SourceURI(uri, "file", unquote(rest)) if rest else None


def children(place: SourceURI) -> dict[str, Callable[[], object]]:
    """The URI of every folder directly below that is not hidden -> its check."""
    root = Path(place.path)
    if not os.path.isdir(root):
        raise SourceError(f"expected a folder to watch, got none at {root}")
    folders = [path for path in sorted(root.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    return {f"file://{quote(str(path))}": partial(_open, path) for path in folders}


def _open(root: Path) -> None:
    if (root / ADAPTER_WEIGHTS).is_file() or not (root / "config.json").is_file():
        open_adapter(root)
    else:
        open_checkpoint(root)


SCHEME = Scheme("file://FOLDER", parse, lambda place: FolderSource(Path(place.path)), children)
