"""Statistics of a few seeds: intervals, paired tests, Holm's correction, power, power laws.

All of them assume that seeds are independent and that means are normally distributed. Three to ten
numbers allow no less: a bootstrap of three has ten different means.
`tests/lab/test_statistics.py` measures by simulation how often an interval contains the mean and
how often a test is wrong.
"""

import bisect
import dataclasses
import math
import warnings
from collections.abc import Sequence
from typing import Literal

import numpy as np
from scipy import optimize, special, stats

from lmjax.errors import ConfigError

LEVEL = 0.95
POWER = 0.8  # of the stated numbers of seeds and detectable differences
MOST_SEEDS = 1000

Verdict = Literal["agrees", "disagrees", "undecided"]


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean and its 95% confidence interval.

    Attributes:
      low, high: -inf and inf for a single number, whose spread is unknown.
      count: how many numbers.
    """

    mean: float
    low: float
    high: float
    count: int


@dataclasses.dataclass(frozen=True)
class Difference:
    """The difference of a variant to the base, paired by seed.

    Attributes:
      interval: of the mean difference.
      p: of the two-sided paired t test; nan for fewer than two pairs.
      deviation: the sample standard deviation of the differences; nan for fewer than two pairs.
    """

    interval: Interval
    p: float
    deviation: float

    @property
    def varies(self) -> bool:
        """Whether the differences have a spread, other than by rounding."""
        return self.deviation > 1e-12 * abs(self.interval.mean)


@dataclasses.dataclass(frozen=True)
class PowerLaw:
    """y = factor * x ** exponent, a least-squares fit of the logarithms.

    Attributes:
      low, high: 95% interval of the exponent.
    """

    factor: float
    exponent: float
    low: float
    high: float


def interval(values: Sequence[float]) -> Interval:
    """The mean and its Student t interval, mean ± t(n - 1) s / sqrt(n)."""
    x = np.asarray(values, np.float64)
    mean, n = float(x.mean()), len(x)
    if n < 2:
        return Interval(mean, -math.inf, math.inf, n)
    half = float(stats.t.ppf(0.5 + LEVEL / 2, n - 1) * x.std(ddof=1) / math.sqrt(n))
    return Interval(mean, mean - half, mean + half, n)


def paired(values: Sequence[float], base: Sequence[float]) -> Difference:
    """The mean of `values - base` over pairs, and the paired t test of `scipy.stats.ttest_rel`.

    A seed gives two variants the same order of data and, if their parameters have the same shapes,
    the same initial values, so that differences vary less than the values do.
    """
    x = np.asarray(values, np.float64) - np.asarray(base, np.float64)
    found = interval(x.tolist())
    if len(x) < 2:
        return Difference(found, math.nan, math.nan)
    if np.ptp(x) == 0.0:  # the test divides by the spread
        return Difference(found, 1.0 if found.mean == 0.0 else 0.0, 0.0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Precision loss", RuntimeWarning)
        p = float(stats.ttest_rel(values, base).pvalue)
    return Difference(found, p, float(x.std(ddof=1)))


def holm(p: Sequence[float]) -> list[float]:
    """P values corrected for multiple tests (Holm 1979); nan stays nan.

    The probability of any false positive at 5% is at most 5%, however the tests depend on each
    other.
    """
    order = sorted((i for i in range(len(p)) if not math.isnan(p[i])), key=lambda i: p[i])
    corrected, largest = list(p), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p[i]))
        corrected[i] = largest
    return corrected


def significant(p: float) -> bool:
    """Whether a difference is significant at 5%; nan, where there is no test, is not."""
    return p < 1 - LEVEL


def power(effect: float, seeds: int, level: float) -> float:
    """The probability that the two-sided paired t test finds a difference.

    The statistic has a noncentral t distribution (Cohen 1988, Chapter 2).

    Args:
      effect: the true mean of the differences, in units of their standard deviation.
      seeds: at least 2.
      level: of the test. Holm's correction for k tests rejects whatever a test at
        (1 - LEVEL) / k rejects, so that level gives a lower bound of its power.
    """
    limit, df = stats.t.isf(level / 2, seeds - 1), seeds - 1
    # Of its square, a noncentral F: scipy's noncentral t is NaN in the far tail.
    return float(1 - special.ncfdtr(1, df, effect**2 * seeds, limit**2))


def seeds_needed(difference: float, deviation: float, level: float) -> int | None:
    """The least number of seeds with which the paired t test has power 0.8.

    Args:
      difference: the true mean of the differences.
      deviation: their standard deviation.
      level: of the test; see `power`.

    Returns:
      None if MOST_SEEDS are not enough.

    Raises:
      ConfigError: the difference or the deviation is not a positive number.
    """
    for name, value in (("smallest difference", difference), ("deviation", deviation)):
        if not (math.isfinite(value) and value > 0.0):
            raise ConfigError(f"the {name} must be a positive number, got {value:g}")
    counts, effect = range(2, MOST_SEEDS + 1), difference / deviation
    found = bisect.bisect_left(counts, POWER, key=lambda n: power(effect, n, level))
    return counts[found] if found < len(counts) else None


def upper_deviation(deviation: float, count: int) -> float:
    """The upper limit of a one-sided 80% confidence interval of a standard deviation.

    A pilot of few seeds often underestimates the deviation. With this limit, the number of seeds
    suffices for four of five pilots (Browne 1995, Statistics in Medicine 14, 1933-1940).

    Args:
      deviation: the sample standard deviation of `count` numbers.
    """
    return float(deviation * math.sqrt((count - 1) / stats.chi2.ppf(0.2, count - 1)))


def detectable(deviation: float, seeds: int, level: float) -> float:
    """The true difference that the paired t test finds with power 0.8; see `power`.

    Args:
      deviation: the standard deviation of the differences.
      seeds: at least 2.
    """
    # Beyond this effect the power is 0.8 whatever the sample deviation, but for a chance of 0.01.
    limit, df = stats.t.isf(level / 2, seeds - 1), seeds - 1
    most = (limit * math.sqrt(stats.chi2.isf(0.01, df) / df) + 3.0) / math.sqrt(seeds)
    effect = optimize.brentq(lambda x: power(x, seeds, level) - POWER, 0.0, most)
    return float(deviation * effect)


def direction(difference: float, p: float, published: float) -> Verdict:
    """Whether a difference has the sign of the published one.

    Args:
      difference: the mean.
      p: of its test, corrected for multiple tests.
      published: the published difference, in the same direction; 0 has no sign.

    Returns:
      'agrees' or 'disagrees' if the difference is significant, else 'undecided'.
    """
    if published == 0.0 or not significant(p):
        return "undecided"
    return "agrees" if (difference > 0) == (published > 0) else "disagrees"


def power_law(x: Sequence[float], y: Sequence[float]) -> PowerLaw:
    """Fits a power law to points with at least three different x.

    Raises:
      ValueError: there are fewer, or some are not positive.
    """
    if len(set(x)) < 3 or min(x) <= 0 or min(y) <= 0:
        raise ValueError("a power law needs positive points at three or more different x")
    fit = stats.linregress(np.log(x), np.log(y))
    half = float(stats.t.ppf(0.5 + LEVEL / 2, len(x) - 2) * fit.stderr)
    slope = float(fit.slope)
    return PowerLaw(float(np.exp(fit.intercept)), slope, slope - half, slope + half)
