"""Releases in the model registry of an MLflow server, over its REST API: a mirror that decides nothing.

Each target is a registered model, each release one version of it, and each channel an alias on the version that is live
there. Tags name the release, the record and the ledger; the bytes stay in the ledger (`safegene resolve`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from safegene.errors import LedgerError, StoreError
from safegene.ledger.record import Record
from safegene.ledger.snapshot import effective_records
from safegene.text import redact
from safegene.workspace.deadline import DeadlinePassed, within

RELEASE = "safegene.release"
"""Tag by which a version is known again."""
SECONDS = 20.0  # for one request, headers and body together
PAGE = 200


@dataclass(frozen=True)
class RegistryVersion:
    """A release as a version of a registered model.

    Attributes:
        target: the registered model's name.
        release: the release's digest.
        source: where its bytes are.
        tags: what else is known of it.
        aliases: channels on which it is live.
    """

    target: str
    release: str
    source: str
    tags: Mapping[str, str]
    aliases: tuple[str, ...]


def registry_versions(chain: Sequence[Record], *, store: str) -> tuple[RegistryVersion, ...]:
    """Every release that was ever live, oldest first, with the channels on which it is live now.

    Args:
        chain: the records, from the newest to the first.
        store: URI of the ledger's store.

    Raises:
        LedgerError: nothing was ever live.
    """
    effective = effective_records(chain)
    first, live = dict[tuple[str, str], Record](), dict[tuple[str, str], str]()
    for record in reversed(chain):
        if record.digest in effective:
            first.setdefault((record.target, str(record.release)), record)
            live[record.target, record.channel] = str(record.release)
    if not first:
        raise LedgerError("expected a release that was live, got none", remedy="promote one: `safegene run`")
    return tuple(
        RegistryVersion(
            target,
            release,
            f"safegene://{target}/{release.removeprefix('sha256:')}",
            {
                RELEASE: release,
                "safegene.ledger": redact(store),
                "safegene.record": record.digest,
                "safegene.outcome": record.outcome,
                "safegene.candidate": record.artefacts.get("candidate", ""),
            },
            tuple(channel for (name, channel), now in live.items() if (name, now) == (target, release)),
        )
        for (target, release), record in first.items()
    )


def register(versions: Sequence[RegistryVersion], url: str) -> int:
    """Create what the registry lacks, and set every alias; how many versions were created.

    Args:
        versions: from `registry_versions`.
        url: the tracking server's address, such as ``http://127.0.0.1:5000``.

    Raises:
        StoreError: the server does not answer in time, or refuses.
    """
    created, known = 0, dict[str, dict[str, str]]()
    for version in versions:
        if version.target not in known:
            _call(url, "POST", "registered-models/create", {"name": version.target}, exists_ok=True)
            known[version.target] = _known(url, version.target)
        number = known[version.target].get(version.release)
        if number is None:
            tags = [{"key": key, "value": value} for key, value in version.tags.items()]
            body = {"name": version.target, "source": version.source, "tags": tags}
            number = str(_call(url, "POST", "model-versions/create", body)["model_version"]["version"])
            created += 1
        for alias in version.aliases:
            _call(url, "POST", "registered-models/alias", {"name": version.target, "alias": alias, "version": number})
    return created


def _known(url: str, name: str) -> dict[str, str]:
    """Release -> its version's number, of a registered model."""
    found, page = dict[str, str](), ""
    while True:
        query = {"filter": f"name='{name}'", "max_results": str(PAGE), "page_token": page}
        answer = _call(url, "GET", "model-versions/search", query)
        for version in answer.get("model_versions", ()):
            tags = {tag["key"]: tag["value"] for tag in version.get("tags", ())}
            if RELEASE in tags:
                found[tags[RELEASE]] = str(version["version"])
        page = answer.get("next_page_token", "")
        if not page:
            return found


def _call(url: str, method: str, path: str, content: Mapping[str, Any], *, exists_ok: bool = False) -> dict[str, Any]:
    import httpx

    place = f"{url.rstrip('/')}/api/2.0/mlflow/{path}"
    sent: dict[str, Any] = {"params": dict(content)} if method == "GET" else {"json": dict(content)}
    try:
        answer = within(SECONDS, lambda: httpx.request(method, place, timeout=SECONDS, **sent))
        body = answer.json()
    except (httpx.HTTPError, httpx.InvalidURL, DeadlinePassed, ValueError) as error:
        raise StoreError(
            f"expected an MLflow server to answer at {redact(url)}, got {type(error).__name__}: {redact(str(error))}",
            remedy="start it (`mlflow server`), or correct the address",
        ) from None
    if exists_ok and isinstance(body, dict) and body.get("error_code") == "RESOURCE_ALREADY_EXISTS":
        return {}
    if answer.status_code != 200 or not isinstance(body, dict):
        said = redact(str(body.get("message", answer.status_code) if isinstance(body, dict) else answer.status_code))
        raise StoreError(
            f"expected the MLflow server at {redact(url)} to accept {path}, got {said}",
            remedy="see the server's log; what it accepted before stays, and the command may be repeated",
        )
    return body
