"""``incumbent.json``: what was live for a target when its candidate was about to be evaluated.

``evaluate`` depends on this file, which Git tracks, so DVC evaluates again when what is live has changed.
"""

from pathlib import Path

from safegene.ledger.attempts import Attempt
from safegene.ledger.chain import Ledger
from safegene.ledger.live import earlier_candidates, live_record
from safegene.ledger.release import open_release
from safegene.ledger.store import open_store
from safegene.workspace.atomic import write_file
from safegene.workspace.digest import PREFIX, canonical_json
from safegene.workspace.fields import Digest
from safegene.workspace.layout import cache_folder
from safegene.workspace.parsing import Strict, parse_json


class Incumbent(Strict):
    """The content of ``incumbent.json``.

    Attributes:
        live: digest of the release that was live; None for none.
        release: where that release is; relative to the workspace where the ledger is.
        candidate: digest of the candidate in that release.
        earlier: the earlier attempts on the same fine-tune, see `safegene.ledger.live.earlier_candidates`.
    """

    live: Digest | None
    release: str | None
    candidate: str | None
    earlier: tuple[Digest, ...] = ()

    @property
    def attempt(self) -> int:
        """The number of the present attempt on its fine-tune, from 1."""
        return 1 + len(self.earlier)


def read_incumbent(path: Path | None) -> Incumbent:
    """Read ``incumbent.json``; a missing file says that nothing was live and nothing was tried.

    Raises:
        FormatError: the file is malformed.
    """
    if path is None or not path.is_file():
        return Incumbent(live=None, release=None, candidate=None)
    return parse_json(Incumbent, path.read_bytes(), where=str(path))


def open_incumbent(incumbent: Incumbent, root: Path) -> Path | None:
    """The folder of the release that was live, verified byte for byte; None when nothing was live.

    Args:
        incumbent: the content of ``incumbent.json``.
        root: the workspace, which relative places refer to.

    Raises:
        DigestMismatch: a byte of the release has changed.
    """
    if incumbent.live is None:
        return None
    store = open_store(str(incumbent.release).rpartition("/releases/")[0], base=root)
    return open_release(store, incumbent.live, cache=cache_folder())


def write_incumbent(
    path: Path, ledger: Ledger, place: str, *, target: str, channel: str, attempt: Attempt
) -> str | None:
    """Write what is live to ``incumbent.json``.

    The file stays as it is where the present candidate is what is live: a comparison with itself would say nothing, and
    the verdict that it has was measured against what was live before. A revoked release is no reference: then the file
    says that nothing is live.

    Args:
        path: the file.
        ledger: the ledger.
        place: the ledger's place as ``params.yaml`` has it.
        target: the target's name.
        channel: the channel's name.
        attempt: the present candidate and its fine-tune.

    Returns:
        Digest of the release that is live and not revoked; None for none.

    Raises:
        LedgerError: the chain or the pointer is broken.
    """
    live = live_record(ledger, target, channel)
    if live and live.revoked:
        live = None
    candidate = live.record.artefacts.get("candidate") if live else None
    if live and path.is_file() and candidate == attempt.candidate:
        return live.release
    incumbent = Incumbent(
        live=live.release if live else None,
        release=f"{place.rstrip('/')}/releases/{live.release.removeprefix(PREFIX)}" if live else None,
        candidate=candidate,
        earlier=earlier_candidates(ledger, attempt),
    )
    content = canonical_json(incumbent.model_dump()) + b"\n"
    if not path.is_file() or path.read_bytes() != content:
        write_file(path, content)
    return incumbent.live
