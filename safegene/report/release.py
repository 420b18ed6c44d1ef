"""The lineage of what is live, from the signed record that put it live: release, record, artefacts, data.

The workspace's artefacts may be of a later candidate; then the record alone says what the release was made from.
"""

from collections.abc import Iterator, Mapping

from safegene.ledger.record import Record
from safegene.report.lineage import TITLES, Source, Step
from safegene.report.live import LiveRelease
from safegene.report.records import SignedRecord, inside
from safegene.report.words import short
from safegene.workspace.digest import is_digest


def release_steps(live: LiveRelease, one: SignedRecord | None, *, prefix: str = "") -> list[Step]:
    """The release and its record; the record's sources are the steps with the keys of its artefacts.

    Args:
        live: what is live.
        one: its record; None where it was not read.
        prefix: of every key.
    """
    if one is None:
        return [Step(f"{prefix}release", "Release", live.release, note="its record is not among those that were read")]
    record, named = one.record, Source(f"record {one.record.sequence}", f"{prefix}record")
    served = f"revoked, not served: {live.revoked}" if live.revoked else f"live on {record.channel}"
    sources = tuple(Source(TITLES[name].lower(), prefix + name) for name in _known(record))
    said = f"outcome {record.outcome}, {one.when}, signed by {one.signer}"
    return [
        Step(f"{prefix}release", "Release", live.release, (named,), served, "broken" if live.revoked else ""),
        Step(f"{prefix}record", f"Record {record.sequence}", record.digest, sources, said),
    ]


def recorded_steps(record: Record, *, prefix: str) -> list[Step]:
    """The artefacts and the data that a record names.

    Of the family's artefacts it says what each was made from.
    """
    known, data = _known(record), record.predicate.datasets
    keys = {digest: Source(TITLES[name].lower(), prefix + name) for name, digest in known.items()}
    files = {name: str(digest) for name, digest in data.items() if is_digest(digest)}
    keys |= {digest: Source(f"data/{name}", f"{prefix}data-{short(digest)}") for name, digest in files.items()}
    steps = [
        Step(
            prefix + name,
            TITLES[name],
            digest,
            tuple(_sources(record, name, keys)),
            f"named by record {record.sequence}",
        )
        for name, digest in known.items()
    ]
    kept = {digest: Step(keys[digest].key, keys[digest].title, digest, note="data") for digest in files.values()}
    return [*reversed(steps), *kept.values()]


def _known(record: Record) -> dict[str, str]:
    """The artefacts of a record that a page has a title for, in the pipeline's order."""
    return {name: record.artefacts[name] for name in TITLES if name in record.artefacts}


def _sources(record: Record, name: str, keys: Mapping[str, Source]) -> Iterator[Source]:
    inputs = inside(record.predicate.vector, "made_from", name)
    for used, digest in inputs.items() if isinstance(inputs, Mapping) else ():
        yield keys.get(digest) or Source(f"{used} {short(str(digest))}")
