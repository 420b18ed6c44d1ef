"""Intervals and tests for counts and bounded values: pure functions of numbers, no files, no models.

Two arms answer the same ``n`` prompts. ``worse`` counts the prompts bad in the new arm and good in the old one,
``better`` the opposite; the difference of rates is (worse - better) / n. No function here has zero width at 0 of n, as
t and Wald intervals have; none takes an empty sample.

The functions of counts hold at an ``n`` fixed beforehand. Those that bet (`capital`, `betting_upper`, `betting_lower`)
hold at any moment, however often one looks and for whatever reason one stops.
"""

import math
from collections import Counter
from collections.abc import Sequence

from scipy.special import bdtrc, betaincinv, ndtri

from safegene.errors import EmptySample


def clopper_pearson_upper(events: int, n: int, alpha: float) -> float:
    """Exact upper bound of a proportion: the rate at which ``events`` or fewer of ``n`` has probability ``alpha``.

    Clopper and Pearson 1934. Law: the true rate lies above the bound with probability at most ``alpha``.

    Raises:
        EmptySample: ``n`` is 0.
    """
    _require(n, alpha, events)
    return 1.0 if events == n else float(betaincinv(events + 1, n - events, 1 - alpha))


def clopper_pearson_lower(events: int, n: int, alpha: float) -> float:
    """Exact lower bound of a proportion, the mirror of `clopper_pearson_upper`.

    Raises:
        EmptySample: ``n`` is 0.
    """
    _require(n, alpha, events)
    return 0.0 if events == 0 else float(betaincinv(events, n - events + 1, alpha))


def wilson(events: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Two-sided score interval of a proportion (Wilson 1927), for display; decisions use the exact bounds.

    Raises:
        EmptySample: ``n`` is 0.
    """
    _require(n, 1 - confidence, events)
    z = float(ndtri(0.5 + confidence / 2))
    rate = events / n
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return (0.0 if events == 0 else centre - half), (1.0 if events == n else centre + half)


def mcnemar_worse(worse: int, better: int) -> float:
    """Exact one-sided McNemar test: the probability of at least ``worse`` of the discordant pairs by a fair coin.

    Law: 1 when no pair is discordant; under "not worse" it is at most ``alpha`` with probability at most ``alpha``.
    """
    if worse < 0 or better < 0:
        raise ValueError(f"expected counts, got {worse} and {better}")
    return float(bdtrc(worse - 1, worse + better, 0.5)) if worse else 1.0


def tango_upper(worse: int, better: int, n: int, alpha: float) -> float:
    """Upper score bound of the paired difference (worse - better) / n, in -1..1 (Tango 1998, Stat. Med. 17:891).

    The largest difference D that the one-sided score test at level ``alpha`` does not reject: the root of
    worse - better - n D + z sqrt(n (2 q + D (1 - D))) = 0, where q is the constrained maximum-likelihood share of
    "better" pairs at difference D, the positive root of 2 n q^2 + (2 n D - worse - better - (worse - better) D) q
    - better D (1 - D) = 0.

    Raises:
        EmptySample: ``n`` is 0.
    """
    _require(n, alpha, worse, better, worse + better)
    if worse == n:
        return 1.0
    z = float(ndtri(1 - alpha))

    def surplus(difference: float) -> float:
        variance = 2 * _constrained(worse, better, n, difference) + difference * (1 - difference)
        return worse - better - n * difference + z * math.sqrt(max(0.0, n * variance))

    low, high = (worse - better) / n, 1.0  # the surplus is above 0 just above the estimate, and below 0 at 1
    while high - low > 1e-13:
        middle = (low + high) / 2
        low, high = (middle, high) if surplus(middle) > 0 else (low, middle)
    return high


def _constrained(worse: int, better: int, n: int, difference: float) -> float:
    a = 2 * n
    b = (2 * n - worse + better) * difference - worse - better
    c = -better * difference * (1 - difference)
    return max(0.0, -difference, (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a))


# Each bet is this share of the largest one that cannot lose everything, with this part of the capital. Chosen by
# `python -m studies.gate.simulate`: few prompts where nothing or much has changed.
BETS = ((0.15, 0.2), (0.45, 0.25), (0.95, 0.55))


def log_wealth(values: Sequence[float], mean: float) -> float:
    """The log of a bettor's capital, who began with 1 and bet that ``values`` (each at most 1) fall below ``mean``.

    Against "the mean is at least ``mean``" every bet is fair or worse, so by Ville's inequality the capital ever
    reaches 1 / alpha with probability at most ``alpha``: an e-process (Waudby-Smith and Ramdas 2024, JRSS B 86:1).
    It is the mean over `BETS` of the products of ``1 + share * (mean - value) / (1 - mean)``; bets never change, so
    the order of values does not matter. Values must come in an order that does not depend on what they will be.

    Args:
        values: (n,) e.g. differences between two arms, in -1..1; none is no evidence, capital 1.
        mean: below 1.
    """
    _require_bounded(values)
    if not mean < 1.0:
        raise ValueError(f"expected a mean below 1, got {mean}")
    counted, logs = Counter(values).items(), list[float]()
    for share, part in BETS:
        gains = ((1.0 + share * (mean - value) / (1.0 - mean), count) for value, count in counted)
        logs.append(math.log(part) + sum(count * math.log(gain) for gain, count in gains))
    largest = max(logs)
    return largest + math.log(sum(math.exp(one - largest) for one in logs))


def betting_upper(values: Sequence[float], alpha: float, *, low: float = -1.0) -> float:
    """Upper bound of the mean of values in low..1, at any moment: the largest mean not yet refuted by `capital`.

    Law: the true mean ever lies above the bound, whenever one looks, with probability at most ``alpha``. 1 without
    values.
    """
    _require(1, alpha)
    _require_bounded(values, low)
    return _refuted(values, -math.log(alpha), low)


def betting_lower(values: Sequence[float], alpha: float, *, low: float = -1.0) -> float:
    """Lower bound of the mean of values in low..1, the mirror of `betting_upper`; ``low`` without values."""
    return low + 1.0 - betting_upper([low + 1.0 - value for value in values], alpha, low=low)


def _refuted(values: Sequence[float], enough: float, low: float) -> float:
    """The least mean in low..1 against which the capital's log is at least ``enough``; it grows with the mean."""
    above = 1.0
    while above - low > 1e-12:
        middle = (low + above) / 2
        low, above = (low, middle) if log_wealth(values, middle) >= enough else (middle, above)
    return above


def _require_bounded(values: Sequence[float], low: float = -math.inf) -> None:
    if any(not low - 1e-9 <= value <= 1.0 + 1e-9 for value in values):
        raise ValueError(f"expected values between {low} and 1, got {min(values)} to {max(values)}")


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given (Holm 1979): at most ``alpha`` keeps the family-wise error."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for step, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - step) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def true_rate(observed: float, sensitivity: float, specificity: float) -> float:
    """The rate behind an observed one: (observed + Sp - 1) / (Se + Sp - 1), within 0..1 (Rogan and Gladen 1978).

    It rises with ``specificity`` and falls with ``sensitivity``, so bounds go in accordingly. NaN when the instrument
    says no more than a coin (Se + Sp <= 1).
    """
    youden = sensitivity + specificity - 1
    return min(1.0, max(0.0, (observed + specificity - 1) / youden)) if youden > 0 else math.nan


def _require(n: int, alpha: float, *counts: int) -> None:
    if n <= 0:
        raise EmptySample(f"expected at least one observation, got {n}")
    if not 0 < alpha < 1:
        raise ValueError(f"expected a level between 0 and 1, got {alpha}")
    if any(not 0 <= count <= n for count in counts):
        raise ValueError(f"expected counts between 0 and {n}, got {counts}")
