"""Every call of the ``git`` program."""

import subprocess
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
