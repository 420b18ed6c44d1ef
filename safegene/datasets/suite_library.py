"""The suites of a workspace: list and read them, check them against the fitted sets, and choose some for the gate.

A suite is written once (`safegene.datasets.adding`) and only read from then on. The gate's prompt set is written with
the digests of the suites that it was made from.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from safegene.datasets.contamination import check_contamination, check_task_contamination
from safegene.datasets.expectations import check_rows
from safegene.datasets.findings import all_findings, listed_findings, read_rows
from safegene.datasets.made_sets import GATE_SUITES_FILE, GateSuites, read_made, require_replaceable
from safegene.datasets.prompts import Prompt, prompt_lines, read_prompts
from safegene.datasets.suites import Suite, read_suite
from safegene.datasets.suites.loading import comparable_text
from safegene.errors import EmptySample, FormatError, ParamsError
from safegene.text import counted
from safegene.workspace.atomic import write_file
from safegene.workspace.digest import canonical_json, digest_bytes
from safegene.workspace.layout import Workspace
from safegene.workspace.params import ValidateParams

GATE_KINDS = ("harmful", "wrapped", "lookalike")
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")


@dataclass(frozen=True)
class CheckedSuite:
    """A suite that passed its checks.

    Attributes:
        suite: the suite.
        expectations: how many were checked.
        page: the results as HTML.
    """

    suite: Suite
    expectations: int
    page: str


@dataclass(frozen=True)
class GateSet:
    """The gate's new prompt set."""

    path: Path
    rows: tuple[Prompt, ...]
    left_out: Mapping[str, int]


def suite_folder(ws: Workspace, name: str) -> Path:
    """The folder of the suite of that name.

    Raises:
        ParamsError: the name is malformed.
    """
    if not _NAME.fullmatch(name):
        raise ParamsError(f"expected a name of lower-case letters, digits, '_' and '-' (at most 63), got {name!r}")
    return ws.suites / name


def suite_names(ws: Workspace) -> list[str]:
    """Names of the suite folders, sorted; `read_suite` checks whether they hold suites."""
    if not ws.suites.is_dir():
        return []
    return sorted(path.name for path in ws.suites.iterdir() if path.is_dir() and not path.name.startswith("."))


def read_suites(ws: Workspace, names: Sequence[str]) -> list[Suite]:
    """The suites of these names, in this order; all suites when no name is given.

    Raises:
        EmptySample: there is none.
    """
    suites = [read_suite(suite_folder(ws, name)) for name in (names or suite_names(ws))]
    if not suites:
        raise EmptySample(f"expected at least one suite, got none, in {ws.suites}", remedy="run `safegene suite add`")
    return suites


def fitted_prompts(ws: Workspace) -> dict[Path, tuple[Prompt, ...]]:
    """File -> the rows that extraction, selection and calibration may use.

    These are all prompt sets except the gate's, and all rows of the task sets except those of split ``test``.
    """
    sets = {path: read_prompts(path).rows for path in sorted(ws.prompts.glob("*.jsonl")) if path.name != "gate.jsonl"}
    for path in sorted(ws.tasks.glob("*.jsonl")):
        sets[path] = tuple(row for row in read_prompts(path).rows if row.split != "test")
    return sets


def check_unseen(suite: Suite, sets: Mapping[Path, Sequence[Prompt]], params: ValidateParams) -> None:
    """Refuse a suite whose rows were seen in fitting.

    Task rows are compared by their whole text only, as in stage ``validate``.

    Raises:
        ContaminatedSample: names the rows, the rule and the set.
    """
    safety_rows = [row for row in suite.prompts.rows if row.kind != "task"]
    task_rows = [row for row in suite.prompts.rows if row.kind == "task"]
    for path, rows in sets.items():
        where = f"{suite.folder} and {path}"
        check_contamination(safety_rows, rows, ngram=params.overlap_ngram, max_overlap=params.max_overlap, where=where)
        check_task_contamination(task_rows, rows, where=where)


def check_suites(ws: Workspace, names: Sequence[str]) -> list[CheckedSuite]:
    """Check suites against their cards, their expectations, and the prompts used in fitting.

    Raises:
        FormatError: an expectation fails; names it and the rows.
        ContaminatedSample: see `check_unseen`.
        EmptySample: there is no suite, or no fitted set to compare with.
    """
    sets, params, checked = fitted_prompts(ws), ws.params.validate_, []
    if not sets:
        raise EmptySample(f"expected prompt sets to compare the suites with, got none, in {ws.prompts}")
    divided = {name: digest for made in read_made(ws).sets.values() for name, digest in made.suites.items()}
    for suite in read_suites(ws, names):
        if divided.get(suite.card.name) != suite.digest:  # else part of it is fitted on, and `validate` checks the gate
            check_unseen(suite, sets, params)
        path = suite.prompts.path
        raw = read_rows(path.read_bytes(), path)
        failed, page = check_rows(suite.card.name, raw.rows, suite.card.expectations)
        if findings := [finding.words(path) for finding in all_findings(raw, failed)]:
            raise FormatError(
                f"expected rows that keep the rules of the suite's card, got {counted(len(findings), 'finding')}:"
                f"{listed_findings([findings])}",
                remedy="add the suite again from its source: `safegene suite add` or `safegene data add`",
            )
        checked.append(CheckedSuite(suite, len(suite.card.expectations), page))
    return checked


def use_suites(ws: Workspace, names: Sequence[str], *, replace: bool = False) -> GateSet:
    """Write the test rows of suites, in the order named, as the gate's prompt set.

    A gate set that a person wrote is written over only where ``replace`` says so.

    If one prompt of a behaviour has the same text as a prompt of an earlier suite, all rows of that behaviour are left
    out.

    Raises:
        ParamsError: a suite is named twice, or holds rows of a kind that the gate does not ask; or a person wrote the
            gate set that is there.
        EmptySample: a suite has no test rows.
        FormatError: two suites use one id for different rows.
        ContaminatedSample: see `check_unseen`.
    """
    if repeated := sorted({name for name in names if list(names).count(name) > 1}):
        raise ParamsError(f"expected every suite once, got {', '.join(repeated)} twice")
    sets, params, suites = fitted_prompts(ws), ws.params.validate_, read_suites(ws, names)
    rows: dict[str, Prompt] = {}
    texts: set[str] = set()
    left_out: dict[str, int] = {}
    for suite in suites:
        name = suite.card.name
        if other_kinds := sorted(set(suite.card.rows) - set(GATE_KINDS)):
            raise ParamsError(
                f"expected prompts of the kinds {', '.join(GATE_KINDS)} in a gate, got {other_kinds} in {name}"
            )
        check_unseen(suite, sets, params)
        tested = suite.prompts.where(split="test")
        repeated_behaviours = {row.behaviour for row in tested if comparable_text(row) in texts}
        kept = [row for row in tested if row.behaviour not in repeated_behaviours]
        if reused := sorted(row.id for row in kept if row.id in rows):
            raise FormatError(f"expected every id in one suite, got {reused[:3]} again in {name}")
        rows |= {row.id: row for row in kept}
        texts |= {comparable_text(row) for row in kept}
        left_out[name] = len(tested) - len(kept)
    path, data = ws.prompts / "gate.jsonl", prompt_lines(list(rows.values()))
    if not replace:
        require_replaceable(ws, path, data)
    write_file(path, data)
    pins = GateSuites(
        gate=digest_bytes(data), suites={suite.card.name: suite.digest for suite in suites}, left_out=left_out
    )
    write_file(ws.suites / GATE_SUITES_FILE, canonical_json(pins.model_dump(by_alias=True)) + b"\n")
    return GateSet(path, tuple(rows.values()), left_out)
