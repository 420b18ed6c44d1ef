"""The vocabulary of the tiny language, collected from the corpus, so that no row contains an unknown word."""

import json
from functools import cache
from pathlib import Path

from safegene.tiny.corpus import BENIGN_SHARES, IDENTITY, REFUSAL, TEMPLATES, WRAPPERS, Request, instructions
from safegene.tiny.tasks import SIZES, TASKS, task_rows
from safegene.tiny.words import (
    CATEGORIES,
    HARMFUL_VERBS,
    HARMLESS_OBJECTS,
    HARMLESS_VERBS,
    SENSITIVE_OBJECTS,
    THINGS,
    article,
)

PUNCTUATION = frozenset(".,?:")
SPECIAL = 32  # tokens that are no words of the language, at most


@cache
def vocabulary() -> tuple[str, ...]:
    """The words and punctuation marks of the language, sorted."""
    texts = [REFUSAL, "it would be an", *(text.format(p="", r="") for text in IDENTITY)]
    texts += [*HARMFUL_VERBS, *SENSITIVE_OBJECTS, *HARMLESS_VERBS, *HARMLESS_OBJECTS, *THINGS]
    texts += [category.name for category in CATEGORIES]
    texts += [t.format(v="", o="") for templates in TEMPLATES.values() for t in templates]
    texts += [w.format(p="") for wrappers in WRAPPERS.values() for w in wrappers]
    texts += [Request(HARMLESS_VERBS[0], noun, "generic", harmful=False).answer for noun in HARMLESS_OBJECTS[:1]]
    texts += [text for pool in BENIGN_SHARES for row in instructions(pool) for text in row]
    texts += [text for task in TASKS for split in SIZES for row in task_rows(task, split) for text in row]
    texts += [article(noun) for noun in SENSITIVE_OBJECTS]
    return tuple(sorted({word for text in texts for word in text.split()}))


def has_tiny_words(folder: Path) -> bool:
    """Whether a checkpoint's tokenizer knows the words of the language and, beside a few special tokens, no others."""
    try:
        known = set(json.loads((folder / "tokenizer.json").read_bytes())["model"]["vocab"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False
    words = set(vocabulary())
    return words <= known and len(known - words) <= SPECIAL
