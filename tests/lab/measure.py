"""Measures of ablations, written outside of the package."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import ClassVar, Literal

import jax
import numpy as np

import lmjax
from lmjax.configuration import Finite
from lmjax.errors import ConfigError
from lmjax.lab.measures import Measure


@dataclasses.dataclass(frozen=True, kw_only=True)
class Norm(Measure):
    """The norm of the parameters.

    Attributes:
      order: 1 or 2.
    """

    direction: Literal["higher", "lower"] = "lower"
    order: int = 2

    def check(self) -> None:
        if self.order not in (1, 2):
            raise ConfigError(f"order: must be 1 or 2, got {self.order}")

    def measure(self, run: pathlib.Path, name: str, seed: int) -> float:
        leaves = jax.tree.leaves(lmjax.load(run).params)
        return float(np.linalg.norm(np.concatenate([np.ravel(x) for x in leaves]), self.order))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Known(Measure):
    """Numbers that are known beforehand.

    Attributes:
      values: the number of each seed, by variant.
    """

    opens_model: ClassVar[bool] = False

    values: Mapping[str, tuple[Finite, ...]]

    def measure(self, run: pathlib.Path, name: str, seed: int) -> float:
        return self.values[run.parent.name][seed]
