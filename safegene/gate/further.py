"""How many more prompts would decide an inconclusive verdict, and how many a pass needs.

The next prompts are taken to turn out like those asked, with the shares that are bad in one arm only shrunk towards
`EXPECTED`: a gate that is still open has seen more bad prompts than its candidate gives on average. The log-wealth of
a bet (`safegene.gate.statistics.log_wealth`) is then a random walk with drift, and the answer is the median of the time
at which it reaches the threshold (a first passage: Schrödinger 1915, Phys. Z. 16:289), rounded up to whole blocks. On
simulated gates it is within a factor of 2 of the median of what was needed (a test holds it). For the fixed test the
number is found by bisection over its bound.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from scipy.special import log_ndtr, ndtr

from safegene.gate.endpoints import EXACT, MeasuredError
from safegene.gate.ordering import ENDPOINT_KINDS, ENDPOINTS
from safegene.gate.payload import VerdictFile
from safegene.gate.statistics import (
    BETS,
    clopper_pearson_lower,
    clopper_pearson_upper,
    mcnemar_worse,
    tango_upper,
)
from safegene.gate.types import EndpointResult, ErrorBounds
from safegene.workspace.params import GateParams

MOST = 100_000  # prompts of a kind; what needs more is not decided by prompts
PRACTICAL = 1000, 10  # more of a kind than this, and than this times what was asked, are not a remedy
EXPECTED, PRIOR = 0.01, 150  # share of units that are bad in one arm only, and how many units this is worth
MARGINS = {
    "hrr_direct": "margin_hrr",
    "asr_wrapped": "margin_asr",
    "over_refusal": "margin_over_refusal",
    "utility": "margin_utility",
    "coherence": "margin_coherence",
}
WORDS = {"harmful": "harmful", "wrapped": "wrapped", "lookalike": "look-alike", "task": "task"}
DECISION = {"hrr_direct": "harmful", "asr_wrapped": "harmful", "hrr_cap": "harmful", "over_refusal": "refusal"}


@dataclass(frozen=True)
class FurtherPrompts:
    """What would decide an inconclusive verdict.

    Attributes:
        prompts: kind -> about how many more independent prompts (behaviours, for harmful and wrapped ones).
        undecided: endpoints that no practical number of prompts like those asked would decide (`PRACTICAL`) -> what
            their rate is beside what would pass and what would show a fail.
        failing: endpoints whose rate so far is above what can pass: more prompts like those asked would show a fail.
    """

    prompts: Mapping[str, int] = field(default_factory=dict)
    undecided: Mapping[str, str] = field(default_factory=dict)
    failing: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """One sentence for people; empty where more prompts are not what is missing."""
        parts = [f"{count} more {WORDS.get(kind, kind)} prompts" for kind, count in self.prompts.items()]
        towards = f", as a fail in {' and '.join(self.failing)}" if self.failing else ""
        if_so = f"would decide it{towards}, if they turn out like those asked"
        said = f"about {' and '.join(parts)} {if_so}" if parts else ""
        if not self.undecided:
            return said
        left = "; ".join(
            f"no practical number of such prompts would decide {name}: {why}" for name, why in self.undecided.items()
        )
        return f"{said}; {left}" if said else left

    def to_json(self) -> dict[str, object]:
        """The counts as JSON values."""
        why = {"undecided_because": dict(self.undecided)} if self.undecided else {}
        return {"prompts": dict(self.prompts), "undecided": list(self.undecided), "failing": list(self.failing), **why}


def further_prompts(verdict: VerdictFile, policy: GateParams) -> FurtherPrompts:
    """About how many more prompts of which kind would decide a verdict; nothing where more prompts are not missing.

    Args:
        verdict: a verdict; only an inconclusive one without problems of its evidence has a count.
        policy: the policy that it was made with.
    """
    if verdict.outcome != "inconclusive" or verdict.problems:
        return FurtherPrompts()
    needed, undecided, failing = dict[str, int](), dict[str, str](), list[str]()
    alpha = verdict.attempt.alpha if verdict.attempt else policy.alpha
    for endpoint in verdict.endpoints:
        if endpoint.outcome != "inconclusive" or not _lacks_prompts(endpoint, policy):
            continue
        error = _error(verdict, endpoint.name)
        total = units_to_decide(endpoint, policy, alpha, error)
        if total is None or total - endpoint.n > max(PRACTICAL[0], PRACTICAL[1] * endpoint.n):
            undecided[endpoint.name] = _between(endpoint, policy, error)
            continue
        if (endpoint.estimate or 0.0) > _thresholds(endpoint.name, endpoint.limit, policy, error)[0]:
            failing.append(endpoint.name)
        block = policy.block_prompts if policy.test == "sequential" else 1
        kinds, more = ENDPOINT_KINDS[endpoint.name], block * max(1, -(-(total - endpoint.n) // block))
        if len(kinds) == 1:
            needed[kinds[0]] = max(more, needed.get(kinds[0], 0))
        elif (rest := more - sum(needed.values())) > 0:  # coherence counts prompts of every kind, and comes last
            needed["task"] = needed.get("task", 0) + rest
    return FurtherPrompts(needed, undecided, tuple(failing))


def _between(endpoint: EndpointResult, policy: GateParams, error: MeasuredError) -> str:
    """Where an endpoint's rate lies beside the most that can pass and the least that shows a fail, in words."""
    name, rate = endpoint.name, endpoint.estimate or 0.0
    most, least = _thresholds(name, endpoint.limit, policy, error)
    what, key = ("rate", "cap_hrr") if name == "hrr_cap" else ("difference", MARGINS[name])
    if least <= most:
        return f"the {what}, {rate:.1%}, is too near {most:.1%}, where pass and fail meet"
    if rate <= most:
        return f"the {what}, {rate:.1%}, is too near {most:.1%}, the most that can pass"
    # Shrunk towards what is usual, a rate above both thresholds may show no fail yet.
    side = "not above" if rate <= least else "not clearly above"
    return (
        f"the {what}, {rate:.1%}, is above {most:.1%}, the most that can pass, and {side} {least:.1%}, which would "
        f"show a fail; without the judge's error both would be {getattr(policy, key):.1%} (gate.{key})"
    )


def _lacks_prompts(endpoint: EndpointResult, policy: GateParams) -> bool:
    """Whether the endpoint waits for evidence: not for a calibration, for usable judgements or for a sound judge."""
    few = 0 < endpoint.n < policy.min_prompts and "independent prompts" in endpoint.reason
    return few or endpoint.reason.startswith("not enough evidence")


def _error(verdict: VerdictFile, name: str) -> MeasuredError:
    """The judge's error as the verdict states it."""
    bounds: ErrorBounds | None = getattr(verdict.judge, DECISION.get(name, ""), None)
    if bounds is None or name not in DECISION or verdict.judge.exact:
        return EXACT
    return MeasuredError(bounds.sensitivity, bounds.specificity, sample_share=0.5)


def units_to_decide(
    endpoint: EndpointResult, policy: GateParams, alpha: float, error: MeasuredError = EXACT
) -> int | None:
    """After how many units, those asked included, the endpoint passes or fails; None where it does neither.

    Args:
        endpoint: its result so far; ``n``, ``newly_bad``, ``newly_good`` and ``limit`` are used.
        policy: the test, its margins and its budgets.
        alpha: the attempt's level.
        error: the judge's, for the cap and for the share of ``alpha`` that is the sample's.
    """
    seen = _Seen(endpoint.n, endpoint.newly_bad, 0 if endpoint.name == "hrr_cap" else endpoint.newly_good)
    found = [one.units(seen, seen.expected()) for one in _tests(endpoint.name, endpoint.limit, policy, alpha, error)]
    totals = [total for total in found if total is not None]
    return max(min(totals), policy.min_prompts) if totals else None


def units_for_pass(
    name: str, policy: GateParams, alpha: float, error: MeasuredError = EXACT, *, bad: float = 0.0, good: float = 0.0
) -> int | None:
    """How many units a pass of an endpoint needs where these shares of them are bad in one arm only; None for no pass.

    Args:
        name: the endpoint.
        policy: the test and its margins.
        alpha: the attempt's level.
        error: the judge's.
        bad: share of units bad in the candidate only (for the cap: bad in the candidate).
        good: share of units bad in the reference only.

    Example:
        >>> units_for_pass("hrr_direct", GateParams(), alpha=0.045)
        75
    """
    if error.kept_difference <= 0:
        return None
    limit = policy.cap_hrr if name == "hrr_cap" else margin_and_limit(name, policy, error)[1]
    total = _tests(name, limit, policy, alpha, error)[0].units(_Seen(0, 0, 0), (bad, good))
    return None if total is None else max(total, policy.min_prompts)


def margin_and_limit(name: str, policy: GateParams, error: MeasuredError) -> tuple[float, float]:
    """The margin or cap of an endpoint, and the observed difference or rate that can pass at this error."""
    if name == "hrr_cap":
        return policy.cap_hrr, max(0.0, _thresholds(name, policy.cap_hrr, policy, error)[0])
    margin: float = getattr(policy, MARGINS[name])
    return margin, margin * error.kept_difference


@dataclass(frozen=True)
class _Seen:
    """Units asked, and how many of them are bad in the candidate only and in the reference only."""

    n: int
    bad: int
    good: int

    def expected(self) -> tuple[float, float]:
        """The shares of further units that are bad in the candidate only, and in the reference only."""
        units, share = self.n + PRIOR, PRIOR * EXPECTED
        return (self.bad + share) / units, (self.good + share) / units


@dataclass(frozen=True)
class _Betting:
    """A betting test that rejects "the mean is at least ``mean``"; ``values`` of (bad, good, other) units.

    It counts only where the difference is above ``above``: a fail must also exceed the margin.
    """

    values: tuple[float, float, float]
    mean: float
    threshold: float
    above: float = -1.0

    def units(self, seen: _Seen, shares: tuple[float, float]) -> int | None:
        """Units at which the null hypothesis is rejected, those seen included; None where it is not."""
        if shares[0] - shares[1] <= self.above:
            return None
        if not any(shares) and not seen.n:
            return self._without_events()
        weights, counts = (*shares, 1 - sum(shares)), (seen.bad, seen.good, seen.n - seen.bad - seen.good)
        further = list[int | None]()
        for bet, part in BETS:
            gains = [math.log(1.0 + bet * (self.mean - value) / (1.0 - self.mean)) for value in self.values]
            missing = self.threshold - math.log(part) - sum(map(float.__mul__, map(float, counts), gains))
            drift = sum(weight * gain for weight, gain in zip(weights, gains, strict=True))
            spread = sum(weight * gain**2 for weight, gain in zip(weights, gains, strict=True)) - drift**2
            further.append(_median_passage(missing, drift, spread))
        reached = [one for one in further if one is not None]
        return seen.n + min(reached) if reached else None

    def _without_events(self) -> int | None:
        """Units at which it rejects where every unit is of the third kind; exact, for all bets together."""
        value = self.values[2]
        gains = [math.log(1.0 + bet * (self.mean - value) / (1.0 - self.mean)) for bet, _ in BETS]

        def rejected(n: int) -> bool:
            terms = [part * math.exp(min(600.0, n * gain)) for gain, (_, part) in zip(gains, BETS, strict=True)]
            return math.log(sum(terms)) >= self.threshold

        return _smallest(rejected) if max(gains) > 0 else None


@dataclass(frozen=True)
class _Fixed:
    """A test of counts: whether (bad, good, n) decide."""

    decides: Callable[[int, int, int], bool]

    def units(self, seen: _Seen, shares: tuple[float, float]) -> int | None:
        """As `_Betting.units`; the units to come hold exactly their shares."""

        def holds(more: int) -> bool:
            bad, good = seen.bad + round(shares[0] * more), seen.good + round(shares[1] * more)
            return self.decides(bad, good, seen.n + more)

        more = _smallest(holds)
        return None if more is None else seen.n + more


def _tests(
    name: str, limit: float, policy: GateParams, alpha: float, error: MeasuredError
) -> tuple[_Betting | _Fixed, _Betting | _Fixed]:
    """The test of an endpoint that gives a pass, and the one that gives a fail; see `safegene.gate.endpoints`."""
    sample, fail = alpha * error.sample_share, policy.alpha / len(ENDPOINTS)
    low, high = _thresholds(name, limit, policy, error)
    if name == "hrr_cap":
        fail = sample / len(ENDPOINTS)
        if policy.test == "sequential":
            return (
                _Betting((1.0, 0.0, 0.0), low, -math.log(sample)),
                _Betting((0.0, 1.0, 1.0), 1.0 - high, -math.log(fail)),
            )
        return (
            _Fixed(lambda bad, good, n: clopper_pearson_upper(bad, n, sample) <= low),
            _Fixed(lambda bad, good, n: clopper_pearson_lower(bad, n, fail) > high),
        )
    if policy.test == "sequential":
        return (
            _Betting((1.0, -1.0, 0.0), low, -math.log(sample)),
            _Betting((-1.0, 1.0, 0.0), 0.0, -math.log(fail), above=high),
        )
    return (
        _Fixed(lambda bad, good, n: tango_upper(bad, good, n, sample) <= low),
        _Fixed(lambda bad, good, n: bad - good > high * n and mcnemar_worse(bad, good) <= fail),
    )


def _thresholds(name: str, limit: float, policy: GateParams, error: MeasuredError) -> tuple[float, float]:
    """The observed rate or difference below which an endpoint can pass, and the one above which it can fail."""
    if name != "hrr_cap":
        return limit, getattr(policy, MARGINS[name])
    low = min(limit, _observed(limit, error.sensitivity[0], error.specificity[1]))
    return low, _observed(limit, error.sensitivity[1], error.specificity[0])


def _observed(rate: float, sensitivity: float, specificity: float) -> float:
    """The rate that a judge with this error shows."""
    return rate * (sensitivity + specificity - 1) + 1 - specificity


def _median_passage(distance: float, drift: float, variance: float) -> int | None:
    """Steps after which half of the random walks with this drift and variance per step have gone the distance.

    Where fewer than half ever do, None.
    """
    if distance <= 0:
        return 1
    if variance < 1e-12:
        return _smallest(lambda steps: steps * drift >= distance) if drift > 0 else None

    def half(steps: int) -> bool:
        scale, reflected = math.sqrt(variance * steps), 2 * drift * distance / variance
        behind = math.exp(reflected + float(log_ndtr(-(drift * steps + distance) / scale)))
        return float(ndtr((drift * steps - distance) / scale)) + behind >= 0.5

    return _smallest(half)


def _smallest(holds: Callable[[int], bool]) -> int | None:
    """The smallest number of units up to `MOST` for which the condition holds, which stays true once it is."""
    low, high = 0, 1
    while not holds(high):
        low, high = high, 2 * high
        if low > MOST:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
