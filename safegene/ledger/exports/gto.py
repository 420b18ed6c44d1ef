"""What is live, and what was, as Git tags in the format of GTO: ``TARGET@vN.0.0`` and ``TARGET#CHANNEL#N``.

Each release of a target gets a version, in the order in which the releases were first promoted; each promotion and each
rollback assigns a channel to the version's commit. GTO reads a registry from such tags alone.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from safegene.errors import LedgerError
from safegene.ledger.exports.facts import mapping
from safegene.ledger.pointers import record_key
from safegene.ledger.record import Record
from safegene.ledger.snapshot import effective_records
from safegene.workspace.git import git

NAME = re.compile(r"[a-zA-Z0-9](?:[a-zA-Z0-9-/_]*[a-zA-Z0-9])?")


@dataclass(frozen=True)
class GtoTag:
    """A tag.

    Attributes:
        name: in GTO's format.
        commit: what it tags: the commit that added the record, otherwise the one that the run started from.
        message: of the annotated tag.
    """

    name: str
    commit: str
    message: str


def gto_tags(
    chain: Sequence[Record], *, target: str | None = None, commits: Mapping[str, str] | None = None
) -> tuple[GtoTag, ...]:
    """The tags of every release that was ever live, oldest first.

    Args:
        chain: the records, from the newest to the first.
        target: only of this target; None for all.
        commits: record digest -> the commit that added it, where known.

    Raises:
        LedgerError: the target has no release, GTO has no such names, or a record names no commit.
    """
    effective = effective_records(chain)
    published = [record for record in reversed(chain) if record.digest in effective and target in (None, record.target)]
    if not published:
        raise LedgerError(f"expected a release that was live{f' for {target}' if target else ''}, got none")
    tags, versions, assigned = list[GtoTag](), dict[tuple[str, str], GtoTag](), dict[str, int]()
    for record in published:
        for name in (record.target, record.channel):
            if not NAME.fullmatch(name):
                raise LedgerError(
                    f"expected a name of letters, digits, '-', '_' and '/', as GTO has them, got {name!r}"
                )
        key = (record.target, str(record.release))
        if key not in versions:
            number = 1 + sum(known == record.target for known, _ in versions)
            commit = (commits or {}).get(record.digest) or _started_from(record)
            words = f"release {record.release}, record {record.sequence} {record.digest}"
            versions[key] = GtoTag(f"{record.target}@v{number}.0.0", commit, words)
            tags.append(versions[key])
        assigned[record.target] = assigned.get(record.target, 0) + 1
        name = f"{record.target}#{record.channel}#{assigned[record.target]}"
        tags.append(GtoTag(name, versions[key].commit, f"record {record.sequence} {record.digest}: {record.reason}"))
    return tuple(tags)


def adding_commits(root: Path, ledger: str, chain: Sequence[Record]) -> dict[str, str]:
    """Record digest -> the commit that added its file, for a ledger in the repository; {} for another ledger."""
    if "://" in ledger or Path(ledger).is_absolute():
        return {}
    commits = {}
    for record in chain:
        place = f"{ledger.rstrip('/')}/{record_key(record.digest)}"
        if found := git(root, "log", "--diff-filter=A", "--format=%H", "-1", "--", place):
            commits[record.digest] = found
    return commits


def create_tags(root: Path, tags: Sequence[GtoTag]) -> tuple[GtoTag, ...]:
    """Create, in the repository of ``root``, the annotated tags that it does not have; those that were created.

    Raises:
        LedgerError: a tag of that name is on another commit.
        SafegeneError: Git failed.
    """
    present = dict(
        line.split(" ") for line in git(root, "tag", "--format=%(refname:short) %(*objectname)").splitlines()
    )
    for tag in tags:
        if tag.name in present and present[tag.name] != tag.commit:
            raise LedgerError(
                f"expected the tag {tag.name} on {tag.commit}, got it on {present[tag.name] or 'another object'}",
                remedy="find out who made it, and remove it",
            )
    new = tuple(tag for tag in tags if tag.name not in present)
    for tag in new:
        git(root, "tag", "--annotate", tag.name, tag.commit, "-m", tag.message)
    return new


def _started_from(record: Record) -> str:
    commit = mapping(record.predicate.code).get("git_commit")
    if not isinstance(commit, str):
        raise LedgerError(f"expected a Git commit in record {record.sequence}, got none: the workspace had no commit")
    return commit
