"""What is live for each target, as the ledger says."""

from collections.abc import Callable
from dataclasses import dataclass

from safegene.errors import LedgerError, SafegeneError
from safegene.workspace.layout import Workspace, cache_folder


@dataclass(frozen=True)
class LiveRelease:
    """What is live for a target.

    Attributes:
        release: the release's digest.
        candidate: digest of the candidate in it; None when its record names none.
        revoked: why the release is revoked; "" when it is not.
    """

    release: str
    candidate: str | None
    revoked: str = ""


LiveLookup = Callable[[str], LiveRelease | None]
"""A target's name -> what is live for it."""


def read_live(workspace: Workspace) -> tuple[LiveLookup, str]:
    """What is live on ``promote.channel``, each record verified once; and why that is unknown, "" when it is known."""
    from safegene.ledger import live_in, open_ledger, read_state, revocations

    releases: dict[str, LiveRelease] = {}
    try:
        params = workspace.params.promote
        ledger = open_ledger(params, workspace.root, cache=cache_folder() / "records")
        pointers = {
            target: ledger.pointer(channel, target)
            for channel, target in ledger.channels()
            if channel == params.channel
        }
        reading = read_state(ledger)
        revoked = revocations(ledger, reading)
        here = [target for channel, target in (reading.channels if reading else ()) if channel == params.channel]
        for target in sorted({*here, *pointers}):
            now = live_in(ledger, reading, revoked, pointers.get(target), channel=params.channel, target=target)
            if now and now.unsettled:
                raise LedgerError(now.unsettled)
            if now:
                releases[target] = LiveRelease(now.release, now.record.artefacts.get("candidate"), now.revoked)
    except (SafegeneError, OSError) as error:
        return (lambda _: None), f"what is live is unknown: {error}"
    return releases.get, ""
