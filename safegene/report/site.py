"""The pages of a workspace in a folder: ``index.html``, the overview, and ``targets/<name>.html``.

A target's page is drawn again only where what it shows has changed: `page_key` is a digest of all of it, and of the
code that draws it. Keys and the digests of the written bytes are kept in ``.drawn.json``; a page that somebody else has
changed is drawn again. A page that this module wrote for a target that is no longer there is removed.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

from safegene.report.live import LiveLookup
from safegene.report.page import channel_of, render_index, render_target
from safegene.report.portfolio import page_of
from safegene.report.records import Records, read_records
from safegene.report.spent import spent
from safegene.report.state import TargetState, WorkspaceState, read_state
from safegene.version import __version__
from safegene.workspace.atomic import write_file
from safegene.workspace.digest import digest_bytes, digest_file
from safegene.workspace.layout import Workspace
from safegene.workspace.staleness import data_digests

INDEX, DRAWN = "index.html", ".drawn.json"
DRAWING = ("safegene.report", "safegene.gate")
"""Packages whose source decides what a page looks like."""


@dataclass(frozen=True)
class Site:
    """The pages that were written.

    Attributes:
        folder: where they are.
        pages: every page's path below the folder, the overview first.
        drawn: those that were drawn this time; the others had not changed.
    """

    folder: Path
    pages: tuple[str, ...]
    drawn: tuple[str, ...]

    @property
    def index(self) -> Path:
        """The overview."""
        return self.folder / INDEX


def write_report(workspace: Workspace, folder: Path | None = None, *, live: LiveLookup | None = None) -> Path:
    """`write_site`; the path of the overview."""
    return write_site(workspace, folder, live=live).index


def write_site(workspace: Workspace, folder: Path | None = None, *, live: LiveLookup | None = None) -> Site:
    """Write the pages; the same artefacts, ledger and commit give the same bytes.

    Args:
        workspace: the pipeline repository.
        folder: where; None for ``reports``.
        live: as in `safegene.report.state.read_state`; where it is given, the ledger is not read, and no history shown.

    Raises:
        ParamsError: ``data/targets.yaml`` is unusable.
    """
    out = folder or workspace.reports
    records = Records() if live else read_records(workspace)
    state, data, channel = read_state(workspace, live=live), data_digests(workspace), channel_of(workspace)
    before, now, drawn = _read_drawn(out), dict[str, tuple[str, str]](), [INDEX]
    for target in state.targets:
        name, key = page_of(target.name), page_key(target, state, records, data, channel)
        kept = before.get(name)
        if kept is None or kept[0] != key or not _is_file_of(out / name, kept[1]):
            page = render_target(target, state, records, data, channel)
            write_file(out / name, page)
            kept = (key, digest_bytes(page.encode()))
            drawn.append(name)
        now[name] = kept
    write_file(out / INDEX, render_index(state, workspace, records, data))
    for name in set(before) - set(now):
        if _is_file_of(out / name, before[name][1]):
            (out / name).unlink()
    write_file(out / DRAWN, json.dumps(now, indent=0, sort_keys=True) + "\n")
    return Site(out, (INDEX, *now), tuple(drawn))


def page_key(
    target: TargetState, state: WorkspaceState, records: Records, data: Mapping[str, str], channel: str
) -> str:
    """A digest of everything that a target's page shows, and of the code that draws it.

    The artefacts are verified, so their manifests stand for their bytes; a record's digest stands for its content.
    """
    signed = [(one.record.digest, one.signer) for one in records.of(target.name)]
    costs = spent(state.root, target.artefacts)
    shown = (_code(), target, state.family, signed, records.problem, costs, sorted(data.items()), channel)
    return digest_bytes(repr(shown).encode("utf-8", "backslashreplace"))


@cache
def _code() -> str:
    """A digest of the version, and of the source and templates of `DRAWING`."""
    sources = [
        (package, path.name, path.read_bytes())
        for package in DRAWING
        for path in sorted(files(package).iterdir(), key=lambda path: path.name)
        if path.is_file()
    ]
    return digest_bytes(repr((__version__, sources)).encode())


def _is_file_of(path: Path, digest: str) -> bool:
    return path.is_file() and not path.is_symlink() and digest_file(path) == digest


def _read_drawn(folder: Path) -> dict[str, tuple[str, str]]:
    """Page -> its key and the digest of its bytes; nothing where the file is absent or of another form."""
    try:
        return dict(_parse(json.loads((folder / DRAWN).read_bytes())))
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _parse(content: Mapping[str, object]) -> Iterator[tuple[str, tuple[str, str]]]:
    for name, kept in content.items():
        match kept:
            case [str(key), str(digest)] if name == page_of(Path(name).stem):
                yield name, (key, digest)
