"""Measures of a pretrained model in an ablation; each is a number or None."""

import dataclasses
import json
import pathlib
import shutil
import statistics
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import ml_collections

from lmjax.configuration import Block, NonNegativeInt, PositiveInt, check_ranges
from lmjax.convert.runs import load
from lmjax.errors import ConfigError
from lmjax.evaluation.minimal_pairs import judge, read_pairs
from lmjax.tasks.finetuning import finetune
from lmjax.tasks.plan import FinetuneConfig, prepare
from lmjax.training.run_directory import read_metrics


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measure:
    """Base of all measures: a frozen dataclass whose fields are a block of `config.measures`.

    A config names it by import path; it may live outside of this package.

    Attributes:
      description: the header of its column in tables.
      direction: whether higher or lower values are better.
      percent: whether the value is a fraction that is shown in percent.
      opens_model: whether it opens the run's model with `lmjax.load`.
      note: a sentence about the value that reports show; '' = none.
    """

    opens_model: ClassVar[bool] = True
    note: ClassVar[str] = ""

    description: str
    direction: Literal["higher", "lower"] = "higher"
    percent: bool = False

    def __post_init__(self) -> None:
        check_ranges(self)

    @property
    def wanted(self) -> bool:
        """Whether the ablation has this measure."""
        return True

    def check(self) -> None:
        """Raises ConfigError if it cannot be computed; called before training."""

    def measure(self, run: pathlib.Path, name: str, seed: int) -> float | None:
        """Computes the value; None if it does not apply to the model.

        Args:
          run: the directory of the pretraining run. A measure may write files there.
          name: the name of the measure in the config.
          seed: the seed of the run.
        """
        raise NotImplementedError


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeldOut(Measure):
    """A number of the run's last evaluation on held-out data, such as the loss of a term.

    Attributes:
      metric: its name in metrics.jsonl; None for a run without it.
    """

    opens_model: ClassVar[bool] = False

    direction: Literal["higher", "lower"] = "lower"
    metric: str = "loss"

    def measure(self, run: pathlib.Path, name: str, seed: int) -> float | None:
        last = [line for line in read_metrics(run) if line["split"] == "validation"][-1]
        return last.get(self.metric)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MinimalPairs(Measure):
    """Accuracy on minimal pairs, by the first scoring method of the model.

    Attributes:
      data: JSON lines, such as BLiMP, as a path, glob or directory; '' disables the measure.
      per_paradigm: pairs per paradigm; 0 = all.
    """

    note: ClassVar[str] = "A pair whose sentences have equal scores counts half."

    percent: bool = True
    data: str
    per_paradigm: NonNegativeInt = 0

    @property
    def wanted(self) -> bool:
        return bool(self.data)

    def check(self) -> None:
        if self.wanted:
            read_pairs(self.data, self.per_paradigm, "data")

    def measure(self, run: pathlib.Path, name: str, seed: int) -> float | None:
        model = load(run)
        if not model.network.score_methods:
            return None
        return float(judge(model, read_pairs(self.data, self.per_paradigm, "data")).mean())


@dataclasses.dataclass(frozen=True, kw_only=True)
class FineTuning(Measure):
    """A score after fine-tuning: the median over seeds, which is robust to a failed one.

    Attributes:
      config: a config of experiments.finetune; `init` is set to the run.
      score: the name of the score; '' takes the first one of the task.
      seeds: fine-tunings per run. No two share a seed, across runs too; the seed also draws the
        rows.
    """

    config: Annotated[Mapping[str, Any], Block(find=lambda *_: FinetuneConfig)]
    score: str = ""
    seeds: PositiveInt = 1

    def check(self) -> None:
        config = ml_collections.ConfigDict(self.config)
        config.init = ""
        prepare(config)

    def measure(self, run: pathlib.Path, name: str, seed: int) -> float | None:
        own = range(seed * self.seeds, (seed + 1) * self.seeds)
        return statistics.median(self._score(run, name, one) for one in own)

    def _score(self, run: pathlib.Path, name: str, seed: int) -> float:
        config = ml_collections.ConfigDict(self.config)
        config.init, config.seed, config.compare_scratch = str(run.resolve()), seed, False
        place = run / name / f"seed{seed}"
        kept = place / "config.json"
        if kept.exists() and json.loads(kept.read_text())["init"] != config.init:
            shutil.rmtree(place)  # the ablation was moved
        scores = finetune(prepare(config), config, place, f"{name}, seed {seed}", seed=seed).scores
        wanted = self.score or next(iter(scores))
        if wanted not in scores:
            raise ConfigError(
                f"config.measures.{name}.score: '{wanted}' is not one of {', '.join(scores)}"
            )
        return scores[wanted]
