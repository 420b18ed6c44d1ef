"""The receipt of an artefact: made by which stage, from what, with which parameters, and every byte of it.

An artefact is a folder with a payload and ``manifest.json``. The manifest is written last, so a manifest means a
complete artefact. It holds no clock and no machine name: the same inputs and parameters give the same bytes.
"""

import glob
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safegene import __version__
from safegene.errors import ArtifactError, DigestMismatch, FormatError
from safegene.workspace.digest import canonical_json, digest_file, digest_json, digest_tree, strict_json

NAME = "manifest.json"
SCHEMA = "safegene/manifest/v1"


@dataclass(frozen=True)
class Manifest:
    """What one artefact is.

    Attributes:
        stage: the stage that made it.
        params: the parameters that influenced it, as plain JSON values.
        inputs: input name -> digest.
        files: file name relative to the artefact -> digest.
        facts: what the stage measured (plain JSON values), for reports and metrics.
        version: the safegene that made it.
    """

    stage: str
    params: Mapping[str, Any]
    inputs: Mapping[str, str]
    files: Mapping[str, str]
    facts: Mapping[str, Any] = field(default_factory=dict)
    version: str = __version__

    def to_json(self) -> dict[str, Any]:
        """The manifest as plain JSON values."""
        return {
            "schema": SCHEMA,
            "stage": self.stage,
            "params": dict(self.params),
            "inputs": dict(self.inputs),
            "files": dict(self.files),
            "facts": dict(self.facts),
            "version": self.version,
        }

    @property
    def content(self) -> bytes:
        """The bytes of ``manifest.json``."""
        return canonical_json(self.to_json()) + b"\n"

    @property
    def digest(self) -> str:
        """The artefact's digest: of its canonical manifest, which names the digest of every file."""
        return digest_json(self.to_json())


def read_manifest(folder: Path, *, stage: str | None = None, verify: bool = True) -> Manifest:
    """Read an artefact's manifest and, unless told otherwise, verify every byte that it names.

    Raises:
        ArtifactError: there is no manifest: the artefact is absent or was never finished.
        FormatError: the manifest is malformed, of another stage, or names a file outside its folder.
        DigestMismatch: a file is missing, changed, or present without being named.
    """
    path = folder / NAME
    if not path.is_file():
        raise ArtifactError(
            f"expected a finished artefact in {folder}, got no {NAME}",
            remedy="run the stage that makes it (`safegene run`), or `dvc pull`",
        )
    raw = strict_json(path.read_bytes(), where=str(path))
    keys = {"schema", "stage", "params", "inputs", "files", "facts", "version"}
    if not isinstance(raw, dict) or raw.get("schema") != SCHEMA or set(raw) != keys:
        raise FormatError(f"expected a manifest of schema {SCHEMA} with keys {sorted(keys)}, got another, in {path}")
    if stage is not None and raw["stage"] != stage:
        raise FormatError(f"expected an artefact of stage {stage!r}, got one of {raw['stage']!r}, in {path}")
    manifest = Manifest(**{key: raw[key] for key in keys - {"schema"}})
    if verify:
        verify_files(folder, manifest.files)
    return manifest


def verify_files(folder: Path, files: Mapping[str, str]) -> None:
    """Check that ``folder`` holds exactly ``files`` (and its manifest), byte for byte.

    Raises:
        FormatError: a named file would lie outside the folder.
        DigestMismatch: a file is missing, changed, or present without being named.
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
    """Digest of a stage's input: an artefact's manifest (verified), else a file's or folder's content."""
    if (path / NAME).is_file():
        return read_manifest(path).digest
    if path.is_file():
        return digest_file(path)
    if path.is_dir():
        return digest_tree(path)
    raise ArtifactError(f"expected the input {path}, got no such file or folder", remedy="run `safegene run`")


class Draft:
    """An artefact being written: a temporary sibling folder, and the facts found on the way."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.facts: dict[str, Any] = {}
        self.manifest: Manifest | None = None

    @property
    def done(self) -> Manifest:
        """The finished manifest; only after the ``with`` block."""
        if self.manifest is None:
            raise ArtifactError(f"expected a finished artefact, got one still being written, in {self.path}")
        return self.manifest


@contextmanager
def write_artefact(
    out: Path, *, stage: str, params: Mapping[str, Any], inputs: Mapping[str, Path | str]
) -> Iterator[Draft]:
    """Write an artefact so that it exists whole or not at all.

    The block fills ``draft.path``; on success the manifest is written last and the folder renamed to ``out``. On any
    exception the draft is removed and ``out`` is as it was. ``inputs`` maps a name to a path or to a digest.
    """
    digests = {name: at if isinstance(at, str) else input_digest(at) for name, at in sorted(inputs.items())}
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = Draft(out.parent / f".{out.name}.{os.getpid()}.draft")
    for left in (draft.path, *out.parent.glob(f".{glob.escape(out.name)}.*.draft")):
        if not _alive(left.name.split(".")[-2]) or left == draft.path:  # a killed writer's
            shutil.rmtree(left, ignore_errors=True)
    draft.path.mkdir()
    try:
        yield draft
        names = sorted(p.relative_to(draft.path).as_posix() for p in draft.path.rglob("*") if p.is_file())
        files = {name: digest_file(draft.path / name) for name in names}
        draft.manifest = Manifest(stage, params, digests, files, draft.facts)
        (draft.path / NAME).write_bytes(draft.manifest.content)
        shutil.rmtree(out, ignore_errors=True)
        draft.path.rename(out)
    finally:
        shutil.rmtree(draft.path, ignore_errors=True)


def _alive(pid: str) -> bool:
    """Whether a process of this machine has that number (a writer on another one counts as alive)."""
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except (ValueError, OverflowError, PermissionError):
        return True
    return True
