"""Replies to read side by side: a few for each rule, chosen by the rules below and never by hand.

Within a rule the prompts with the lowest digests of their ids are chosen: the choice is the same every time, and does
not follow the file's order, which may group categories.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from safegene.gate import JudgementRow
from safegene.workspace.digest import digest_bytes

Arms = Mapping[str, JudgementRow]
WHO = {"before": "Before", "candidate": "After", "aligned": "Aligned model"}
HARMFUL = ("harmful", "wrapped")
EACH = 2  # prompts quoted for one rule


@dataclass(frozen=True)
class Reply:
    """One model's reply: which model, what the judge decided, and the text (None when there is no reply)."""

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
    """The title of a rule, how many prompts fit it, and those that are quoted."""

    why: str
    of: int
    quotes: tuple[Quote, ...]


@dataclass(frozen=True)
class Rule:
    """Which prompts are worth quoting.

    Attributes:
        why: the title.
        kinds: kinds of prompts that it looks at.
        fits: whether the rows of a prompt (arm -> row) fit.
        most: prompts that are quoted.
    """

    why: str
    kinds: tuple[str, ...]
    fits: Callable[[Arms], bool]
    most: int = EACH


def _harm(before: str, after: str) -> Callable[[Arms], bool]:
    return lambda arms: _label(arms, "before", "harmful") == before and _label(arms, "candidate", "harmful") == after


def _label(arms: Arms, arm: str, decision: str) -> str | bool | None:
    row = arms.get(arm)
    return getattr(row, decision) if row else None


RULES = (
    Rule("Harmful before, not after", HARMFUL, _harm("yes", "no")),
    Rule("Still answered harmfully", HARMFUL, _harm("yes", "yes")),
    Rule("Harmful only since the repair", HARMFUL, _harm("no", "yes")),
    Rule("Without a judgement", HARMFUL, lambda arms: _label(arms, "candidate", "harmful") == "unscored"),
    Rule(
        "Safe look-alike, refused since the repair",
        ("lookalike",),
        lambda arms: _label(arms, "before", "refusal") == "no" and _label(arms, "candidate", "refusal") == "yes",
    ),
    Rule(
        "Safe look-alike, answered", ("lookalike",), lambda arms: _label(arms, "candidate", "refusal") == "no", most=1
    ),
    Rule(
        "Task, wrong only since the repair",
        ("task",),
        lambda arms: _label(arms, "before", "correct") is True and _label(arms, "candidate", "correct") is False,
    ),
    Rule("Task", ("task",), lambda arms: _label(arms, "candidate", "correct") is True, most=1),
)


def examples(rows: Sequence[JudgementRow]) -> tuple[Example, ...]:
    """The quotes of every rule that some prompt fits."""
    by_prompt: dict[str, dict[str, JudgementRow]] = {}
    for row in rows:
        by_prompt.setdefault(row.prompt, {})[row.model] = row
    prompts = [by_prompt[name] for name in sorted(by_prompt, key=lambda name: digest_bytes(name.encode()))]
    chosen = []
    for rule in RULES:
        fitting = [arms for arms in prompts if _first(arms).kind in rule.kinds and rule.fits(arms)]
        if fitting:
            quotes = tuple(Quote(_first(arms).text, _replies(arms)) for arms in fitting[: rule.most])
            chosen.append(Example(rule.why, len(fitting), quotes))
    return tuple(chosen)


def _first(arms: Arms) -> JudgementRow:
    return next(iter(arms.values()))


def _replies(arms: Arms) -> tuple[Reply, ...]:
    return tuple(Reply(who, *_mark(arms[arm]), _text(arms[arm])) for arm, who in WHO.items() if arm in arms)


def _text(row: JudgementRow) -> str | None:
    return None if row.failure and not row.reply else row.reply


def _mark(row: JudgementRow) -> tuple[str, str]:
    """What the judge decided in two words, and the class of the style sheet for it."""
    if row.failure:
        return "lost", "unknown"
    if row.kind == "task":
        if row.correct is None:
            return "not judged", "unknown"
        return ("right", "safe") if row.correct else ("wrong", "harm")
    if row.kind == "lookalike":
        return {"yes": ("refused", "harm"), "no": ("answered", "safe")}.get(row.refusal, ("not judged", "unknown"))
    if row.harmful == "unscored":
        return "not judged", "unknown"
    if row.harmful == "yes":
        return "harmful", "harm"
    return ("refused" if row.refusal == "yes" else "not harmful"), "safe"
