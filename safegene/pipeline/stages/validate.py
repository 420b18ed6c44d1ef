"""Stage ``validate``: check every prompt and task set with Great Expectations, and the gate set for contamination.

A set that fails stops the run. The receipt names each set by digest, and the stages that read a set check it. The
results are kept as HTML pages: in ``docs/`` of the artefact, and for a set that failed in the cache folder that the
error names.
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safegene.datasets.contamination import check_contamination, check_task_contamination, normalised
from safegene.datasets.expectations import Expectation, FailedExpectation, check_rows, library_version
from safegene.datasets.prompts import PromptSet, parse_prompts, read_bytes
from safegene.datasets.receipt import RECEIPT, OverlapRule, ValidatedSet, ValidationReceipt
from safegene.errors import EmptySample, FormatError
from safegene.workspace.atomic import write_optional
from safegene.workspace.digest import strict_json
from safegene.workspace.layout import cache_folder
from safegene.workspace.manifest import Manifest, write_artefact
from safegene.workspace.params import ValidateParams
from safegene.workspace.parsing import json_lines

log = logging.getLogger(__name__)
COLUMNS = ("id", "prompt", "kind", "category", "behaviour", "split")

# set -> (kinds, splits, columns that may not be empty)
SETS: Mapping[str, tuple[Sequence[str], Sequence[str], Sequence[str]]] = {
    "degrade": (("harmful", "wrapped", "lookalike", "generic"), ("fit",), ("id", "prompt", "pool", "response")),
    "safety": (("harmful", "wrapped", "lookalike", "generic"), ("fit", "validation"), ("id", "prompt", "category")),
    "gate": (("harmful", "wrapped", "lookalike"), ("test",), ("id", "prompt", "category", "behaviour")),
    "task": (("task",), ("fit", "validation", "test"), ("id", "prompt", "response")),
}
# Parts that must each have min_rows rows, since a stage samples or measures on that part alone.
PARTS: Mapping[str, Sequence[Mapping[str, str]]] = {
    "degrade": (),
    "safety": ({"kind": "harmful", "split": "fit"}, {"kind": "lookalike", "split": "fit"}),
    "gate": ({"kind": "harmful"}, {"kind": "wrapped"}, {"kind": "lookalike"}),
    "task": ({"split": "fit"}, {"split": "test"}),
}


def validate(*, prompts: Path, tasks: Path, out: Path, params: ValidateParams | None = None) -> Manifest:
    """Validate ``prompts/{degrade,safety,gate}.jsonl`` and every ``tasks/<task>.jsonl``.

    Args:
        prompts: folder of the prompt sets.
        tasks: folder of the task sets.
        out: the artefact to write: ``receipt.json`` and a page per set.
        params: section ``validate`` of params.yaml; its defaults when None.

    Raises:
        ArtifactError: one of the three prompt sets is missing.
        EmptySample: a set holds no row.
        FormatError: a set fails an expectation; names the file, the expectation and the rows.
        ContaminatedSample: a gate prompt, or a test row of a task, was seen in fitting.

    Example:
        >>> manifest = safegene.validate(prompts=ws.prompts, tasks=ws.tasks, out=ws.validation)
        >>> manifest.facts["sets"]
        6
    """
    params = params or ValidateParams()
    paths = {name: prompts / f"{name}.jsonl" for name in ("degrade", "safety", "gate")}
    paths |= {f"task-{path.stem}": path for path in sorted(tasks.glob("*.jsonl"))}
    sets: dict[str, PromptSet] = {}
    pages: dict[str, str] = {}
    for name, path in paths.items():
        data = read_bytes(path)
        pages[name] = _check_expectations(name, data, path, params)
        sets[name] = parse_prompts(data, path)
    _check_disjoint(sets, params)
    inputs = {name: prompt_set.digest for name, prompt_set in sets.items()}
    with write_artefact(out, stage="validate", params=params.model_dump(mode="json"), inputs=inputs) as draft:
        (draft.path / "docs").mkdir()
        for name, page in pages.items():
            (draft.path / "docs" / f"{name}.html").write_text(page, encoding="utf-8")
        (draft.path / RECEIPT).write_bytes(_receipt(sets, params).content)
        draft.facts.update(sets=len(sets), rows=sum(len(prompt_set.rows) for prompt_set in sets.values()))
    return draft.done


def expectations_of(name: str, params: ValidateParams) -> list[Expectation]:
    """The expectations of a set (``degrade``, ``safety``, ``gate``, or ``task`` for every task)."""
    kinds, splits, filled = SETS[name]
    suite = [_expect("ColumnValuesToNotBeNull", column=column) for column in COLUMNS]
    suite += [
        _expect("ColumnValuesToBeUnique", column="id"),
        _expect("ColumnValuesToBeInSet", column="kind", value_set=tuple(kinds)),
        _expect("ColumnValuesToBeInSet", column="split", value_set=tuple(splits)),
        _expect("TableRowCountToBeBetween", min_value=params.min_rows),
    ]
    for column in filled:
        longest = {"max_value": params.max_prompt_characters} if column in ("prompt", "response") else {}
        suite.append(_expect("ColumnValueLengthsToBeBetween", column=column, min_value=1, **longest))
        suite.append(_expect("ColumnValuesToMatchRegex", column=column, regex=r"(?s).*\S"))
    if name == "gate":
        suite.append(_expect("ColumnValuesToBeUnique", column="prompt"))
    if params.categories and name != "task":
        suite.append(_expect("ColumnValuesToBeInSet", column="category", value_set=tuple(params.categories)))
    for part in PARTS[name]:
        condition = " and ".join(f'{column} == "{value}"' for column, value in part.items())
        limits = {"row_condition": condition, "condition_parser": "pandas"}
        suite.append(_expect("TableRowCountToBeBetween", min_value=params.min_rows, **limits))
    return suite


def _expect(kind: str, **arguments: str | int | tuple[str, ...]) -> Expectation:
    return Expectation(kind=f"Expect{kind}", arguments=arguments)


def _check_expectations(name: str, data: bytes, path: Path, params: ValidateParams) -> str:
    """The page of a set that passes.

    Raises:
        FormatError: an expectation fails; the page is kept in the cache.
    """
    rows, lines = _raw_rows(data, path)
    failed, page = check_rows(name, rows, expectations_of(name.partition("-")[0], params))
    if not failed:
        log.info("%s: all expectations hold for %d rows", path, len(rows))
        return page
    kept = cache_folder() / "validation" / f"{path.stem}.html"
    write_optional(kept, page)
    listed = "; ".join(_described(failure, rows, lines) for failure in failed[:3])
    more = f" and {len(failed) - 3} more expectations" if len(failed) > 3 else ""
    raise FormatError(
        f"expected every expectation to hold, got {listed}{more}, in {path}",
        remedy=f"correct these rows; the complete result is in {kept}",
    )


def _described(failure: FailedExpectation, rows: Sequence[Mapping[str, Any]], lines: Sequence[int]) -> str:
    name = failure.expectation.name
    if not failure.rows:
        return f"{name} broken ({failure.observed})"
    listed = [f"{str(rows[at].get('id'))[:60]!r} (line {lines[at]})" for at in failure.rows[:3]]
    more = f" and {len(failure.rows) - 3} more" if len(failure.rows) > 3 else ""
    return f"{name} broken by {', '.join(listed)}{more}"


def _raw_rows(data: bytes, path: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """The JSON objects as they are, with their line numbers, so that wrong types are reported as expectations."""
    rows, lines = [], []
    for number, line in json_lines(data):
        row = strict_json(line, where=f"{path}, line {number}")
        if not isinstance(row, dict):
            raise FormatError(f"expected a JSON object, got {type(row).__name__}, in {path}, line {number}")
        rows.append(row)
        lines.append(number)
    if not rows:
        raise EmptySample(f"expected at least one prompt, got an empty set, in {path}")
    return rows, lines


def _check_disjoint(sets: Mapping[str, PromptSet], params: ValidateParams) -> None:
    """Compare the gate set with every fitted set, and the test rows of each task with its other rows."""
    gate = sets["gate"]
    _check_distinct(gate)
    for name, other in sets.items():
        fitted = [row for row in other.rows if row.split != "test"]
        if name != "gate":
            check_contamination(
                gate.rows,
                fitted,
                ngram=params.overlap_ngram,
                max_overlap=params.max_overlap,
                where=f"{gate.path} and {other.path}",
            )
        if name.startswith("task-"):
            tested = [row for row in other.rows if row.split == "test"]
            check_task_contamination(tested, fitted, where=str(other.path))


def _check_distinct(gate: PromptSet) -> None:
    """Refuse gate prompts whose normalised texts are equal; one behaviour may be asked by several prompts."""
    ids: dict[str, str] = {}
    for row in gate.rows:
        text = normalised(row.prompt)
        other = ids.setdefault(text, row.id)
        if other != row.id:
            raise FormatError(
                f"expected the text {text!r} once, got it in {other!r} and {row.id!r}, in {gate.path}",
                remedy="keep one of them: the gate counts prompts that differ",
            )


def _receipt(sets: Mapping[str, PromptSet], params: ValidateParams) -> ValidationReceipt:
    validated = {
        name: ValidatedSet(
            digest=prompt_set.digest,
            rows=len(prompt_set.rows),
            parts=dict(Counter(f"{row.kind}/{row.split}" for row in prompt_set.rows)),
            rules=len(expectations_of(name.partition("-")[0], params)),
        )
        for name, prompt_set in sets.items()
    }
    rule = OverlapRule(ngram=params.overlap_ngram, max_overlap=params.max_overlap)
    return ValidationReceipt(sets=validated, disjoint=rule, great_expectations=library_version())
