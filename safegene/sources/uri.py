"""Source URIs: taken apart, and shown without secrets."""

import re
from dataclasses import dataclass
from urllib.parse import parse_qs, unquote, urlsplit

from safegene.errors import SourceError

SCHEMES = ("file", "hf", "s3", "tiny")
_USERINFO = re.compile(r"://[^/\s@]*:[^/\s@]*@")
_SECRET = "token|signature|sig|credential|key|password|passwd|secret|auth"
_QUERY = re.compile(rf"([?&;][^=\s&]*(?:{_SECRET})[^=\s&]*=)[^&\s'\"]+", re.IGNORECASE)
_TOKEN = re.compile(r"\b(?:hf_[A-Za-z0-9]{30,}|(?:AKIA|ASIA)[A-Z0-9]{12,}|Bearer\s+\S+|Basic\s+[A-Za-z0-9+/=]{8,})")


@dataclass(frozen=True)
class Place:
    """A source URI, taken apart.

    Attributes:
        uri: as written.
        scheme: one of `SCHEMES`.
        path: folder, ``ORG/MODEL``, or key prefix; percent signs decoded for ``file``.
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


def parse(uri: str) -> Place:
    """Take a URI apart.

    Raises:
        SourceError: it has another form, or carries a secret; the secret is not repeated.
    """
    scheme, _, rest = uri.partition("://")
    if redact_text(uri) != uri:
        raise SourceError(
            f"expected a source without secrets, got one in {redact(uri)}",
            remedy="credentials come from the standard chain: HF_TOKEN, AWS_* or ~/.aws; change the leaked one",
        )
    parsed = _PARSERS[scheme](uri, rest) if scheme in _PARSERS else None
    if parsed is None:
        forms = "file://FOLDER, hf://ORG/MODEL[@REVISION], s3://BUCKET/PREFIX or tiny://NAME[?seed=N]"
        raise SourceError(f"expected a source of the form {forms}, got {redact(uri)!r}")
    return parsed


def redact(uri: str) -> str:
    """The URI without user, password and secret query values, on one line of at most 300 characters."""
    return redact_text(uri).split("\n")[0][:300]


def redact_text(text: str) -> str:
    """Text (such as another library's exception) with passwords, tokens and signatures in it replaced by ``***``."""
    text = _USERINFO.sub("://***@", text)
    return _TOKEN.sub("***", _QUERY.sub(r"\1***", text))


def _file(uri: str, rest: str) -> Place | None:
    return Place(uri, "file", unquote(rest)) if rest else None


def _hf(uri: str, rest: str) -> Place | None:
    found = re.fullmatch(r"([A-Za-z0-9][\w.-]*(?:/[\w.-]+)?)(?:@([\w./-]+))?", rest)
    if not found or ".." in rest:
        return None
    return Place(uri, "hf", found[1], revision=found[2] or "")


def _s3(uri: str, rest: str) -> Place | None:
    found = re.fullmatch(r"([a-z0-9][a-z0-9.-]{1,62})(?:/([^?#\s]*))?", rest)
    return Place(uri, "s3", (found[2] or "").strip("/"), bucket=found[1]) if found else None


def _tiny(uri: str, rest: str) -> Place | None:
    parts = urlsplit(uri)
    seeds = parse_qs(parts.query).get("seed", ["0"])
    known = re.fullmatch(r"[a-z0-9_-]+", rest.split("?")[0]) and set(parse_qs(parts.query)) <= {"seed"}
    if not known or len(seeds) != 1 or not seeds[0].isdigit():
        return None
    return Place(uri, "tiny", parts.netloc, seed=int(seeds[0]))


_PARSERS = {"file": _file, "hf": _hf, "s3": _s3, "tiny": _tiny}
