"""Simulated gates that run the gate's own code: how often they err, and after how many prompts they stop.

One endpoint (`safegene.gate.endpoints.paired_endpoint`) on prompts whose truth is drawn: both replies bad at a base
rate, some only in the candidate, some only in the reference. A judge with sensitivity Se and specificity Sp reads every
reply on its own; a second one, where there is one, reads the pairs on which the first sees a difference, and a share of
the others for the audit. The gate looks after every block, as ``evaluate`` does, and stops at pass or fail.
"""

import math
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

from safegene.gate.decision import level_share
from safegene.gate.endpoints import EXACT, MeasuredError, paired_endpoint
from safegene.gate.ordering import ENDPOINTS
from safegene.gate.pairs import PairedUnits
from safegene.gate.statistics import log_wealth
from safegene.gate.types import ConfusionCounts, VerdictOutcome
from safegene.workspace.params import GateParams

PROMPTS = 500
GATES = 8000
BASE = 0.02  # share of prompts on which both arms are bad
Labels = NDArray[np.bool_]


@dataclass(frozen=True)
class Reader:
    """A simulated judge.

    Attributes:
        sensitivity: probability that it labels a bad reply as bad.
        specificity: probability that it labels a good reply as good.
        labelled: number of labelled replies of each kind that its error was measured on; 0 for an exact judge.
        blind: share of the candidate's bad replies that it never sees, which the measured error does not show.
    """

    sensitivity: float = 1.0
    specificity: float = 1.0
    labelled: int = 0
    blind: float = 0.0

    def reads(self, bad: Labels, random: np.random.Generator, *, candidate: bool) -> Labels:
        """Its labels of replies whose truth is ``bad``."""
        drawn = random.random(bad.shape)
        seen = np.where(bad, drawn < self.sensitivity, drawn >= self.specificity)
        if not (candidate and self.blind):
            return seen
        hidden: Labels = seen & ~(bad & (random.random(bad.shape) < self.blind))
        return hidden

    def instrument(self, alpha: float) -> MeasuredError:
        """Its measured error, from a calibration with the expected counts."""
        if not self.labelled:
            return EXACT
        n = self.labelled
        counts = ConfusionCounts(round(self.sensitivity * n), n, round(self.specificity * n), n)
        return MeasuredError(counts.sensitivity(alpha), counts.specificity(alpha), sample_share=0.5)


@dataclass(frozen=True)
class World:
    """The true rates and the judges of a simulated gate.

    Attributes:
        change: true difference of rates, candidate minus reference.
        churn: share of prompts bad in the reference only; ``change + churn`` are bad in the candidate only.
        first: the judge.
        second: the adjudicator, if there is one.
    """

    change: float
    churn: float = 0.01
    first: Reader = Reader()
    second: Reader | None = None

    def truth(self, random: np.random.Generator, gates: int) -> tuple[Labels, Labels]:
        """(gates, PROMPTS) each: whether the candidate's and the reference's replies are bad."""
        drawn = random.random((gates, PROMPTS))
        only_candidate, only_reference = self.change + self.churn, self.churn
        both = drawn >= 1 - BASE
        candidate = (drawn < only_candidate) | both
        reference = ((drawn >= only_candidate) & (drawn < only_candidate + only_reference)) | both
        return candidate, reference

    def instrument(self, alpha: float) -> MeasuredError:
        """The measured error of both judges, at the levels of `safegene.gate.endpoints.joint_error`."""
        if self.second is None:
            return self.first.instrument(alpha / 4)
        first, second = self.first.instrument(alpha / 8), self.second.instrument(alpha / 8)
        share = min(first.sample_share, second.sample_share)
        return replace(first, adjudicator=second, sample_share=share)


@dataclass(frozen=True)
class Seen:
    """(gates, PROMPTS) each, by prompt: counted as newly bad, as newly good; worse and better of audited pairs."""

    worse: Labels
    better: Labels
    audited_worse: Labels
    audited_better: Labels


def seen(world: World, policy: GateParams, random: np.random.Generator, gates: int) -> Seen:
    """The judges' labels of every pair of replies."""
    truth = world.truth(random, gates)
    one, other = (world.first.reads(bad, random, candidate=not at) for at, bad in enumerate(truth))
    differ, none = one != other, np.zeros_like(one)
    if world.second is None:
        return Seen(one & ~other, ~one & other, none, none)
    two = [world.second.reads(bad, random, candidate=not at) for at, bad in enumerate(truth)]
    worse, better = two[0] & ~two[1], ~two[0] & two[1]
    audited = ~differ & (random.random(one.shape) < policy.audit_share)
    return Seen(differ & worse, differ & better, audited & worse, audited & better)


@dataclass(frozen=True)
class Result:
    """Shares of the outcomes, median and mean of the prompts asked."""

    passed: float
    failed: float
    median: float
    mean: float


def simulate(world: World, policy: GateParams, *, gates: int = GATES, seed: int = 0) -> Result:
    """Run the gate ``gates`` times."""
    alpha = policy.alpha * level_share(1)
    counts = seen(world, policy, np.random.default_rng(seed), gates)
    summed = [np.cumsum(one, axis=1) for one in (counts.worse, counts.better)]
    audits = [np.cumsum(one, axis=1) for one in (counts.audited_worse, counts.audited_better)]
    judge, step = world.instrument(alpha), policy.block_prompts if policy.test == "sequential" else PROMPTS
    looks = [*range(step, PROMPTS, step), PROMPTS]

    @cache
    def caught(up: int, down: int) -> bool:
        """Whether audited pairs show what the first judge misses; pairs without a difference move no capital."""
        return math.exp(-log_wealth([-1.0] * up + [1.0] * down, 0.0)) <= policy.alpha / len(ENDPOINTS)

    @cache
    def outcome(up: int, down: int, n: int, hidden: str) -> VerdictOutcome:
        pairs = [(True, False)] * up + [(False, True)] * down + [(False, False)] * (n - up - down)
        units = PairedUnits(tuple(((one, other),) for one, other in pairs))
        limits = {"margin": policy.margin_hrr, "alpha": alpha}
        return paired_endpoint(
            "hrr", units, policy=policy, judge=judge, reference="aligned", blind_spot=hidden, **limits
        ).outcome

    ends, asked = list[VerdictOutcome](), list[int]()
    for gate in range(gates):
        for look in looks:
            up, down, more, less = (int(one[gate, look - 1]) for one in (*summed, *audits))
            found = outcome(up, down, look, "caught" if caught(more, less) else "")
            if found != "inconclusive":
                break
        ends.append(found)
        asked.append(look)
    passed, failed = (ends.count(name) / gates for name in ("pass", "fail"))
    return Result(passed, failed, float(np.median(asked)), float(np.mean(asked)))
