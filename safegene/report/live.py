"""What is live for each target, as the ledger says."""

from collections.abc import Callable
from dataclasses import dataclass

from safegene.errors import SafegeneError
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
    from safegene.ledger import follow_pointer, open_ledger, revocations

    releases: dict[str, LiveRelease] = {}
    try:
        params = workspace.params.promote
        ledger = open_ledger(params, workspace.root, cache=cache_folder() / "records")
        chain, revoked = tuple(ledger.walk()), revocations(ledger)
        for channel, target in ledger.channels():
            pointer = ledger.pointer(channel, target)
            if channel != params.channel or pointer is None:
                continue
            now = follow_pointer(ledger, chain, revoked, pointer, channel=channel, target=target)
            releases[target] = LiveRelease(now.release, now.record.artefacts.get("candidate"), now.revoked)
    except (SafegeneError, OSError) as error:
        return (lambda _: None), f"what is live is unknown: {error}"
    return releases.get, ""
