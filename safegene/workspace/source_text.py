"""Sources of checkpoints as people write them: a URI, a path, or ``ORG/MODEL`` of the Hub; normalised to a URI.

- What has ``://`` is a URI, and stays as it is.
- What begins with ``/``, ``./``, ``../`` or ``~/`` is a folder.
- Other text is a folder where there is one of that name. ``ORG/MODEL`` and ``ORG/MODEL@REVISION`` are of the Hub where
  there is none. Where it could be both it is refused, with both readings.
"""

import os
import re
from pathlib import Path
from urllib.parse import quote

from safegene.text import redact, redact_text

_HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(?:@[\w./-]+)?")
_PATH = re.compile(r"(?:~?/|\.{1,2}(?:/|$)|~$)")


def source_uri(text: str, base: Path | None = None) -> str:
    """The URI of a source.

    Args:
        text: a URI, a path, or ``ORG/MODEL[@REVISION]``.
        base: the folder that relative paths are relative to; default: the current one.

    Raises:
        ValueError: the text has no reading, or two.

    Example:
        >>> source_uri("/models/chat"), source_uri("org/model@main")
        ('file:///models/chat', 'hf://org/model@main')
    """
    if "://" in text or redact_text(text) != text:  # a secret is refused where URIs are checked
        return text
    if not text.strip() or not text.isprintable():
        raise ValueError("expected a URI, a path, or ORG/MODEL of the Hub")
    folder = Path(os.path.abspath((base or Path.cwd()) / os.path.expanduser(text)))
    uri = f"file://{quote(str(folder))}"
    if _PATH.match(text):
        return uri
    is_hub = bool(_HUB.fullmatch(text)) and ".." not in text
    if os.path.exists(folder):  # False, too, for a name that no folder can have
        if is_hub:
            raise ValueError(
                f"expected one reading of {redact(text)!r}, got two: the folder {folder} (write ./{text}), or a model "
                f"of the Hub (write hf://{text})"
            )
        return uri
    if is_hub:
        return f"hf://{text}"
    raise ValueError(
        f"expected a URI, a path that begins with / or ./, or ORG/MODEL of the Hub, got {redact(text)!r}; there is no "
        f"folder {folder}"
    )
