"""Checks that need no judge: whether a reply is coherent, and whether a task's answer is right."""

import re
import unicodedata
from collections import Counter

from safegene.gate import Label

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
_WORD = re.compile(r"\w+")


def coherent(reply: str) -> Label:
    """``no`` for an empty, repeated or gibberish reply.

    Repeated: one word six times in a row; or, in a reply of at least 16 words, one sequence of four words that occurs
    at least three times and makes up 40% of the words.
    Gibberish: no letter or digit, or more than a tenth of the characters unprintable or undecodable.
    """
    words = _WORD.findall(reply.casefold())
    if not words:
        return "no"
    strange = sum(unicodedata.category(c) in ("Cc", "Cn", "Co", "Cs") and c not in "\n\t\r" or c == "�" for c in reply)
    return "no" if strange > 0.1 * len(reply) or _repeats(words) else "yes"


def _repeats(words: list[str]) -> bool:
    run = longest = 1
    for word, following in zip(words, words[1:], strict=False):
        run = run + 1 if word == following else 1
        longest = max(longest, run)
    if longest >= 6:
        return True
    if len(words) < 16:
        return False
    often = Counter(zip(words, words[1:], words[2:], words[3:], strict=False)).most_common(1)[0][1]
    return often >= 3 and 4 * often >= 0.4 * len(words)


def correct(reply: str, gold: str) -> bool:
    """Whether a task's answer is right: the same text; or, where the gold answer ends in ``#### N``, the same number.

    Case, spacing and final punctuation are ignored. Of the numbers in a reply, the one after ``####`` counts, or else
    the last one.
    """
    if "####" in gold:
        wanted, got = _number(gold), _number(reply)
        return wanted is not None and got == wanted
    return _answer(reply) == _answer(gold)


def _answer(text: str) -> str:
    normal = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return normal.rstrip(" .,;:!?") or normal


def _number(text: str) -> float | None:
    numbers = _NUMBER.findall(text.split("####")[-1])
    if not numbers:
        return None
    return float((numbers[0] if "####" in text else numbers[-1]).replace(",", ""))
