"""The prompt sets and task sets: there, readable, with the rows that each stage needs."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from safegene.datasets.prompts import PromptSet, read_prompts
from safegene.datasets.set_rules import RULES
from safegene.datasets.suites.card import CARD
from safegene.errors import ArtifactError, EmptySample, SafegeneError
from safegene.pipeline.doctor.family import is_other_family
from safegene.pipeline.doctor.finding import Examined, Finding
from safegene.pipeline.init import template_folder
from safegene.pipeline.planning.needs import most_attempts, needs, shortages
from safegene.workspace.digest import digest_file

SETS = ("degrade", "safety", "pool", "gate")
ROWS = "rows"
"""The check whose findings stage ``validate``, the first of a run, states in full: file, line, rule, allowed values."""
LIST = "`safegene validate` lists every row that breaks a rule, and what the rule allows"


def check_prompts(examined: Examined) -> Iterator[Finding]:
    """Every prompt set, and the task set of every target that would run."""
    ws = examined.workspace
    paths = {name: ws.prompts / f"{name}.jsonl" for name in SETS}
    unused = {"degrade": examined.params.family.vector is not None, "pool": not _reads_pool(examined)}
    paths = {name: path for name, path in paths.items() if path.exists() or not unused.get(name)}
    tasks = {entry.task: ws.tasks / f"{entry.task}.jsonl" for entry in examined.chosen.values()}
    sets, absent = dict[str, list[PromptSet]](), list[Path]()
    for name, path in (*paths.items(), *(("task", path) for _, path in sorted(tasks.items()))):
        try:
            found = read_prompts(path)
        except SafegeneError as error:
            stops = name != "task" or len(tasks) == 1  # one target's missing task set does not stop the others
            if path.is_file():
                yield Finding(ROWS, error.message, LIST, stops, type(error))
            elif name != "task":
                absent.append(path)
            else:
                yield Finding("prompts", error.message, _bring(examined, [path], "--kind task"), stops, type(error))
            continue
        sets.setdefault(name, []).append(found)
        yield from _parts(examined, name, found)
        if name == "degrade" and not unused["degrade"]:
            yield from _pools(examined, found)
    yield from _absent(examined, absent)
    yield from _tiny_sets(examined, paths)
    yield from _enough(examined, sets)
    if not any(ws.tasks.glob("*.jsonl")):
        message = f"expected a task set for each kind of fine-tune, got none, in {ws.tasks}"
        remedy = "`safegene data add FILE --kind task`, then `safegene data split`, make data/tasks/NAME.jsonl"
        yield Finding("prompts", message, f"{remedy} (docs/data.md)", stops=False)


def _enough(examined: Examined, sets: Mapping[str, list[PromptSet]]) -> Iterator[Finding]:
    """Endpoints that cannot pass on the prompts that are there, at this judge's error."""
    if "gate" not in sets or "task" not in sets:
        return
    task = min(sets["task"], key=lambda one: len(one.where(split="test", required=False)))
    tested = (*sets["gate"][0].where(split="test", required=False), *task.where(split="test", required=False))
    ws = examined.workspace
    found = needs(ws, examined.params, tested, most_attempts(ws, anew=False))
    for need in found:
        if need.units is None:
            message = f"{need.endpoint}: no number of prompts gives a pass at this judge's error"
            yield Finding("prompts", message, "choose another judge, or a wider margin in section gate", stops=False)
    for kind, some in shortages(found).items():
        most, names = some[0], " and ".join(need.endpoint for need in some)
        message = (
            f"expected about {most.units} independent prompts of kind {kind} for a pass of {names}{most.unmeasured}, "
            f"got {most.available}"
        )
        yield Finding(
            "prompts", message, f"add about {most.missing} of them to the gate's set (docs/data.md)", stops=False
        )


def _reads_pool(examined: Examined) -> bool:
    """Whether `calibrate` needs the pool of mining: it has rounds, or DVC's stage depends on the file."""
    ws, given = examined.workspace, examined.params.calibrate
    dvc = ws.root / "dvc.yaml"
    return bool(given.mining.rounds and given.baseline is None) or (dvc.is_file() and b"pool.jsonl" in dvc.read_bytes())


def _absent(examined: Examined, paths: list[Path]) -> Iterator[Finding]:
    """The prompt sets that are not there, in one finding for each remedy."""
    for tracked in (True, False):
        if some := [path for path in paths if _is_tracked(path) == tracked]:
            names = ", ".join(path.relative_to(examined.workspace.root).as_posix() for path in some)
            message = f"expected {names}, got no such file{'s' if len(some) > 1 else ''}, in {examined.workspace.root}"
            yield Finding("prompts", message, _bring(examined, some), kind=ArtifactError)


def _is_tracked(path: Path) -> bool:
    return path.with_name(f"{path.name}.dvc").is_file() or path.parent.with_name(f"{path.parent.name}.dvc").is_file()


def _bring(examined: Examined, paths: list[Path], options: str = "") -> str:
    if _is_tracked(paths[0]):
        return "dvc pull"
    add = f"`safegene data add FILE {options}".strip() + "`, then "
    if not options and any(examined.workspace.suites.glob(f"*/{CARD}")):
        add = ""
    them = "them" if len(paths) > 1 else "it"
    return f"{add}`safegene data split`, which makes {them} (docs/data.md); or write {them}"


def _parts(examined: Examined, name: str, found: PromptSet) -> Iterator[Finding]:
    """Parts of the set with too few rows for the stages that use them."""
    for part in RULES[name].parts:
        least = examined.params.validate_.min_rows if part.least is None else part.least
        rows = sum((not part.kinds or row.kind in part.kinds) and part.split in ("", row.split) for row in found.rows)
        if rows < least:
            words, used = f" of {part.words}" if part.words else "", f", for {part.used}" if part.used else ""
            message = f"expected at least {least} rows{words}{used}, got {rows}, in {found.path}"
            yield Finding(ROWS, message, f"add {least - rows} such rows (docs/data.md)", kind=EmptySample)


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
            yield Finding(ROWS, message, remedy, kind=EmptySample)


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
        yield Finding(
            "prompts", message, "`safegene data add FILE`, then `safegene data split --replace` (docs/data.md)"
        )


def _same(path: Path, other: Path) -> bool:
    return path.is_file() and other.is_file() and digest_file(path) == digest_file(other)
