"""Checkpoints found directly below a folder, a prefix or an organisation of the Hub: what ``watch`` looks at.

A place counts once it is complete: a config, and weights whose headers (or whose whole shard list) are there. A folder
that someone is still writing does not count yet; why something did not count is said by `survey`.
"""

import re
from typing import NamedTuple
from urllib.parse import unquote

from safegene.checkpoints.sources.fetching import fingerprint
from safegene.checkpoints.sources.uri import parse, redact, scheme_named
from safegene.errors import SafegeneError, SourceError
from safegene.workspace.digest import PREFIX, digest_bytes


class DiscoveredCheckpoint(NamedTuple):
    """A checkpoint that is there: a name for the target, its URI, and what it holds."""

    name: str
    uri: str
    fingerprint: str


def discover(uri: str) -> tuple[list[DiscoveredCheckpoint], dict[str, str]]:
    """The complete checkpoints directly below a place, sorted by name, and name -> why another did not count.

    Raises:
        SourceError: there is no such place, or it does not answer.
    """
    place = parse(uri)
    children = scheme_named(place.scheme).children
    if children is None:
        raise SourceError(f"expected a folder, prefix or organisation to watch, got {redact(uri)}")
    found, skipped = [], {}
    for child, require_complete in children(place).items():
        name = target_name(unquote(child).rstrip("/").rsplit("/", 1)[-1])
        try:
            require_complete()
            found.append(DiscoveredCheckpoint(name, child, fingerprint(child)))
        except (SafegeneError, OSError) as error:
            skipped[name] = str(error)
    return sorted(found), skipped


def target_name(name: str) -> str:
    """A name that targets may have; one that had to be changed gets a mark of the original, so that two stay two."""
    plain = re.sub(r"[^a-z0-9_-]+", "-", name.lower()).strip("-_")[:50] or "target"
    return plain if plain == name else f"{plain}-{digest_bytes(name.encode()).removeprefix(PREFIX)[:6]}"
