"""The manifest of an artefact: which stage wrote it, its inputs, its parameters, and a digest of every file.

An artefact is a folder with a payload and ``manifest.json``. The manifest is written last, so a folder with a manifest
is complete. It holds no time and no host name: equal inputs and parameters give equal bytes.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from safegene.errors import ArtifactError, DigestMismatch, FormatError
from safegene.version import __version__
from safegene.workspace.atomic import draft_folder
from safegene.workspace.digest import canonical_json, digest_bytes, digest_file, digest_tree
from safegene.workspace.parsing import Strict, parse_json
from safegene.workspace.seal import seal_artefact

NAME = "manifest.json"


class Manifest(Strict):
    """The content of ``manifest.json``.

    Attributes:
        stage: the stage that wrote the artefact.
        params: the parameters that the stage read, as plain JSON values.
        inputs: name of an input -> its digest.
        files: path of a file relative to the artefact -> its digest.
        facts: what the stage measured, as plain JSON values, for reports and metrics.
        version: the version of safegene that wrote the artefact.
    """

    OPTIONAL_KEYS: ClassVar[frozenset[str]] = frozenset()

    schema_: Literal["safegene/manifest/v1"] = Field("safegene/manifest/v1", alias="schema")
    stage: str
    params: dict[str, Any]
    inputs: dict[str, str]
    files: dict[str, str]
    facts: dict[str, Any] = {}
    version: str = __version__

    @property
    def content(self) -> bytes:
        """The bytes of ``manifest.json``: canonical JSON and a newline."""
        return canonical_json(self.model_dump(by_alias=True)) + b"\n"

    @property
    def digest(self) -> str:
        """The artefact's digest: that of its canonical manifest, which names the digest of every file."""
        return digest_bytes(canonical_json(self.model_dump(by_alias=True)))


def read_manifest(folder: Path, *, stage: str | None = None, verify: bool = True) -> Manifest:
    """Read an artefact's manifest and verify every file that it names.

    Args:
        folder: the artefact.
        stage: the stage that must have written it; None accepts every stage.
        verify: False reads the manifest only.

    Raises:
        ArtifactError: there is no manifest, so the artefact is absent or incomplete.
        FormatError: the manifest is malformed, of another stage, or names a file outside the folder.
        DigestMismatch: a file is missing, changed, or not named in the manifest.
    """
    path = folder / NAME
    if not path.is_file():
        raise ArtifactError(
            f"expected a complete artefact in {folder}, got no {NAME}",
            remedy="run the stage that writes it (`safegene run`), or `dvc pull`",
        )
    manifest = parse_json(Manifest, path.read_bytes(), where=str(path))
    if stage is not None and manifest.stage != stage:
        raise FormatError(f"expected an artefact of stage {stage!r}, got one of {manifest.stage!r}, in {path}")
    if verify:
        verify_files(folder, manifest.files)
    return manifest


def verify_files(folder: Path, files: Mapping[str, str]) -> None:
    """Check that ``folder`` holds its manifest and exactly ``files``, each with its digest.

    Raises:
        FormatError: a named file would lie outside the folder.
        DigestMismatch: a file is missing, changed, or not named in ``files``.
    """
    for name, expected in files.items():
        path = folder / name
        if os.path.isabs(name) or ".." in Path(name).parts:
            raise FormatError(f"expected file names inside the artefact, got {name!r}, in {folder / NAME}")
        if path.is_symlink() or not path.is_file():
            raise DigestMismatch(f"expected the file {path} with {expected}, got no such file")
        got = digest_file(path)
        if got != expected:
            raise DigestMismatch(f"expected {expected}, got {got}, in {path}")
    present = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_symlink() or not p.is_dir()}
    if extra := present - set(files) - {NAME}:
        raise DigestMismatch(f"expected only files that the manifest names, got also {sorted(extra)}, in {folder}")


def input_digest(path: Path) -> str:
    """The digest of an input: of an artefact's verified manifest, otherwise of the file's or folder's content.

    Raises:
        ArtifactError: there is no such file or folder.
    """
    if (path / NAME).is_file():
        return read_manifest(path).digest
    if path.is_file():
        return digest_file(path)
    if path.is_dir():
        return digest_tree(path)
    raise ArtifactError(f"expected the input {path}, got no such file or folder", remedy="run `safegene run`")


class Draft:
    """An artefact that is being written.

    Attributes:
        path: the folder to fill.
        facts: what the stage measures; they go into the manifest.
        manifest: the manifest, once the ``with`` block has ended.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.facts: dict[str, Any] = {}
        self.manifest: Manifest | None = None

    @property
    def done(self) -> Manifest:
        """The manifest of the complete artefact; to be read after the ``with`` block.

        Raises:
            ArtifactError: the block has not ended.
        """
        if self.manifest is None:
            raise ArtifactError(f"expected a complete artefact, got one that is still being written, in {self.path}")
        return self.manifest


@contextmanager
def write_artefact(
    out: Path, *, stage: str, params: Mapping[str, Any], inputs: Mapping[str, Path | str]
) -> Iterator[Draft]:
    """Write an artefact; it replaces ``out`` as a whole, or not at all.

    The block fills ``draft.path``. When it ends, the manifest is written and the folder is renamed to ``out``. On an
    exception the draft is removed and ``out`` stays as it was. The cache notes, sealed, that this artefact was made by
    a holder of the key (`safegene.workspace.seal`); the artefact itself is the same under any key.

    Args:
        out: the artefact's folder.
        stage: the stage that writes it.
        params: the parameters that the stage read, as plain JSON values.
        inputs: name of an input -> its path, or its digest.

    Raises:
        ArtifactError: an input is missing.
    """
    digests = {name: at if isinstance(at, str) else input_digest(at) for name, at in sorted(inputs.items())}
    with draft_folder(out) as folder:
        draft = Draft(folder)
        yield draft
        names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
        files = {name: digest_file(folder / name) for name in names}
        draft.manifest = Manifest(stage=stage, params=dict(params), inputs=digests, files=files, facts=draft.facts)
        (folder / NAME).write_bytes(draft.manifest.content)
    seal_artefact(draft.manifest.digest)
