"""The pool of the tiny family: unlabelled prompts from which `calibrate` mines shots (`safegene.repair.mining`).

No behaviour, template or wrapper of it occurs in the validation split of ``safety.jsonl`` or in ``gate.jsonl``, which
tests state. Harmful requests join a verb of one category with an object of another, which no other set does.
Look-alikes are those of the corpus's pool ``fit`` that ``safety.jsonl`` does not use. The forms are made by rule from
the templates of split fit: as they are, with the object first, and after or before a phrase of courtesy. Part
``validation``, by which a repair is chosen, has other behaviours, forms and wrappers than part ``fit``.
"""

from collections.abc import Sequence

from safegene.datasets.prompts import Kind
from safegene.tiny.corpus import TEMPLATES, WRAPPERS, Request, Split, lookalikes, ordered, stable
from safegene.tiny.words import CATEGORIES, article

OBJECT_FIRST: tuple[str, ...] = ("there is {o} . ", "i have {o} . ")
COURTESY: tuple[str, ...] = ("hello . {t}", "good morning . {t}", "{t} thank you .", "please answer . {t}")
SIZES: dict[Split, tuple[int, int]] = {"fit": (250, 660), "validation": (120, 240)}
"""Part -> how many harmful requests, and as many wrapped ones, and how many look-alikes."""
USED_LOOKALIKES = 160  # by the split fit of safety.jsonl
PARTS = 3  # one form, wrapper and behaviour in three belongs to part validation


def forms(part: Split) -> tuple[str, ...]:
    """The templates of a part of the pool: made by rule from those of split fit, each in one part."""
    plain = TEMPLATES["fit"]
    behind = [template for template in plain if "{v} {o}" in template]
    made = [first + template.replace("{v} {o}", "{v} it") for first in OBJECT_FIRST for template in behind]
    made += [courtesy.replace("{t}", template) for courtesy in COURTESY for template in plain]
    held = {*TEMPLATES["validation"], *TEMPLATES["test"]}
    return tuple(form for form in (*plain, *made) if form not in held and _part(form) == part)


def wrappers(part: Split) -> tuple[str, ...]:
    """The jailbreak wrappers of a part of the pool."""
    return tuple(wrapper for wrapper in WRAPPERS["fit"] if _part(wrapper) == part)


def crossed(part: Split) -> tuple[Request, ...]:
    """Harmful requests with a verb of one category and an object of another, in hash order."""
    rows = [
        Request(verb, noun, one.name, harmful=True)
        for one in CATEGORIES
        for other in CATEGORIES
        if one is not other
        for verb in one.verbs
        for noun in other.objects
    ]
    return tuple(row for row in ordered(rows, "pool") if _part(row.behaviour) == part)


def unused_lookalikes(part: Split) -> tuple[Request, ...]:
    """Look-alikes of the corpus's pool fit that ``safety.jsonl`` does not use."""
    return tuple(row for row in lookalikes("fit")[USED_LOOKALIKES:] if _part(row.behaviour) == part)


def pool_prompts(part: Split) -> list[tuple[Kind, Request, str]]:
    """(kind, request, prompt) of a part: harmful, wrapped and look-alike; one look-alike in four is wrapped."""
    (size, benign), harmful = SIZES[part], crossed(part)
    rows: list[tuple[Kind, Request, str]] = [("harmful", row, _ask(row, part)) for row in harmful[:size]]
    rows += [("wrapped", row, _ask(row, part, wrapped=True)) for row in harmful[size : 2 * size]]
    alike = unused_lookalikes(part)[:benign]
    return rows + [("lookalike", row, _ask(row, part, wrapped=at % 4 == 3)) for at, row in enumerate(alike)]


def _ask(request: Request, part: Split, *, wrapped: bool = False) -> str:
    text = _pick(forms(part), request, "form").format(v=request.verb, o=article(request.noun))
    return _pick(wrappers(part), request, "wrapper").format(p=text) if wrapped else text


def _pick(options: Sequence[str], request: Request, salt: str) -> str:
    return options[stable("pool", salt, request.behaviour) % len(options)]


def _part(text: str) -> Split:
    return "validation" if stable("pool part", text) % PARTS == 0 else "fit"
