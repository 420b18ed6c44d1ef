"""Untrusted text, made safe to display.

A reply may hold terminal escapes, characters that reverse the reading direction, or invisible characters. `visible`
replaces each by a name; `legible` leaves those that emoji and many scripts need. Neither escapes HTML or Markdown:
`marked` and Jinja's autoescape escape HTML, `cell` escapes Markdown.
"""

import re
import unicodedata

from markupsafe import Markup, escape

# Letters and marks without a glyph: Hangul fillers, Braille blank, variation selectors.
_BLANK = frozenset([0x034F, 0x115F, 0x1160, 0x2800, 0x3164, 0xFFA0, *range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)])
_JOINERS = frozenset("\u200c\u200d\ufe0e\ufe0f")
_HIDDEN = frozenset(["Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"])

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{0,20})://([^\s'\"]+)")
_PORT = re.compile(r"[^:]*:\d+")
_SECRET = "token|signature|sig|credential|key|password|passwd|secret|auth"
_QUERY = re.compile(rf"([?&;#][^=\s&?;#]{{0,40}}(?:{_SECRET})[^=\s&?;#]{{0,40}}=)[^&\s'\"]+", re.IGNORECASE)
_TOKEN = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{30,}|(?:AKIA|ASIA)[A-Z0-9]{12,}|sk-[A-Za-z0-9_-]{16,}|gh[a-z]_[A-Za-z0-9]{20,}"
    r"|github_pat_\w{20,}|glpat-[\w-]{16,}|Bearer\s+\S+|Basic\s+[A-Za-z0-9+/=]{8,})"
)


def is_hidden(character: str) -> bool:
    """Whether a character is invisible or changes how others are displayed; newline and tab do not count."""
    if character in "\n\t":
        return False
    return unicodedata.category(character) in _HIDDEN or ord(character) in _BLANK


def name(character: str) -> str:
    """The visible name of a hidden character: a control picture such as ``␛``, else ``⟨U+202E⟩``."""
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)
    return "␡" if code == 0x7F else f"⟨U+{code:04X}⟩"


def visible(text: str, *, characters: int | None = None, lines: int | None = None) -> str:
    """The text with hidden characters replaced by names, cut to a number of characters and lines.

    A cut is marked with the number of characters left out. No two input characters become one output character, so no
    input can produce a control character.
    """
    shown, left = _cut(text.replace("\r\n", "\n"), characters, lines)
    return "".join(name(c) if is_hidden(c) else c for c in shown) + _more(left)


def quoted(value: object) -> str:
    """``repr`` of a value from outside, visible and of at most 120 characters, for messages."""
    return visible(repr(value), characters=120)


def legible(text: str) -> str:
    """The text with hidden characters replaced by names, for a judge.

    A joiner or variation selector stays after a character from U+0590 on, as in emoji and in Indic or Persian words;
    after a Latin, Greek or Cyrillic letter it can only hide or split a word.
    """
    before = ("", *text)
    kept = (c in _JOINERS and last >= "\u0590" for last, c in zip(before, text, strict=False))
    return "".join(c if keep or not is_hidden(c) else name(c) for keep, c in zip(kept, text, strict=True))


def marked(text: str, *, characters: int | None = None, lines: int | None = None) -> Markup:
    """`visible` as escaped HTML, with the names of hidden characters in ``<span class="hidden">``."""
    shown, left = _cut(text.replace("\r\n", "\n"), characters, lines)
    parts = (Markup('<span class="hidden">{}</span>').format(name(c)) if is_hidden(c) else escape(c) for c in shown)
    return Markup("").join(parts) + (Markup('<span class="more">{}</span>').format(_more(left)) if left else "")


def cell(text: object) -> str:
    """`visible` for a cell of a Markdown table: on one line, with every markup character escaped."""
    flat = " ".join(visible(str(text)).split())
    return "".join("&lt;" if c == "<" else "&amp;" if c == "&" else f"\\{c}" if c in r"\`*_[]|~!>" else c for c in flat)


def percent(share: float | None, digits: int = 1) -> str:
    """A share as ``36.0%``; None as "not measured"."""
    return "not measured" if share is None else f"{100 * share:.{digits}f}%"


def counted(number: int, noun: str) -> str:
    """A number with its noun: ``1 record``, ``2 records``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _cut(text: str, characters: int | None, lines: int | None) -> tuple[str, int]:
    shown = text if lines is None else "\n".join(text.split("\n")[:lines])
    shown = shown if characters is None else shown[:characters]
    return shown, len(text) - len(shown)


def _more(left: int) -> str:
    return f" … {left:,} more characters" if left else ""


def redact(uri: str) -> str:
    """The URI without password, tokens and secret query values: `visible`, on one line of at most 300 characters."""
    return visible(redact_text(uri).split("\n")[0][:300])


def redact_text(text: str) -> str:
    """The text with passwords, tokens and signatures replaced by ``***``; it takes time in proportion to its length."""
    return _TOKEN.sub("***", _QUERY.sub(r"\1***", _URL.sub(_without_user, text)))


def _without_user(url: re.Match[str]) -> str:
    """A URL without ``user:password@``, also where the password holds '/' or '@', and without a token as the user."""
    scheme, rest = url[1], url[2]
    server, web = rest.partition("/")[0], scheme.lower() in ("http", "https")
    user, at, host = server.rpartition("@")
    if at and (web or ":" in user):
        return f"{scheme}://***@{host}{rest[len(server) :]}"
    if (web or scheme == "s3") and "@" in rest and ":" in server and not at and not _PORT.fullmatch(server):
        return f"{scheme}://***@{rest.rpartition('@')[2]}"
    return url[0]
