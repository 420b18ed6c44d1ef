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
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from safegene.datasets.prompts import Prompt
from safegene.gate.statistics import clopper_pearson_upper
from safegene.models.patching import patched
from safegene.repair.coefficients import Coefficients
from safegene.repair.divergence import ShotLosses, divergence, measure_shots
from safegene.repair.fit_log import FitLog
from safegene.repair.fitting import Fitted, fit_coefficients
from safegene.repair.pool import JudgedReply, Pool, ReplyJudge, judged_replies
from safegene.repair.shots import Shot, Shots, shots_from_teacher
from safegene.workspace.params import CalibrateParams
from safegene.workspace.parsing import parse

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)
LOSS_BATCH = 128  # shots per forward pass when errors are ranked
ASKED = 1.5  # prompts asked for each shot that is taken


@dataclass(frozen=True)
class HeldOut:
    """What a repair does on the held-out part of the pool, and with the task.

    Attributes:
        harm: prompts that the aligned model refuses and the repair does not.
        refused: how many the aligned model refuses.
        over_refusal: prompts that the aligned model answers and the repair refuses.
        answered: how many the aligned model answers.
        task: validation shots of the task whose greedy reply changed.
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
        rounds: the rounds that ran; none where the start was within the limits.
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
        benign: id of an answered prompt -> the unrepaired target's shot; see `teach`.
    """

    params: CalibrateParams
    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    judge: ReplyJudge
    pool: Pool
    benign: dict[str, Shot] = field(default_factory=dict)

    def replies(self, coefficients: Coefficients, prompts: Sequence[Prompt]) -> list[JudgedReply]:
        """The repaired target's full replies, judged. The change is added to the weights where they are fp32."""
        exact = self.model.dtype == torch.float32
        with torch.no_grad(), patched(self.model, coefficients.patch()) if exact else coefficients.hooked(self.model):
            return judged_replies(self.model, self.tokenizer, prompts, self.judge, self.params.mining.max_new_tokens)

    def held_out(self, coefficients: Coefficients, losses: ShotLosses, tasks: int) -> HeldOut:
        """The repaired target on the held-out part; ``losses`` are its on the validation shots."""
        replies = self.replies(coefficients, [row for row, _ in self.pool.held])
        pairs = [(reply, refused) for reply, (_, refused) in zip(replies, self.pool.held, strict=True)]
        return HeldOut(
            harm=sum(refused and not reply.refuses for reply, refused in pairs),
            refused=sum(refused for _, refused in pairs),
            over_refusal=sum(not refused and reply.refusal != "no" for reply, refused in pairs),
            answered=sum(not refused for _, refused in pairs),
            task=round(losses.changed["task"] * tasks) if tasks else 0,
            tasks=tasks,
        )

    def within_limits(self, found: HeldOut) -> bool:
        """Whether every bound is within its limit."""
        return all(bound <= limit for bound, limit in self._bounds(found))

    def cost(self, found: HeldOut) -> float:
        """The bounds in units of their limits, summed."""
        return sum(bound / max(limit, 1e-9) for bound, limit in self._bounds(found))

    def _bounds(self, found: HeldOut) -> list[tuple[float, float]]:
        mining = self.params.mining
        limits = {"harm": mining.max_harm, "over_refusal": mining.max_over_refusal, "task": mining.max_task_change}
        return [(bound, limits[name]) for name, bound in found.bounds(mining.confidence).items()]

    def teach(self) -> None:
        """Have the unrepaired target teach the answered prompts, once; not with the change in place."""
        if not self.benign:
            taught = shots_from_teacher(
                self.model,
                self.tokenizer,
                self.pool.answered,
                kind="benign",
                response_tokens=self.params.response_tokens,
            )
            self.benign.update((shot.id, shot) for shot in taught)

    def mined_shots(self, names: Collection[str]) -> list[Shot]:
        """The shots of these prompts, in the pool's order."""
        return [shot for shot in (*self.pool.shots.values(), *self.benign.values()) if shot.id in names]

    def worst(
        self, coefficients: Coefficients, used: Collection[str]
    ) -> tuple[list[Shot], list[Shot], tuple[int, int]]:
        """The worst safety and benign shots that are not used yet, and how many prompts of each label were missed.

        Those of the largest KL are asked, `ASKED` times as many as are taken; what was missed comes first.
        """
        shots = {**self.pool.shots, **self.benign}
        with torch.no_grad(), coefficients.hooked(self.model):
            loss = shot_losses(self.model, list(shots.values()))
        count = self.params.mining.shots
        asked = [
            sorted((row for row in rows if row.id not in used), key=lambda row: (-loss[row.id], row.id))
            for rows in (self.pool.refused, self.pool.answered)
        ]
        refused, answered = (rows[: round(ASKED * count)] for rows in asked)
        replies = self.replies(coefficients, [*refused, *answered])
        errs = [not reply.refuses for reply in replies[: len(refused)]]
        errs += [reply.refusal != "no" for reply in replies[len(refused) :]]
        missed = {row.id for row, wrong in zip((*refused, *answered), errs, strict=True) if wrong}
        safety, benign = (
            [shots[row.id] for row in sorted(rows, key=lambda row: row.id not in missed)[:count]]
            for rows in (refused, answered)
        )
        return safety, benign, (sum(errs[: len(refused)]), sum(errs[len(refused) :]))


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
    tasks = sum(shot.kind == "task" for shot in shots["validation"])
    with torch.no_grad(), coefficients.hooked(miner.model):
        losses = measure_shots(miner.model, shots["validation"])
    start = miner.held_out(coefficients, losses, tasks)
    mining = Mining(miner.pool.digest, start, left_out=miner.pool.left_out)
    for number in range(1, miner.params.mining.rounds + 1):
        if miner.within_limits(mining.end) and not (doubtful and number == 1):
            break
        miner.teach()
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
    miner: Miner, coefficients: Coefficients, shots: Shots, mining: Mining, number: int, tasks: int
) -> tuple[Fitted, MiningRound]:
    before, measured = mining.end, dict[int, HeldOut]()
    safety, benign, (missed, over_refused) = miner.worst(coefficients, mining.mined)
    mined = [*miner.mined_shots(mining.mined), *safety, *benign]

    def cost(step: int, losses: ShotLosses) -> float:
        measured[step] = miner.held_out(coefficients, losses, tasks) if step else before
        return miner.cost(measured[step])

    fitted = fit_coefficients(
        _round_params(miner.params, number),
        miner.model,
        coefficients,
        [*shots["fit"], *mined * miner.params.mining.repeat],
        shots["validation"],
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
