"""Group-sequential tests: seeds are added until a difference is found, at a fixed error rate.

A rule fixes the numbers of seeds at which the lab tests ("looks"). A test at every look with the
usual limit would be wrong too often. An alpha-spending function (Lan & DeMets 1983, Biometrika 70,
659-663) says how much of the error rate each look may use.

The limits are those of t statistics of few seeds, not of their normal approximation. If no
difference exists, the t statistics of 2, 3, 4, ... seeds are a Markov chain that does not depend on
the unknown variance. It is integrated over a grid (as in Jennison & Turnbull 1991, Biometrika 78,
133-141). `tests/lab/test_sequential.py` measures the error rates by simulation.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from scipy import special, stats

from lmjax.configuration import Interval as Range
from lmjax.configuration import check_ranges
from lmjax.errors import ConfigError
from lmjax.lab.statistics import LEVEL, Difference, Interval, paired

# The grid: absolute t statistics, as the normal quantiles of the same p value.
_EDGES = np.linspace(0.0, 8.0, 101)
_POINTS = 8  # in each cell
_LOG_LEVELS = np.linspace(math.log(1e-9), 0.0, 401)  # adjusted p values are at least 1e-9


@dataclasses.dataclass(frozen=True)
class Sequential:
    """The rule of a sequential ablation, which is fixed before it starts.

    Attributes:
      measure: the name of the measure that decides. A variant gets no more seeds once its
        difference to the base in this measure is significant.
      looks: numbers of seeds per variant at which differences are tested, in increasing order.
      spending: how the error rate is divided among the looks. 'obrien_fleming' saves it for the
        last looks, and 'pocock' divides it almost evenly.
    """

    measure: str
    looks: tuple[Annotated[int, Range("[2, 100]")], ...]
    spending: Literal["obrien_fleming", "pocock"] = "obrien_fleming"

    def __post_init__(self) -> None:
        check_ranges(self)
        if len(self.looks) < 2 or list(self.looks) != sorted(set(self.looks)):
            raise ConfigError(
                f"looks: must be two or more increasing numbers of seeds, got {self.looks}"
            )

    def spent(self, level: float, seeds: int) -> float:
        """The part of the error rate `level` that looks up to `seeds` seeds may use.

        Both functions of Lan & DeMets 1983, for each of the two sides of the test.
        """
        fraction = seeds / self.looks[-1]
        if self.spending == "pocock":
            return level * math.log1p((math.e - 1) * fraction)
        return float(4 * special.ndtr(special.ndtri(level / 4) / math.sqrt(fraction)))

    def limit(self, level: float, look: int) -> float:
        """The limit of the usual p value at a look, for the error rate `level` over all looks.

        Args:
          look: index into `looks`.
        """
        return math.exp(np.interp(math.log(level), _LOG_LEVELS, _log_limits(self)[look]))

    def adjusted(self, p: float, look: int) -> float:
        """The error rate over all looks whose limit at a look is the usual p value `p`."""
        return math.exp(np.interp(math.log(max(p, 1e-300)), _log_limits(self)[look], _LOG_LEVELS))


@functools.lru_cache
def _log_limits(rule: Sequential) -> np.ndarray:
    """The logarithms of the limits of the p values: [looks, levels]."""
    levels, found = np.exp(_LOG_LEVELS), []
    # The probability beyond each edge while no look rejects: [levels, edges].
    tail = np.tile(2 * special.ndtr(-_EDGES), (len(levels), 1))
    used, seeds = np.zeros(len(levels)), rule.looks[0]
    for look in rule.looks:
        cells = -np.diff(tail)
        while seeds < look:
            cells, seeds = cells @ _added_seed(seeds), seeds + 1
        tail = np.pad(np.cumsum(cells[:, ::-1], axis=1)[:, ::-1], ((0, 0), (0, 1)))
        total = np.array([rule.spent(level, look) for level in levels])
        # The logarithm of the tail is almost linear in an edge.
        logs = np.log(np.maximum(tail, 1e-300))[:, ::-1]
        wanted = np.log(np.maximum(total - used, 1e-300))
        z = [np.interp(x, row, _EDGES[::-1]) for x, row in zip(wanted, logs, strict=True)]
        limits = np.log(2 * special.ndtr(-np.array(z)))
        # A higher rate has a higher limit; rounding must not say otherwise.
        found.append(np.maximum.accumulate(limits))
        tail, used = np.maximum(tail - (total - used)[:, None], 0.0), total
    return np.array(found)


@functools.cache
def _added_seed(n: int) -> np.ndarray:
    """The transition of |t| from n seeds to n + 1, without a difference: [cells, cells].

    With a = t / sqrt(n - 1) of n seeds, the next difference in units of the root sum of squared
    deviations is y = q * sqrt((1 + a ** 2) / n), where q has a t distribution with n degrees of
    freedom and is independent of a and of earlier statistics. |b| <= limit is a quadratic
    inequality of y, where b = (sqrt(n) * a + y) / sqrt(n + 1 + (a - sqrt(n) * y) ** 2) is the
    statistic of n + 1 seeds, t / sqrt(n).
    """
    # Points within each cell, with the probability of z given the cell.
    points, weights = np.polynomial.legendre.leggauss(_POINTS)
    z = _EDGES[:-1, None] + np.diff(_EDGES)[:, None] * (points + 1) / 2
    weights = weights * np.exp(-(z**2) / 2)
    weights /= weights.sum(axis=1, keepdims=True)
    a = _statistic(z.ravel(), n)[:, None]
    limit = _statistic(_EDGES, n + 1)[None, :]
    # quadratic * y ** 2 + 2 * linear * y + constant <= 0
    quadratic = 1 - n * limit**2
    linear = math.sqrt(n) * a * (1 + limit**2)
    constant = (n - limit**2) * a**2 - (n + 1) * limit**2
    root = linear**2 - quadratic * constant
    sum_ = -(linear + np.sqrt(np.maximum(root, 0.0)))  # no cancellation: linear >= 0
    with np.errstate(divide="ignore"):
        outer, inner = sum_ / quadratic, constant / sum_
    scale = math.sqrt(n) / np.sqrt(1 + a**2)
    between = special.stdtr(n, inner * scale) - special.stdtr(n, outer * scale)
    inside = np.where(quadratic >= 0, between, 1 + between)
    below = np.where(root > 0, inside, np.where(quadratic >= 0, 0.0, 1.0))
    below = below.reshape(*z.shape, -1)
    return np.diff((below * weights[:, :, None]).sum(axis=1), axis=1)


def _statistic(z: np.ndarray, n: int) -> np.ndarray:
    """|t| / sqrt(n - 1) of n seeds with the p value of normal quantiles z >= 0."""
    return -special.stdtrit(n - 1, special.ndtr(-z)) / math.sqrt(n - 1)


def at_look(
    rule: Sequential, look: int, values: Sequence[float], base: Sequence[float]
) -> Difference:
    """As `paired`, with an interval and a p value that are adjusted for the looks of a rule.

    The interval is the repeated confidence interval (Jennison & Turnbull 1989, JRSS B 51,
    305-361): with probability 95%, the intervals of all looks contain the mean, whenever the
    looks end. p is the error rate at which this look would just reject.

    Args:
      look: index into `rule.looks`.
      values, base: a number per seed, as many as the look has seeds.

    Returns:
      The mean, the adjusted interval, and the adjusted p value. Differences without any spread
      are not tested: their interval is infinite, and p is 1.
    """
    plain = paired(values, base)
    mean, n = plain.interval.mean, plain.interval.count
    if math.isnan(plain.p):  # a value is not finite
        return plain
    if not plain.varies:
        return Difference(Interval(mean, -math.inf, math.inf, n), 1.0, 0.0)
    limit = stats.t.isf(rule.limit(1 - LEVEL, look) / 2, n - 1)
    half = float(limit * plain.deviation / math.sqrt(n))
    found = Interval(mean, mean - half, mean + half, n)
    return Difference(found, rule.adjusted(plain.p, look), plain.deviation)


@dataclasses.dataclass(frozen=True)
class Expected:
    """What a rule is expected to do.

    Attributes:
      power: the probability that it finds the difference.
      seeds: the mean number of seeds per variant.
    """

    power: float
    seeds: float


def expected(rule: Sequential, effect: float, level: float, draws: int = 20_000) -> Expected:
    """Simulates a rule for one comparison.

    Args:
      effect: the true mean of the differences, in units of their standard deviation.
      level: the error rate over all looks; see `lmjax.lab.statistics.power`.
      draws: simulated ablations.
    """
    x = np.random.default_rng(0).normal(effect, 1.0, (draws, rule.looks[-1]))
    seeds, found = np.full(draws, rule.looks[-1]), np.zeros(draws, bool)
    for look, n in enumerate(rule.looks):
        p = stats.ttest_1samp(x[:, :n], 0.0, axis=1).pvalue
        new = (p <= rule.limit(level, look)) & ~found
        seeds[new] = n
        found |= new
    return Expected(float(found.mean()), float(seeds.mean()))
