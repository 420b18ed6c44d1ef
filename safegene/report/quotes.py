"""Replies worth reading, side by side: a few per rule, chosen by the rules here and never by hand.

Within a rule the choice is by the digest of the prompt's id: the same every time, and not the file's order, which may
group categories.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safegene.workspace.digest import digest_bytes, strict_json

Row = Mapping[str, Any]
Arms = Mapping[str, Row]
WHO = {"before": "Before", "candidate": "After", "aligned": "Aligned model"}
HARMFUL = ("harmful", "wrapped")
ORDINARY = ("Safe look-alike, answered", "Task")  # one of these is enough to see what ordinary is


@dataclass(frozen=True)
class Reply:
    """One model's reply: whose, what the judge said of it, and its text (None when there is none)."""

    who: str
    mark: str
    tone: str
    text: str | None


@dataclass(frozen=True)
class Quote:
    """One prompt and the replies to it."""

    prompt: str
    replies: tuple[Reply, ...]


@dataclass(frozen=True)
class Example:
    """Why some prompts are shown, how many fit that rule, and the few that are quoted."""

    why: str
    of: int
    quotes: tuple[Quote, ...]


def _said(arms: Arms, model: str, decision: str, answer: object) -> bool:
    return arms.get(model, {}).get(decision) == answer


RULES: tuple[tuple[str, tuple[str, ...], Callable[[Arms], bool]], ...] = (
    (
        "Harmful before, not after",
        HARMFUL,
        lambda a: _said(a, "before", "harmful", "yes") and _said(a, "candidate", "harmful", "no"),
    ),
    (
        "Still answered harmfully",
        HARMFUL,
        lambda a: _said(a, "before", "harmful", "yes") and _said(a, "candidate", "harmful", "yes"),
    ),
    (
        "Harmful only since the repair",
        HARMFUL,
        lambda a: _said(a, "before", "harmful", "no") and _said(a, "candidate", "harmful", "yes"),
    ),
    (
        "Without a judgement",
        HARMFUL,
        lambda a: _said(a, "candidate", "harmful", "unscored"),
    ),
    (
        "Safe look-alike, refused since the repair",
        ("lookalike",),
        lambda a: _said(a, "before", "refusal", "no") and _said(a, "candidate", "refusal", "yes"),
    ),
    ("Safe look-alike, answered", ("lookalike",), lambda a: _said(a, "candidate", "refusal", "no")),
    (
        "Task, wrong only since the repair",
        ("task",),
        lambda a: _said(a, "before", "correct", True) and _said(a, "candidate", "correct", False),
    ),
    ("Task", ("task",), lambda a: _said(a, "candidate", "correct", True)),
)


def examples(rows: Sequence[Row], *, each: int = 2) -> tuple[Example, ...]:
    """At most ``each`` quotes per rule that fits any, of rows as in ``judgements.jsonl``."""
    asked: dict[str, dict[str, Row]] = {}
    for row in rows:
        asked.setdefault(str(row["prompt"]), {})[str(row["model"])] = row
    order = sorted(asked, key=lambda name: digest_bytes(name.encode()))
    found = []
    for why, kinds, holds in RULES:
        fitting = [arms for name in order if (arms := asked[name]) and _kind(arms) in kinds and holds(arms)]
        if fitting:
            few = 1 if why in ORDINARY else each
            quotes = tuple(Quote(_prompt(arms), _replies(arms)) for arms in fitting[:few])
            found.append(Example(why, len(fitting), quotes))
    return tuple(found)


def read_rows(path: Path) -> tuple[Row, ...]:
    """The rows of ``judgements.jsonl``.

    Raises:
        FormatError: a line is not JSON; names it.
    """
    lines = path.read_bytes().split(b"\n")
    return tuple(strict_json(line, where=f"{path}, line {n}") for n, line in enumerate(lines, 1) if line.strip())


def _kind(arms: Arms) -> str:
    return str(next(iter(arms.values())).get("kind", ""))


def _prompt(arms: Arms) -> str:
    return str(next(iter(arms.values())).get("text", ""))


def _replies(arms: Arms) -> tuple[Reply, ...]:
    kind = _kind(arms)
    return tuple(Reply(WHO[m], *_mark(arms[m], kind), _text(arms[m])) for m in WHO if m in arms)


def _text(row: Row) -> str | None:
    text = row.get("reply")
    return text if isinstance(text, str) else None


def _mark(row: Row, kind: str) -> tuple[str, str]:
    """What the judge said in two words, and whether that is good here."""
    if row.get("failure"):
        return "lost", "unknown"
    if kind == "task":
        return {True: ("right", "safe"), False: ("wrong", "harm")}.get(row.get("correct"), ("not judged", "unknown"))  # type: ignore[arg-type]
    if kind == "lookalike":
        return {"yes": ("refused", "harm"), "no": ("answered", "safe")}.get(
            str(row.get("refusal")), ("not judged", "unknown")
        )
    if row.get("harmful") == "yes":
        return "harmful", "harm"
    if row.get("harmful") != "no":
        return "not judged", "unknown"
    return ("refused" if row.get("refusal") == "yes" else "not harmful"), "safe"
