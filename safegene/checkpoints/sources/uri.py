"""Source URIs: taken apart, and shown without secrets."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

from safegene.errors import SourceError
from safegene.workspace.plugins import SOURCES

_USERINFO = re.compile(r"://[^/\s@]*:[^/\s@]*@")
_SECRET = "token|signature|sig|credential|key|password|passwd|secret|auth"
_QUERY = re.compile(rf"([?&;][^=\s&]*(?:{_SECRET})[^=\s&]*=)[^&\s'\"]+", re.IGNORECASE)
_TOKEN = re.compile(r"\b(?:hf_[A-Za-z0-9]{30,}|(?:AKIA|ASIA)[A-Z0-9]{12,}|Bearer\s+\S+|Basic\s+[A-Za-z0-9+/=]{8,})")


@dataclass(frozen=True)
class SourceURI:
    """A source URI, taken apart.

    Attributes:
        uri: as written.
        scheme: what stands before ``://``.
        path: folder, ``ORG/MODEL``, key prefix or name; percent signs decoded for ``file``.
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
    """One place that holds one checkpoint."""

    def fingerprint(self) -> str:
        """What it holds now, as cheaply as that can be said."""

    def sizes(self) -> Mapping[str, int]:
        """Every file at its top level -> bytes; pickles too, which are never read."""

    def copy(self, names: tuple[str, ...], into: Path) -> None:
        """Copy the named files, continuing what a broken copy left in ``into``."""


@dataclass(frozen=True)
class Scheme:
    """One kind of source URI.

    Attributes:
        form: how such a URI is written, for messages.
        parse: (uri, what follows ``://``) -> the URI taken apart, or None where it has another form.
        open: a reader of the checkpoint there.
        children: URI of every checkpoint directly below -> a check that raises where it is incomplete; None where
            ``watch`` cannot look at such a place.
    """

    form: str
    parse: Callable[[str, str], SourceURI | None]
    open: Callable[[SourceURI], Source]
    children: Callable[[SourceURI], Mapping[str, Callable[[], object]]] | None = None


def scheme_named(name: str) -> Scheme:
    """The scheme of that name, safegene's own or a plug-in's."""
    return cast(Scheme, SOURCES[name])


def parse(uri: str) -> SourceURI:
    """Take a URI apart.

    Raises:
        SourceError: it has another form, or carries a secret; the secret is not repeated.
    """
    name, _, rest = uri.partition("://")
    if redact_text(uri) != uri:
        raise SourceError(
            f"expected a source without secrets, got one in {redact(uri)}",
            remedy="credentials come from the standard chain: HF_TOKEN, AWS_* or ~/.aws; change the leaked one",
        )
    parsed = scheme_named(name).parse(uri, rest) if name in SOURCES else None
    if parsed is None:
        forms = ", ".join(scheme_named(known).form for known in SOURCES)
        raise SourceError(f"expected a source of the form {forms}, got {redact(uri)!r}")
    return parsed


def open_source(place: SourceURI) -> Source:
    """The reader of the checkpoint there."""
    return scheme_named(place.scheme).open(place)


def redact(uri: str) -> str:
    """The URI without user, password and secret query values, on one line of at most 300 characters."""
    return redact_text(uri).split("\n")[0][:300]


def redact_text(text: str) -> str:
    """Text (such as another library's exception) with passwords, tokens and signatures in it replaced by ``***``."""
    text = _USERINFO.sub("://***@", text)
    return _TOKEN.sub("***", _QUERY.sub(r"\1***", text))
