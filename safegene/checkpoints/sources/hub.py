"""Models of the Hugging Face Hub, or of another server with its API (``HF_ENDPOINT``): ``hf://ORG/MODEL[@REVISION]``.

A revision is resolved to a commit, and the commit is fetched. The Hub's library finds a token where one is needed
(``HF_TOKEN``, or ``hf auth login``). An answer may take `ANSWER_SECONDS`, and a file a second more per `SLOWEST` bytes.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safegene.checkpoints.sources.cache import known_digest
from safegene.checkpoints.sources.uri import Scheme, SourceURI
from safegene.checkpoints.wanted import require_complete
from safegene.errors import SourceError
from safegene.text import redact, redact_text
from safegene.workspace.deadline import DeadlinePassed, within
from safegene.workspace.digest import PREFIX

if TYPE_CHECKING:
    from huggingface_hub import HfApi

ANSWER_SECONDS = 60.0
SLOWEST = 1 << 14  # bytes a second


class HubSource:
    """One model at one revision."""

    def __init__(self, place: SourceURI) -> None:
        self.place = place

    def fingerprint(self) -> str:
        """The commit that the revision refers to now."""
        return f"commit:{self._info.sha}"

    def sizes(self) -> Mapping[str, int]:
        """File name at the top of the repository -> bytes."""
        return {file.rfilename: file.size or 0 for file in self._info.siblings if "/" not in file.rfilename}

    def copy(self, names: tuple[str, ...], into: Path) -> None:
        """Download at the resolved commit; the Hub's library resumes a download and checks its length.

        Raises:
            SourceError: the Hub does not answer, or sends other bytes than it announced.
        """
        from huggingface_hub import hf_hub_download

        announced = {file.rfilename: file.lfs["sha256"] for file in self._info.siblings if file.lfs}
        for name in names:
            download = partial(
                hf_hub_download,
                self.place.path,
                name,
                revision=self._info.sha,
                local_dir=into,
                endpoint=endpoint(),
                etag_timeout=30,
            )
            with translate_hub_errors(self.place.uri):
                within(ANSWER_SECONDS + self.sizes().get(name, 0) / SLOWEST, download)
            if name in announced and (got := known_digest(into / name)) != PREFIX + announced[name]:
                (into / name).unlink()  # otherwise the library takes it for complete next time
                raise SourceError(
                    f"expected {name} with {PREFIX}{announced[name]}, got {got}, from {redact(self.place.uri)}",
                    remedy="the download was damaged: run again",
                )

    @cached_property
    def _info(self) -> Any:
        with translate_hub_errors(self.place.uri):
            ask = partial(api().model_info, self.place.path, files_metadata=True)
            return within(ANSWER_SECONDS, partial(ask, revision=self.place.revision or None))


def models_of(organisation: str) -> Iterable[tuple[str, list[str]]]:
    """The models of an organisation: id and file names."""
    with translate_hub_errors(f"hf://{organisation}"):
        listed = within(ANSWER_SECONDS, lambda: list(api().list_models(author=organisation, full=True)))
    return [(model.id, [file.rfilename for file in model.siblings or []]) for model in listed]


def endpoint() -> str:
    """``HF_ENDPOINT``, read at each call; the library reads it only when it is imported."""
    return os.environ.get("HF_ENDPOINT") or "https://huggingface.co"


def api() -> "HfApi":
    """A client of the Hub."""
    from huggingface_hub import HfApi

    return HfApi(endpoint=endpoint(), library_name="safegene")


@contextmanager
def translate_hub_errors(uri: str) -> Iterator[None]:
    """Raise `SourceError` without tokens in place of the exceptions of the Hub's library."""
    from httpx2 import HTTPError
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        yield
    except GatedRepoError:
        remedy = "accept the model's terms on its page, then `hf auth login` or set HF_TOKEN"
        raise SourceError(f"expected access to {redact(uri)}, got 'gated' from {endpoint()}", remedy=remedy) from None
    except (RepositoryNotFoundError, RevisionNotFoundError):
        remedy = "check organisation, model and revision; for a private model set HF_TOKEN"
        raise SourceError(f"expected {redact(uri)} on {endpoint()}, got 'not found'", remedy=remedy) from None
    except (HfHubHTTPError, HTTPError, OSError, ValueError, DeadlinePassed) as error:
        text = redact_text(str(error)).split("\n")[0][:200]
        raise SourceError(
            f"expected an answer for {redact(uri)} from {redact(endpoint())}, got {text!r}",
            remedy="check the network and HF_ENDPOINT, then run again: the download resumes",
        ) from None


def parse(uri: str, rest: str) -> SourceURI | None:
    """Parse ``hf://ORG/MODEL[@REVISION]``."""
    match = re.fullmatch(r"([A-Za-z0-9][\w.-]*(?:/[\w.-]+)?)(?:@([\w./-]+))?", rest)
    if not match or ".." in rest:
        return None
    return SourceURI(uri, "hf", match[1], revision=match[2] or "")


def children(place: SourceURI) -> dict[str, Callable[[], object]]:
    """The URI of every model of an organisation -> its check."""
    models = {f"hf://{name}": files for name, files in models_of(place.path)}
    return {uri: partial(require_complete, files, {}, uri) for uri, files in models.items()}


SCHEME = Scheme("hf://ORG/MODEL[@REVISION]", parse, HubSource, children)
