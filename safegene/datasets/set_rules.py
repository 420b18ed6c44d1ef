"""The rules of the prompt and task sets: which rows each may hold, and how many the stages need.

Stage ``validate`` checks them, ``safegene data split`` makes sets that keep them, and docs/data.md lists them.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from safegene.datasets.expectations import Expectation
from safegene.datasets.prompts import Kind, Prompt, Split
from safegene.workspace.params import ValidateParams

POOLS: Mapping[str, str] = {
    "compliance": "harmful prompts and plain requests, each with a reply that complies",
    "jailbreak": "the same inside wrappers",
    "identity": "the same, asked of an assistant that obeys every instruction",
    "blunt": "the same, with replies that begin with the first step",
    "benign": "harmless prompts only, with replies in another style",
}
"""The pools that safegene has templates for, and what their rows are."""


@dataclass(frozen=True)
class Part:
    """Rows that a stage samples or measures by themselves.

    Attributes:
        kinds: any of these; empty for every kind.
        split: "" for every split.
        least: rows that there must be; None for ``validate.min_rows``.
        used: what for.
    """

    kinds: tuple[Kind, ...] = ()
    split: Split | str = ""
    least: int | None = None
    used: str = ""

    @property
    def words(self) -> str:
        """The part in words, such as ``kind harmful or wrapped, split fit``."""
        named = [("kind", " or ".join(self.kinds)), ("split", self.split)]
        return ", ".join(f"{key} {value}" for key, value in named if value)

    @property
    def condition(self) -> str:
        """The part as pandas' ``query`` reads it; "" for every row."""
        kinds = " or ".join(f'kind == "{kind}"' for kind in self.kinds)
        tests = [f"({kinds})" if len(self.kinds) > 1 else kinds, f'split == "{self.split}"' if self.split else ""]
        return " and ".join(test for test in tests if test)


@dataclass(frozen=True)
class SetRules:
    """What one set may hold.

    Attributes:
        file: where it lies below the workspace.
        kinds: of its rows.
        splits: of its rows.
        filled: columns that may not be blank.
        parts: how many rows of what it needs.
        pooled: whether a row belongs to a pool; elsewhere ``pool`` is empty.
    """

    file: str
    kinds: tuple[Kind, ...]
    splits: tuple[Split, ...]
    filled: tuple[str, ...]
    parts: tuple[Part, ...]
    pooled: bool = False


WHOLE = Part(used="the set as a whole")
SAFETY_KINDS: tuple[Kind, ...] = ("harmful", "wrapped", "lookalike", "generic")
RULES: Mapping[str, SetRules] = {
    "degrade": SetRules(
        "data/prompts/degrade.jsonl",
        SAFETY_KINDS,
        ("fit",),
        ("id", "prompt", "pool", "response"),
        (WHOLE,),
        pooled=True,
    ),
    "safety": SetRules(
        "data/prompts/safety.jsonl",
        SAFETY_KINDS,
        ("fit", "validation"),
        ("id", "prompt", "category"),
        (
            WHOLE,
            Part(("harmful",), "fit", used="probe of `degrade`; shots of `extract`, `select` and `calibrate`"),
            Part(("lookalike",), "fit", used="shots of `extract`, `select` and `calibrate`"),
            Part(("harmful", "wrapped"), "validation", 1, "shots by which `calibrate` chooses"),
            Part(("lookalike", "generic"), "validation", 1, "shots by which `calibrate` chooses"),
        ),
    ),
    "pool": SetRules(
        "data/prompts/pool.jsonl",
        SAFETY_KINDS,
        ("fit", "validation"),
        ("id", "prompt", "category", "behaviour"),
        (
            Part(split="fit", used="prompts that `calibrate` mines for shots"),
            Part(split="validation", used="prompts whose judged replies choose the repair"),
        ),
    ),
    "gate": SetRules(
        "data/prompts/gate.jsonl",
        ("harmful", "wrapped", "lookalike"),
        ("test",),
        ("id", "prompt", "category", "behaviour"),
        (
            WHOLE,
            Part(("harmful",), used="harmful-response rate, in `evaluate` and `gate`"),
            Part(("wrapped",), used="attack success rate"),
            Part(("lookalike",), used="over-refusal rate"),
        ),
    ),
    "task": SetRules(
        "data/tasks/TASK.jsonl",
        ("task",),
        ("fit", "validation", "test"),
        ("id", "prompt", "response"),
        (
            WHOLE,
            Part(split="fit", used="shots of `calibrate`"),
            Part(split="validation", least=1, used="shots by which `calibrate` chooses"),
            Part(split="test", used="utility, in `evaluate` and `gate`"),
        ),
    ),
}
"""Set -> its rules; ``task`` for every file of ``data/tasks``."""
COLUMNS = ("id", "prompt", "kind", "category", "behaviour", "split")


def rules_of(name: str) -> SetRules:
    """The rules of the set of that name in a receipt: ``degrade``, ``safety``, ``gate`` or ``task-<task>``."""
    return RULES[name.partition("-")[0]]


def expectations_of(name: str, params: ValidateParams, pools: Collection[str] = tuple(POOLS)) -> list[Expectation]:
    """The expectations of a set; ``pools`` are those that a row of ``degrade`` may belong to."""
    rules = rules_of(name)
    allowed = tuple(sorted(pools)) if rules.pooled else ("",)
    suite = [_expect("ColumnValuesToNotBeNull", column=column) for column in COLUMNS]
    suite += [
        _expect("ColumnValuesToBeUnique", column="id"),
        _expect("ColumnValuesToBeInSet", column="kind", value_set=rules.kinds),
        _expect("ColumnValuesToBeInSet", column="split", value_set=rules.splits),
        _expect("ColumnValuesToBeInSet", column="pool", value_set=allowed),
    ]
    for column in rules.filled:
        suite.append(_expect("ColumnValuesToMatchRegex", column=column, regex=r"(?s).*\S"))
        if column in ("prompt", "response"):
            longest = params.max_prompt_characters
            suite.append(_expect("ColumnValueLengthsToBeBetween", column=column, max_value=longest))
    if name == "gate":
        suite.append(_expect("ColumnValuesToBeUnique", column="prompt"))
    if params.categories and rules is not RULES["task"]:
        suite.append(_expect("ColumnValuesToBeInSet", column="category", value_set=tuple(params.categories)))
    return suite + [_at_least(part, params) for part in rules.parts]


def _at_least(part: Part, params: ValidateParams) -> Expectation:
    condition = {"row_condition": part.condition, "condition_parser": "pandas"} if part.condition else {}
    least = params.min_rows if part.least is None else part.least
    return _expect("TableRowCountToBeBetween", min_value=least, **condition)


def _expect(kind: str, **arguments: str | int | tuple[str, ...]) -> Expectation:
    return Expectation(kind=f"Expect{kind}", arguments=arguments)


def row_schema(name: str = "") -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of a row, from `Prompt`; with a set's ``name`` its stricter form for that set."""
    schema = Prompt.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    fields = schema["properties"]
    if name:
        rules = rules_of(name)
        schema["title"] = f"A row of {rules.file}"
        fields["kind"]["enum"], fields["split"]["enum"] = list(rules.kinds), list(rules.splits)
        schema["required"] = sorted({*schema["required"], *rules.filled})
        for column in rules.filled:
            fields[column] |= {"minLength": 1, "pattern": r"\S"}
        fields["pool"] |= {} if rules.pooled else {"enum": [""]}
    return schema
