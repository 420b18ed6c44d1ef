"""Confidence bounds and tests for counts and for bounded values: pure functions of numbers.

Paired counts: two arms answer the same ``n`` prompts. ``worse`` counts the prompts that are bad in the new arm and good
in the old one, ``better`` the opposite, so the difference of rates is (worse - better) / n. All bounds are one-sided
unless stated otherwise. At 0 of n no interval here has width zero, unlike Wald's. An empty sample is an error.

The functions of counts are valid for one look at an ``n`` that was fixed in advance. The betting functions
(`log_wealth`, `betting_upper`, `betting_lower`) are valid at every look, however often one looks and for whatever
reason one stops.
"""

import math
from collections import Counter
from collections.abc import Sequence

from scipy.special import bdtrc, betaincinv, ndtri

from safegene.errors import EmptySample


def clopper_pearson_upper(events: int, n: int, alpha: float) -> float:
    """Exact upper confidence bound of a proportion (Clopper and Pearson 1934, Biometrika 26:404).

    It is the rate at which ``events`` or fewer of ``n`` have probability ``alpha``. Law: the true rate is above the
    bound with probability at most ``alpha``.

    Raises:
        EmptySample: ``n`` is 0.
    """
    _require(n, alpha, events)
    return 1.0 if events == n else float(betaincinv(events + 1, n - events, 1 - alpha))


def clopper_pearson_lower(events: int, n: int, alpha: float) -> float:
    """Exact lower confidence bound of a proportion; the counterpart of `clopper_pearson_upper`.

    Raises:
        EmptySample: ``n`` is 0.
    """
    _require(n, alpha, events)
    return 0.0 if events == 0 else float(betaincinv(events, n - events + 1, alpha))


def wilson(events: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Two-sided score interval of a proportion (Wilson 1927, JASA 22:209), for display only.

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
    """p-value of McNemar's exact one-sided test (McNemar 1947, Psychometrika 12:153).

    Null hypothesis: a discordant pair is "worse" with probability at most 1/2. The p-value is the probability that a
    fair coin gives ``worse`` or more heads in ``worse + better`` tosses; it is 1 when no pair is discordant. Law: under
    the null hypothesis it is at most ``alpha`` with probability at most ``alpha``.
    """
    if worse < 0 or better < 0:
        raise ValueError(f"expected counts, got {worse} and {better}")
    return float(bdtrc(worse - 1, worse + better, 0.5)) if worse else 1.0


def tango_upper(worse: int, better: int, n: int, alpha: float) -> float:
    """Upper score bound of the paired difference (worse - better) / n, in -1..1 (Tango 1998, Stat. Med. 17:891).

    It is the largest difference D that the one-sided score test at level ``alpha`` does not reject, the root of

        worse - better - n D + z sqrt(n (2 q + D (1 - D))) = 0

    where z is the normal quantile of 1 - alpha, and q is the maximum-likelihood estimate of the share of "better" pairs
    given D, the positive root of

        2 n q^2 + (2 n D - worse - better - (worse - better) D) q - better D (1 - D) = 0

    Raises:
        EmptySample: ``n`` is 0.
    """
    _require(n, alpha, worse, better, worse + better)
    if worse == n:
        return 1.0
    z = float(ndtri(1 - alpha))

    def surplus(difference: float) -> float:
        variance = 2 * _better_share(worse, better, n, difference) + difference * (1 - difference)
        return worse - better - n * difference + z * math.sqrt(max(0.0, n * variance))

    low, high = (worse - better) / n, 1.0  # the surplus is positive at the estimate and negative at 1
    while high - low > 1e-13:
        middle = (low + high) / 2
        low, high = (middle, high) if surplus(middle) > 0 else (low, middle)
    return high


def _better_share(worse: int, better: int, n: int, difference: float) -> float:
    a = 2 * n
    b = (2 * n - worse + better) * difference - worse - better
    c = -better * difference * (1 - difference)
    return max(0.0, -difference, (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a))


# (bet as a share of the largest bet that cannot lose everything, part of the initial wealth). Chosen with
# `python -m studies.gate.simulate`, to need few prompts where the arms differ by nothing or by much.
BETS = ((0.15, 0.2), (0.45, 0.25), (0.95, 0.55))


def log_wealth(values: Sequence[float], mean: float) -> float:
    """Log of the wealth of a bettor who starts with 1 and bets that ``values`` are below ``mean``.

    Test by betting (Waudby-Smith and Ramdas 2024, JRSS B 86:1). Null hypothesis: the mean of the values is at least
    ``mean``. Under it no bet is favourable, so the wealth is an e-process: by Ville's inequality it reaches 1 / alpha
    at any time with probability at most ``alpha``. 1 / wealth is therefore a p-value that is valid at every look. The
    wealth is the weighted mean, over `BETS`, of the products of ``1 + share * (mean - value) / (1 - mean)``. The bets
    are constant, so the order of the values does not change the result; but the order in which prompts are asked must
    not depend on the replies.

    Args:
        values: (n,) each at most 1, such as differences between two arms in -1..1; without values the wealth is 1.
        mean: the mean of the null hypothesis, below 1.

    Raises:
        ValueError: a value is above 1, or ``mean`` is not below 1.
    """
    _require_bounded(values)
    if not mean < 1.0:
        raise ValueError(f"expected a mean below 1, got {mean}")
    counted, logs = Counter(values).items(), list[float]()
    for share, part in BETS:
        gains = ((1.0 + share * (mean - value) / (1.0 - mean), count) for value, count in counted)
        logs.append(math.log(part) + sum(count * math.log(gain) for gain, count in gains))
    largest = max(logs)
    return largest + math.log(sum(math.exp(term - largest) for term in logs))


def betting_upper(values: Sequence[float], alpha: float, *, low: float = -1.0) -> float:
    """Upper confidence bound of the mean of values in low..1, valid at every look; 1 without values.

    It is the largest mean whose null hypothesis `log_wealth` does not reject at level ``alpha``. Law: the probability
    that the true mean is above the bound at any look is at most ``alpha``.
    """
    _require(1, alpha)
    _require_bounded(values, low)
    return _smallest_rejected(values, -math.log(alpha), low)


def betting_lower(values: Sequence[float], alpha: float, *, low: float = -1.0) -> float:
    """Lower confidence bound of the mean of values in low..1; the counterpart of `betting_upper`."""
    return low + 1.0 - betting_upper([low + 1.0 - value for value in values], alpha, low=low)


def _smallest_rejected(values: Sequence[float], threshold: float, low: float) -> float:
    """The smallest mean in low..1 with a log-wealth of at least ``threshold``; the wealth increases with the mean."""
    above = 1.0
    while above - low > 1e-12:
        middle = (low + above) / 2
        low, above = (low, middle) if log_wealth(values, middle) >= threshold else (middle, above)
    return above


def _require_bounded(values: Sequence[float], low: float = -math.inf) -> None:
    if any(not low - 1e-9 <= value <= 1.0 + 1e-9 for value in values):
        raise ValueError(f"expected values between {low} and 1, got {min(values)} to {max(values)}")


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted by Holm's method (Holm 1979, Scand. J. Stat. 6:65), in the order given.

    Rejecting every hypothesis whose adjusted p-value is at most ``alpha`` keeps the probability of any false rejection
    at or below ``alpha``.
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for step, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - step) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def true_rate(observed: float, sensitivity: float, specificity: float) -> float:
    """The true rate given the observed one: (observed + Sp - 1) / (Se + Sp - 1), limited to 0..1.

    Rogan and Gladen 1978 (Am. J. Epidemiol. 107:71). It increases with ``specificity`` and decreases with
    ``sensitivity``: for an upper bound pass the lower bound of ``sensitivity`` and the upper bound of ``specificity``.
    NaN for a judge that is no better than chance (Se + Sp <= 1).
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
