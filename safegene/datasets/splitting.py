"""``safegene data split``: suites in, the prompt and task sets of the workspace out, in one step or not at all."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from safegene.checkpoints.sources.files import read_file
from safegene.datasets.contamination import check_contamination
from safegene.datasets.division import Division, SplitOptions, split_prompts, split_task
from safegene.datasets.made_sets import require_replaceable, write_made
from safegene.datasets.mining_pool import require_pool
from safegene.datasets.prompts import Prompt, prompt_lines, read_prompts
from safegene.datasets.suite_library import read_suites
from safegene.datasets.suites import Suite
from safegene.datasets.suites.tables import decompress
from safegene.datasets.suites.wrappers import Template, read_templates
from safegene.errors import FormatError, ParamsError
from safegene.workspace.layout import Workspace

SETS = ("degrade", "safety", "pool", "gate")
DEFAULT_POOLS = ("compliance", "jailbreak", "identity", "blunt")


@dataclass(frozen=True)
class MadeFiles:
    """What a split wrote.

    Attributes:
        rows: path below ``data`` -> rows.
        left_out: reason -> number of behaviours left out of the gate.
        pool_left_out: prompts left out of the pool, in the words of the gate or of the validation split.
    """

    rows: Mapping[str, tuple[Prompt, ...]]
    left_out: Mapping[str, int]
    pool_left_out: int = 0


def own_wrappers(place: str) -> tuple[Template, ...]:
    """The usable templates of a file, see `safegene.datasets.suites.wrappers.read_templates`."""
    file = read_file(place, ())
    return read_templates(decompress(file.name, file.data), file.name).usable


def split_suites(
    ws: Workspace,
    names: Sequence[str],
    options: SplitOptions,
    *,
    keep: Collection[str] = (),
    replace: bool = False,
) -> MadeFiles:
    """Divide suites into ``data/prompts/{degrade,safety,pool,gate}.jsonl``, and each task suite into ``data/tasks``.

    A workspace whose suites are all of tasks gets only these task sets.

    Args:
        ws: the workspace.
        names: of suites; all suites when there are none.
        options: shares, seed and wrappers.
        keep: sets of `SETS` that stay as they are; what is made keeps apart from them.
        replace: whether files that a person wrote may be written over.

    Raises:
        ParamsError: an unknown set to keep, a file that a person wrote, or see `split_prompts`.
        EmptySample: there are no suites, or too few behaviours or rows, or too small a pool; says what is needed.
        FormatError: two suites use one id.
        ContaminatedSample: the sets that are kept and those that are made would share prompts.
    """
    if unknown := sorted(set(keep) - set(SETS)):
        raise ParamsError(f"expected sets of {', '.join(SETS)} to keep, got {', '.join(unknown)}")
    suites = read_suites(ws, names)
    _check_ids(suites)
    tasks = [suite for suite in suites if set(suite.card.rows) == {"task"}]
    asked = [suite for suite in suites if suite not in tasks]
    params = ws.params
    made = {f"tasks/{s.card.name}.jsonl": split_task(s.prompts.rows, options, params.validate_) for s in tasks}
    from_suites = {name: tasks[at : at + 1] for at, name in enumerate(made)}
    division = Division({}, {})
    if asked:
        kept = {name: read_prompts(ws.prompts / f"{name}.jsonl").rows for name in keep}
        division = _divided(ws, asked, kept, options, _task_rows(ws, made))
        new = {f"prompts/{name}.jsonl": made_rows for name, made_rows in division.sets.items()}
        made |= new
        from_suites |= dict.fromkeys(new, asked)
    contents = {name: prompt_lines(made_rows) for name, made_rows in made.items()}
    if not replace:
        for name, content in contents.items():
            require_replaceable(ws, ws.data / name, content)
    digests = {name: {suite.card.name: suite.digest for suite in of} for name, of in from_suites.items()}
    write_made(ws, contents, seed=options.seed, suites=digests)
    return MadeFiles(made, division.left_out, division.pool_left_out)


def _divided(
    ws: Workspace,
    suites: Sequence[Suite],
    kept: Mapping[str, Sequence[Prompt]],
    options: SplitOptions,
    task: Sequence[Prompt],
) -> Division:
    """The new sets without those that are kept, apart from the kept ones and from what is fitted of tasks."""
    params, rule = ws.params, ws.params.validate_
    surrogates = () if params.family.degraded else params.degrade.surrogates.values()
    pools = {pool for surrogate in surrogates for pool in surrogate.pools} or set(DEFAULT_POOLS)
    fitted = [row for name in kept if name != "gate" for row in kept[name]]
    tested = [*kept.get("gate", ())]
    tested += [row for row in kept.get("safety", ()) if row.split == "validation" and row.kind != "generic"]
    rows = [row for suite in suites for row in suite.prompts.rows]
    made = split_prompts(rows, () if "degrade" in kept else pools, options, rule, [*fitted, *task], tested)
    sets = {name: made_rows for name, made_rows in made.sets.items() if name not in kept}
    if "gate" in kept:
        others = [row for made_rows in sets.values() for row in made_rows]
        where = f"{ws.prompts / 'gate.jsonl'} and the new sets"
        check_contamination(kept["gate"], others, ngram=rule.overlap_ngram, max_overlap=rule.max_overlap, where=where)
    if "pool" in sets:
        require_pool(sets["pool"], made.pool_left_out, rule)
    return Division(sets, {} if "gate" in kept else made.left_out, 0 if "pool" in kept else made.pool_left_out)


def _check_ids(suites: Iterable[Suite]) -> None:
    ids = dict[str, str]()
    for suite in suites:
        for row in suite.prompts.rows:
            if (other := ids.setdefault(row.id, suite.card.name)) != suite.card.name:
                raise FormatError(f"expected every id in one suite, got {row.id!r} in {other} and {suite.card.name}")


def _task_rows(ws: Workspace, made: Mapping[str, Sequence[Prompt]]) -> list[Prompt]:
    """The task rows that calibration may use: of the sets that are made, and of those that are there."""
    there = {f"tasks/{path.name}": path for path in sorted(ws.tasks.glob("*.jsonl"))}
    old = [read_prompts(path).rows for name, path in there.items() if name not in made]
    new = [rows for name, rows in made.items()]
    return [row for rows in [*old, *new] for row in rows if row.split != "test"]
