"""Source URIs: parsed, and shown without secrets.

Each scheme is a module with a `Scheme`: ``local`` (``file://``), ``hub`` (``hf://``), ``s3``, and
`safegene.tiny.source`. A new scheme is a module like ``s3.py`` and a line under
``[project.entry-points."safegene.sources"]`` in pyproject.toml.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

from safegene.errors import SourceError
from safegene.text import redact, redact_text
from safegene.workspace.plugins import SOURCES
from safegene.workspace.source_text import source_uri


@dataclass(frozen=True)
class SourceURI:
    """A parsed source URI.

    Attributes:
        uri: as written.
        scheme: the part before ``://``.
        path: folder, ``ORG/MODEL``, key prefix or name; percent-decoded for ``file``.
        bucket: of ``s3``, else "".
        revision: of ``hf``, else "".
        seed: of ``tiny``, else 0.
    """

    uri: str
    scheme: str
    path: str
    bucket: str = ""
    revision: str = ""
    seed: int = 0


class Source(Protocol):
    """A reader of one checkpoint."""

    def fingerprint(self) -> str:
        """A text that identifies the present content, found without reading all of it where possible."""

    def sizes(self) -> Mapping[str, int]:
        """File name at the top level -> bytes, pickles included."""

    def copy(self, names: tuple[str, ...], into: Path) -> None:
        """Copy files into a folder; resume an incomplete copy there."""


@dataclass(frozen=True)
class Scheme:
    """One kind of source URI.

    Attributes:
        form: of such a URI, for messages.
        parse: (URI, its part after ``://``) -> the parsed URI; None where it has another form.
        open: parsed URI -> a reader of the checkpoint.
        children: parsed URI of a place -> (URI of each checkpoint directly below -> a check that raises where it is
            incomplete); None where such places cannot be watched.
    """

    form: str
    parse: Callable[[str, str], SourceURI | None]
    open: Callable[[SourceURI], Source]
    children: Callable[[SourceURI], Mapping[str, Callable[[], object]]] | None = None


def scheme_named(name: str) -> Scheme:
    """The scheme of that name, of safegene or of a plug-in."""
    return cast(Scheme, SOURCES[name])


def as_uri(text: str, base: Path | None = None) -> str:
    """The URI of a source that is given as a URI, a path, or ``ORG/MODEL``; see `safegene.workspace.source_text`.

    Raises:
        SourceError: the text has no reading, or two.
    """
    try:
        return source_uri(text, base)
    except ValueError as error:
        raise SourceError(str(error)) from None


def parse(uri: str) -> SourceURI:
    """Parse a URI, or what `as_uri` makes one.

    Raises:
        SourceError: it has another form, or holds a secret; the message does not repeat the secret.
    """
    uri = as_uri(uri)
    name, _, rest = uri.partition("://")
    if redact_text(uri) != uri:
        raise SourceError(
            f"expected a source without secrets, got one in {redact(uri)}",
            remedy="give credentials by HF_TOKEN, AWS_* or ~/.aws, and revoke the one in the URI",
        )
    parsed = scheme_named(name).parse(uri, rest) if name in SOURCES else None
    if parsed is None:
        forms = ", ".join(scheme_named(known).form for known in SOURCES)
        raise SourceError(f"expected a source of the form {forms}, got {redact(uri)!r}")
    return parsed


def open_source(place: SourceURI) -> Source:
    """The reader of a checkpoint."""
    return scheme_named(place.scheme).open(place)
