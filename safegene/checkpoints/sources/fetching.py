"""Fetch a source into the cache: list its files, check their sizes, copy them, verify the copy, name it by content."""

import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock

from safegene.checkpoints.adapter import open_adapter
from safegene.checkpoints.checkpoint import open_checkpoint
from safegene.checkpoints.record import CheckpointRecord, read_record
from safegene.checkpoints.sources import cache
from safegene.checkpoints.sources.cache import CachedCheckpoint
from safegene.checkpoints.sources.uri import Source, open_source, parse
from safegene.checkpoints.unsafe import read_json
from safegene.checkpoints.wanted import ADAPTER_CONFIG, ADAPTER_WEIGHTS, INDEX, checkpoint_files, refuse_pickles_alone
from safegene.errors import (
    ArtifactError,
    DigestMismatch,
    SafegeneError,
    SourceError,
    StaleArtifact,
)
from safegene.text import redact, visible
from safegene.workspace.credentials import REMOVED
from safegene.workspace.digest import digest_json
from safegene.workspace.layout import cache_folder
from safegene.workspace.params import FetchParams
from safegene.workspace.progress import log_progress

LOCAL = frozenset({"file", "tiny"})  # schemes that need no credentials
SHOWN = 8  # ignored files that the log names
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelFiles:
    """The files of a model.

    Attributes:
        root: a full checkpoint.
        adapters: PEFT LoRA adapters to add to it.
    """

    root: Path
    adapters: tuple[Path, ...] = ()


def fingerprint(uri: str) -> str:
    """A text that identifies the present content of a source, without copying it.

    ``file``: digest of the files; ``hf``: ``commit:<sha>``; ``s3``: digest of names, etags and sizes; ``tiny``: digest
    of the recipe.

    Raises:
        SourceError: there is no such source, or it does not answer.
    """
    return open_source(parse(uri)).fingerprint()


def fetch(uri: str, *, limits: FetchParams, expected: str | None = None) -> CachedCheckpoint:
    """A verified copy of a source's content; an intact copy in the cache is used.

    Args:
        uri: the source.
        limits: allowed size and model types.
        expected: the digest that the copy must have. If it is given, the model type is not checked again.

    Raises:
        SourceError: the source cannot be found, is too large, or does not answer.
        CheckpointError: the checkpoint breaks a rule of `safegene.checkpoints`.
        UnsafeCheckpoint: opening the checkpoint could run code, leave its folder or exhaust memory.
        DigestMismatch: the source holds something else than ``expected``.
    """
    source = open_source(parse(uri))
    current_fingerprint = source.fingerprint()
    download = cache.download_folder(uri, current_fingerprint)
    download.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{download}.lock"):
        local = cache.find_cached(uri, current_fingerprint) or _copy(
            source, uri, current_fingerprint, download, limits, check_model_type=expected is None
        )
    if expected is not None and local.digest != expected:
        raise DigestMismatch(
            f"expected a checkpoint with {expected}, got {local.digest}, from {redact(uri)}",
            remedy="the source has changed since: `safegene run` fetches and gates what it holds now",
        )
    return local


def local_checkpoint(artefact: Path, limits: FetchParams | None = None, *, family: Path | None = None) -> ModelFiles:
    """The files that a ``fetch`` artefact names, fetched again where they are not in the cache.

    Args:
        artefact: a folder with ``checkpoint.json``.
        limits: as for `fetch`.
        family: the artefact of the aligned model, which the adapter of a LoRA target is added to.

    Raises:
        ArtifactError: the artefact is incomplete, or ``family`` is missing for a LoRA target.
        StaleArtifact: the adapter was fetched for another aligned model.
        DigestMismatch: the source holds something else now.
    """
    record = read_record(artefact)
    folder = _cached_or_fetched_folder(record, limits or FetchParams())
    if record.kind == "full":
        return ModelFiles(folder)
    if family is None:
        raise ArtifactError(f"expected the family's artefact for the LoRA target {artefact}, got none")
    base = read_record(family)
    if base.digest != record.base:
        raise StaleArtifact(
            f"expected the aligned model {record.base} under the adapter, got {base.digest}, in {artefact}",
            remedy="run `safegene run`: the target is fetched and checked against the new family",
        )
    return ModelFiles(_cached_or_fetched_folder(base, limits or FetchParams()), (folder,))


def bring(artefact: Path, limits: FetchParams) -> bool:
    """Copy the files that a ``fetch`` artefact names into the cache; whether they were missing there."""
    record = read_record(artefact)
    missing = not _is_cached(record)
    if missing:
        fetch(record.source, limits=limits, expected=record.digest)
    return missing


def _is_cached(record: CheckpointRecord) -> bool:
    folder = cache.cached_folder(record.digest)
    return digest_json(record.files) == record.digest and cache.is_intact(folder, record.files)


def _cached_or_fetched_folder(record: CheckpointRecord, limits: FetchParams) -> Path:
    if _is_cached(record):
        return cache.cached_folder(record.digest)
    if os.environ.get(REMOVED) and parse(record.source).scheme not in LOCAL:
        raise SourceError(
            f"expected {record.digest} in the cache of a stage that holds no credentials, got no copy of "
            f"{redact(record.source)}",
            remedy="`safegene run` copies it before it runs the stage",
        )
    return fetch(record.source, limits=limits, expected=record.digest).root


def _copy(
    source: Source, uri: str, current_fingerprint: str, download: Path, limits: FetchParams, *, check_model_type: bool
) -> CachedCheckpoint:
    sizes = source.sizes()
    with _discard_refused(download, uri):
        names = _checked_names(source, sizes, uri, download)
    _require_room(sum(sizes[name] for name in names), uri, limits, in_place=getattr(source, "in_place", False))
    download.mkdir(parents=True, exist_ok=True)
    for at, name in enumerate(names):
        size = f"{visible(name)}, {sizes[name] / 1e6:.1f} MB"
        log_progress(log, f"{redact(uri)}, files", at, len(names), size, overall=True)
        source.copy((name,), download)
    log_progress(log, f"{redact(uri)}, files", len(names), len(names), overall=True)
    for path in download.iterdir():  # files of a library, or of an earlier attempt
        if path.name not in names:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    with _discard_refused(download, uri):
        kind = _verify(download, limits.model_types if check_model_type else None)
        files = {name: _digest(download / name) for name in names}
    folder = cache.store_download(download, files)
    local = CachedCheckpoint(folder, kind, digest_json(files), files, current_fingerprint)
    cache.note_source(uri, local)
    return local


@contextmanager
def _discard_refused(download: Path, uri: str) -> Iterator[None]:
    """Remove the download where it is refused, and name its source in place of its folder."""
    try:
        yield
    except SourceError:  # a source that does not answer: the download resumes
        raise
    except SafegeneError as error:
        shutil.rmtree(download, ignore_errors=True)
        raise type(error)(error.message.replace(str(download), redact(uri)), remedy=error.remedy) from None


def _checked_names(source: Source, sizes: Mapping[str, int], uri: str, download: Path) -> tuple[str, ...]:
    """The files of the checkpoint; the index is copied first where it must say which files are shards."""
    where = redact(uri)

    def index() -> dict[str, Any]:
        download.mkdir(parents=True, exist_ok=True)
        source.copy((INDEX,), download)
        return read_json(download / INDEX)

    refuse_pickles_alone(sizes, where)
    names = checkpoint_files(sizes, index)
    if not any(name.endswith(".safetensors") for name in names):
        raise SourceError(f"expected a checkpoint with safetensors weights, got {sorted(sizes)[:5]}, in {where}")
    if ignored := sorted(set(sizes) - set(names)):
        more = f" and {len(ignored) - SHOWN} more" if len(ignored) > SHOWN else ""
        named = ", ".join(map(visible, ignored[:SHOWN]))
        log.info("%s: ignored %s%s: not part of a checkpoint", where, named, more)
    return names


def _digest(path: Path) -> str:
    """The file's digest, in one pass with the check of its numbers."""
    return cache.checked_digest(path) if path.name.endswith(".safetensors") else cache.known_digest(path)


def _require_room(total: int, uri: str, limits: FetchParams, *, in_place: bool) -> None:
    where, most = redact(uri), int(limits.max_gibibytes * (1 << 30))
    if total > most:
        raise SourceError(
            f"expected at most {most} bytes, got {total}, in {where}", remedy="raise fetch.max_gibibytes in params.yaml"
        )
    free = shutil.disk_usage(cache_folder()).free
    if total > free and not in_place:
        raise SourceError(
            f"expected {total} bytes free in {cache_folder()}, got {free}, for {where}",
            remedy="free some space, or set SAFEGENE_CACHE to a folder on a larger disk",
        )


def _verify(folder: Path, model_types: tuple[str, ...] | None) -> Literal["full", "lora"]:
    """The kind of a checkpoint, whose names, configs and headers are verified; no weight is read."""
    names = {path.name for path in folder.iterdir()}
    if ADAPTER_WEIGHTS in names or (ADAPTER_CONFIG in names and "config.json" not in names):
        open_adapter(folder)
        return "lora"
    open_checkpoint(folder, model_types=model_types)
    return "full"
