"""Every call of the ``git`` program.

Git protects what it writes by lock files (``.git/index.lock``), which a killed process leaves behind. A call that finds
one waits for its end. Where nobody can hold it any more, it is removed; else the error names it.
"""

import logging
import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from safegene.errors import SafegeneError

LOCK_SECONDS = 30.0
"""Age from which on a lock file is not waited for: Git and DVC hold one for a moment, except beside an editor."""
_LOCKED = re.compile(r"^(?!remote:).*Unable to create '(.+\.lock)': File exists", re.MULTILINE)
_ENGLISH = {"LC_ALL": "C.UTF-8", "LANGUAGE": "C"}  # messages are read: here, and where a push lost a race
log = logging.getLogger(__name__)


def git(
    folder: Path | str, *arguments: str, names: Iterable[str] | None = None, env: Mapping[str, str] | None = None
) -> str:
    """Run ``git -C FOLDER ARGUMENTS`` and return its standard output, stripped.

    Args:
        folder: the repository, or a folder of it.
        arguments: of the command.
        names: literal names of files, given to the command on its standard input, each with a null byte.
        env: further environment variables.

    Raises:
        SafegeneError: Git is not installed, or exits with an error; the message holds Git's own. Or another process
            holds a lock of the repository, for `LOCK_SECONDS` by now.
    """
    command = ["git", "-C", str(folder), *arguments]
    given = None if names is None else "".join(f"{name}\0" for name in names)
    environment = {**os.environ, **_ENGLISH, **(env or {})}
    while True:
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, input=given, env=environment)
        except OSError as error:
            raise SafegeneError(f"expected the program git, got {error}", remedy="install Git") from None
        if not done.returncode:
            return done.stdout.strip()
        if not (locked := _LOCKED.search(done.stderr)):
            raise SafegeneError(
                f"expected `git {arguments[0]}` to succeed, got {done.stderr.strip() or done.returncode}, in {folder}"
            )
        _end_of_lock(Path(locked[1]))


def _end_of_lock(lock: Path) -> None:
    """Return when a lock file is gone: released, or removed where every process that can hold it has ended.

    The one that made it began before it did. So a lock is left over where it is older than `LOCK_SECONDS`, and each
    Git program that runs on this machine began later.

    Raises:
        SafegeneError: the lock is that old, and one of them began earlier.
    """
    waited = time.monotonic() + LOCK_SECONDS  # also where the clock was set back, and the lock is from the future
    with suppress(FileNotFoundError):
        while (made := lock.stat().st_mtime) > time.time() - LOCK_SECONDS and time.monotonic() < waited:
            time.sleep(0.1)
        older = _git_programs(began_by=made + 1)
        if older:
            raise SafegeneError(
                f"expected Git's lock {lock} to be released, got one from {time.ctime(made)}, and a Git program that "
                f"may hold it (process {older[0]})",
                remedy=f"end that program; if it works elsewhere, remove the lock: `rm {shlex.quote(str(lock))}`",
            )
        lock.unlink()
        log.warning("removed %s, which a killed process has left", lock)


def _git_programs(began_by: float) -> list[int]:
    """Processes of this machine that run a Git program, and began by then."""
    import psutil  # half a tenth of a second, which few commands need

    found = list[int]()
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.name().startswith("git") and process.create_time() <= began_by:
                found += [process.pid] if process.status() != psutil.STATUS_ZOMBIE else []
    return found


def head_commit(folder: Path | str) -> str:
    """The commit that is checked out in the repository of ``folder``; "" where there is none."""
    try:
        return git(folder, "rev-parse", "HEAD")
    except SafegeneError:
        return ""


def commit_date(folder: Path | str) -> str:
    """When the commit that is checked out was made, in ISO 8601; "" where there is none."""
    try:
        return git(folder, "show", "--no-patch", "--format=%cI", "HEAD")
    except SafegeneError:
        return ""


def config_value(folder: Path | str, key: str) -> str:
    """A value of Git's configuration, such as ``user.name``; "" where it is not set."""
    try:
        return git(folder, "config", "--get", key)
    except SafegeneError:
        return ""


def has_commit(folder: Path | str, commit: str) -> bool:
    """Whether the repository of ``folder`` holds that commit."""
    try:
        git(folder, "cat-file", "-e", f"{commit}^{{commit}}")
    except SafegeneError:
        return False
    return True


@contextmanager
def worktree(folder: Path, commit: str, place: Path) -> Iterator[Path]:
    """A checkout of a commit in a folder of its own, removed when the block ends.

    No hook runs, and the branch and the files of ``folder`` stay as they are.

    Args:
        folder: a folder of the repository.
        commit: what is checked out.
        place: a new folder for the checkout.

    Yields:
        The folder in the checkout that corresponds to ``folder``.

    Raises:
        SafegeneError: Git failed.
    """
    below = git(folder, "rev-parse", "--show-prefix")
    git(folder, "-c", "core.hooksPath=/dev/null", "worktree", "add", "--quiet", "--detach", str(place), commit)
    try:
        yield place / below
    finally:
        git(folder, "worktree", "remove", "--force", str(place))


def versions_of(folder: Path, path: str) -> Iterator[tuple[str, bytes]]:
    """(commit, content) of a file, for every commit of every branch that changed it, the newest first.

    Args:
        folder: the folder that ``path`` is relative to.
        path: the file.
    """
    for commit in git(folder, "log", "--all", "--format=%H", "--", path).split():
        done = subprocess.run(
            ["git", "-C", str(folder), "cat-file", "blob", f"{commit}:./{path}"], capture_output=True, check=False
        )
        if not done.returncode:
            yield commit, done.stdout


def committed(folder: Path | str, *names: str) -> dict[str, bytes]:
    """What files hold at Git's HEAD.

    Args:
        folder: a folder of the repository.
        names: paths relative to the folder.

    Returns:
        name -> content, of the files that HEAD has; none where there is no commit, no repository or no Git.
    """
    asked = "".join(f"HEAD:./{name}\n" for name in names).encode()
    command = ["git", "-C", str(folder), "cat-file", "--batch"]
    try:
        done = subprocess.run(command, input=asked, capture_output=True, check=False)
    except OSError:
        return {}
    found, rest = dict[str, bytes](), done.stdout
    for name in names if done.returncode == 0 else ():
        head, _, rest = rest.partition(b"\n")
        if head.endswith(b" missing"):
            continue
        kind, size = head.split()[1:]
        content, rest = rest[: int(size)], rest[int(size) + 1 :]
        if kind == b"blob":
            found[name] = content
    return found


def commit_files(root: Path, message: str, files: Collection[str], *, untracked: Collection[str] = ()) -> str:
    """Commit exactly these files, ignored ones too, and return the head commit.

    What else is staged is left as it is, and in no commit. Nothing is committed where HEAD has these files already.

    Args:
        root: the top folder of the repository.
        message: of the commit.
        files: names relative to ``root``.
        untracked: files and folders that Git must not track; the commit removes them from Git, and leaves them here.

    Raises:
        SafegeneError: Git refuses; or HEAD does not hold the bytes of every file afterwards.
    """
    update_index(root)
    with _index_of_head(root) as index:
        git(root, "add", "--force", *_NAMED, names=files, env=index)
        if untracked:
            git(root, "rm", "-r", "--quiet", "--cached", "--ignore-unmatch", *_NAMED, names=untracked, env=index)
        changed = sorted(_differing(root, "--cached", env=index))
        if changed:
            git(root, "commit", "--quiet", "-m", message, env=index)
            git(root, "reset", "--quiet", *_NAMED, names=changed, env=_LITERAL)
    _require_committed(root, files, {*changed} & {*files})
    return head_commit(root)


def update_index(root: Path) -> None:
    """Let the index follow HEAD, where a commit of `commit_files` was made and its process was killed right after.

    That is where the files are as HEAD has them, and what is staged is as the commit before has it: nothing is lost.
    Git would refuse to merge, and would commit the reverse of that commit next.
    """
    staged = _differing(root, "--cached", "HEAD") if head_commit(root) else set()
    if not staged:
        return
    with suppress(SafegeneError):  # the first commit follows none
        late = staged - _differing(root, "--cached", "HEAD^")
        with _index_of_head(root) as index:
            late -= _differing(root, env=index)
        if late:
            git(root, "reset", "--quiet", *_NAMED, names=sorted(late), env=_LITERAL)


@contextmanager
def _index_of_head(root: Path) -> Iterator[dict[str, str]]:
    """The environment in which Git uses a temporary index, which holds what HEAD does."""
    with TemporaryDirectory(prefix="safegene-") as folder:
        index = {"GIT_INDEX_FILE": str(Path(folder, "index")), **_LITERAL}
        present = root / git(root, "rev-parse", "--git-path", "index")
        if present.is_file():
            shutil.copyfile(present, index["GIT_INDEX_FILE"])  # keeps what Git knows of files that have not changed
        if head_commit(root):
            git(root, "reset", "--quiet", env=index)
        yield index


def _differing(root: Path, *sides: str, env: Mapping[str, str] | None = None) -> set[str]:
    """Names below ``root`` of files that differ, as ``git diff`` compares."""
    names = git(root, "diff", "--relative", "--no-renames", "--name-only", "-z", *sides, "--", env=env)
    return {*names.split("\0")} - {""}


_NAMED = ("--pathspec-from-file=-", "--pathspec-file-nul")
_LITERAL = {"GIT_LITERAL_PATHSPECS": "1"}
_BATCH = 200  # files that one command line names


def _require_committed(root: Path, files: Collection[str], changed: Collection[str]) -> None:
    """Check that HEAD names every file, and holds the bytes of those that the last commit changed."""
    lines = git(root, "ls-tree", "-r", "-z", "HEAD").split("\0") if files else []
    blobs = {name: entry.split()[2] for entry, _, name in (line.partition("\t") for line in lines if line)}
    if missing := sorted(set(files) - set(blobs)):
        raise SafegeneError(f"expected Git's HEAD to hold {missing[0]} after the commit, got {len(missing)} missing")
    for names in _batches(sorted(changed), _BATCH):
        hashes = git(root, "hash-object", "--no-filters", "--", *names).split()
        if other := [name for name, found in zip(names, hashes, strict=True) if blobs[name] != found]:
            raise SafegeneError(
                f"expected Git's HEAD to hold the bytes of {other[0]}, got others: a filter or .gitattributes changes "
                "them",
                remedy="remove the rule that `git check-attr -a` shows for this file, and commit again",
            )


def _batches(names: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    """The names in groups of ``size``, the last one smaller."""
    return (names[start : start + size] for start in range(0, len(names), size))
