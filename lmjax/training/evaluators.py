"""Evaluators: measurements of the model that a pretraining run takes every so many steps."""

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any

from lmjax.configuration import NonNegativeInt, check_ranges
from lmjax.data.tokenizers import Tokenizer
from lmjax.objectives.base import Objective


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Evaluator(abc.ABC):
    """Base class of evaluators: a frozen dataclass whose fields are its config.

    A config names a subclass by its import path, which may be outside of this package:

      config.evaluators = {"cloze": {"type": "my_package.Cloze", "every": 100, ...its fields}}

    The loop evaluates at step 0, every `every` steps, and at the last step. An evaluator does not
    change training: the run has the same parameters with and without it. (It ends an interval of
    the training metrics, as an evaluation on held-out data does.) With several processes, all of
    them call `evaluate`, and the first one writes the results.

    Compile in a `functools.cached_property`, not in `evaluate`, to compile once:

      @functools.cached_property
      def score(self):
          return jax.jit(lambda params, tokens: ...self.objective.network...)

    Attributes:
      every: interval in steps; 0 = only at step 0 and at the last step.
      objective: that is trained, with its `network` and `vocabulary`. Given by the run.
      tokenizer: of the run. Given by the run; None while the config is checked, before the data
        are read, so `__post_init__` cannot use it.
    """

    every: NonNegativeInt = 0
    objective: Objective
    tokenizer: Tokenizer

    def __post_init__(self) -> None:
        check_ranges(self)

    @abc.abstractmethod
    def evaluate(self, params: Any, step: int) -> Mapping[str, float]:
        """Evaluates the model.

        Args:
          params: of the objective, on the devices of the run: their moving average if the run
            has one. They are valid until `evaluate` returns; the next step reuses their memory.
          step: updates made.

        Returns:
          Finite numbers by name. The run writes them to metrics.jsonl as 'EVALUATOR/NAME', in
          lines whose split is 'evaluators'; NaN or infinity stops it with a DivergedError.
        """


def evaluate_all(evaluators: Mapping[str, Evaluator], params: Any, step: int) -> dict[str, float]:
    """Results of the evaluators, under 'EVALUATOR/NAME'.

    Raises:
      TypeError: an evaluator did not return numbers by name.
    """
    results: dict[str, float] = {}
    for name, evaluator in evaluators.items():
        found = evaluator.evaluate(params, step)
        try:
            results |= {f"{name}/{metric}": float(value) for metric, value in found.items()}
        except (AttributeError, TypeError, ValueError) as error:
            raise TypeError(
                f"config.evaluators.{name}: {type(evaluator).__name__}.evaluate must return a dict"
                f" of numbers by name, got {found!r}"
            ) from error
    return results
