"""Mining: the prompts of a pool on which the repaired target errs most become shots, and the fit goes on.

A fit by a few hundred shots leaves errors on prompts that it has not seen, and the loss on validation shots does not
rank them. So each round asks the repaired target a pool that the aligned model has labelled (`safegene.repair.pool`),
has the full replies judged, and adds the worst errors of either label as shots: refusals taught by the aligned model,
answers by the unrepaired target. What was met on the way is chosen by judged replies to the held-out part of the pool,
of which no prompt is ever a shot.

An error on a refused prompt is any reply that is not a refusal to its end, so one that begins with a refusal and then
complies counts, and becomes a shot. An error on an answered prompt is a refusal.

Laws (tests state them): no held-out prompt becomes a shot; the held-out cost of the result is at most that of the fit
before; a mining that was killed goes on after its last round, and ends with the same numbers.
"""

import logging
import math
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from safegene.datasets.prompts import Prompt, PromptSet
from safegene.gate.statistics import clopper_pearson_upper
from safegene.models.patching import patched
from safegene.models.templates import encode_chats
from safegene.repair.coefficients import Coefficients
from safegene.repair.divergence import ShotLosses, divergence, measure_shots
from safegene.repair.fit_log import FitLog
from safegene.repair.fitting import Fitted, fit_coefficients
from safegene.repair.pool import JudgedReply, Pool, ReplyJudge, judged_replies
from safegene.repair.shots import Shot, ShotKind, Shots, evenly_spaced, make_shots, shots_from_teacher
from safegene.workspace.params import CalibrateParams
from safegene.workspace.parsing import parse

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)
LOSS_BATCH = 128  # shots per forward pass when errors are ranked
ASKED = 1.5  # prompts asked for each shot that is taken
TASKS = 200  # prompts of the task by which a round is judged, besides validation shots
LEAST = 1e-9  # in place of a limit of 0, which is divided by


@dataclass(frozen=True)
class HeldOut:
    """What a repair does on the held-out part of the pool, and with the task.

    Attributes:
        harm: prompts that the aligned model refuses and the repair does not.
        refused: how many the aligned model refuses.
        over_refusal: prompts that the aligned model answers and the repair refuses.
        answered: how many the aligned model answers.
        task: prompts of the task, none of them trained on, whose greedy reply changed.
        tasks: how many there are.
    """

    harm: int
    refused: int
    over_refusal: int
    answered: int
    task: int
    tasks: int

    def bounds(self, confidence: float) -> dict[str, float]:
        """Upper confidence bounds of the three shares; 1 for a kind without prompts, of which nothing is known."""
        counts = {
            "harm": (self.harm, self.refused),
            "over_refusal": (self.over_refusal, self.answered),
            "task": (self.task, self.tasks),
        }
        return {name: clopper_pearson_upper(k, n, 1.0 - confidence) if n else 1.0 for name, (k, n) in counts.items()}


@dataclass(frozen=True)
class MiningRound:
    """One round.

    Attributes:
        missed: mined prompts that should be refused and were not, before the round.
        over_refused: mined prompts that should be answered and were refused.
        safety: ids of the prompts that became safety shots.
        benign: ids of those that became benign shots.
        before: the repair on the held-out part before the round.
        after: the same of the best values of the round, these included.
        steps: optimiser steps behind the best values; 0 where the round improved nothing.
    """

    missed: int
    over_refused: int
    safety: tuple[str, ...]
    benign: tuple[str, ...]
    before: HeldOut
    after: HeldOut
    steps: int


@dataclass(frozen=True)
class Mining:
    """What mining found.

    Attributes:
        pool: digest of the pool's file.
        start: the repair on the held-out part before the first round.
        rounds: the rounds that ran; none where the start was within the limits, or too far from them.
        left_out: prompts of the pool that the aligned model did not label.
    """

    pool: str
    start: HeldOut
    rounds: tuple[MiningRound, ...] = ()
    left_out: int = 0

    @property
    def end(self) -> HeldOut:
        """The repair on the held-out part at the end."""
        return self.rounds[-1].after if self.rounds else self.start

    @property
    def mined(self) -> frozenset[str]:
        """Ids of the prompts that became shots."""
        return frozenset(name for one in self.rounds for name in (*one.safety, *one.benign))


@dataclass(frozen=True)
class Miner:
    """Mines shots for one target.

    Attributes:
        params: of the calibration.
        model: the target in evaluation mode; its weights are never changed.
        tokenizer: the target's, with its chat template.
        judge: of full replies.
        pool: as the aligned model labels it.
        tasks: prompts of the task that are no shots, by which a round must not change the task.
        drafts: id of a prompt -> a reply that the repaired target probably gives; see `judged_replies`. They are those
            of the start, so that a mining that goes on after a kill reads as many tokens.
    """

    params: CalibrateParams
    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    judge: ReplyJudge
    pool: Pool
    tasks: Sequence[Prompt] = ()
    drafts: dict[str, str] = field(default_factory=dict)

    def replies(self, coefficients: Coefficients, prompts: Sequence[Prompt]) -> list[JudgedReply]:
        """The repaired target's full replies, judged. The change is added to the weights where they are fp32."""
        exact, tokens = self.model.dtype == torch.float32, self.params.mining.max_new_tokens
        drafts = {**self.drafts, **self.pool.refusals}
        with torch.no_grad(), patched(self.model, coefficients.patch()) if exact else coefficients.hooked(self.model):
            return judged_replies(self.model, self.tokenizer, prompts, self.judge, tokens, drafts)

    def held_out(self, coefficients: Coefficients, tasks: Sequence[Shot]) -> HeldOut:
        """The repaired target on the held-out part and on shots of the task; its first replies become drafts."""
        replies = self.replies(coefficients, [row for row, _ in self.pool.held])
        pairs = [(reply, refused) for reply, (_, refused) in zip(replies, self.pool.held, strict=True)]
        if not self.drafts:
            self.drafts.update(
                (row.id, one.text) for (row, _), one in zip(self.pool.held, replies, strict=True) if one.finished
            )
        with torch.no_grad(), coefficients.hooked(self.model):
            changed = measure_shots(self.model, tasks).changed
        return HeldOut(
            harm=sum(refused and not reply.refuses for reply, refused in pairs),
            refused=sum(refused for _, refused in pairs),
            over_refusal=sum(not refused and reply.refusal != "no" for reply, refused in pairs),
            answered=sum(not refused for _, refused in pairs),
            task=round(changed.get("task", 0.0) * len(tasks)),
            tasks=len(tasks),
        )

    def within_limits(self, found: HeldOut) -> bool:
        """Whether the bounds of harm and over-refusal are within their limits; a round does not help the task."""
        bounds, mining = found.bounds(self.params.mining.confidence), self.params.mining
        return bounds["harm"] <= mining.max_harm and bounds["over_refusal"] <= mining.max_over_refusal

    def cost(self, found: HeldOut, before: HeldOut) -> float:
        """The bounds of harm and over-refusal in units of their limits, summed; infinite where the task suffers.

        The task suffers where more replies changed than ``before`` and their bound is above its limit.
        """
        bounds, mining = found.bounds(self.params.mining.confidence), self.params.mining
        if found.task > before.task and bounds["task"] > mining.max_task_change:
            return math.inf
        limits = {"harm": mining.max_harm, "over_refusal": mining.max_over_refusal}
        return sum(bounds[name] / max(limit, LEAST) for name, limit in limits.items())

    def taught(self, prompts: Sequence[Prompt], kind: ShotKind = "benign") -> list[Shot]:
        """The unrepaired target's shots, in order; not with the change in place."""
        tokens = self.params.response_tokens
        return (
            shots_from_teacher(self.model, self.tokenizer, prompts, kind=kind, response_tokens=tokens)
            if prompts
            else []
        )

    def mined_shots(self, names: Collection[str]) -> list[Shot]:
        """The shots of these prompts, in the pool's order."""
        safety = [self.pool.shots[row.id] for row in self.pool.refused if row.id in names]
        return safety + self.taught([row for row in self.pool.answered if row.id in names])

    def worst(
        self, coefficients: Coefficients, used: Collection[str]
    ) -> tuple[list[Shot], list[Shot], tuple[int, int]]:
        """The worst safety and benign shots that are not used yet, and how many prompts of each label were missed.

        Refused prompts are ranked by the KL along the aligned model's reply, answered ones by that of the first token.
        The first of them are asked, `ASKED` times as many as are taken; what was missed is taken first.
        """
        count = self.params.mining.shots
        unused = [[row for row in rows if row.id not in used] for rows in (self.pool.refused, self.pool.answered)]
        shots = [*(self.pool.shots[row.id] for row in unused[0]), *self._openings(unused[1])]
        with torch.no_grad(), coefficients.hooked(self.model):
            loss = shot_losses(self.model, shots)
        asked = [sorted(rows, key=lambda row: (-loss[row.id], row.id))[: round(ASKED * count)] for rows in unused]
        replies = self.replies(coefficients, [*asked[0], *asked[1]])
        wrong = [not reply.refuses for reply in replies[: len(asked[0])]]
        wrong += [reply.refusal != "no" for reply in replies[len(asked[0]) :]]
        missed = {row.id for row, errs in zip((*asked[0], *asked[1]), wrong, strict=True) if errs}
        safety, benign = (sorted(rows, key=lambda row: row.id not in missed)[:count] for rows in asked)
        found = [self.pool.shots[row.id] for row in safety], self.taught(benign)
        return *found, (sum(wrong[: len(asked[0])]), sum(wrong[len(asked[0]) :]))

    def _openings(self, prompts: Sequence[Prompt]) -> list[Shot]:
        """Shots of the first token of the unrepaired target's replies."""
        asked = encode_chats(self.tokenizer, [row.prompt for row in prompts])
        rows = [
            (row.id, ids, [0]) for row, ids in zip(prompts, asked, strict=True)
        ]  # of a reply of one token none is read
        return make_shots(self.model, rows, kind="benign", response_tokens=1, batch_size=LOSS_BATCH) if rows else []


def unused_tasks(tasks: PromptSet, shots: Shots) -> tuple[Prompt, ...]:
    """At most `TASKS` prompts of the task, evenly spaced, that are of split validation and no shots."""
    used = {shot.id for some in shots.values() for shot in some}
    rows = tasks.where(split="validation")
    return evenly_spaced([row for row in rows if row.id not in used], TASKS)


@torch.no_grad()
def shot_losses(model: "PreTrainedModel", shots: Sequence[Shot]) -> dict[str, float]:
    """Prompt id -> mean KL per token of its shot, nats."""
    found: dict[str, float] = {}
    for at in range(0, len(shots), LOSS_BATCH):
        some = shots[at : at + LOSS_BATCH]
        kl, mask = divergence(model, some)
        values = (kl.sum(1) / mask.sum(1)).tolist()
        found.update((shot.id, value) for shot, value in zip(some, values, strict=True))
    return found


def mine(
    miner: Miner,
    coefficients: Coefficients,
    fitted: Fitted,
    shots: Shots,
    *,
    doubtful: bool,
    log_of_parts: FitLog | None = None,
) -> tuple[Fitted, Mining]:
    """Mine and fit on, up to ``mining.rounds`` times.

    Args:
        miner: the target, its pool and parameters.
        coefficients: as they were fitted; afterwards the best values that were met.
        fitted: the fit before.
        shots: of both splits.
        doubtful: whether a first round is needed even where the start is within the limits.
        log_of_parts: keeps finished rounds; None keeps none.
    """
    tasks = [shot for shot in shots["validation"] if shot.kind == "task"]
    tasks += miner.taught(miner.tasks, "task")
    start = miner.held_out(coefficients, tasks)
    mining = Mining(miner.pool.digest, start, left_out=miner.pool.left_out)
    if start.harm > miner.params.mining.max_start_harm * start.refused:
        log.info("nothing is mined: %d of %d held-out prompts are missed, too many to mend", start.harm, start.refused)
        return fitted, mining
    for number in range(1, miner.params.mining.rounds + 1):
        if miner.within_limits(mining.end) and not (doubtful and number == 1):
            break
        kept = log_of_parts and log_of_parts.restore(f"round {number}", coefficients)
        if kept:
            again, found = kept[0], parse(MiningRound, kept[1], where="the log of a calibration")
        else:
            again, found = _round(miner, coefficients, shots, mining, number, tasks)
            if log_of_parts:
                log_of_parts.keep(f"round {number}", coefficients, again, asdict(found))
        mining = replace(mining, rounds=(*mining.rounds, found))
        log.info("mining, round %d: %d missed, %d refused by mistake; held out: %s", number, *_told(found))
        if again.steps:
            fitted = replace(again, steps=fitted.steps + again.steps, history=fitted.history, scale=fitted.scale)
    return fitted, mining


def _told(found: MiningRound) -> tuple[int, int, str]:
    after = found.after
    return (
        found.missed,
        found.over_refused,
        f"{after.harm} of {after.refused} missed, {after.over_refusal} of {after.answered} refused by mistake",
    )


def _round(
    miner: Miner, coefficients: Coefficients, shots: Shots, mining: Mining, number: int, tasks: Sequence[Shot]
) -> tuple[Fitted, MiningRound]:
    before, measured = mining.end, dict[int, HeldOut]()
    safety, benign, (missed, over_refused) = miner.worst(coefficients, mining.mined)
    mined = [*miner.mined_shots(mining.mined), *safety, *benign] * miner.params.mining.repeat

    def cost(step: int, _: ShotLosses) -> float:
        measured[step] = miner.held_out(coefficients, tasks) if step else before
        return miner.cost(measured[step], before)

    fitted = fit_coefficients(
        _round_params(miner.params, number),
        miner.model,
        coefficients,
        shots["fit"],
        (),  # replies choose
        further=mined,
        cost=cost,
        shrink=False,
    )
    ids = tuple(shot.id for shot in safety), tuple(shot.id for shot in benign)
    return fitted, MiningRound(missed, over_refused, *ids, before, measured[fitted.steps], fitted.steps)


def _round_params(params: CalibrateParams, number: int) -> CalibrateParams:
    mining = params.mining
    own: dict[str, Any] = {
        "steps": mining.steps,
        "batch_size": mining.batch_size,
        "learning_rate": mining.learning_rate,
        "measure_every": mining.measure_every,
        "patience": mining.steps,
        "seed": params.seed + number,
    }
    return params.model_copy(update=own)
