"""Checkpoints in local folders, and the tiny family, which is built into one."""

import shutil
from collections.abc import Mapping
from pathlib import Path

from safegene.digest import digest_json
from safegene.errors import SourceError
from safegene.sources import cache
from safegene.sources.uri import Place
from safegene.sources.wanted import wanted
from safegene.tensors.folder import check_folder


class FolderSource:
    """A folder on this machine."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def fingerprint(self) -> str:
        """Digest of the checkpoint's files."""
        names = [name for name in self.sizes() if wanted(name)]
        if not any(name.endswith(".safetensors") for name in names):
            raise SourceError(f"expected a checkpoint with safetensors weights, got {names or 'none'}, in {self.root}")
        return digest_json(cache.digests(self.root, names))

    def sizes(self) -> Mapping[str, int]:
        """Every file -> bytes; a folder with a pickle or a link is refused here already."""
        if not self.root.is_dir():
            raise SourceError(f"expected a checkpoint folder, got none at {self.root}")
        return {name: (self.root / name).lstat().st_size for name in check_folder(self.root)}

    def copy(self, names: tuple[str, ...], into: Path) -> None:
        """Copy; the copy is what gets verified, so a file that changes meanwhile changes nothing."""
        for name in names:
            shutil.copyfile(self.root / name, into / name, follow_symlinks=False)


class TinySource:
    """A model of the tiny family, built on first use."""

    def __init__(self, place: Place) -> None:
        self.place = place

    def fingerprint(self) -> str:
        """Digest of the recipe: known before the model is built."""
        from safegene.tiny.build import recipe_digest

        return str(recipe_digest(self.place.path, self.place.seed))

    def sizes(self) -> Mapping[str, int]:
        """Every file -> bytes."""
        return self._folder().sizes()

    def copy(self, names: tuple[str, ...], into: Path) -> None:
        """Copy from where it was built."""
        self._folder().copy(names, into)

    def _folder(self) -> FolderSource:
        from safegene.tiny.build import build

        return FolderSource(build(self.place.path, self.place.seed))
