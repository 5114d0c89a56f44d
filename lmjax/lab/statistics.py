"""What a few seeds allow to say: intervals, paired tests, a correction for many, a power law.

All of them take seeds as independent draws, and what is averaged as normally distributed: with
three to ten numbers nothing can be said without, and a bootstrap of three has ten different
means. `tests/lab/test_statistics.py` measures by simulation how often an interval holds the mean
and how often a test is wrong.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from scipy import stats

LEVEL = 0.95

Verdict = Literal["agrees", "disagrees", "undecided"]


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean, and where the true one lies with a probability of 95%.

    Attributes:
      low, high: -inf and inf for a single number, of whose spread nothing is known.
      count: of how many.
    """

    mean: float
    low: float
    high: float
    count: int


@dataclasses.dataclass(frozen=True)
class Difference:
    """Of a variant to the base, seed by seed.

    Attributes:
      interval: of the mean difference.
      p: two-sided, of the paired t test; nan where it has none (fewer than two pairs).
    """

    interval: Interval
    p: float


@dataclasses.dataclass(frozen=True)
class PowerLaw:
    """y = factor * x ** exponent, by least squares of the logarithms.

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
    """Of numbers that belong together, pair by pair: values - base.

    A seed gives two variants the same order of data and, where they have the same parameters,
    the same first values, so that their differences vary less than they do.
    """
    x = np.asarray(values, np.float64) - np.asarray(base, np.float64)
    found = interval(x.tolist())
    if len(x) < 2:
        return Difference(found, math.nan)
    deviation = float(x.std(ddof=1))
    if deviation == 0.0:
        return Difference(found, 1.0 if found.mean == 0.0 else 0.0)
    t = found.mean / (deviation / math.sqrt(len(x)))
    return Difference(found, float(2 * stats.t.sf(abs(t), len(x) - 1)))


def holm(p: Sequence[float]) -> list[float]:
    """P values corrected for there being several (Holm 1979); nan are no test and stay.

    To call those below 5% different errs in any of them 5% of the time at most, however they
    depend on each other.
    """
    order = sorted((i for i in range(len(p)) if not math.isnan(p[i])), key=lambda i: p[i])
    corrected, largest = list(p), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p[i]))
        corrected[i] = largest
    return corrected


def told(p: float) -> bool:
    """Whether a difference is called one; nan is no test and tells nothing."""
    return p < 1 - LEVEL


def direction(difference: float, p: float, published: float) -> Verdict:
    """Whether a difference goes where the published one does.

    Args:
      difference: the mean.
      p: of its test, corrected where there are several.
      published: the difference there, of the same sign for better; 0 has no direction.

    Returns:
      'agrees' or 'disagrees' where p is below 5%, else 'undecided'.
    """
    if published == 0.0 or not told(p):
        return "undecided"
    return "agrees" if (difference > 0) == (published > 0) else "disagrees"


def power_law(x: Sequence[float], y: Sequence[float]) -> PowerLaw:
    """The law through points, of which at least three differ in x.

    Raises:
      ValueError: too few of them, or some are not positive.
    """
    if len(set(x)) < 3 or min(x) <= 0 or min(y) <= 0:
        raise ValueError("a power law wants positive points at three or more different x")
    fit = stats.linregress(np.log(x), np.log(y))
    half = float(stats.t.ppf(0.5 + LEVEL / 2, len(x) - 2) * fit.stderr)
    slope = float(fit.slope)
    return PowerLaw(float(np.exp(fit.intercept)), slope, slope - half, slope + half)
