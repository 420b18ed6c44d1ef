"""Commits of concurrent runs: pushed to the branch's upstream, and merged by stage where another clone was first.

Git merges text by lines, and ``dvc.lock`` is one file for all stages. So where both sides have changed it, the entry of
each stage is taken from the side that changed it, and each target of ``data/targets.yaml`` likewise. Where both changed
one entry, the upstream's counts: DVC sees then that what lies here is another output, and makes it again. Any other
conflict stops the merge, and leaves the clone as it was. Data is pushed before the commit that names it.
"""

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safegene.errors import SafegeneError
from safegene.ledger import SEEN
from safegene.workspace.atomic import write_file
from safegene.workspace.digest import strict_json
from safegene.workspace.git import git, update_index
from safegene.workspace.layout import Workspace
from safegene.workspace.plain_yaml import dump_yaml, parse_yaml

TRIES = 10
MESSAGE = "Merge what other clones pushed (safegene)"
LOCK, TARGETS = "dvc.lock", "data/targets.yaml"


@dataclass(frozen=True)
class Shared:
    """How a push ended.

    Attributes:
        upstream: the branch that has the commits now, such as ``origin/main``; "" where the branch has no upstream.
        merges: how often another clone was first.
        again: entries that both sides had changed; what belongs to them here is made again by the next run.
    """

    upstream: str
    merges: int = 0
    again: tuple[str, ...] = ()


def share_commits(ws: Workspace, sleep: Callable[[float], None] = time.sleep) -> Shared:
    """Push the branch's commits to its upstream, and merge the upstream's first where it has others.

    Raises:
        SafegeneError: the upstream does not answer; a file of people conflicts; or others were first each time.
    """
    upstream = _upstream(ws)
    if not upstream:
        return Shared("")
    remote, _, branch = upstream.partition("/")
    again = dict[str, None]()
    for merges in range(TRIES):
        again |= dict.fromkeys(update_clone(ws))
        try:
            git(ws.root, "push", "--quiet", remote, f"HEAD:refs/heads/{branch}")
            return Shared(upstream, merges, tuple(again))
        except SafegeneError as error:
            if not any(word in error.message for word in ("rejected", "cannot lock ref", "failed to update ref")):
                raise
        sleep(random.uniform(0.1, 0.5) * 2 ** min(merges, 5))  # noqa: S311 (no secret)
    raise SafegeneError(
        f"expected to push to {upstream}, got that others pushed first, {TRIES} times",
        remedy="`git pull` and `git push` later; the commit is here",
    )


def update_clone(ws: Workspace) -> list[str]:
    """Fetch the upstream, and merge it where it has commits that the branch has not; see `merge_upstream`."""
    upstream = _upstream(ws)
    if not upstream:
        return []
    git(ws.root, "fetch", "--quiet", upstream.partition("/")[0])
    return merge_upstream(ws) if int(git(ws.root, "rev-list", "--count", "HEAD..@{upstream}")) else []


def _upstream(ws: Workspace) -> str:
    """The branch's upstream, such as ``origin/main``; "" where it has none."""
    try:
        return git(ws.root, "rev-parse", "--abbrev-ref", "--symbolic-full-name", "@{upstream}")
    except SafegeneError:
        return ""


def merge_upstream(ws: Workspace) -> list[str]:
    """Merge the fetched upstream into the branch, entry by entry where `share` says so; the entries of both sides.

    Raises:
        SafegeneError: another file conflicts, or a change that is not committed is in the way. The clone is as it was.
    """
    _end_interrupted(ws)
    update_index(ws.root)
    base = git(ws.root, "merge-base", "HEAD", "@{upstream}")
    sides = [base, "HEAD", git(ws.root, "rev-parse", "@{upstream}")]
    merged, again = dict[str, str](), list[str]()
    for name, merge in {LOCK: _merge_lock, TARGETS: _merge_targets, SEEN: _newer_tip}.items():
        texts = [_content(ws, commit, name) for commit in sides]
        if "" not in texts[1:] and len({*texts[1:]}) == 2:
            merged[name], both = merge(*texts)
            again += both
    try:
        if base == git(ws.root, "rev-parse", "HEAD"):
            git(ws.root, "merge", "--ff-only", "--quiet", "@{upstream}")
            return []
        git(ws.root, "merge", "--no-commit", "--no-ff", "--quiet", "-m", MESSAGE, "@{upstream}")
    except SafegeneError as error:
        conflicts = {*git(ws.root, "diff", "--name-only", "--relative", "--diff-filter=U").split("\n")} - {"", *merged}
        if conflicts or not _is_merging(ws):
            _abort(ws)
            raise SafegeneError(
                f"expected to merge {sides[2][:12]} of the upstream, got {_named(conflicts, error)}, in {ws.root}",
                remedy="a ledger inside of the workspace has one writer: name one that all clones share in "
                "promote.ledger; otherwise merge by hand (`git merge @{upstream}`), then `safegene run`",
            ) from None
    for name, text in merged.items():
        write_file(ws.root / name, text)
    if merged:
        git(ws.root, "add", "--force", "--", *merged)
    git(ws.root, "commit", "--quiet", "--no-edit", "--allow-empty")
    return again


def merge_entries(
    base: Mapping[str, Any], ours: Mapping[str, Any], theirs: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """Three mappings as one, entry by entry, and the names of entries that both sides changed: theirs count.

    An entry that one side removed and the other did not change is gone.
    """
    merged, both = dict[str, Any](), list[str]()
    for name in (*theirs, *(name for name in ours if name not in theirs)):
        was, here, there = base.get(name), ours.get(name), theirs.get(name)
        if here != was and there != was and here != there:
            both.append(name)
        chosen = here if there == was else there
        if chosen is not None:
            merged[name] = chosen
    return merged, both


def _merge_lock(base: str, ours: str, theirs: str) -> tuple[str, list[str]]:
    locks = [_mapping(text, LOCK) for text in (base, ours, theirs)]
    stages, both = merge_entries(*(lock.get("stages") or {} for lock in locks))
    return dump_yaml({**locks[2], "stages": stages}), both


def _merge_targets(base: str, ours: str, theirs: str) -> tuple[str, list[str]]:
    files = [_mapping(text, TARGETS) for text in (base, ours, theirs)]
    merged, _ = merge_entries(*files)
    both = list[str]()
    for key in ("targets", "aliases", "degraded"):
        merged[key], changed = merge_entries(*(file.get(key) or {} for file in files))
        both += [f"{key} {name}" for name in changed]
    head = "".join(line for line in theirs.splitlines(keepends=True) if line.startswith("#"))
    return head + dump_yaml(merged), both


def _newer_tip(base: str, ours: str, theirs: str) -> tuple[str, list[str]]:
    """``ledger.seen`` of the side that has seen more of the one ledger."""
    return max((ours, theirs), key=lambda text: int(strict_json(text, where=SEEN)["sequence"])), []


def _mapping(text: str, where: str) -> dict[str, Any]:
    content = parse_yaml(text.encode(), where=where) if text else {}
    if not isinstance(content, dict):
        raise SafegeneError(f"expected a mapping, got {type(content).__name__}, in {where}")
    return content


def _content(ws: Workspace, commit: str, name: str) -> str:
    try:
        return git(ws.root, "show", f"{commit}:./{name}") + "\n"
    except SafegeneError:
        return ""


def _end_interrupted(ws: Workspace) -> None:
    """Take back a merge of a run that was killed within `merge_upstream`; one of people is an error.

    Raises:
        SafegeneError: somebody merges by hand.
    """
    if not _is_merging(ws):
        return
    if not _git_file(ws, "MERGE_MSG").read_text(encoding="utf-8").startswith(MESSAGE):
        raise SafegeneError(
            f"expected no merge under way, got one by hand, in {ws.root}",
            remedy="end it: `git commit`, or `git merge --abort`",
        )
    changed = [name for name in (LOCK, TARGETS, SEEN) if (ws.root / name).is_file()]
    git(ws.root, "add", "--force", "--", *changed)  # else Git would not take back what was written and not added
    _abort(ws)


def _git_file(ws: Workspace, name: str) -> Path:
    return ws.root / git(ws.root, "rev-parse", "--git-path", name)


def _is_merging(ws: Workspace) -> bool:
    return _git_file(ws, "MERGE_HEAD").is_file()


def _abort(ws: Workspace) -> None:
    if _is_merging(ws):
        git(ws.root, "merge", "--abort")


def _named(conflicts: set[str], error: SafegeneError) -> str:
    return f"conflicts in {', '.join(sorted(conflicts)[:5])}" if conflicts else " ".join(error.message.split())
