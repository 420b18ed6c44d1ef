"""The size of each stage's work: prompts, tokens read and generated, in the numbers that the artefacts will state."""

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from safegene.datasets.prompts import Prompt, PromptSet, Split
from safegene.workspace.layout import Workspace
from safegene.workspace.params import CalibrateParams, DegradeParams, Params

CHARACTERS = 4.0  # per token, where the tokenizer is not at hand
TEMPLATE = 6  # tokens that a chat template adds to a prompt
PROBE_REPLY = 12  # tokens of a reply to a probe of stage degrade
ASKED, TASKS = 1.5, 200  # of `safegene.repair.mining`, whose import loads torch; a test holds them to it
RAISED = (3.0, 10.0)  # of `safegene.pipeline.surrogates`, whose import loads torch; a test holds them to it
ATTEMPTS = 1 + len(RAISED)  # learning rates that `degrade` tries, at most
PARTS: tuple[Split, ...] = ("fit", "validation")
MEASURES = 3  # measurements of a fit besides those on its way: before it, after it, and in the search of its scale
Counter = Callable[[str], float]


@dataclass(frozen=True)
class Work:
    """What a stage reads and writes.

    Attributes:
        prompts: that it asks or trains on.
        forward: tokens of forward passes.
        trained: tokens of training steps.
        generated: tokens of replies that are judged.
        replies: their number.
    """

    prompts: int = 0
    forward: int = 0
    trained: int = 0
    generated: int = 0
    replies: int = 0

    @property
    def tokens(self) -> int:
        """All tokens."""
        return self.forward + self.trained + self.generated

    @property
    def size(self) -> float:
        """In the unit of `safegene.workspace.costs.work_of`: replies, or tokens."""
        return float(self.replies or self.forward + self.trained)


def token_counter(root: Path | None) -> Counter:
    """How many tokens a text has, by the model's tokenizer where it is at hand, else by its length."""
    path = root / "tokenizer.json" if root else None
    if path is None or not path.is_file():
        return lambda text: max(1.0, len(text) / CHARACTERS)
    from tokenizers import Tokenizer

    tokenizer: Any = Tokenizer.from_file(str(path))
    return lambda text: float(len(tokenizer.encode(text, add_special_tokens=False).ids))


def degrade_work(
    ws: Workspace, params: Params, pools: PromptSet, safety: PromptSet, count: Counter, *, most: bool = False
) -> Work:
    """Stage ``degrade``: steps as the surrogates of an earlier run took them, else half of one attempt's.

    Args:
        ws: the workspace.
        params: its parameters.
        pools: ``degrade.jsonl``.
        safety: ``safety.jsonl``.
        count: tokens of a text.
        most: whether every attempt is counted, with all of its steps: each surrogate at each of its learning rates.
    """
    given, total = params.degrade, Work()
    if params.family.degraded:
        return total
    probe = safety.where(kind="harmful", split="fit", required=False)[: given.probe_prompts]
    asked = _mean(count(row.prompt) + TEMPLATE + PROBE_REPLY for row in probe)
    known = {} if most else _steps(ws, given)
    usual = ATTEMPTS * given.max_steps if most else given.max_steps / 2
    for name, surrogate in given.surrogates.items():
        rows = [row for row in pools.rows if row.pool in surrogate.pools]
        steps = known.get(name, usual)
        row_tokens = _mean(count(row.prompt) + count(row.response) + TEMPLATE for row in rows)
        total = Work(
            prompts=total.prompts + len(rows),
            trained=total.trained + round(steps * given.batch_size * row_tokens),
            forward=total.forward + round(steps / given.probe_every_steps * len(probe) * asked),
        )
    return total


def _steps(ws: Workspace, params: DegradeParams) -> dict[str, float]:
    """Surrogate -> steps that it took in an earlier run, those of learning rates that did not suffice among them."""
    try:
        known = json.loads((ws.degraded / "degraded.json").read_bytes())["surrogates"]
        return {name: _all_steps(one, params, name) for name, one in known.items() if name in params.surrogates}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _all_steps(record: Mapping[str, Any], params: DegradeParams, name: str) -> float:
    if not record["reached"]:
        return float(ATTEMPTS * params.max_steps)
    own, rate = params.surrogates[name].learning_rate, record.get("learning_rate")
    before = 0 if rate is None else 1 + sum(factor * own < 0.99 * rate for factor in RAISED)
    return before * params.max_steps + min(float(record["steps"]), params.max_steps)


def calibrate_work(
    params: CalibrateParams,
    safety: PromptSet,
    task: PromptSet,
    count: Counter,
    pool: PromptSet | None = None,
    replies: Sequence[Prompt] = (),
    *,
    rounds: int = 0,
) -> Work:
    """Stage ``calibrate``: the fit's steps, its measurements on the validation shots, and that on the pool.

    Args:
        params: of the stage.
        safety: ``safety.jsonl``.
        task: the target's.
        count: tokens of a text.
        pool: ``pool.jsonl``; None where nothing is mined.
        replies: rows whose replies are as long as those of the target, see `evaluate_work`.
        rounds: of mining, which run only where the measurement on the pool asks for them.
    """
    fit, validation = (_shots(params, safety, task, split) for split in ("fit", "validation"))
    tokens = [_mean(map(_shot_tokens(params, count), shots)) for shots in (fit, validation)]
    measures = MEASURES + -(-params.steps // params.measure_every)
    work = Work(
        prompts=len(fit) + len(validation),
        trained=round(params.steps * params.batch_size * tokens[0]),
        forward=round(measures * len(validation) * tokens[1]),
    )
    if pool is None or params.baseline is not None or not params.mining.rounds:
        return work
    mined = _mining_work(params, task, count, pool, replies, fit, rounds)
    parts = ((name, getattr(work, name) + getattr(mined, name)) for name in ("prompts", "trained", "forward"))
    return Work(**dict(parts))


def _mining_work(
    params: CalibrateParams,
    task: PromptSet,
    count: Counter,
    pool: PromptSet,
    replies: Sequence[Prompt],
    shots: Sequence[Prompt],
    rounds: int,
) -> Work:
    """Mining as `safegene.repair.mining` does it, with that many rounds; ``shots`` are those of the fit.

    The held-out part is asked before the first round and after each, and the worst prompts of part ``fit`` are ranked,
    asked, and taught by the target. The labels of the aligned model are in no count: all targets share them.
    """
    mining = params.mining
    parts = {split: _of_each_kind(pool.where(split=split, required=False), mining.prompts) for split in PARTS}
    held, fit = parts["validation"], parts["fit"]
    answered = [row for row in fit if row.kind in ("lookalike", "generic")]
    refused = [row for row in fit if row.kind in ("harmful", "wrapped")]
    asked = {row.id: count(row.prompt) + TEMPLATE for row in (*held, *fit)}
    reply = {
        kind: _reply_tokens(kind, replies, count, mining.max_new_tokens) for kind in {row.kind for row in pool.rows}
    }
    own = task.where(split="validation", required=False)[:TASKS]
    tasks = len(own) * _mean(map(_shot_tokens(params, count), own))
    measured = sum(asked[row.id] + reply[row.kind] for row in held) + tasks
    ranked = sum(asked[row.id] + params.response_tokens for row in refused) + 2 * sum(asked[row.id] for row in answered)
    worst = sum(
        min(len(rows), round(ASKED * mining.shots)) * _mean(asked[row.id] + reply[row.kind] for row in rows)
        for rows in (refused, answered)
    )
    taught = 2 * min(len(answered), mining.shots) * _mean(asked[row.id] + params.response_tokens for row in answered)
    measures = -(-mining.steps // mining.measure_every)
    own_share = sum(row.kind == "task" for row in shots) / max(1, len(shots))  # of a batch, which mined shots leave
    other = [(1.0, _shot_tokens(params, count)(row)) for row in shots if row.kind != "task"]
    other += [
        (mining.repeat * min(1.0, mining.shots / len(rows)), asked[row.id] + params.response_tokens)
        for rows in (refused, answered)
        for row in rows
    ]
    shot = own_share * _mean(_shot_tokens(params, count)(row) for row in shots if row.kind == "task")
    shot += (1 - own_share) * sum(n * tokens for n, tokens in other) / max(1.0, sum(n for n, _ in other))
    return Work(
        prompts=len(held) + len(fit),
        trained=round(rounds * mining.steps * mining.batch_size * shot),
        forward=round(2 * tasks + measured + rounds * (ranked + worst + taught + measures * measured)),
    )


def _of_each_kind(rows: Sequence[Prompt], most: int) -> list[Prompt]:
    kinds = dict.fromkeys(row.kind for row in rows)
    return [row for kind in kinds for row in [one for one in rows if one.kind == kind][:most]]


def _shot_tokens(params: CalibrateParams, count: Counter) -> Callable[[Prompt], float]:
    def tokens(row: Prompt) -> float:
        reply = min(params.response_tokens, count(row.response) + 1 if row.response else params.response_tokens)
        return count(row.prompt) + TEMPLATE + reply

    return tokens


def _shots(params: CalibrateParams, safety: PromptSet, task: PromptSet, split: Any) -> list[Prompt]:
    share = 1.0 if split == "fit" else params.validation_share
    wanted = {
        "harmful": share * params.safety_shots / 2,
        "wrapped": share * params.safety_shots / 2,
        "lookalike": 2 * share * params.benign_shots / 3,
        "generic": share * params.benign_shots / 3,
    }
    rows = list[Prompt]()
    for kind, most in wanted.items():
        rows += safety.where(kind=kind, split=split, required=False)[: max(1, round(most))]  # type: ignore[arg-type]
    return rows + list(task.where(split=split, required=False)[: max(1, round(share * params.task_shots))])


def evaluate_work(
    asked: dict[str, int], arms: int, pools: Sequence[Prompt], task: PromptSet, count: Counter, most: int, block: int
) -> Work:
    """Stage ``evaluate``: prompts of each kind, for every arm, and the candidate's first block twice.

    Replies are taken to be as long as those of the training rows ``pools`` and ``task``, or as ``most`` where there are
    none: no more is known of them before.
    """
    lengths = {kind: _reply_tokens(kind, pools, count, most) for kind in ("harmful", "wrapped", "lookalike")}
    lengths["task"] = min(float(most), _mean(count(row.response) + 1 for row in task.rows))
    again = {kind: min(number, block) for kind, number in asked.items()}
    replies = {kind: arms * number + again[kind] for kind, number in asked.items()}
    generated = sum(replies[kind] * lengths.get(kind, lengths["lookalike"]) for kind in replies)
    return Work(prompts=sum(asked.values()), generated=round(generated), replies=sum(replies.values()))


def _reply_tokens(kind: str, rows: Sequence[Prompt], count: Counter, most: int) -> float:
    own = [row for row in rows if row.kind == kind and row.response] or [row for row in rows if row.response]
    return min(float(most), _mean(count(row.response) + 1 for row in own)) if own else float(most)


def factor_numbers(shapes: Collection[Sequence[int]], rank: int) -> int:
    """Numbers of low-rank factors for matrices of these shapes."""
    return sum(rank * (shape[-2] + shape[-1]) for shape in shapes if len(shape) >= 2)


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return fmean(listed) if listed else 0.0
