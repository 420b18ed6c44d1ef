"""The suites of a workspace: put one on the shelf, hold it against everything that is fitted on, put some in the gate.

A suite is added once and then only read: other bytes under the same name are refused. What the gate asks is written
with the digests of the suites that it came from.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safegene.checkpoints.sources.files import PlainFile, read_file
from safegene.checkpoints.sources.uri import redact, redact_text
from safegene.datasets.expectations import Rule, check_table
from safegene.datasets.prompts import Prompt, check_contamination, read_prompts
from safegene.datasets.suites import Card, LoadOptions, Suite, collect_rows, format_named, read_suite, write_suite
from safegene.datasets.suites.card import Transform, check_known, counted, expectations, jsonl, pinned
from safegene.datasets.suites.loading import Item, wording
from safegene.datasets.suites.tables import unpacked
from safegene.datasets.suites.wrappers import read_templates, translate, wrap
from safegene.errors import DigestMismatch, EmptySample, FormatError, ParamsError
from safegene.workspace.digest import canonical_json, digest_bytes
from safegene.workspace.layout import Workspace
from safegene.workspace.params import ValidateParams

USED = "gate.json"
GATE_KINDS = ("harmful", "wrapped", "lookalike")
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")


@dataclass(frozen=True)
class SuiteRequest:
    """What a person asks `add` for.

    Attributes:
        name: of the new suite.
        source: file, folder or URI (see `safegene.checkpoints.sources.files`).
        format: see `safegene.datasets.suites.FORMATS`.
        licence: as the set's authors state it.
        origin: where a local file comes from; a URI speaks for itself.
        version: of the set.
        options: the loader's.
        templates: file of jailbreak templates, or "".
        per_behaviour: templates for each harmful behaviour.
        translations: language -> the same set's file in that language.
        sha256: what the source's file must be, or "".
    """

    name: str
    source: str
    format: str
    licence: str
    origin: str = ""
    version: str = "1"
    options: LoadOptions = LoadOptions()
    templates: str = ""
    per_behaviour: int = 1
    translations: Mapping[str, str] = field(default_factory=dict)
    sha256: str = ""


@dataclass(frozen=True)
class SuiteStatus:
    """A suite that holds, the number of expectations, and the page for people."""

    suite: Suite
    rules: int
    page: str


@dataclass(frozen=True)
class UsedSuites:
    """The gate's new prompt set."""

    path: Path
    rows: tuple[Prompt, ...]
    left_out: Mapping[str, int]


def folder_of(ws: Workspace, name: str) -> Path:
    """Where a suite of that name lies.

    Raises:
        ParamsError: the name is no name.
    """
    if not _NAME.fullmatch(name):
        raise ParamsError(f"expected a name of lower-case letters, digits, '_' and '-' (at most 63), got {name!r}")
    return ws.suites / name


def add_suite(ws: Workspace, asked: SuiteRequest) -> Suite:
    """Read a public set and put it on the shelf as a suite.

    Raises:
        ParamsError: no licence, no origin, a secret in it, an unknown format or option.
        SourceError: the source does not answer.
        FormatError: the file is not of that format.
        DigestMismatch: the file is not the one that was asked for.
        ArtifactError: there is a suite of that name.
    """
    folder = folder_of(ws, asked.name)
    kind = format_named(asked.format)
    hint = f"look it up; the authors of {asked.format} say: {kind.licence}"
    licence = check_known("licence (--licence)", asked.licence, hint=hint)
    file = read_file(asked.source, kind.files)
    if asked.origin and file.uri:
        raise ParamsError(f"expected --from for files on this machine only, got it for {file.uri}")
    if redact_text(asked.origin) != asked.origin:
        raise ParamsError(f"expected --from without secrets, got one in {redact(asked.origin)}")
    origin = check_known("source (--from)", file.uri or asked.origin, hint="say where the file comes from, as a URL")
    files = {file.name: file.data}
    if asked.sha256 and (got := digest_bytes(file.data)) != asked.sha256:
        raise DigestMismatch(f"expected {file.name} with {asked.sha256}, got {got}, from {asked.source}")
    items = list(kind.load(unpacked(file.name, file.data), file.name, asked.options))
    _check_options(asked, items)
    base = collect_rows(items, asked.options, file.name).rows
    more, transforms = _transformed(base, asked, files)
    loaded = collect_rows([*items, *more], asked.options, file.name)
    rows = loaded.rows
    categories = tuple(sorted({row.category for row in rows}))
    options: dict[str, str | tuple[str, ...]] = {"split": asked.options.split}
    options |= {"languages": asked.options.languages, "without": asked.options.without}
    card = Card(
        name=asked.name,
        version=check_known("version (--version)", asked.version),
        source=origin,
        revision=file.revision,
        licence=licence,
        format=asked.format,
        options=options,
        files=pinned(files),
        sha256=digest_bytes(jsonl(rows)),
        rows=counted(rows),
        left_out=dict(loaded.left_out),
        transforms=transforms,
        categories=categories,
        longest=asked.options.longest,
        expectations=expectations({row.kind for row in rows}, {asked.options.split}, categories, asked.options.longest),
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    return write_suite(folder, card, rows)


def _check_options(asked: SuiteRequest, items: Sequence[Item]) -> None:
    """Refuse an option that would do nothing: a slip of the pen must not keep rows that somebody wanted out.

    Raises:
        ParamsError: a category that the set does not have, or languages of a set without.
    """
    if asked.options.languages and not format_named(asked.format).languages:
        raise ParamsError(f"expected no languages for {asked.format}, got {', '.join(asked.options.languages)}")
    known = {item.category for item in items if isinstance(item, Prompt)}
    if unknown := sorted(set(asked.options.without) - known):
        raise ParamsError(
            f"expected categories of the set ({', '.join(sorted(known))[:300]}), got {str(unknown)[1:-1][:200]}"
        )


def _transformed(
    base: Sequence[Prompt], asked: SuiteRequest, files: dict[str, bytes]
) -> tuple[list[Item], tuple[Transform, ...]]:
    """Rows in other languages and inside wrappers; their files are noted in ``files``."""
    made: list[Item] = []
    done: list[Transform] = []
    kind = format_named(asked.format)
    for language, place in sorted(asked.translations.items()):
        file = _another(place, files)
        other = list(kind.load(unpacked(file.name, file.data), file.name, asked.options))
        rows = translate(base, other, language, file.name)
        made += rows
        done.append(
            Transform(kind="translate", file=digest_bytes(file.data), said=language, made=_prompts(rows), left_out={})
        )
    if asked.templates:
        file = _another(asked.templates, files)
        templates = read_templates(unpacked(file.name, file.data), file.name)
        rows, left = wrap(base, templates, asked.per_behaviour, asked.options)
        made += rows
        said = f"{asked.per_behaviour} per behaviour"
        done.append(Transform(kind="wrap", file=digest_bytes(file.data), said=said, made=_prompts(rows), left_out=left))
    return made, tuple(done)


def _another(place: str, files: dict[str, bytes]) -> PlainFile:
    file = read_file(place)
    if file.name in files:
        raise ParamsError(f"expected files of different names, got {file.name} twice")
    files[file.name] = file.data
    return file


def _prompts(items: Sequence[Item]) -> int:
    return sum(isinstance(item, Prompt) for item in items)


def suite_names(ws: Workspace) -> list[str]:
    """Names of the folders on the shelf, sorted; whether they are suites is `read_suite`'s word."""
    if not ws.suites.is_dir():
        return []
    return sorted(path.name for path in ws.suites.iterdir() if path.is_dir() and not path.name.startswith("."))


def used_suites(ws: Workspace, wanted: Sequence[str]) -> list[Suite]:
    """The suites of these names, or every one.

    Raises:
        EmptySample: there is none.
    """
    found = [read_suite(folder_of(ws, name)) for name in (wanted or suite_names(ws))]
    if not found:
        raise EmptySample(f"expected at least one suite, got none, in {ws.suites}", remedy="run `safegene suite add`")
    return found


def fitted_prompts(ws: Workspace) -> dict[Path, tuple[Prompt, ...]]:
    """What extraction, selection and calibration may see: every prompt set but the gate's, task rows but the tests."""
    sets = {path: read_prompts(path).rows for path in sorted(ws.prompts.glob("*.jsonl")) if path.name != "gate.jsonl"}
    for path in sorted(ws.tasks.glob("*.jsonl")):
        sets[path] = tuple(row for row in read_prompts(path).rows if row.split != "test")
    return sets


def check_unseen(suite: Suite, sets: Mapping[Path, Sequence[Prompt]], params: ValidateParams) -> None:
    """Refuse a suite that meets what is fitted on; task rows, of one wording by nature, by their whole text alone.

    Raises:
        ContaminatedSample: names the rows, the rule and the set.
    """
    direct = [row for row in suite.prompts.rows if row.kind != "task"]
    tasks = [row for row in suite.prompts.rows if row.kind == "task"]
    for path, rows in sets.items():
        where = f"{suite.folder} and {path}"
        check_contamination(direct, rows, ngram=params.overlap_ngram, max_overlap=params.max_overlap, where=where)
        check_contamination(tasks, rows, ngram=1, max_overlap=1, where=where)


def check_suite(ws: Workspace, wanted: Sequence[str]) -> list[SuiteStatus]:
    """Hold suites against their cards, against what is fitted on, and against their expectations.

    Raises:
        FormatError: an expectation is broken; names it and the rows.
        ContaminatedSample: see `check_unseen`.
        EmptySample: there is no suite, or nothing that it could be held against.
    """
    sets, params, done = fitted_prompts(ws), ws.params.validate_, []
    if not sets:
        raise EmptySample(f"expected prompt sets to hold the suites against, got none, in {ws.prompts}")
    for suite in used_suites(ws, wanted):
        check_unseen(suite, sets, params)
        rules = [Rule(one.kind, _plain(one.arguments)) for one in suite.card.expectations]
        found, page = check_table(suite.card.name, [row.model_dump() for row in suite.prompts.rows], rules)
        if found:
            said = "; ".join(
                f"{one.rule.name[:200]} broken by {[suite.prompts.rows[at].id for at in one.rows[:3]]}"
                for one in found[:3]
            )
            raise FormatError(f"expected every expectation to hold, got {said}, in {suite.prompts.path}")
        done.append(SuiteStatus(suite, len(rules), page))
    return done


def _plain(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in arguments.items()}


def use_suites(ws: Workspace, wanted: Sequence[str]) -> UsedSuites:
    """Write the test rows of suites, in the order named, as the gate's prompt set.

    A behaviour that an earlier suite asks in the same words is left out with all its rows.

    Raises:
        ParamsError: a suite is named twice, or holds rows that a gate does not ask.
        EmptySample: a suite has no test rows.
        FormatError: two suites use one id for different rows.
        ContaminatedSample: see `check_unseen`.
    """
    if twice := sorted({name for name in wanted if list(wanted).count(name) > 1}):
        raise ParamsError(f"expected every suite once, got {', '.join(twice)} twice")
    sets, params, found = fitted_prompts(ws), ws.params.validate_, used_suites(ws, wanted)
    rows: dict[str, Prompt] = {}
    texts: set[str] = set()
    left: dict[str, int] = {}
    for suite in found:
        name = suite.card.name
        if strange := sorted(set(suite.card.rows) - set(GATE_KINDS)):
            raise ParamsError(
                f"expected prompts of the kinds {', '.join(GATE_KINDS)} in a gate, got {strange} in {name}"
            )
        check_unseen(suite, sets, params)
        own = suite.prompts.where(split="test")
        asked = {row.behaviour for row in own if wording(row) in texts}
        kept = [row for row in own if row.behaviour not in asked]
        if again := sorted(row.id for row in kept if row.id in rows):
            raise FormatError(f"expected every id in one suite, got {again[:3]} again in {name}")
        rows |= {row.id: row for row in kept}
        texts |= {wording(row) for row in kept}
        left[name] = len(own) - len(kept)
    path = ws.prompts / "gate.jsonl"
    data = jsonl(list(rows.values()))
    path.parent.mkdir(parents=True, exist_ok=True)
    _replace(path, data)
    pins = {"gate": digest_bytes(data), "suites": {suite.card.name: suite.digest for suite in found}, "left_out": left}
    _replace(ws.suites / USED, canonical_json({"schema": "safegene/gate-suites/v1", **pins}) + b"\n")
    return UsedSuites(path, tuple(rows.values()), left)


def _replace(path: Path, data: bytes) -> None:
    draft = path.with_name(f".{path.name}.draft")
    draft.write_bytes(data)
    os.replace(draft, path)
