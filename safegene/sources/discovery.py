"""Checkpoints found directly below a folder, a prefix or an organisation of the Hub: what ``watch`` looks at.

A place counts once it is complete: a config, and weights whose headers (or whose whole shard list) are there. A folder
that someone is still writing does not count yet; why something did not count is said by `survey`.
"""

import re
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, unquote

from safegene.digest import PREFIX, digest_bytes, strict_json
from safegene.errors import CheckpointError, FormatError, SafegeneError, SourceError
from safegene.sources.fetching import fingerprint
from safegene.sources.uri import Place, parse, redact
from safegene.tensors.adapter import CONFIG, WEIGHTS, open_adapter
from safegene.tensors.checkpoint import INDEX, open_checkpoint
from safegene.tensors.checkpoint import WEIGHTS as FULL
from safegene.tensors.folder import MAX_JSON


class Found(NamedTuple):
    """A checkpoint that is there: a name for the target, its URI, and what it holds."""

    name: str
    uri: str
    fingerprint: str


def survey(uri: str) -> tuple[list[Found], dict[str, str]]:
    """The complete checkpoints directly below a place, sorted by name, and name -> why another did not count.

    Raises:
        SourceError: there is no such place, or it does not answer.
    """
    place = parse(uri)
    if place.scheme not in _CHILDREN:
        raise SourceError(f"expected a folder, prefix or organisation to watch, got {redact(uri)}")
    found, skipped = [], {}
    for child, require_complete in _CHILDREN[place.scheme](place).items():
        name = target_name(unquote(child).rstrip("/").rsplit("/", 1)[-1])
        try:
            require_complete()
            found.append(Found(name, child, fingerprint(child)))
        except (SafegeneError, OSError) as error:
            skipped[name] = str(error)
    return sorted(found), skipped


def target_name(name: str) -> str:
    """A name that targets may have; one that had to be changed gets a mark of the original, so that two stay two."""
    plain = re.sub(r"[^a-z0-9_-]+", "-", name.lower()).strip("-_")[:50] or "target"
    return plain if plain == name else f"{plain}-{digest_bytes(name.encode()).removeprefix(PREFIX)[:6]}"


def _folders(place: Place) -> dict[str, Callable[[], object]]:
    root = Path(place.path)
    if not root.is_dir():
        raise SourceError(f"expected a folder to watch, got none at {root}")
    shown = [path for path in sorted(root.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    return {f"file://{quote(str(path))}": partial(_open, path) for path in shown}


def _open(root: Path) -> None:
    if (root / WEIGHTS).is_file() or not (root / "config.json").is_file():
        open_adapter(root)
    else:
        open_checkpoint(root)


def _prefixes(place: Place) -> dict[str, Callable[[], object]]:
    from safegene.sources.bucket import folders_of

    base = f"s3://{place.bucket}/{place.path}".rstrip("/")
    children = [f"{base}/{name}" for name in folders_of(place) if not re.search(r"[\s?#]", name)]
    return {child: partial(_check_prefix, child) for child in children}


def _check_prefix(uri: str) -> None:
    from safegene.sources.bucket import BucketSource, read_small

    place = parse(uri)
    names = BucketSource(place).sizes()
    index = strict_json(read_small(place, INDEX, MAX_JSON), where=uri) if INDEX in names else {}
    shards = index.get("weight_map", {}) if isinstance(index, dict) else None
    if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
        raise FormatError(f"expected a weight_map of tensor and file names, got another form, in {redact(uri)}/{INDEX}")
    _require_complete(names, shards, uri)


def _models(place: Place) -> dict[str, Callable[[], object]]:
    from safegene.sources.hub import models_of

    models = {f"hf://{name}": files for name, files in models_of(place.path)}
    return {uri: partial(_require_complete, files, {}, uri) for uri, files in models.items()}


def _require_complete(names: Collection[str], shards: Mapping[str, str], where: str) -> None:
    full = "config.json" in names and (FULL in names or INDEX in names)
    if not full and not {CONFIG, WEIGHTS} <= set(names):
        raise CheckpointError(f"expected a config and safetensors weights, got {sorted(names)[:5]}, in {where}")
    if missing := sorted(set(shards.values()) - set(names)):
        raise CheckpointError(f"expected the shard {missing[0]}, got no such object, in {where}")


_CHILDREN: Mapping[str, Callable[[Place], dict[str, Callable[[], object]]]] = {
    "file": _folders,
    "s3": _prefixes,
    "hf": _models,
}
