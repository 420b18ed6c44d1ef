"""Text of strangers, made safe to show."""

import html
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safegene.text import cell, is_hidden, legible, marked, percent, visible


@pytest.mark.parametrize(
    ("given_text", "shown"),
    [
        ("plain\ntext\tand ünïcode 漢字 🙂", "plain\ntext\tand ünïcode 漢字 🙂"),
        ("\x1b[2J\x07\x00\x7f", "␛[2J␇␀␡"),
        ("\x9b31m", "⟨U+009B⟩31m"),
        ("a\u202eb\u2066c\u200fd", "a⟨U+202E⟩b⟨U+2066⟩c⟨U+200F⟩d"),
        ("zero\u200bwidth\ufeff", "zero⟨U+200B⟩width⟨U+FEFF⟩"),
        ("tag\U000e0041", "tag⟨U+E0041⟩"),
        ("vs\U000e0100 \ufe0f", "vs⟨U+E0100⟩ ⟨U+FE0F⟩"),
        ("line\u2028para\u2029", "line⟨U+2028⟩para⟨U+2029⟩"),
        ("blank\u3164\u2800", "blank⟨U+3164⟩⟨U+2800⟩"),
        ("lone\ud800", "lone⟨U+D800⟩"),
        ("over\rwrite, but\r\nnot here", "over␍write, but\nnot here"),
    ],
)
def test_what_is_invisible_or_moves_text_is_named(given_text: str, shown: str) -> None:
    assert visible(given_text) == shown


@pytest.mark.parametrize(
    ("given_text", "shown"),
    [
        ("plain\ntext and ünïcode 漢字 🙂", "plain\ntext and ünïcode 漢字 🙂"),
        ("b\u200bo\u200cm\u200db", "b⟨U+200B⟩o⟨U+200C⟩m⟨U+200D⟩b"),
        ("a\ufe0fb", "a⟨U+FE0F⟩b"),
        ("\u043f\u200d\u043f", "\u043f⟨U+200D⟩\u043f"),
        ("\u2764\ufe0f \U0001f468\u200d\U0001f469", "\u2764\ufe0f \U0001f468\u200d\U0001f469"),
        ("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"),
        ("\u202eab\U000e0041\x1b\ufeff", "⟨U+202E⟩ab⟨U+E0041⟩␛⟨U+FEFF⟩"),
        ("\u200dstart", "⟨U+200D⟩start"),
    ],
)
def test_a_judge_reads_hidden_characters_by_name_and_joiners_where_a_script_needs_them(
    given_text: str, shown: str
) -> None:
    assert legible(given_text) == shown


@given(st.text())
def test_nothing_hidden_is_left(text: str) -> None:
    assert not [c for c in visible(text) if is_hidden(c)]
    assert not [c for c in str(marked(text)) if is_hidden(c)]
    assert visible(visible(text)) == visible(text)


@given(st.text())
def test_marked_is_escaped_html_of_the_visible_text(text: str) -> None:
    page = str(marked(text))
    bare = page.replace('<span class="hidden">', "").replace("</span>", "")
    assert not set("<>\"'") & set(bare)
    assert html.unescape(bare) == visible(text)


@given(st.text())
def test_a_cell_is_one_line_without_markup(text: str) -> None:
    found = cell(text)
    assert "\n" not in found
    assert "<" not in found
    for at, character in enumerate(found):
        if character in "|`[]":
            assert (len(found[:at]) - len(found[:at].rstrip("\\"))) % 2 == 1, found


def test_long_text_is_cut_and_says_so() -> None:
    assert visible("x" * 1500, characters=500) == "x" * 500 + " … 1,000 more characters"
    assert visible("\n" * 40 + "end", lines=3) == "\n\n … 41 more characters"
    assert '<span class="more"> … 1 more characters</span>' in str(marked("ab", characters=1))
    assert visible("short", characters=500, lines=3) == "short"


def test_percent_never_shows_the_unknown_as_zero() -> None:
    assert (percent(None), percent(0.0), percent(0.0912, 2)) == ("not measured", "0.0%", "9.12%")


def test_every_bidi_control_is_hidden() -> None:
    strong = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI", "BN"}
    assert all(is_hidden(chr(c)) for c in range(0x3000) if unicodedata.bidirectional(chr(c)) in strong)
