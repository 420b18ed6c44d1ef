"""A folder of large files that is written file by file, and of which a killed writer's finished files are used again.

The draft is ``.NAME.DIGEST.resume`` beside the folder, DIGEST being that of everything that the files depend on. It
holds the files and the log of those that are finished. A later writer of the same content finds it, verifies the
digests of the finished files, and writes the rest; a writer of other content removes it. The kernel's lock on the draft
ends with its process.
"""

import fcntl
import glob
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safegene.errors import CheckpointError
from safegene.workspace.atomic import draft_folder
from safegene.workspace.digest import digest_file, digest_json
from safegene.workspace.resume_log import ResumeLog

FILES, LOG = "files", "log"


class Draft:
    """A folder that is being filled.

    Attributes:
        path: the folder.
    """

    def __init__(self, path: Path, log: ResumeLog | None) -> None:
        self.path, self._log = path, log
        self._done: Mapping[str, Any] = log.read() if log else {}

    def finished(self, file: str) -> dict[str, Any] | None:
        """What was noted when ``file`` was finished; None where it is missing, or is not what was written then."""
        note, path = self._done.get(file), self.path / file
        if note is None or not path.is_file() or digest_file(path) != note["digest"]:
            return None
        noted: dict[str, Any] = note["noted"]
        return noted

    def finish(self, file: str, digest: str, noted: Mapping[str, Any]) -> None:
        """Note that ``file`` is complete and has this digest."""
        if self._log:
            self._log.append({file: {"digest": digest, "noted": noted}})


@contextmanager
def resumable_draft(out: Path, identity: Mapping[str, Any] | None) -> Iterator[Draft]:
    """Give a folder to fill; when the block ends, it becomes ``out``. On an exception it is removed, on a kill not.

    Args:
        out: a new folder.
        identity: everything that its files depend on; with None, nothing of a killed writer is used.

    Raises:
        CheckpointError: another process is writing the same.
    """
    if identity is None:
        with draft_folder(out) as folder:
            yield Draft(folder, None)
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    path = out.with_name(f".{out.name}.{digest_json(identity)[-16:]}.resume")
    for left in out.parent.glob(f".{glob.escape(out.name)}.*.resume"):
        if left != path:
            _remove_unlocked(left)
    path.mkdir(exist_ok=True)
    with _alone(path, out):
        try:
            yield _draft(path, identity)
            (path / FILES).rename(out)
            shutil.rmtree(path, ignore_errors=True)
        except Exception:
            shutil.rmtree(path, ignore_errors=True)
            raise


def _draft(path: Path, identity: Mapping[str, Any]) -> Draft:
    (path / FILES).mkdir(exist_ok=True)
    return Draft(path / FILES, ResumeLog(path / LOG, identity))


@contextmanager
def _alone(folder: Path, out: Path) -> Iterator[None]:
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise CheckpointError(
            f"expected to be the only writer of {out}, got another process that is writing it",
            remedy="wait for it, or name another folder",
        ) from None
    finally:
        os.close(lock)


def _remove_unlocked(folder: Path) -> None:
    with suppress(CheckpointError), _alone(folder, folder):
        shutil.rmtree(folder, ignore_errors=True)
