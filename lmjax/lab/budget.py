"""Training budgets of variants, and their conversion to steps."""

import contextlib
import dataclasses
import pathlib
import shutil
from typing import Annotated, Literal

import jax
import ml_collections
import numpy as np

from lmjax.configuration import Interval, check_ranges
from lmjax.data.loader import Loader
from lmjax.data.store import prepare
from lmjax.errors import ConfigError
from lmjax.training.loop import pretrain
from lmjax.training.plan import make_plan
from lmjax.training.run_directory import read_metrics

_BATCHES = 32  # batches in which tokens are counted
_STEPS = 30  # steps that are timed


@dataclasses.dataclass(frozen=True)
class Budget:
    """The training budget of every variant.

    Attributes:
      unit: 'tokens' excludes padding; 'flops' counts matrix products, three times those of a
        forward pass; 'seconds' is training time without evaluation, on the device that trains the
        variant's first cell.
      amount: the amount in this unit.
    """

    unit: Literal["tokens", "steps", "flops", "seconds"]
    amount: Annotated[float, Interval("(0, inf)")]

    def __post_init__(self) -> None:
        check_ranges(self)

    def __str__(self) -> str:
        number = f"{self.amount:,.0f}" if self.amount < 1e12 else f"{self.amount:.3g}"
        return f"{number} {'FLOPs' if self.unit == 'flops' else self.unit}"

    def steps(self, config: ml_collections.ConfigDict, scratch: pathlib.Path) -> int:
        """Returns the number of updates within the budget, at least one.

        Args:
          config: the pretraining config.
          scratch: a directory for a short timing run if the unit is 'seconds'.
        """
        if self.unit == "steps":
            return max(1, round(self.amount))
        if self.unit == "flops":
            return max(1, round(self.amount / flops_per_step(config)))
        if self.unit == "seconds" and config.get("phases"):
            raise ConfigError(
                "config.budget.unit: 'seconds' does not know how long each phase takes; use tokens,"
                " flops or steps"
            )
        tokens = tokens_per_step(config)
        if self.unit == "tokens":
            return max(1, round(self.amount / tokens))
        return max(1, round(self.amount * _tokens_per_second(config, scratch) / tokens))


def flops_per_step(config: ml_collections.ConfigDict) -> float:
    """Returns the FLOPs of the matrix products of an update, the mean over the phases of the run.

    Raises:
      ConfigError: the objective does not define them.
    """
    plan = make_plan(config)
    tokenizer, stores = prepare(plan.data, ("train",))
    vocabulary = tokenizer.vocabulary(stores["train"].counts)
    total = 0.0
    for phase in plan.phases:
        objective = plan.objective_for(vocabulary, phase)
        flops = objective.forward_flops(phase.examples.length)
        if flops is None:
            raise ConfigError(
                f"config.budget.unit: {type(objective).__name__} has no `forward_flops`; add it, or"
                " use tokens"
            )
        # A backward pass costs twice the forward pass.
        total += phase.share * 3 * flops * phase.training.batch_size
    return total


def tokens_per_step(config: ml_collections.ConfigDict) -> float:
    """Returns the mean number of tokens of an update without padding, over the first batches.

    It is the mean over the phases of the run.
    """
    plan = make_plan(config)
    tokenizer, stores = prepare(plan.data, ("train",))
    vocabulary = tokenizer.vocabulary(stores["train"].counts)
    total = 0.0
    for phase in plan.phases:
        loader = Loader(
            phase.examples,
            stores["train"],
            vocabulary,
            batch_size=phase.training.batch_size,
            seed=plan.seed,
            split="train",
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            shuffle=True,
        )
        with contextlib.closing(loader):
            batches = [loader.batch_at(i) for i in range(_BATCHES)]
        tokens = float(np.mean([(batch["segment_ids"] > 0).sum() for batch in batches]))
        total += phase.share * tokens
    return total


def _tokens_per_second(config: ml_collections.ConfigDict, scratch: pathlib.Path) -> float:
    trial = config.copy_and_resolve_references()
    trial.training.update(steps=_STEPS, log_every=_STEPS // 3, eval_every=0, checkpoint_every=0)
    trial.optimizer.warmup_steps = min(trial.optimizer.get("warmup_steps", 0), _STEPS)
    pretrain(trial, scratch, "timing")
    lines = [line for line in read_metrics(scratch) if line["split"] == "train"]
    shutil.rmtree(scratch)
    return lines[-1]["tokens_per_second"]
