"""The source scheme ``tiny://NAME[?seed=N]``: a model of the tiny family, built on first use.

It is registered as an entry point of the group ``safegene.sources``, like the scheme of any other package.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from safegene.checkpoints.sources.local import FolderSource
from safegene.checkpoints.sources.uri import Scheme, SourceURI


class TinySource:
    """One model of the tiny family."""

    def __init__(self, place: SourceURI) -> None:
        self.place = place

    def fingerprint(self) -> str:
        """Digest of the recipe, which is known before the model is built."""
        from safegene.tiny.build import recipe_digest

        return recipe_digest(self.place.path, self.place.seed)

    def sizes(self) -> Mapping[str, int]:
        """File name -> bytes; builds the model."""
        return self._folder().sizes()

    def copy(self, names: tuple[str, ...], into: Path) -> None:
        """Copy files of the built model into a folder."""
        self._folder().copy(names, into)

    def _folder(self) -> FolderSource:
        from safegene.tiny.build import build

        return FolderSource(build(self.place.path, self.place.seed))


def parse(uri: str, rest: str) -> SourceURI | None:
    """Parse ``tiny://NAME[?seed=N]``; None when the URI has another form."""
    match = re.fullmatch(r"([a-z0-9_-]+)(?:\?seed=([0-9]{1,9}))?", rest)
    return SourceURI(uri, "tiny", match[1], seed=int(match[2] or 0)) if match else None


SCHEME = Scheme("tiny://NAME[?seed=N]", parse, TinySource)
