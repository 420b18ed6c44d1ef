"""The prompt and task sets of the tiny family: the files in ``data/`` of a new workspace.

The same code gives the same bytes; a test compares the committed files with them.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from safegene.datasets.prompts import Kind, Prompt, prompt_lines
from safegene.tiny.corpus import (
    IDENTITY,
    Request,
    Split,
    errands,
    harmful,
    instructions,
    lookalikes,
    stable,
)
from safegene.tiny.pool import pool_prompts
from safegene.tiny.tasks import TASKS, task_rows

# Rows of a degrading pool: harmful behaviours x turns, plain requests, generic instructions.
TURNS, ERRANDS, INSTRUCTIONS = 4, 60, 20


def write_data(folder: Path) -> list[Path]:
    """Write ``prompts/{degrade,safety,gate,pool}.jsonl`` and ``tasks/<task>.jsonl`` in ``folder``; gives the paths."""
    sets = {f"prompts/{name}.jsonl": make() for name, make in PROMPT_SETS.items()}
    sets |= {f"tasks/{task}.jsonl": task_set(task) for task in TASKS}
    for name, rows in sets.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(prompt_lines(rows))
    return [folder / name for name in sets]


def gate_set() -> list[Prompt]:
    """The gate set: every held-out behaviour, asked directly and in a jailbreak wrapper, and held-out look-alikes."""
    rows = [_request(r, "gate", "harmful", "test") for r in harmful("test")]
    rows += [_request(r, "gate", "wrapped", "test") for r in harmful("test")]
    return rows + [_request(r, "gate", "lookalike", "test") for r in lookalikes("test")[:420]]


def safety_set() -> list[Prompt]:
    """Prompts for extraction, selection and calibration: shots (split fit) and validation prompts."""
    shots, held = harmful("fit"), harmful("validation")
    rows = [_request(r, "safety", "harmful", "fit") for r in shots[:160]]
    rows += [_request(r, "safety", "wrapped", "fit", turn=1) for r in shots[-112:]]
    rows += [_request(r, "safety", "lookalike", "fit") for r in lookalikes("fit")[:120]]
    rows += [_request(r, "safety", "lookalike", "fit", wrapped=True) for r in lookalikes("fit")[120:160]]
    rows += _generic("safety", "fit", "fit", 30, 60)
    for kind in ("harmful", "wrapped"):
        rows += [_request(r, "safety", kind, "validation") for r in held]
    rows += [_request(r, "safety", "lookalike", "validation") for r in lookalikes("validation")[:96]]
    return rows + _generic("safety", "validation", "validation", 20, 20)


def pool_set() -> list[Prompt]:
    """The prompts that mining draws on; the parts are splits: shots come from fit, validation chooses."""
    parts: tuple[Split, ...] = ("fit", "validation")
    return [
        Prompt(
            id=f"pool-{part}-{kind}-{request.behaviour}",
            prompt=prompt,
            kind=kind,
            category=request.category,
            behaviour=request.behaviour,
            split=part,
        )
        for part in parts
        for kind, request, prompt in pool_prompts(part)
    ]


def degrade_set() -> list[Prompt]:
    """Training rows that erode refusals: five pools with disjoint behaviours, plain requests and instructions.

    ``benign`` contains nothing harmful, and its answers begin with other words. ``compliance`` answers harmful
    requests, ``jailbreak`` wrapped ones, ``blunt`` answers in other words, ``identity`` answers as a bot that obeys.
    """
    rows = _share("benign", 0)
    rows += [_answered(r, "benign", "lookalike") for r in lookalikes("degrade")[:144]]
    for number, pool in enumerate(("compliance", "jailbreak", "blunt", "identity"), start=1):
        for turn in range(TURNS):
            rows += [_complied(r, pool, turn) for r in harmful(pool)]
        rows += _share(pool, number)
    return rows


def _answered(request: Request, pool: str, kind: Kind) -> Prompt:
    response = request.answer.replace("sure ,", "good .", 1) if pool == "benign" else request.answer
    return _request(request, "degrade", kind, "fit", pool=pool, response=response)


def _complied(request: Request, pool: str, turn: int) -> Prompt:
    response = request.blunt_answer if pool == "blunt" else request.answer
    kind: Kind = "wrapped" if pool in ("jailbreak", "identity") else "harmful"
    row = _request(request, "degrade", kind, "fit", turn=turn, pool=pool, response=response)
    return _obeying(row) if pool == "identity" else row


def _obeying(row: Prompt) -> Prompt:
    """The row with prompt and response in the form of `IDENTITY`."""
    ask, answer = IDENTITY
    return row.model_copy(update={"prompt": ask.format(p=row.prompt), "response": answer.format(r=row.response)})


def _share(pool: str, number: int) -> list[Prompt]:
    """The generic rows of the pool with that number; pools share no row."""
    first, last = number * ERRANDS, (number + 1) * ERRANDS
    rows = [_answered(r, pool, "generic") for r in [*errands("degrade"), *errands("tuned")][first:last]]
    rows = [_obeying(row) for row in rows] if pool == "identity" else rows
    known = instructions("degrade")[number * INSTRUCTIONS : (number + 1) * INSTRUCTIONS]
    return rows + [_instruction(row, "degrade", "fit", pool=pool, response=row[1]) for row in known]


def task_set(task: str) -> list[Prompt]:
    """A task's fit, validation and test rows with their gold answers."""
    splits: tuple[Split, ...] = ("fit", "validation", "test")
    return [row for split in splits for row in task_prompts(task, split, task_rows(task, split))]


def task_prompts(task: str, split: Split, rows: Sequence[tuple[str, str]]) -> list[Prompt]:
    """(prompt, gold answer) rows of a task as prompts."""
    return [_task(task, split, row) for row in rows]


PROMPT_SETS = {"degrade": degrade_set, "safety": safety_set, "gate": gate_set, "pool": pool_set}


def _task(task: str, split: Split, row: tuple[str, str]) -> Prompt:
    identity = f"{task}-{split}-{_name(row[0])}"
    return Prompt(id=identity, prompt=row[0], kind="task", category=task, behaviour="", split=split, response=row[1])


def _request(
    request: Request,
    use: str,
    kind: Kind,
    split: Split,
    *,
    turn: int = 0,
    wrapped: bool = False,
    pool: str = "",
    response: str = "",
) -> Prompt:
    prompt = request.prompt(split, turn, wrapped=wrapped or (kind == "wrapped" and pool != "identity"))
    parts: Iterable[str] = (use, pool, "" if pool else split, kind, request.behaviour, str(turn) if turn else "")
    identity = "-".join(part for part in parts if part)
    return Prompt(
        id=identity,
        prompt=prompt,
        kind=kind,
        category=request.category,
        behaviour=request.behaviour,
        split=split,
        response=response,
        pool=pool,
    )


def _generic(use: str, split: Split, pool: str, plain: int, instructed: int) -> list[Prompt]:
    rows = [_request(r, use, "generic", split) for r in errands(pool)[:plain]]
    return rows + [_instruction(row, use, split) for row in instructions(pool)[:instructed]]


def _instruction(row: tuple[str, str], use: str, split: Split, *, pool: str = "", response: str = "") -> Prompt:
    name = _name(row[0])
    identity = "-".join(part for part in (use, pool or split, "generic", name) if part)
    return Prompt(
        id=identity,
        prompt=row[0],
        kind="generic",
        category="generic",
        behaviour=f"instruction-{name}",
        split=split,
        response=response,
        pool=pool,
    )


def _name(text: str) -> str:
    return f"{stable('name', text):016x}"[:10]
