"""Stage ``validate``: check every prompt and task set with Great Expectations, and the gate set for contamination.

All sets are checked before the stage stops on any of them. The receipt names each set by digest, and the stages that
read a set check it. The results are kept as Data Docs, pages with an index: in ``docs/`` of the artefact, and where a
set failed in the cache folder that the error names.
"""

import logging
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from safegene.datasets.contamination import UNSEEN_REMEDY, check_contamination, check_task_contamination, normalised
from safegene.datasets.expectations import INDEX, FailedExpectation, check_rows, index_page, library_version
from safegene.datasets.findings import Finding, all_findings, listed_findings, read_rows, shown_path, usable_rows
from safegene.datasets.prompts import PromptSet, parse_prompts, read_bytes
from safegene.datasets.receipt import PARTS, RECEIPT, OverlapRule, ValidatedSet, ValidationReceipt
from safegene.datasets.set_rules import POOLS, expectations_of
from safegene.errors import ArtifactError, ContaminatedSample, FormatError, SafegeneError
from safegene.text import counted
from safegene.workspace.atomic import write_optional
from safegene.workspace.digest import PREFIX, digest_bytes
from safegene.workspace.layout import cache_folder
from safegene.workspace.manifest import Manifest, write_artefact
from safegene.workspace.params import ValidateParams

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CheckedSet:
    """One set after its checks.

    Attributes:
        path: of its file.
        content: the rows that can be read; None for none.
        findings: the rules that it breaks, in words.
        page: its page of the Data Docs; "" for a file without rows.
    """

    path: Path
    content: PromptSet | None
    findings: tuple[str, ...]
    page: str = ""


def validate(
    *,
    prompts: Path,
    tasks: Path,
    out: Path,
    params: ValidateParams | None = None,
    pools: Collection[str] = (),
    degrades: bool = True,
) -> Manifest:
    """Validate ``prompts/{degrade,safety,gate}.jsonl``, ``pool.jsonl`` where there is one, and every task's set.

    Args:
        prompts: folder of the prompt sets.
        tasks: folder of the task sets.
        out: the artefact to write: the receipt, as a whole and set by set, and the Data Docs.
        params: section ``validate`` of params.yaml; its defaults when None.
        pools: pools that surrogates are trained on: each needs a row, and a row of ``degrade.jsonl`` may belong to
            these and to `POOLS`.
        degrades: whether ``degrade.jsonl`` must be there; False where the vector is fetched.

    Raises:
        FormatError: a set is missing or breaks a rule; names every file, line and rule.
        ContaminatedSample: a gate prompt, a test row of a task, or a held-out prompt of safety set or pool was seen in
            fitting, and that is all.

    Example:
        >>> manifest = safegene.validate(prompts=ws.prompts, tasks=ws.tasks, out=ws.validation)
        >>> manifest.facts["sets"]
        7
    """
    params = params or ValidateParams()
    paths = {name: prompts / f"{name}.jsonl" for name in ("degrade", "safety", "gate")}
    paths |= {"pool": pool} if (pool := prompts / "pool.jsonl").is_file() else {}
    if not degrades and not paths["degrade"].exists():
        del paths["degrade"]
    paths |= {f"task-{path.stem}": path for path in sorted(tasks.glob("*.jsonl"))}
    checked = {name: _checked(name, path, params, pools) for name, path in paths.items()}
    sets = {name: one.content for name, one in checked.items() if one.content is not None}
    _require_all(checked, _seen(sets, params), prompts)
    inputs = {name: prompt_set.digest for name, prompt_set in sets.items()}
    chosen = params.model_dump(mode="json") | {"pools": sorted(pools)}
    receipt = _receipt(sets, params)
    with write_artefact(out, stage="validate", params=chosen, inputs=inputs) as draft:
        for name, page in _data_docs(checked).items():
            (draft.path / "docs").mkdir(exist_ok=True)
            (draft.path / "docs" / name).write_text(page, encoding="utf-8")
        (draft.path / RECEIPT).write_bytes(receipt.content)
        (draft.path / PARTS).mkdir()
        for name in sets:
            (draft.path / PARTS / f"{name}.json").write_bytes(receipt.part(name).content)
        draft.facts.update(sets=len(sets), rows=sum(len(prompt_set.rows) for prompt_set in sets.values()))
    log.info("%d sets keep their rules; Data Docs: %s", len(sets), shown_path(out / "docs" / INDEX))
    return draft.done


def _checked(name: str, path: Path, params: ValidateParams, pools: Collection[str]) -> CheckedSet:
    """One set, its findings, and its page."""
    try:
        data = read_bytes(path)
    except ArtifactError as error:
        return CheckedSet(path, None, (f"{error.message} ({error.remedy})" if error.remedy else error.message,))
    raw = read_rows(data, path)
    failed, page = list[FailedExpectation](), ""
    if raw.rows:
        failed, page = check_rows(name, raw.rows, expectations_of(name, params, {*POOLS, *pools}))
    findings = all_findings(raw, failed)
    if name == "degrade":
        found = {row["pool"] for row in raw.rows if isinstance(row["pool"], str)}
        findings += [
            Finding(f"expected rows of pool {pool}, which degrade.surrogates names, got none", "pool")
            for pool in sorted({*pools} - found)
        ]
    words = tuple(finding.words(path) for finding in findings)
    if words:  # the rows that can be read are still compared with the other sets
        return CheckedSet(path, PromptSet(usable_rows(raw), digest_bytes(data), path), words, page)
    try:
        return CheckedSet(path, parse_prompts(data, path), (), page)
    except SafegeneError as error:
        return CheckedSet(path, None, (error.message,), page)


def _require_all(checked: Mapping[str, CheckedSet], seen: list[str], prompts: Path) -> None:
    """Refuse sets that break a rule, all of them at once; their pages are kept in the cache.

    Raises:
        FormatError, ContaminatedSample: see `validate`.
    """
    broken = [words for one in checked.values() for words in one.findings]
    if not broken and not seen:
        return
    at = cache_folder() / "validation" / digest_bytes(str(prompts.resolve()).encode()).removeprefix(PREFIX)[:12]
    for name, page in _data_docs(checked).items():
        write_optional(at / name, page)
    if not broken:
        raise ContaminatedSample("; ".join(seen), remedy=UNSEEN_REMEDY)
    files = sum(bool(one.findings) for one in checked.values())
    raise FormatError(
        f"expected sets that keep their rules (docs/data.md), got "
        f"{counted(len(broken) + len(seen), 'finding')} in {counted(files, 'file')}:"
        f"{listed_findings([*(one.findings for one in checked.values()), seen])}",
        remedy=f"correct these rows and run `safegene validate` again; every row and rule is in {at / INDEX}",
    )


def _data_docs(checked: Mapping[str, CheckedSet]) -> dict[str, str]:
    """File name -> page, of every set with rows and of the index."""
    pages = {f"{name}.html": one.page for name, one in checked.items() if one.page}
    rows = [
        (
            name if one.page else "",
            name,
            "; ".join(one.findings)
            or f"{counted(len(one.content.rows) if one.content else 0, 'row')}: every rule is kept",
        )
        for name, one in checked.items()
    ]
    return pages | {INDEX: index_page("Prompt and task sets", rows)}


def _seen(sets: Mapping[str, PromptSet], params: ValidateParams) -> list[str]:
    """What the gate set shares with the fitted sets, and the test rows of each task with its other rows."""
    seen = list[str]()
    gate = sets.get("gate")
    if gate is not None:
        seen += _repeated(gate)
    for name, other in sets.items():
        fitted = [row for row in other.rows if row.split != "test"]
        try:
            if gate is not None and name != "gate":
                where = f"{shown_path(gate.path)} and {shown_path(other.path)}"
                ngram, overlap = params.overlap_ngram, params.max_overlap
                check_contamination(gate.rows, fitted, ngram=ngram, max_overlap=overlap, where=where)
            if name.startswith("task-"):
                tested = [row for row in other.rows if row.split == "test"]
                check_task_contamination(tested, fitted, where=shown_path(other.path))
        except ContaminatedSample as error:
            seen.append(error.message)
    return seen + _seen_in_pool(sets, params)


def _seen_in_pool(sets: Mapping[str, PromptSet], params: ValidateParams) -> list[str]:
    """What the pool shares with the validation split, and its held-out part with the part that is mined."""
    pool, safety = sets.get("pool"), sets.get("safety")
    if pool is None:
        return []
    mined, held = ([row for row in pool.rows if row.split == split] for split in ("fit", "validation"))
    pairs = [(held, mined, shown_path(pool.path))]
    if safety is not None:
        chosen_by = [row for row in safety.rows if row.split == "validation" and row.kind != "generic"]
        pairs.append((chosen_by, [*pool.rows], f"{shown_path(safety.path)} and {shown_path(pool.path)}"))
    seen = list[str]()
    for tested, fitted, where in pairs:
        try:
            ngram, overlap = params.overlap_ngram, params.max_overlap
            check_contamination(tested, fitted, ngram=ngram, max_overlap=overlap, where=where, tested_as="held-out")
        except ContaminatedSample as error:
            seen.append(error.message)
    return seen


def _repeated(gate: PromptSet) -> list[str]:
    """Gate prompts whose normalised texts are equal; one behaviour may be asked by several prompts."""
    ids: dict[str, str] = {}
    found = list[str]()
    for row in gate.rows:
        text = normalised(row.prompt)
        other = ids.setdefault(text, row.id)
        if other != row.id:
            found.append(f"expected the text {text!r} once, got it in {other!r} and {row.id!r}, in {gate.path}")
    return found


def _receipt(sets: Mapping[str, PromptSet], params: ValidateParams) -> ValidationReceipt:
    validated = {
        name: ValidatedSet(
            digest=prompt_set.digest,
            rows=len(prompt_set.rows),
            parts=dict(Counter(f"{row.kind}/{row.split}" for row in prompt_set.rows)),
            rules=len(expectations_of(name, params)),
        )
        for name, prompt_set in sets.items()
    }
    rule = OverlapRule(ngram=params.overlap_ngram, max_overlap=params.max_overlap)
    return ValidationReceipt(sets=validated, disjoint=rule, great_expectations=library_version())
