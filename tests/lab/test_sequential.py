"""Sequential rules: limits against published ones, and error rates by simulation."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from scipy import stats

from lmjax.errors import ConfigError, NonFiniteError
from lmjax.lab.results import Results
from lmjax.lab.sequential import Sequential, at_look, expected
from lmjax.lab.statistics import power, seeds_needed

RULES = [
    Sequential("score", (3, 5, 8), "obrien_fleming"),
    Sequential("score", (3, 5, 8), "pocock"),
    Sequential("score", (2, 3, 4, 5, 6), "pocock"),
    Sequential("score", (4, 10), "obrien_fleming"),
]
MANY = 100_000


def four_errors(share: float, count: int) -> float:
    return 4 * math.sqrt(share * (1 - share) / count)


def p_values(rule: Sequential, x: np.ndarray) -> np.ndarray:
    """The usual p values of differences [ablations, seeds] at the looks: [looks, ablations]."""
    return np.array([stats.ttest_1samp(x[:, :n], 0.0, axis=1).pvalue for n in rule.looks])


@pytest.mark.parametrize("level", [0.05, 0.01])
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_the_looks_spend_the_error_rate_as_planned(rule: Sequential, level: float) -> None:
    """With few seeds, and up to each look; the last one has spent all."""
    draws = MANY
    p = p_values(rule, np.random.default_rng(0).normal(0.0, 3.0, (draws, rule.looks[-1])))
    found = np.zeros(draws, bool)
    for look, n in enumerate(rule.looks):
        found |= p[look] <= rule.limit(level, look)
        spent = rule.spent(level, n)
        assert abs(found.mean() - spent) < four_errors(spent, draws) + 1e-6, n
    assert spent == pytest.approx(level)
    assert np.any(p <= level, axis=0).mean() > 1.4 * level  # what the rule corrects


@pytest.mark.parametrize(
    ("spending", "published"),
    [
        ("obrien_fleming", (4.877, 3.357, 2.680, 2.290, 2.031)),
        ("pocock", (2.438, 2.427, 2.410, 2.397, 2.386)),
    ],
)
def test_limits_are_near_the_published_ones(spending: Any, published: tuple[float, ...]) -> None:
    """Of Lan and DeMets's functions: five equal looks, two-sided 5%, normal statistics.

    Limits of p values depend little on the seeds; those of t statistics do.
    """
    rule = Sequential("score", (6, 12, 18, 24, 30), spending)
    z = [stats.norm.isf(rule.limit(0.05, look) / 2) for look in range(5)]
    np.testing.assert_allclose(z, published, atol=0.04)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_adjusted_p_values_are_the_level_that_just_rejects(rule: Sequential) -> None:
    for look in range(len(rule.looks)):
        limits = [rule.limit(level, look) for level in np.geomspace(1e-8, 1, 60)]
        assert np.all(np.diff(limits) >= 0)  # or Holm's method would not hold
        for level in (0.3, 0.05, 0.011, 0.001):
            p = rule.limit(level, look)
            assert p < 1.002 * level
            assert rule.adjusted(p, look) == pytest.approx(level, rel=1e-6)
        assert rule.adjusted(1.0, look) == 1.0
        assert 0 < rule.adjusted(0.0, look) <= 1e-6


def test_the_intervals_of_all_looks_hold_the_mean_95_times_of_100() -> None:
    rule, rng, draws = RULES[1], np.random.default_rng(1), 500
    base = rng.normal(0.0, 5.0, (draws, rule.looks[-1]))
    values = base + rng.normal(0.7, 0.3, base.shape)
    missed = 0
    for x, y in zip(values.tolist(), base.tolist(), strict=True):
        found = [at_look(rule, k, x[:n], y[:n]) for k, n in enumerate(rule.looks)]
        missed += any(not d.interval.low <= 0.7 <= d.interval.high for d in found)
        for d in found:  # the interval and the test say the same
            assert (d.p < 0.05) == (not d.interval.low <= 0 <= d.interval.high)
    assert abs(missed / draws - 0.05) < four_errors(0.05, draws)


def test_the_power_is_near_that_of_the_same_seeds_at_once() -> None:
    """O'Brien and Fleming's looks cost little power, and save seeds."""
    effect = 1.3
    n = seeds_needed(effect, 1.0, 0.05)
    assert n == 7 and power(effect, n, 0.05) == pytest.approx(0.816, abs=0.001)
    careful = expected(Sequential("score", (3, 5, 7)), effect, 0.05)
    eager = expected(Sequential("score", (3, 5, 7), "pocock"), effect, 0.05)
    assert 0.78 < careful.power < power(effect, n, 0.05)
    assert eager.power < careful.power - 0.03
    assert eager.seeds < careful.seeds < 7
    none = expected(Sequential("score", (3, 5, 7)), 0.0, 0.05)
    assert abs(none.power - 0.05) < four_errors(0.05, 20_000) and none.seeds > 6.9


def results(rule: Sequential, values: np.ndarray) -> Results:
    """The results of an ablation with values [variants, seeds], the base first."""
    names = ["base", *(f"variant{i}" for i in range(1, len(values)))]
    described = {
        "base": "base",
        "sequential": {"measure": "score", "looks": list(rule.looks), "spending": rule.spending},
    }
    cells = {
        name: {seed: {"measures": {"score": x}} for seed, x in enumerate(row)}
        for name, row in zip(names, values.tolist(), strict=True)
    }
    return Results(described, cells)


def decided(rule: Sequential, values: np.ndarray) -> Iterator[tuple[int, str]]:
    """Runs the rule as `run_cells` does: (look's seeds, variant) of each decision."""
    have = results(rule, values)
    open_ = list(have.cells)[1:]
    for seeds in rule.looks:
        left = have.up_to(seeds).undecided()
        yield from ((seeds, name) for name in open_ if name not in left)
        assert set(left) <= set(open_)  # what is decided stays so
        stopped = {name for name in open_ if name not in left}
        cells = {
            name: {s: c for s, c in own.items() if s < seeds} if name in stopped else own
            for name, own in have.cells.items()
        }
        have, open_ = Results(have.described, cells), left


def wrong_and_found(rule: Sequential, draws: int, rng: np.random.Generator) -> tuple[float, float]:
    """How often an ablation with 3 variants, the first of which differs, is wrong and finds it."""
    wrong = found = 0
    for _ in range(draws):
        seed = rng.normal(0, 2.0, rule.looks[-1])  # what a seed does to all variants
        values = seed + rng.normal(0, 1.0, (4, rule.looks[-1]))
        values[1] += 3.0
        names = {name for _, name in decided(rule, values)}
        wrong += bool(names - {"variant1"})
        found += "variant1" in names
    return wrong / draws, found / draws


def test_an_ablation_of_several_variants_is_seldom_wrong() -> None:
    draws = 200
    wrong, found = wrong_and_found(RULES[1], draws, np.random.default_rng(2))
    assert wrong < 0.05 + four_errors(0.05, draws)
    # The deviation of differences is sqrt(2). Holm's method finds what Bonferroni's finds.
    least = expected(RULES[1], 3.0 / math.sqrt(2), 0.05 / 3).power
    assert found > least - four_errors(least, draws)


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_the_error_rate_of_several_variants_at_length(rule: Sequential) -> None:
    draws = 2000
    wrong, found = wrong_and_found(rule, draws, np.random.default_rng(3))
    assert 0.02 < wrong < 0.05 + four_errors(0.05, draws)
    least = expected(rule, 3.0 / math.sqrt(2), 0.05 / 3).power
    assert least - four_errors(least, draws) < found < least + 0.1


@pytest.mark.slow
@pytest.mark.parametrize("level", [0.05, 0.05 / 5])
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_the_error_rate_at_length(rule: Sequential, level: float) -> None:
    rng, draws, wrong = np.random.default_rng(4), 400_000, 0
    for _ in range(10):
        p = p_values(rule, rng.normal(size=(draws // 10, rule.looks[-1])))
        limits = [rule.limit(level, look) for look in range(len(rule.looks))]
        wrong += np.any(p <= np.array(limits)[:, None], axis=0).sum()
    assert abs(wrong / draws - level) < four_errors(level, draws)


def test_differences_without_a_spread_are_not_tested() -> None:
    """Rounding is no spread."""
    base = [0.68, 0.70, 0.72]
    found = at_look(RULES[0], 0, [x + 0.02 for x in base], base)
    assert (found.interval.low, found.interval.high, found.p) == (-math.inf, math.inf, 1.0)


def test_values_that_cannot_be_tested_are_refused() -> None:
    rule, values = RULES[0], np.random.default_rng(0).normal(size=(2, 3))
    assert results(rule, values).undecided() == ["variant1"]
    nan = values.copy()
    nan[1, 2] = math.nan
    with pytest.raises(NonFiniteError, match="score of variant1, seed 2, is nan"):
        results(rule, nan).undecided()
    for name, seeds in (("variant1", (1,)), ("base", (0, 1, 2))):
        none = results(rule, values)
        for seed in seeds:
            none.cells[name][seed]["measures"]["score"] = None  # type: ignore[index]
        with pytest.raises(ConfigError, match=rf"sequential\.measure: .* seeds of '{name}'"):
            none.undecided()


@pytest.mark.parametrize("looks", [(), (3,), (3, 3), (5, 3), (3, 101), (1, 3)])
def test_looks_that_do_not_increase_are_refused(looks: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="looks"):
        Sequential("score", looks)
