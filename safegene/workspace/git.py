"""Every call of the ``git`` program."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safegene.errors import SafegeneError


def git(folder: Path | str, *arguments: str) -> str:
    """Run ``git -C FOLDER ARGUMENTS`` and return its standard output, stripped.

    Raises:
        SafegeneError: Git is not installed, or exits with an error; the message holds Git's own.
    """
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise SafegeneError(f"expected the program git, got {error}", remedy="install Git") from None
    if done.returncode:
        raise SafegeneError(
            f"expected `git {arguments[0]}` to succeed, got {done.stderr.strip() or done.returncode}, in {folder}"
        )
    return done.stdout.strip()


def head_commit(folder: Path | str) -> str:
    """The commit that is checked out in the repository of ``folder``; "" where there is none."""
    try:
        return git(folder, "rev-parse", "HEAD")
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
