"""The prompt sets and task sets: there, readable, with the rows that each stage needs."""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from safegene.datasets.prompts import PromptSet, read_prompts
from safegene.errors import EmptySample, SafegeneError
from safegene.pipeline.doctor.family import is_other_family
from safegene.pipeline.doctor.finding import Examined, Finding
from safegene.pipeline.init import template_folder
from safegene.pipeline.planning.needs import needs
from safegene.pipeline.stages.validate import PARTS
from safegene.workspace.digest import digest_file

SETS = ("degrade", "safety", "gate")
NEEDED: Mapping[str, tuple[tuple[tuple[str, ...], str, str], ...]] = {
    "safety": (
        (("harmful", "wrapped"), "fit", "calibrate"),
        (("harmful", "wrapped"), "validation", "calibrate"),
        (("lookalike", "generic"), "fit", "calibrate"),
        (("lookalike", "generic"), "validation", "calibrate"),
    ),
    "task": ((("task",), "fit", "calibrate"), (("task",), "validation", "calibrate"), (("task",), "test", "evaluate")),
}
"""Set -> (kinds of which one is enough, split, the stage that needs a row of them)."""


def check_prompts(examined: Examined) -> Iterator[Finding]:
    """Every prompt set, and the task set of every target that would run."""
    ws = examined.workspace
    paths = {name: ws.prompts / f"{name}.jsonl" for name in SETS}
    tasks = {entry.task: ws.tasks / f"{entry.task}.jsonl" for entry in examined.chosen.values()}
    sets = dict[str, list[PromptSet]]()
    for name, path in (*paths.items(), *(("task", path) for _, path in sorted(tasks.items()))):
        try:
            found = read_prompts(path)
        except SafegeneError as error:
            absent = _bring(examined, path) if not path.is_file() else ""
            remedy = absent or error.remedy or f"correct {path}, or add rows to it"
            stops = name != "task" or len(tasks) == 1  # one target's missing task set does not stop the others
            yield Finding("prompts", error.message, remedy, stops, type(error))
            continue
        sets.setdefault(name, []).append(found)
        yield from _parts(examined, name, found)
        if name == "degrade":
            yield from _pools(examined, found)
    yield from _tiny_sets(examined, paths)
    yield from _enough(examined, sets)
    if not any(ws.tasks.glob("*.jsonl")):
        message = f"expected a task set for each kind of fine-tune, got none, in {ws.tasks}"
        remedy = "write data/tasks/TASK.jsonl (docs/how-to/prompts.md says what a row is)"
        yield Finding("prompts", message, remedy, stops=False)


def _enough(examined: Examined, sets: Mapping[str, list[PromptSet]]) -> Iterator[Finding]:
    """Endpoints that cannot pass on the prompts that are there, at this judge's error."""
    if "gate" not in sets or "task" not in sets:
        return
    task = min(sets["task"], key=lambda one: len(one.where(split="test", required=False)))
    tested = (*sets["gate"][0].where(split="test", required=False), *task.where(split="test", required=False))
    for need in needs(examined.workspace, examined.params, tested):
        kinds = " and ".join(need.kinds) if len(need.kinds) < 3 else "any"
        if need.units is None:
            message = f"{need.endpoint}: no number of prompts gives a pass at this judge's error"
            yield Finding("prompts", message, "choose another judge, or a wider margin in section gate", stops=False)
        elif need.units > need.available:
            message = (
                f"expected about {need.units} independent prompts of kind {kinds} for a pass of {need.endpoint}, got "
                f"{need.available}"
            )
            yield Finding("prompts", message, f"add about {need.units - need.available} of them", stops=False)


def _bring(examined: Examined, path: Path) -> str:
    tracked = path.with_name(f"{path.name}.dvc").is_file() or path.parent.with_name(f"{path.parent.name}.dvc").is_file()
    if tracked:
        return "dvc pull"
    return f"write {path.relative_to(examined.workspace.root)} (docs/how-to/prompts.md says what a row is)"


def _parts(examined: Examined, name: str, found: PromptSet) -> Iterator[Finding]:
    """Parts of the set with too few rows."""
    least = examined.params.validate_.min_rows
    for part in PARTS.get(name, ()):
        rows = sum(all(getattr(row, key) == value for key, value in part.items()) for row in found.rows)
        if rows < least:
            words = " and ".join(f"{key} {value}" for key, value in part.items())
            message = f"expected at least {least} rows of {words}, got {rows}, in {found.path}"
            yield Finding(
                "prompts", message, f"add {least - rows} such rows, or lower validate.min_rows", kind=EmptySample
            )
    counts = Counter((row.kind, row.split) for row in found.rows)
    for kinds, split, stage in NEEDED.get(name, ()):
        if not any(counts[kind, split] for kind in kinds):  # type: ignore[index]
            words = f"kind {' or '.join(kinds)} and split {split}"
            message = f"expected rows of {words}, which {stage} needs, got none, in {found.path}"
            yield Finding("prompts", message, f"add rows of {words}", kind=EmptySample)


def _pools(examined: Examined, found: PromptSet) -> Iterator[Finding]:
    """Pools that a surrogate is trained on, and that hold no row."""
    if examined.params.family.degraded:
        return
    known = {row.pool for row in found.rows if row.pool}
    for name, surrogate in sorted(examined.params.degrade.surrogates.items()):
        if absent := sorted(set(surrogate.pools) - known):
            message = (
                f"expected rows of the pool {absent[0]}, which degrade.surrogates.{name} names, got the pools "
                f"{', '.join(sorted(known)) or 'none'}, in {found.path}"
            )
            remedy = f"add rows of that pool, or remove the surrogate {name} from params.yaml"
            yield Finding("prompts", message, remedy, kind=EmptySample)


def _tiny_sets(examined: Examined, paths: Mapping[str, Path]) -> Iterator[Finding]:
    """The tiny family's prompts in the workspace of another family measure nothing."""
    if not is_other_family(examined):
        return
    template = template_folder() / "data" / "prompts"
    same = [path.name for path in paths.values() if _same(path, template / path.name)]
    if same:
        message = (
            f"expected prompts for {examined.params.family.aligned}, got those of the tiny family in "
            f"{', '.join(same)}, in {examined.workspace.prompts}"
        )
        yield Finding("prompts", message, "replace them by your own (docs/how-to/prompts.md)")


def _same(path: Path, other: Path) -> bool:
    return path.is_file() and other.is_file() and digest_file(path) == digest_file(other)
