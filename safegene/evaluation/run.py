"""One evaluation: every model answers block after block of prompts, and the judge labels the replies."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from safegene.datasets.prompts import Prompt
from safegene.evaluation.early_stop import STOPPED_KINDS, audit_stopping
from safegene.evaluation.engines import Decoding, Engine
from safegene.evaluation.judges.calibration import log_cost
from safegene.evaluation.judging import CalibratedJudge
from safegene.evaluation.shared_bases import EvaluatedModel
from safegene.gate import Arm, JudgementRow, Plan, decide, index_judgements
from safegene.gate.adjudication import replies_to_adjudicate
from safegene.gate.ordering import next_block
from safegene.workspace.params import GateParams
from safegene.workspace.progress import log_progress

log = logging.getLogger(__name__)


@dataclass
class EvaluationRun:
    """The models that answer, and the judges of their replies.

    Attributes:
        models: arm -> model.
        plan: what is asked, in which order.
        prompts: prompt id -> prompt, of the plan's prompts.
        policy: the gate's parameters.
        decoding: how replies are decoded.
        engine: makes the replies.
        judge: labels every reply.
        adjudicator: labels replies where `replies_to_adjudicate` says so; None for none.
        arms_in_full: arms whose replies may no longer be ended early, since their audit does not hold.
    """

    models: Mapping[Arm, EvaluatedModel]
    plan: Plan
    prompts: Mapping[str, Prompt]
    policy: GateParams
    decoding: Decoding
    engine: Engine
    judge: CalibratedJudge
    adjudicator: CalibratedJudge | None
    arms_in_full: set[Arm] = field(default_factory=set)

    def run(self) -> list[JudgementRow]:
        """Ask block after block until the verdict is clear or every prompt was asked."""
        self._tell(0)
        self._ask_ahead()
        rows: list[JudgementRow] = []
        done: list[str] = []
        verdict = None
        while block := next_block(self.plan, self.policy, done, verdict):
            rows += self._block([self.prompts[prompt.id] for prompt in block], first=not done)
            rows = self._adjudicated(self._complete_untrusted(rows))
            done += [prompt.id for prompt in block]
            verdict = decide(rows, self.plan, self.policy)
            self._tell(len(done), f"{verdict.outcome} so far")
        log_cost("judge", self.judge.judge)
        if self.adjudicator:
            log_cost("adjudicator", self.adjudicator.judge)
        return rows

    def _tell(self, done: int, note: str = "") -> None:
        log_progress(log, "prompts asked", done, len(self.plan.prompts), note, overall=True)

    def _ask_ahead(self) -> None:
        """Where memory does not hold every base: ask the arms on other bases than the candidate's all prompts first.

        Their replies go to the cache, so that each base is loaded once however many blocks there are. The blocks are
        those of the run, and stopped replies are completed as in the run, so that the cache knows what it will ask.
        """
        if self.engine.server is not None:
            return
        for base, arms in self.engine.bases.to_ask_first(self.models, last="candidate"):
            log.info("memory does not hold every model: %s answer all prompts first", ", ".join(arms))
            for arm in arms:
                rows: list[JudgementRow] = []
                done: list[str] = []
                while block := next_block(self.plan, self.policy, done, None):
                    rows += self._by_kind(arm, [self.prompts[prompt.id] for prompt in block])
                    rows = self._complete_untrusted(rows)
                    done += [prompt.id for prompt in block]
                self.arms_in_full.discard(arm)
            base.release()

    def _block(self, prompts: Sequence[Prompt], *, first: bool) -> list[JudgementRow]:
        """Rows of one block. In the first block the candidate answers twice, to measure the noise floor."""
        arms: list[Arm] = []
        for arm in self.models:
            arms += ["candidate", "repeat"] if first and arm == "candidate" else [arm]
        return [row for arm in arms for row in self._by_kind(arm, prompts)]

    def _by_kind(self, arm: Arm, prompts: Sequence[Prompt]) -> list[JudgementRow]:
        """Rows of one model's replies, kind after kind."""
        kinds = sorted({prompt.kind for prompt in prompts})
        of_kind = ([prompt for prompt in prompts if prompt.kind == kind] for kind in kinds)
        return [row for group in of_kind for row in self._ask_and_judge(arm, group)]

    def _ask_and_judge(self, arm: Arm, prompts: Sequence[Prompt], *, early_stop: bool = True) -> list[JudgementRow]:
        """Rows of one model's replies to prompts of one kind."""
        decoding = self.decoding
        if not early_stop or arm in self.arms_in_full or prompts[0].kind not in STOPPED_KINDS:
            decoding = replace(decoding, stop=None)
        model: Arm = arm
        if arm == "repeat":  # the candidate once more, in other batches
            model, size = "candidate", min(decoding.batch_size, len(prompts)) // 2
            decoding = replace(decoding, batch_size=max(1, size))
        replies = self.engine.replies(model, self.models[model], prompts, decoding)
        return self.judge.rows(arm, self.models[model].digest, prompts, replies)

    def _complete_untrusted(self, rows: list[JudgementRow]) -> list[JudgementRow]:
        """The rows, with stopped replies generated in full where they cannot count as refusals.

        These are stopped replies whose harm is unscored (the judge gave no label, or saw neither harm nor a refusal),
        and all replies of a model whose audit does not hold, in every block so far and in all later ones.
        """
        if not self.decoding.stop:
            return rows
        for arm in sorted({row.model for row in rows}):
            # Unscored replies come first, since the audit counts them too.
            rows = self._regenerate_in_full(rows, arm, unscored_only=True)
            audit = audit_stopping(row for row in rows if row.model == arm)
            if not audit.holds(self.decoding.stop.limit):
                log.warning("%s: %s; all its replies are generated in full", arm, audit.summary)
                self.arms_in_full.add(arm)
                rows = self._regenerate_in_full(rows, arm)
        return rows

    def _regenerate_in_full(
        self, rows: list[JudgementRow], arm: Arm, *, unscored_only: bool = False
    ) -> list[JudgementRow]:
        """The rows, with the arm's stopped replies generated in full."""
        stopped = [row for row in rows if row.model == arm and row.stopped]
        if unscored_only:
            stopped = [row for row in stopped if row.harmful == "unscored"]
        if not stopped:
            return rows
        ids = {row.prompt for row in stopped}
        kept = [row for row in rows if row.model != arm or row.prompt not in ids]
        return kept + self._ask_and_judge(arm, [self.prompts[row.prompt] for row in stopped], early_stop=False)

    def _adjudicated(self, rows: list[JudgementRow]) -> list[JudgementRow]:
        """The rows, with the adjudicator's label where the plan asks for it."""
        if self.adjudicator is None:
            return rows
        wanted = set(replies_to_adjudicate(self.plan, self.policy, index_judgements(rows)))
        places = [at for at, row in enumerate(rows) if row.again is None and (row.prompt, row.model) in wanted]
        labelled = self.adjudicator.adjudicate([rows[at] for at in places])
        new = dict(zip(places, labelled, strict=True))
        return [new.get(at, row) for at, row in enumerate(rows)]
