"""Checkpoints directly below a folder, a prefix or an organisation of the Hub, for ``safegene watch``.

A checkpoint is discovered once it is complete: a config, and weights whose headers or listed shards are all there. A
folder that is still being written is skipped; `discover` returns the reason.
"""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple
from urllib.parse import unquote

from safegene.checkpoints.sources.fetching import fingerprint
from safegene.checkpoints.sources.uri import parse, scheme_named
from safegene.errors import SafegeneError, SourceError
from safegene.text import redact
from safegene.workspace.digest import PREFIX, digest_bytes


class DiscoveredCheckpoint(NamedTuple):
    """A complete checkpoint: a name for the target, its URI, and the fingerprint of its content."""

    name: str
    uri: str
    fingerprint: str


def discover(
    uri: str, known: Mapping[str, str] = MappingProxyType({})
) -> tuple[list[DiscoveredCheckpoint], dict[str, str]]:
    """The complete checkpoints directly below a place, sorted by name, and name -> why another one is skipped.

    Args:
        uri: the place.
        known: URI -> fingerprint, of checkpoints that were complete: unchanged ones are not checked again.

    Raises:
        SourceError: there is no such place, it cannot be watched, or it does not answer.
    """
    place = parse(uri)
    children = scheme_named(place.scheme).children
    if children is None:
        raise SourceError(f"expected a folder, prefix or organisation to watch, got {redact(uri)}")
    checkpoints, skipped = [], {}
    for child, require_complete in children(place).items():
        name = target_name(unquote(child).rstrip("/").rsplit("/", 1)[-1])
        try:
            pin = fingerprint(child) if child in known else ""
            if pin != known.get(child):
                require_complete()
                pin = fingerprint(child)
            checkpoints.append(DiscoveredCheckpoint(name, child, pin))
        except (SafegeneError, OSError) as error:
            skipped[name] = str(error)
    return sorted(checkpoints), skipped


def target_name(name: str) -> str:
    """A valid target name. Where ``name`` must be changed, a hash of it is appended, so that names stay distinct."""
    plain = re.sub(r"[^a-z0-9_-]+", "-", name.lower()).strip("-_")[:50] or "target"
    return plain if plain == name else f"{plain}-{digest_bytes(name.encode()).removeprefix(PREFIX)[:6]}"
