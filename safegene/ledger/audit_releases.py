"""The part of an audit that reads releases: their files, and the signatures beside them."""

from collections import Counter
from collections.abc import Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor

from safegene.errors import SafegeneError
from safegene.ledger.bundles import verify_publication
from safegene.ledger.chain import Ledger
from safegene.ledger.model_signature import verify_models
from safegene.ledger.record import Record
from safegene.ledger.release import require_release_of
from safegene.ledger.store import LocalStore

READERS = 16  # requests at once to a remote store


def verify_releases(ledger: Ledger, chain: Sequence[Record], problems: list[str]) -> tuple[Set[str], Mapping[str, int]]:
    """Verify every release that a record names; what is wrong is added to ``problems``.

    Returns:
        The digests of the releases, and how many of them have the vector of each publisher (id of its key).
    """
    named = sorted({(record.release, tuple(record.artefacts.items())) for record in chain if record.release})
    records = {record.release: record for record in chain if record.release}
    publishers = Counter[str]()
    with ThreadPoolExecutor(1 if isinstance(ledger.store, LocalStore) else READERS) as readers:
        for wrong in readers.map(lambda one: _release_problem(ledger, one[0], dict(one[1])), named):
            problems += wrong
        for wrong, publisher in readers.map(lambda record: _verify_signatures(ledger, record), records.values()):
            problems += (one for one in wrong if one not in problems)
            publishers.update(publisher)
    return {release for release, _ in named}, publishers


def _release_problem(ledger: Ledger, release: str, artefacts: Mapping[str, str]) -> list[str]:
    try:
        require_release_of(ledger.store, release, artefacts)
    except SafegeneError as error:
        return [error.message]
    return []


def _verify_signatures(ledger: Ledger, record: Record) -> tuple[list[str], list[str]]:
    """Verify what is signed beside the record: why it is not as signed, and the publisher of its vector, if any."""
    try:
        verify_models(ledger.store, record, ledger.keys)
        publisher = verify_publication(ledger.store, record)
    except SafegeneError as error:
        return [error.message], []
    return [], [publisher] if publisher else []
