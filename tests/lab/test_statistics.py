"""The statistics, by simulation, by hand, and against scipy's own."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lmjax.errors import ConfigError
from lmjax.lab.statistics import (
    detectable,
    direction,
    holm,
    interval,
    paired,
    power,
    power_law,
    seeds_needed,
    upper_deviation,
)

MANY = 8000
ERROR = 4 * math.sqrt(0.05 * 0.95 / MANY)  # four standard errors of a share of 5%


@pytest.mark.parametrize("seeds", [3, 5])
def test_an_interval_holds_the_mean_95_times_of_100(seeds: int) -> None:
    draws = np.random.default_rng(seeds).normal(2.0, 0.7, (MANY, seeds))
    found = [interval(row.tolist()) for row in draws]
    missed = np.mean([not i.low <= 2.0 <= i.high for i in found])
    assert abs(missed - 0.05) < ERROR


def test_of_uniform_draws_it_misses_hardly_more_often() -> None:
    draws = np.random.default_rng(0).random((MANY, 5))
    missed = np.mean([not (i := interval(row.tolist())).low <= 0.5 <= i.high for row in draws])
    assert 0.05 - ERROR < missed < 0.08


@pytest.mark.parametrize("seeds", [3, 5])
def test_the_paired_test_errs_5_times_of_100(seeds: int) -> None:
    rng = np.random.default_rng(seeds)
    shared = rng.normal(0, 3.0, (MANY // 4, 1, seeds))  # what a seed does to both
    both = shared + rng.normal(0, 1.0, (MANY // 4, 2, seeds))
    found = [paired(a.tolist(), b.tolist()) for a, b in both]
    assert abs(np.mean([d.p < 0.05 for d in found]) - 0.05) < 2 * ERROR
    for d in found[:100]:  # test and interval say the same
        assert (d.p < 0.05) == (not d.interval.low <= 0 <= d.interval.high)


def test_holm_errs_in_any_of_five_at_most_5_times_of_100() -> None:
    rng = np.random.default_rng(1)
    plain = corrected = 0
    for _ in range(MANY // 8):
        base = rng.normal(size=4).tolist()  # the same base for all: they depend on each other
        p = [paired(rng.normal(size=4).tolist(), base).p for _ in range(5)]
        plain += min(p) < 0.05
        corrected += min(holm(p)) < 0.05
    assert plain / (MANY // 8) > 0.1
    assert corrected / (MANY // 8) < 0.05 + 3 * ERROR


def test_a_difference_that_is_there_is_found_as_often_as_theory_says() -> None:
    rng, size, n = np.random.default_rng(2), 1.0 / 0.3, 3
    found = [
        paired((base + 1.0 + rng.normal(0, 0.3, n)).tolist(), base.tolist()).p < 0.05
        for base in rng.normal(0, 5.0, (2000, n))
    ]
    limit = stats.t.ppf(0.975, n - 1)
    power = stats.nct.sf(limit, n - 1, size * math.sqrt(n))
    assert abs(np.mean(found) - power) < 4 * math.sqrt(power * (1 - power) / 2000)


@pytest.mark.parametrize(("effect", "seeds"), [(0.0, 3), (0.8, 6), (-1.5, 4), (3.0, 3), (9.0, 2)])
def test_power_by_simulation(effect: float, seeds: int) -> None:
    draws, level = 40_000, 0.05 / 3
    x = np.random.default_rng(seeds).normal(effect, 1.0, (draws, seeds))
    found = np.mean(stats.ttest_1samp(x, 0.0, axis=1).pvalue < level)
    expected = power(effect, seeds, level)
    assert abs(found - expected) < 4 * math.sqrt(expected * (1 - expected) / draws) + 1e-9


@pytest.mark.parametrize("level", [0.05, 0.05 / 7])
@pytest.mark.parametrize("effect", [0.2, 0.7, 1.3, 4.0, 500.0])
def test_seeds_and_detectable_differences_have_power_80(effect: float, level: float) -> None:
    seeds = seeds_needed(effect * 0.01, 0.01, level)
    assert seeds is not None and power(effect, seeds, level) >= 0.8
    assert seeds == 2 or power(effect, seeds - 1, level) < 0.8
    found = detectable(0.01, seeds, level)
    assert found <= effect * 0.01
    assert power(found / 0.01, seeds, level) == pytest.approx(0.8, abs=1e-6)
    assert seeds_needed(0.01, 1.0, level) is None


def test_seeds_from_a_cautious_deviation_suffice_for_four_of_five_pilots() -> None:
    """Browne's point: those from the deviation itself suffice for about one of two."""
    rng, draws = np.random.default_rng(5), 300
    enough = {"likely": 0, "cautious": 0}
    for deviation in rng.normal(size=(draws, 4)).std(axis=1, ddof=1):
        for name, x in (("likely", deviation), ("cautious", upper_deviation(deviation, 4))):
            seeds = seeds_needed(0.7, x, 0.05)
            enough[name] += seeds is None or power(0.7, seeds, 0.05) >= 0.8
    assert 0.72 < enough["cautious"] / draws < 0.88
    assert enough["likely"] / draws < 0.6


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_what_cannot_be_planned_is_refused(bad: float) -> None:
    with pytest.raises(ConfigError, match="smallest difference must be a positive number"):
        seeds_needed(bad, 1.0, 0.05)
    with pytest.raises(ConfigError, match="deviation must be a positive number"):
        seeds_needed(1.0, bad, 0.05)


numbers = st.lists(st.floats(-100, 100), min_size=6, max_size=12)


@given(numbers)
def test_against_scipy(values: list[float]) -> None:
    half = len(values) // 2
    a, b = values[:half], values[half : 2 * half]
    differences = np.subtract(a, b)
    if differences.std() < 1e-6:
        return
    ours = paired(a, b)
    np.testing.assert_allclose(ours.p, stats.ttest_rel(a, b).pvalue, rtol=1e-6, atol=1e-12)
    low, high = stats.ttest_rel(a, b).confidence_interval(0.95)
    np.testing.assert_allclose((ours.interval.low, ours.interval.high), (low, high), rtol=1e-6)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_against_its_definition(p: list[float]) -> None:
    """Reject from the smallest on while p(k) <= level / (m - k + 1)."""
    corrected = holm(p)
    for level in (0.01, 0.05, 0.3):
        rejected = set()
        for k, i in enumerate(sorted(range(len(p)), key=p.__getitem__)):
            if (len(p) - k) * p[i] > level:
                break
            rejected.add(i)
        assert {i for i in range(len(p)) if corrected[i] <= level} == rejected


def test_what_one_seed_allows_to_say() -> None:
    alone = interval([0.7])
    assert (alone.mean, alone.low, alone.high) == (0.7, -math.inf, math.inf)
    difference = paired([0.7], [0.6])
    assert math.isnan(difference.p)
    assert holm([0.02, math.nan, 0.03])[:1] == [0.04]
    assert math.isnan(holm([0.02, math.nan])[1])


def test_numbers_that_do_not_vary() -> None:
    assert paired([1.0, 1.0], [1.0, 1.0]).p == 1.0
    assert paired([2.0, 2.0], [1.0, 1.0]).p == 0.0


def test_direction() -> None:
    assert direction(1.0, 0.01, 0.3) == "agrees"
    assert direction(-1.0, 0.01, -0.3) == "agrees"
    assert direction(1.0, 0.01, -0.3) == "disagrees"
    assert direction(1.0, 0.01, 0.0) == "undecided"
    assert direction(1.0, 0.2, 0.3) == "undecided"
    assert direction(1.0, math.nan, 0.3) == "undecided"


def test_a_power_law_is_found_again() -> None:
    x = np.repeat([1e5, 1e6, 1e7, 1e8], 3)
    rng = np.random.default_rng(0)
    exact = power_law(x.tolist(), (7.0 * x**-0.076).tolist())
    np.testing.assert_allclose([exact.factor, exact.exponent], [7.0, -0.076], rtol=1e-9)
    held = 0
    for _ in range(400):
        noisy = power_law(x.tolist(), (7.0 * x**-0.076 * np.exp(rng.normal(0, 0.02, 12))).tolist())
        held += noisy.low <= -0.076 <= noisy.high
    assert 0.91 < held / 400 < 0.985
    with pytest.raises(ValueError, match="three or more"):
        power_law([1.0, 2.0, 2.0], [1.0, 1.0, 1.0])
