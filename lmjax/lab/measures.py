"""What a pretrained model of an ablation is judged by; each a number, or none."""

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
      says: what it is, in the words of a table's head.
      better: which end of it is.
      percent: whether it is a share, to be shown as such.
      opens_model: whether it takes the run's model by `lmjax.load`.
    """

    opens_model: ClassVar[bool] = True

    says: str
    better: Literal["higher", "lower"] = "higher"
    percent: bool = False

    def __post_init__(self) -> None:
        check_ranges(self)

    @property
    def wanted(self) -> bool:
        """False leaves it out."""
        return True

    def check(self) -> None:
        """Raises ConfigError for what cannot work, before anything is trained."""

    def measure(self, run: pathlib.Path, name: str, seed: int) -> float | None:
        """The number, None where the model has none.

        Args:
          run: the directory of the pretraining run, in which a measure may keep its own work.
          name: of the measure in the config.
        """
        raise NotImplementedError


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeldOut(Measure):
    """A number that the run's last look at held-out data left, such as the loss of a term.

    Attributes:
      metric: its name in metrics.jsonl; a run without it has none.
    """

    opens_model: ClassVar[bool] = False

    better: Literal["higher", "lower"] = "lower"
    metric: str = "loss"

    def measure(self, run: pathlib.Path, name: str, seed: int) -> float | None:
        last = [line for line in read_metrics(run) if line["split"] == "validation"][-1]
        return last.get(self.metric)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MinimalPairs(Measure):
    """The share of minimal pairs told right, by the first of the model's ways of scoring.

    Attributes:
      data: JSON lines, such as BLiMP, by path, glob or directory; '' leaves the measure out.
      per_paradigm: pairs of each paradigm; 0 = all.
    """

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
    """A score after fine-tuning; the median of several, of which one or another may fail.

    Attributes:
      config: of experiments.finetune; `init` is the run.
      score: the name of the score; '' takes the one that reports lead with.
      seeds: fine-tunings of a run, each with a seed of its own that no other run's has, for the
        rows that are drawn, too.
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
                f"config.measures.{name}.score: there is no '{wanted}'; there are"
                f" {', '.join(scores)}"
            )
        return scores[wanted]
