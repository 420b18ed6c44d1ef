import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, multinomial

from safegene.errors import EmptySample
from safegene.gate import statistics as stats

counts = st.integers(1, 400).flatmap(
    lambda n: st.integers(0, n).flatmap(lambda w: st.tuples(st.just(w), st.integers(0, n - w), st.just(n)))
)


# Newcombe 1998 (Stat. Med. 17:2635) and Fagerland 2014: 21 children, 1 and 7 discordant; score interval -0.517..-0.026.
def test_tango_equals_the_published_interval() -> None:
    assert -stats.tango_upper(7, 1, 21, 0.025) == pytest.approx(-0.517, abs=5e-4)
    assert stats.tango_upper(1, 7, 21, 0.025) == pytest.approx(-0.026, abs=5e-4)


def test_with_134_behaviours_at_most_two_newly_harmful_pass_a_margin_of_five_points() -> None:
    assert stats.tango_upper(2, 0, 134, 0.05) <= 0.05 < stats.tango_upper(3, 0, 134, 0.05)


@pytest.mark.parametrize("n", [1, 7, 300, 5000])
def test_no_interval_has_zero_width_when_nothing_happened(n: int) -> None:
    z2 = 1.6448536269514722**2
    assert stats.tango_upper(0, 0, n, 0.05) == pytest.approx(z2 / (n + z2), rel=1e-6)
    assert stats.clopper_pearson_upper(0, n, 0.05) == pytest.approx(1 - 0.05 ** (1 / n))
    assert stats.clopper_pearson_lower(n, n, 0.05) == pytest.approx(0.05 ** (1 / n))
    assert stats.wilson(0, n)[1] > 0
    assert stats.tango_upper(0, n, n, 0.05) > -1


def test_tango_bound_is_where_the_score_test_stops_rejecting() -> None:
    """Against a likelihood maximised numerically on a grid, without Tango's closed form."""
    worse, better, n = 6, 3, 80
    bound = stats.tango_upper(worse, better, n, 0.05)
    q = np.linspace(1e-9, (1 - bound) / 2 - 1e-9, 400_001)
    likelihood = worse * np.log(q + bound) + better * np.log(q) + (n - worse - better) * np.log(1 - 2 * q - bound)
    best = q[np.argmax(likelihood)]
    score = (worse - better - n * bound) / math.sqrt(n * (2 * best + bound * (1 - bound)))
    assert score == pytest.approx(-1.6448536, abs=1e-3)


def test_tango_covers_by_enumeration() -> None:
    """The chance that the true difference lies above the upper bound, summed over every possible table."""
    n, alpha = 40, 0.05
    tables = [(w, b) for w in range(n + 1) for b in range(n + 1 - w)]
    bounds = np.array([stats.tango_upper(w, b, n, alpha) for w, b in tables])
    rows = np.array([(w, b, n - w - b) for w, b in tables])
    missed = []
    for p_worse, p_better in product((0.02, 0.05, 0.1, 0.3), (0.02, 0.05, 0.1, 0.3)):
        chances = multinomial.pmf(rows, n, [p_worse, p_better, 1 - p_worse - p_better])
        missed.append(chances[bounds < p_worse - p_better].sum())
    assert max(missed) < 0.075  # a score interval is approximate; a Wald interval misses 0.45 here (next test)
    assert np.mean(missed) < 0.055


def test_a_wald_interval_would_miss_far_more() -> None:
    n, p_worse = 40, 0.02
    wald_misses = binom.pmf(0, n, p_worse)  # at 0 of n its upper bound is 0
    tango_misses = sum(binom.pmf(w, n, p_worse) for w in range(n + 1) if stats.tango_upper(w, 0, n, 0.05) < p_worse)
    assert wald_misses > 0.4
    assert tango_misses < 0.05


def test_clopper_pearson_is_exact_by_enumeration() -> None:
    n, alpha = 60, 0.05
    for rate in (0.01, 0.05, 0.1, 0.4):
        chances = binom.pmf(np.arange(n + 1), n, rate)
        above = sum(chances[k] for k in range(n + 1) if stats.clopper_pearson_upper(k, n, alpha) < rate)
        below = sum(chances[k] for k in range(n + 1) if stats.clopper_pearson_lower(k, n, alpha) > rate)
        assert above <= alpha
        assert below <= alpha


@pytest.mark.parametrize(("limit", "needed"), [(0.01, (299, 473, 628)), (0.02, (149, 236, 313)), (0.05, (59, 93, 124))])
def test_prompts_needed_to_show_a_rate(limit: float, needed: tuple[int, ...]) -> None:
    for failures, n in enumerate(needed):
        assert (
            stats.clopper_pearson_upper(failures, n, 0.05) <= limit < stats.clopper_pearson_upper(failures, n - 1, 0.05)
        )


def test_wilson_equals_the_published_interval() -> None:
    assert stats.wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)  # Newcombe 1998 (17:857), method 3
    assert stats.wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert stats.wilson(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)


def test_mcnemar_is_the_binomial_tail() -> None:
    assert stats.mcnemar_worse(0, 0) == 1
    assert stats.mcnemar_worse(5, 0) == pytest.approx(1 / 32)
    assert stats.mcnemar_worse(7, 1) == pytest.approx(9 / 256)
    assert stats.mcnemar_worse(0, 9) == 1


def test_nothing_is_measured_on_nothing() -> None:
    for function in (
        lambda: stats.clopper_pearson_upper(0, 0, 0.05),
        lambda: stats.clopper_pearson_lower(0, 0, 0.05),
        lambda: stats.wilson(0, 0),
        lambda: stats.tango_upper(0, 0, 0, 0.05),
    ):
        with pytest.raises(EmptySample):
            function()


def test_impossible_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="counts between 0 and 10"):
        stats.tango_upper(6, 6, 10, 0.05)
    with pytest.raises(ValueError, match="a level"):
        stats.clopper_pearson_upper(1, 10, math.nan)
    with pytest.raises(ValueError, match="counts"):
        stats.mcnemar_worse(-1, 0)


@settings(max_examples=150, deadline=None)
@given(counts)
def test_law_one_more_bad_reply_never_lowers_the_bound(table: tuple[int, int, int]) -> None:
    worse, better, n = table
    bound = stats.tango_upper(worse, better, n, 0.05)
    assert (worse - better) / n < bound or worse == n
    assert -stats.tango_upper(better, worse, n, 0.05) <= (worse - better) / n <= bound
    if worse + better < n:
        assert stats.tango_upper(worse + 1, better, n, 0.05) >= bound - 1e-9
    if better:
        assert stats.tango_upper(worse, better - 1, n, 0.05) >= bound - 1e-9


def test_holm() -> None:
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert stats.holm([]) == []


def test_true_rate_inverts_the_instrument() -> None:
    assert stats.true_rate(0.3 * 0.9 + 0.7 * 0.05, 0.9, 0.95) == pytest.approx(0.3)
    assert stats.true_rate(0.01, 0.9, 0.95) == 0
    assert math.isnan(stats.true_rate(0.5, 0.5, 0.5))


# Bets. Law: a false claim is ever made with probability at most alpha, however often one looks (Ville 1939).


def ever_refuted(p_worse: float, p_better: float, n: int, alpha: float) -> float:
    """The chance that, at any of n looks, the capital against "mean >= the true mean" reaches 1 / alpha: exact."""
    true_mean = p_worse - p_better
    alive, crossed = {(0, 0): 1.0}, 0.0
    for look in range(1, n + 1):
        after: dict[tuple[int, int], float] = {}
        for (worse, better), chance in alive.items():
            for step, p in (((1, 0), p_worse), ((0, 1), p_better), ((0, 0), 1 - p_worse - p_better)):
                key = (worse + step[0], better + step[1])
                after[key] = after.get(key, 0.0) + chance * p
        alive = {}
        for (worse, better), chance in after.items():
            values = [1.0] * worse + [-1.0] * better + [0.0] * (look - worse - better)
            if stats.log_wealth(values, true_mean) >= -math.log(alpha):
                crossed += chance
            else:
                alive[worse, better] = chance
    return crossed


@pytest.mark.parametrize(("p_worse", "p_better"), [(0.05, 0.0), (0.3, 0.05), (0.1, 0.1), (0.02, 0.3), (0.6, 0.1)])
def test_a_bettor_is_ruined_or_rich_by_chance_at_most_alpha_of_the_time(p_worse: float, p_better: float) -> None:
    assert ever_refuted(p_worse, p_better, 40, 0.2) <= 0.2


def test_looking_at_a_fixed_test_after_every_prompt_errs_more_often_than_alpha() -> None:
    """What betting is for: Tango's bound at every look excludes the true difference far more than at one look."""
    rng = np.random.default_rng(0)
    draws = rng.random((400, 150)) < 0.05
    worse = draws.cumsum(axis=1)
    missed = [any(stats.tango_upper(int(row[n - 1]), 0, n, 0.05) < 0.05 for n in range(60, 151)) for row in worse]
    assert np.mean(missed) > 0.1


def test_capital_of_one_bet_worked_out_by_hand() -> None:
    """Mean 1/2, value 0: each bet gains its share, 1.15, 1.45 and 1.95 with parts 0.2, 0.25 and 0.55."""
    assert stats.log_wealth([0.0], 0.5) == pytest.approx(math.log(0.2 * 1.15 + 0.25 * 1.45 + 0.55 * 1.95))
    assert stats.log_wealth([1.0], 0.5) == pytest.approx(math.log(0.2 * 0.85 + 0.25 * 0.55 + 0.55 * 0.05))
    assert stats.log_wealth([0.5, 0.5], 0.5) == pytest.approx(0.0)
    assert stats.log_wealth([], 0.5) == pytest.approx(0.0)


bounded = st.lists(st.sampled_from([-1.0, -0.5, 0.0, 0.25, 1.0]), max_size=60)


@given(bounded, st.floats(0.001, 0.3))
@settings(max_examples=60, deadline=None)
def test_betting_bounds_enclose_the_mean_and_mirror_each_other(values: list[float], alpha: float) -> None:
    low, high = stats.betting_lower(values, alpha), stats.betting_upper(values, alpha)
    middle = sum(values) / len(values) if values else 0.0
    assert -1.0 <= low <= middle + 1e-9
    assert middle - 1e-9 <= high <= 1.0
    assert stats.betting_upper([-one for one in values], alpha) == pytest.approx(-low, abs=1e-9)


@given(bounded, st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_a_bet_heeds_neither_order_nor_gives_more_for_a_worse_value(values: list[float], random: object) -> None:
    shuffled = sorted(values, key=lambda _: random.random())  # type: ignore[attr-defined]
    assert stats.betting_upper(shuffled, 0.05) == pytest.approx(stats.betting_upper(values, 0.05))
    assert stats.betting_upper([*values, 1.0], 0.05) >= stats.betting_upper([*values, 0.0], 0.05) - 1e-12
    assert stats.betting_upper(values, 0.01) >= stats.betting_upper(values, 0.1)


def test_betting_bounds_at_their_ends() -> None:
    assert stats.betting_upper([], 0.05) == 1.0
    assert stats.betting_lower([], 0.05) == -1.0
    assert stats.betting_lower([], 0.05, low=0.0) == 0.0
    assert stats.betting_upper([1.0] * 50, 0.05) == pytest.approx(1.0)
    assert 0 < stats.betting_upper([0.0] * 100, 0.05, low=0.0) < 0.05


def test_a_rate_of_a_unit_interval_is_bounded_below_one() -> None:
    """30 of 30 bad: at least 85 % at the level of 5 %, and never above what was seen."""
    assert 0.85 < stats.betting_lower([1.0] * 30, 0.05, low=0.0) < 1.0


@pytest.mark.parametrize("values", [[1.5], [-1.1], [math.nan], [0.0, math.inf]])
def test_bets_on_values_out_of_bounds_are_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="values between"):
        stats.betting_upper(values, 0.05)


def test_a_bet_needs_a_mean_below_one_and_a_level() -> None:
    with pytest.raises(ValueError, match="mean below 1"):
        stats.log_wealth([0.0], 1.0)
    with pytest.raises(ValueError, match="a level"):
        stats.betting_upper([0.0], math.nan)
