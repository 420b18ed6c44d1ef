"""Stage ``validate``: hold every prompt and task set against its suite, and the gate set against what is fitted on.

An invalid set stops the run. The receipt names each set by digest, so every stage that reads one can depend on it.
Pages for people lie in ``docs/``; those of a set that failed lie in the cache, where the error says.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safegene.datasets.expectations import Finding, Rule, check_table, version
from safegene.datasets.prompts import PromptSet, check_contamination, normalised, read_prompts
from safegene.errors import ArtifactError, EmptySample, FormatError
from safegene.workspace.digest import canonical_json, strict_json
from safegene.workspace.layout import cache_folder
from safegene.workspace.manifest import Manifest, write_artefact
from safegene.workspace.params import ValidateParams

log = logging.getLogger(__name__)
SCHEMA = "safegene/validation/v1"
COLUMNS = ("id", "prompt", "kind", "category", "behaviour", "split")

# set -> (kinds, splits, columns that may not be empty)
SETS: Mapping[str, tuple[Sequence[str], Sequence[str], Sequence[str]]] = {
    "degrade": (("harmful", "wrapped", "lookalike", "generic"), ("fit",), ("id", "prompt", "pool", "response")),
    "safety": (("harmful", "wrapped", "lookalike", "generic"), ("fit", "validation"), ("id", "prompt", "category")),
    "gate": (("harmful", "wrapped", "lookalike"), ("test",), ("id", "prompt", "category", "behaviour")),
    "task": (("task",), ("fit", "validation", "test"), ("id", "prompt", "response")),
}
# Parts that must each reach min_rows: the stages that read them would otherwise measure on next to nothing.
PARTS: Mapping[str, Sequence[Mapping[str, str]]] = {
    "degrade": (),
    "safety": ({"kind": "harmful", "split": "fit"}, {"kind": "lookalike", "split": "fit"}),
    "gate": ({"kind": "harmful"}, {"kind": "wrapped"}, {"kind": "lookalike"}),
    "task": ({"split": "fit"}, {"split": "test"}),
}


def validate(*, prompts: Path, tasks: Path, out: Path, params: ValidateParams | None = None) -> Manifest:
    """Validate ``prompts/{degrade,safety,gate}.jsonl`` and every ``tasks/<task>.jsonl``.

    Raises:
        ArtifactError: one of the three prompt sets is absent.
        EmptySample: a set holds no row.
        FormatError: a set breaks a rule; names the file, the rule and the rows.
        ContaminatedSample: the gate set meets what is fitted on, or a task's test rows its other rows.

    Example:
        >>> manifest = safegene.validate(prompts=ws.prompts, tasks=ws.tasks, out=ws.validation)
        >>> manifest.facts["sets"]
        6
    """
    params = params or ValidateParams()
    sets = {name: prompts / f"{name}.jsonl" for name in ("degrade", "safety", "gate")}
    sets |= {f"task-{path.stem}": path for path in sorted(tasks.glob("*.jsonl"))}
    pages = {name: _hold(name, path, params) for name, path in sets.items()}
    read = {name: read_prompts(path) for name, path in sets.items()}
    _check_disjoint(read, params)
    chosen = params.model_dump(mode="json")
    with write_artefact(out, stage="validate", params=chosen, inputs={n: s.digest for n, s in read.items()}) as draft:
        (draft.path / "docs").mkdir()
        for name, page in pages.items():
            (draft.path / "docs" / f"{name}.html").write_text(page, encoding="utf-8")
        receipt = _receipt(read, params)
        (draft.path / "receipt.json").write_bytes(canonical_json(receipt) + b"\n")
        draft.facts.update(sets=len(read), rows=sum(len(one.rows) for one in read.values()))
    return draft.done


def rules(name: str, params: ValidateParams) -> list[Rule]:
    """The suite of a set (``degrade``, ``safety``, ``gate``, or ``task`` for every task)."""
    kinds, splits, filled = SETS[name]
    suite = [Rule("ExpectColumnValuesToNotBeNull", {"column": column}) for column in COLUMNS]
    suite += [
        Rule("ExpectColumnValuesToBeUnique", {"column": "id"}),
        Rule("ExpectColumnValuesToBeInSet", {"column": "kind", "value_set": list(kinds)}),
        Rule("ExpectColumnValuesToBeInSet", {"column": "split", "value_set": list(splits)}),
        Rule("ExpectTableRowCountToBeBetween", {"min_value": params.min_rows}),
    ]
    for column in filled:
        longest = {"max_value": params.max_prompt_characters} if column in ("prompt", "response") else {}
        suite.append(Rule("ExpectColumnValueLengthsToBeBetween", {"column": column, "min_value": 1, **longest}))
        suite.append(Rule("ExpectColumnValuesToMatchRegex", {"column": column, "regex": r"(?s).*\S"}))
    if name == "gate":
        suite.append(Rule("ExpectColumnValuesToBeUnique", {"column": "prompt"}))
    if params.categories and name != "task":
        suite.append(Rule("ExpectColumnValuesToBeInSet", {"column": "category", "value_set": list(params.categories)}))
    for part in PARTS[name]:
        only = " and ".join(f'{column} == "{value}"' for column, value in part.items())
        limit = {"min_value": params.min_rows, "row_condition": only, "condition_parser": "pandas"}
        suite.append(Rule("ExpectTableRowCountToBeBetween", limit))
    return suite


def _hold(name: str, path: Path, params: ValidateParams) -> str:
    """The page of a set that holds; an error for one that does not."""
    rows, lines = _raw_rows(path)
    found, page = check_table(name, rows, rules(name.partition("-")[0], params))
    if not found:
        log.info("%s: %d rows hold", path, len(rows))
        return page
    kept = cache_folder() / "validation" / f"{path.stem}.html"
    kept.parent.mkdir(exist_ok=True)
    kept.write_text(page, encoding="utf-8")
    shown = "; ".join(_said(finding, rows, lines) for finding in found[:3])
    more = f" and {len(found) - 3} more rules" if len(found) > 3 else ""
    raise FormatError(
        f"expected every rule of the suite to hold, got {shown}{more}, in {path}",
        remedy=f"correct these rows; the whole result is in {kept}",
    )


def _said(finding: Finding, rows: Sequence[Mapping[str, Any]], lines: Sequence[int]) -> str:
    if not finding.rows:
        return f"{finding.rule.name} broken ({finding.observed})"
    named = [f"{str(rows[at].get('id'))[:60]!r} (line {lines[at]})" for at in finding.rows[:3]]
    more = f" and {len(finding.rows) - 3} more" if len(finding.rows) > 3 else ""
    return f"{finding.rule.name} broken by {', '.join(named)}{more}"


def _raw_rows(path: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """JSON objects as they stand, with their line numbers: the suite judges them, not the reader's types."""
    if not path.is_file():
        raise ArtifactError(f"expected the prompt set {path}, got no such file", remedy="add it, or `dvc pull`")
    rows, lines = [], []
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        row = strict_json(line, where=f"{path}, line {number}")
        if not isinstance(row, dict):
            raise FormatError(f"expected a JSON object, got {type(row).__name__}, in {path}, line {number}")
        rows.append(row)
        lines.append(number)
    if not rows:
        raise EmptySample(f"expected at least one prompt, got an empty set, in {path}")
    return rows, lines


def _check_disjoint(read: Mapping[str, PromptSet], params: ValidateParams) -> None:
    """The gate against all that is fitted on, by text, behaviour and n-grams; a task's test rows by text alone.

    Task rows of one template share most n-grams by nature.
    """
    gate = read["gate"]
    _check_apart(gate)
    for name, other in read.items():
        fitted = [row for row in other.rows if row.split != "test"]
        where = f"{gate.path} and {other.path}"
        if name != "gate":
            check_contamination(
                gate.rows, fitted, ngram=params.overlap_ngram, max_overlap=params.max_overlap, where=where
            )
        if name.startswith("task-"):
            tested = [row.model_copy(update={"behaviour": ""}) for row in other.rows if row.split == "test"]
            check_contamination(tested, fitted, ngram=1, max_overlap=1, where=str(other.path))


def _check_apart(gate: PromptSet) -> None:
    """No prompt twice in other spelling; a behaviour may stand in several prompts, since the gate counts their mean."""
    seen: dict[str, str] = {}
    for row in gate.rows:
        text = normalised(row.prompt)
        other = seen.setdefault(text, row.id)
        if other != row.id:
            raise FormatError(
                f"expected the text {text!r} once, got it in {other!r} and {row.id!r}, in {gate.path}",
                remedy="keep one of them: the gate counts prompts that differ",
            )


def _receipt(read: Mapping[str, PromptSet], params: ValidateParams) -> dict[str, Any]:
    sets = {
        name: {
            "digest": one.digest,
            "rows": len(one.rows),
            "parts": _counted(f"{row.kind}/{row.split}" for row in one.rows),
            "rules": len(rules(name.partition("-")[0], params)),
        }
        for name, one in read.items()
    }
    disjoint = {"ngram": params.overlap_ngram, "max_overlap": params.max_overlap}
    return {"schema": SCHEMA, "sets": sets, "disjoint": disjoint, "great_expectations": version()}


def _counted(names: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(names).items()))
