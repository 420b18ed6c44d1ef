"""Comparing prompt sets: the gate's prompts must not be among those that extraction, selection or calibration used.

Three rules are checked: the same text after `normalised`, the same behaviour id, and too many shared n-grams of words.
"""

import re
import unicodedata
from collections.abc import Sequence

from safegene.datasets.prompts import Prompt
from safegene.errors import ContaminatedSample
from safegene.workspace.digest import digest_bytes

_SIGN = re.compile(r"[-\u2010-\u2015\u2212](?=\s*\d)")
# Unicode categories kept beside letters and digits: without vowel signs (Mn, Mc) and mathematical symbols (Sm), prompts
# that differ would compare as equal.
_KEPT = ("Mn", "Mc", "Sm")

UNSEEN_REMEDY = "take these rows out of the gate set or out of the fitted set, or make both by `safegene data split`"


def normalised(text: str) -> str:
    """The form in which texts are compared.

    Unicode NFKC, case folded; invisible format characters are dropped, punctuation becomes a space, and words and
    mathematical symbols are joined by one space. Normalising twice changes nothing.
    """
    visible = "".join(c for c in text if unicodedata.category(c) != "Cf")
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", visible).casefold())
    signed = _SIGN.sub("\u2212", folded)
    kept = "".join(c if c.isalnum() or unicodedata.category(c) in _KEPT else " " for c in signed)
    return unicodedata.normalize("NFKC", " ".join(kept.split()))


def text_digest(text: str) -> str:
    """The digest of a text in the form in which texts are compared; it tells whoever has the text, and nobody else."""
    return digest_bytes(normalised(text).encode())


def ngrams(text: str, n: int) -> frozenset[tuple[str, ...]]:
    """The ``n``-grams of words of a normalised text; empty when the text has fewer than ``n`` words."""
    words = text.split()
    return frozenset(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def check_task_contamination(tested: Sequence[Prompt], fitted: Sequence[Prompt], *, where: str) -> None:
    """Refuse tested task rows whose whole text is that of a fitted row.

    The other two rules of `check_contamination` do not apply: rows of one template share most of their n-grams, and
    those of one label may share a behaviour id.

    Raises:
        ContaminatedSample: as `check_contamination`.
    """
    rows = [row.model_copy(update={"behaviour": ""}) for row in tested]
    check_contamination(rows, fitted, ngram=1, max_overlap=1, where=where)


def check_contamination(
    tested: Sequence[Prompt],
    fitted: Sequence[Prompt],
    *,
    ngram: int,
    max_overlap: float,
    where: str,
    tested_as: str = "gate",
) -> None:
    """Refuse tested prompts that were seen in fitting, see `seen_in_fitting`; ``tested_as`` is their name in the error.

    Raises:
        ContaminatedSample: names ``where``, every rule that is broken and its first rows.
    """
    broken = [
        f"{rule} in {', '.join(f'{row} {what}' for row, what in list(rows.items())[:5])}"
        + (f" and {len(rows) - 5} more" if len(rows) > 5 else "")
        for rule, rows in seen_in_fitting(tested, fitted, ngram=ngram, max_overlap=max_overlap).items()
    ]
    if broken:
        raise ContaminatedSample(
            f"expected {tested_as} prompts unseen in fitting, got {'; '.join(broken)}, in {where}", remedy=UNSEEN_REMEDY
        )


def seen_in_fitting(
    tested: Sequence[Prompt], fitted: Sequence[Prompt], *, ngram: int, max_overlap: float
) -> dict[str, dict[str, str]]:
    """Rule -> id of each tested prompt that breaks it -> what it was found in.

    A tested prompt was seen when its normalised text equals that of a fitted prompt, when it has the behaviour id of a
    fitted prompt, or when more than ``max_overlap`` of its ``ngram``-grams occur in the fitted prompts.

    Args:
        tested: prompts that the gate asks.
        fitted: prompts that extraction, selection or calibration used.
        ngram: words per n-gram.
        max_overlap: largest share of shared n-grams that is allowed, in 0..1.
    """
    texts = {normalised(row.prompt): row.id for row in fitted}
    behaviours = {row.behaviour: row.id for row in fitted if row.behaviour}
    grams: set[tuple[str, ...]] = set()
    for text in texts:
        grams |= ngrams(text, ngram)
    same, alike, overlapping = dict[str, str](), dict[str, str](), dict[str, str]()
    for row in tested:
        text = normalised(row.prompt)
        row_grams = ngrams(text, ngram)
        if text in texts:
            same[row.id] = f"= {texts[text]}"
        elif row.behaviour in behaviours:
            alike[row.id] = f"~ {behaviours[row.behaviour]}"
        elif row_grams and len(row_grams & grams) > max_overlap * len(row_grams):
            overlapping[row.id] = f"({len(row_grams & grams)} of {len(row_grams)})"
    rules = {
        "the same text": same,
        "the same behaviour": alike,
        f"more than {max_overlap:g} of the {ngram}-grams": overlapping,
    }
    return {rule: rows for rule, rows in rules.items() if rows}
