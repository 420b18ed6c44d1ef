"""Text of models and strangers, made safe to show: what is invisible or moves other text becomes visible.

A reply may hold terminal escapes, characters that reverse the reading direction, or invisible ones that hide a message.
`visible` turns each into a name; it does not escape HTML or Markdown, which is the next step and the template's work
(`marked`, and Jinja's autoescape) or `cell`'s.
"""

import unicodedata

from markupsafe import Markup, escape

# Letters and marks that print nothing: Hangul fillers, Braille blank, variation selectors.
_BLANK = frozenset([0x034F, 0x115F, 0x1160, 0x2800, 0x3164, 0xFFA0, *range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)])
_HIDDEN = frozenset(["Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"])


def is_hidden(character: str) -> bool:
    """Whether a character prints nothing or changes how others are shown; newline and tab are ordinary."""
    if character in "\n\t":
        return False
    return unicodedata.category(character) in _HIDDEN or ord(character) in _BLANK


def name(character: str) -> str:
    """A hidden character's visible name: a control picture such as ``␛``, else ``⟨U+202E⟩``."""
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)
    return "␡" if code == 0x7F else f"⟨U+{code:04X}⟩"


def visible(text: str, *, characters: int | None = None, lines: int | None = None) -> str:
    """The text with every hidden character named, cut to a number of characters and lines (and saying so).

    Two characters of what comes in never become one that goes out, so a name cannot be forged into a control.
    """
    shown, left = _cut(text.replace("\r\n", "\n"), characters, lines)
    return "".join(name(c) if is_hidden(c) else c for c in shown) + _more(left)


def marked(text: str, *, characters: int | None = None, lines: int | None = None) -> Markup:
    """`visible` as escaped HTML, with each hidden character's name in ``<span class="hidden">``."""
    shown, left = _cut(text.replace("\r\n", "\n"), characters, lines)
    parts = (Markup('<span class="hidden">{}</span>').format(name(c)) if is_hidden(c) else escape(c) for c in shown)
    return Markup("").join(parts) + (Markup('<span class="more">{}</span>').format(_more(left)) if left else "")


def cell(text: object) -> str:
    """Text for one cell of a Markdown table: visible, on one line, and with every markup character escaped."""
    flat = " ".join(visible(str(text)).split())
    return "".join("&lt;" if c == "<" else "&amp;" if c == "&" else f"\\{c}" if c in r"\`*_[]|~!>" else c for c in flat)


def percent(share: float | None, digits: int = 1) -> str:
    """A share as ``36.0%``; "not measured" when there is none."""
    return "not measured" if share is None else f"{100 * share:.{digits}f}%"


def _cut(text: str, characters: int | None, lines: int | None) -> tuple[str, int]:
    shown = text if lines is None else "\n".join(text.split("\n")[:lines])
    shown = shown if characters is None else shown[:characters]
    return shown, len(text) - len(shown)


def _more(left: int) -> str:
    return f" … {left:,} more characters" if left else ""
