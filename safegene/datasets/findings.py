"""What is wrong with a set's rows, in plain words: which lines, which rule, what is allowed, what came.

`read_rows` finds lines that are no JSON object; `all_findings` adds what `Prompt` refuses, and puts failed expectations
of Great Expectations into words. A problem that both see is told once.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from safegene.datasets.expectations import FailedExpectation
from safegene.datasets.prompts import Prompt
from safegene.errors import FormatError
from safegene.text import quoted
from safegene.workspace.digest import strict_json
from safegene.workspace.parsing import json_lines

Row = Mapping[str, Any]
FILLED_IN: Row = {"id": None, "prompt": None, "kind": None, "category": None, "behaviour": None, "split": None} | {
    "response": "",
    "pool": "",
}
SHOWN_LINES, SHOWN_FINDINGS = 5, 8
TYPES = {"string_type": "text"}


@dataclass(frozen=True)
class Finding:
    """One rule that some rows of a file break.

    Attributes:
        rule: what was expected and what came, as in ``expected `split` to be fit, got 'train'``.
        column: the column it is about; "" for a rule about rows or the file.
        lines: numbers of the lines, from 1; empty for a rule about the whole file.
        ids: of the rows, in the same order, as far as they are known.
    """

    rule: str
    column: str = ""
    lines: tuple[int, ...] = ()
    ids: tuple[str, ...] = ()

    def words(self, path: Path) -> str:
        """The finding with its place."""
        if not self.lines:
            return f"{shown_path(path)}: {self.rule}"
        listed = ", ".join(map(str, self.lines[:SHOWN_LINES]))
        more = f" and {len(self.lines) - SHOWN_LINES} more" if len(self.lines) > SHOWN_LINES else ""
        first = f" ({quoted(self.ids[0])})" if self.ids else ""
        return f"{shown_path(path)}, line{'s' if len(self.lines) > 1 else ''} {listed}{more}{first}: {self.rule}"


@dataclass(frozen=True)
class RawRows:
    """The rows of a file as they are.

    Attributes:
        rows: JSON objects, `FILLED_IN` where a key is missing.
        lines: their line numbers.
        findings: lines that are no JSON object.
    """

    rows: tuple[dict[str, Any], ...]
    lines: tuple[int, ...]
    findings: tuple[Finding, ...]


def shown_path(path: Path) -> str:
    """The path from the current folder where it lies below it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def listed_findings(files: Iterable[Sequence[str]]) -> str:
    """The findings of every file, one a line, of each file at most `SHOWN_FINDINGS`."""
    lines = list[str]()
    for words in files:
        lines += words[:SHOWN_FINDINGS]
        if len(words) > SHOWN_FINDINGS:
            lines.append(f"... and {len(words) - SHOWN_FINDINGS} more in that file")
    return "".join(f"\n  {line}" for line in lines)


def read_rows(data: bytes, path: Path) -> RawRows:
    """Every row of a file of JSON lines; a line that cannot be read is a finding."""
    rows, lines, findings = [], [], []
    for number, line in json_lines(data):
        try:
            row = strict_json(line, where=f"{path}, line {number}")
        except FormatError as error:
            findings.append(Finding(error.message.removesuffix(f", in {path}, line {number}"), lines=(number,)))
            continue
        if isinstance(row, dict):
            rows.append({**FILLED_IN, **row})
            lines.append(number)
        else:
            findings.append(Finding(f"expected a JSON object, got {type(row).__name__}", lines=(number,)))
    if not rows and not findings:
        findings.append(Finding("expected at least one prompt, got an empty set"))
    return RawRows(tuple(rows), tuple(lines), tuple(findings))


def usable_rows(raw: RawRows) -> tuple[Prompt, ...]:
    """The rows that are a `Prompt`."""
    rows = list[Prompt]()
    for row in raw.rows:
        with suppress(ValidationError):
            rows.append(Prompt.model_validate(row))
    return tuple(rows)


def all_findings(raw: RawRows, failed: Sequence[FailedExpectation]) -> list[Finding]:
    """Every problem of a file once: unreadable lines, failed expectations, and what `Prompt` refuses beside them."""
    broken = _expectation_findings(failed, raw)
    refused = _row_findings(raw, broken)
    typed = {finding.column for finding in refused}
    # An expectation that cannot be evaluated says nothing that the wrong type does not say.
    told = [finding for finding in broken if finding.lines or not finding.column or finding.column not in typed]
    return [*raw.findings, *told, *refused]


def _row_findings(raw: RawRows, told: Iterable[Finding]) -> list[Finding]:
    """What `Prompt` refuses, apart from the columns and lines of findings already ``told``."""
    known = {(line, finding.column) for finding in told for line in finding.lines}
    found: dict[tuple[str, str], list[int]] = {}
    for at, row in enumerate(raw.rows):
        try:
            Prompt.model_validate(row)
        except ValidationError as error:
            for problem in error.errors():
                column = str(problem["loc"][0]) if problem["loc"] else ""
                if (raw.lines[at], column) not in known:
                    found.setdefault((column, _refused(column, problem["type"], problem["msg"], row)), []).append(at)
    return [_finding(rule, column, places, raw) for (column, rule), places in found.items()]


def _refused(column: str, kind: str, message: str, row: Row) -> str:
    if kind == "extra_forbidden":
        return f"expected the keys {', '.join(Prompt.model_fields)}, got {quoted(column)} too"
    wanted = TYPES.get(kind, message[:1].lower() + message[1:])
    return f"expected `{column}` to be {wanted}, got {quoted(row.get(column))}"


def _expectation_findings(failed: Sequence[FailedExpectation], raw: RawRows) -> list[Finding]:
    """The failed expectations in words, rows with the same wrong value together."""
    found = list[Finding]()
    for failure in failed:
        column = str(failure.expectation.arguments.get("column", ""))
        if not failure.rows:
            found.append(Finding(_table_rule(failure), column))
            continue
        groups: dict[str, list[int]] = {}
        for at in failure.rows:
            groups.setdefault(_rule(failure, column, raw.rows[at].get(column)), []).append(at)
        found += [_finding(rule, column, places, raw) for rule, places in groups.items()]
    return found


def _finding(rule: str, column: str, places: Sequence[int], raw: RawRows) -> Finding:
    ids = tuple(str(raw.rows[at]["id"]) for at in places if raw.rows[at]["id"] is not None)
    return Finding(rule, column, tuple(raw.lines[at] for at in places), ids)


def _rule(failure: FailedExpectation, column: str, value: object) -> str:
    kind, arguments = failure.expectation.kind, failure.expectation.arguments
    if kind == "ExpectColumnValuesToNotBeNull":
        return f"expected a value in `{column}`, got none"
    if kind == "ExpectColumnValuesToBeUnique":
        return f"expected every `{column}` once, got {quoted(value)} again"
    if kind == "ExpectColumnValuesToMatchRegex":
        return f"expected text in `{column}`, got {quoted(value)}"
    if kind == "ExpectColumnValueLengthsToBeBetween":
        got = len(value) if isinstance(value, str) else quoted(value)
        return f"expected `{column}` of at most {arguments['max_value']} characters, got {got}"
    if kind == "ExpectColumnValuesToBeInSet":
        allowed = arguments["value_set"]
        names = [str(name) for name in allowed] if isinstance(allowed, tuple) else [str(allowed)]
        return f"expected `{column}` to be {_choice(names)}, got {quoted(value)}"
    return f"expected {failure.expectation.name}, got {quoted(value)}"


def _choice(names: Sequence[str]) -> str:
    if list(names) == [""]:
        return "empty here"
    return names[0] if len(names) == 1 else f"one of {', '.join(names)}"


def _table_rule(failure: FailedExpectation) -> str:
    arguments = failure.expectation.arguments
    if failure.expectation.kind == "ExpectTableRowCountToBeBetween":
        condition = str(arguments.get("row_condition", "")).replace(" == ", " ").replace('"', "")
        of = f" of {condition.replace('(', '').replace(')', '')}" if condition else ""
        return f"expected at least {arguments['min_value']} rows{of}, got {failure.observed}"
    return f"expected {failure.expectation.name}, got {failure.observed}"
