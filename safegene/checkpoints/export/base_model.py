"""The name of an adapter's base model, in the form that loaders understand.

PEFT's ``AutoPeftModel``, converters and servers take ``base_model_name_or_path`` for a repository of the Hub or a
folder; a URI of ours is neither. So ``hf://org/model@main`` becomes ``org/model`` with the commit that was fetched as
``revision``, and ``file:///folder`` becomes the folder. A source that no loader knows (``s3://``, ``tiny://``, those of
plug-ins) keeps its URI in an artefact, whose bytes must not depend on a machine; in an exported folder it becomes the
verified copy in the cache.
"""

from pathlib import Path

from safegene.checkpoints.record import CheckpointRecord
from safegene.checkpoints.sources.uri import parse

COMMIT = "commit:"


def base_model_name(record: CheckpointRecord, cached: Path | None = None) -> tuple[str, str | None]:
    """``base_model_name_or_path`` and ``revision``, None where there is none.

    Args:
        record: of the checkpoint that the adapter loads on.
        cached: its verified copy, for a source that loaders do not know.
    """
    place = parse(record.source)
    if place.scheme == "hf":
        commit = record.fingerprint.removeprefix(COMMIT)
        return place.path, commit if record.fingerprint.startswith(COMMIT) else place.revision or None
    if place.scheme == "file":
        return place.path, None
    return str(cached or record.source), None
