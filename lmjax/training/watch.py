"""A look at the numbers of past steps: what is logged, and when a run has gone wrong."""

import dataclasses
import json
import math
import pathlib
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from lmjax.training.plan import TrainingConfig
from lmjax.training.reporting import MetricsWriter, TrainingProgress
from lmjax.training.step import Metrics


class DivergedError(RuntimeError):
    """Training left the numbers; the last good checkpoint stays.

    Attributes:
      step: where it was seen.
      batches: the batches of the data that did it; none where held-out data showed it.
      reason: what was seen, without the advice that the message ends with.
    """

    def __init__(self, step: int, batches: Sequence[int], reason: str, advice: str):
        super().__init__(f"step {step}: {reason}. {advice}")
        self.step, self.batches, self.reason = step, list(batches), reason


@dataclasses.dataclass(frozen=True)
class Speed:
    """What rates are computed with; None where unknown.

    Attributes:
      flops_per_step: of the matrix products of a step.
      peak_flops: a second, of all devices.
    """

    flops_per_step: float | None
    peak_flops: float | None

    def rates(self, tokens: float, steps: int, seconds: float) -> dict[str, float]:
        """Tokens and FLOPs a second, and the share of the peak."""
        rates = {"tokens": tokens, "tokens_per_second": tokens / seconds}
        if self.flops_per_step is not None:
            rates["flops_per_second"] = self.flops_per_step * steps / seconds
            if self.peak_flops is not None:
                rates["mfu"] = rates["flops_per_second"] / self.peak_flops
        return rates


class EventsWriter:
    """Appends what went wrong, and what was done about it, to `events.jsonl`.

    One JSON object a line: time (seconds since 1970), step, batches (their indices, see
    `python -m experiments.show_batch`), reason, action.
    """

    def __init__(self, directory: str | pathlib.Path):
        self._path = pathlib.Path(directory) / "events.jsonl"

    def write(self, step: int, batches: Sequence[int], reason: str, action: str) -> None:
        """Writes one line, and says it."""
        if jax.process_index() != 0:
            return
        event = {"step": step, "batches": list(batches), "reason": reason, "action": action}
        with self._path.open("a") as file:
            file.write(json.dumps({"time": time.time(), **event}) + "\n")
        which = f"{batches[0]}" if len(batches) == 1 else f"{batches[0]} to {batches[-1]}"
        print(f"step {step}, batch {which}: {reason}; {action}", file=sys.stderr, flush=True)


class Watch:
    """Logs the steps, and stops a run that has gone wrong.

    Device values are fetched one interval late, so that the device never waits for it.
    """

    def __init__(
        self,
        training: TrainingConfig,
        paths: Sequence[str],
        schedule: Callable[[int], Any],
        speed: Speed,
        writer: MetricsWriter,
        progress: TrainingProgress,
        events: EventsWriter,
        advice: Callable[[], str],
    ):
        """Begins to watch.

        Args:
          paths: names of the parameters, in the order of their gradients.
          schedule: learning rate of an update.
          advice: what to tell someone whose run went wrong.
        """
        self.training, self.paths, self.schedule, self.speed = training, paths, schedule, speed
        self.writer, self.progress, self.events = writer, progress, events
        self.advice = advice
        self.earlier: list[tuple[int, int, Metrics]] = []
        self.current: list[tuple[int, int, Metrics]] = []
        self.lowest = math.inf
        self.since = time.perf_counter()

    def restart(self) -> None:
        """Sets the clock, after work that is not training."""
        self.since = time.perf_counter()

    def add(self, step: int, batch: int, metrics: Metrics) -> None:
        """Takes note of a step and of the index of the batch it read.

        Raises:
          DivergedError: an earlier step went wrong.
        """
        self.current.append((step, batch, metrics))
        if due(step, self.training.log_every):
            self._report(self.earlier)
            self.earlier, self.current = self.current, []

    def flush(self) -> None:
        """Looks at everything up to now; raises like `add`."""
        self._report(self.earlier)
        self._report(self.current)
        self.earlier, self.current = [], []

    def _report(self, interval: list[tuple[int, int, Metrics]]) -> None:
        if not interval:
            return
        steps, batches = [step for step, _, _ in interval], [batch for _, batch, _ in interval]
        fetched = jax.device_get([metrics for _, _, metrics in interval])
        seconds = time.perf_counter() - self.since
        self.since = time.perf_counter()
        good = []
        for step, batch, metrics in zip(steps, batches, fetched, strict=True):
            fault = self._fault(metrics)
            if fault and not self.training.skip_nonfinite:
                raise DivergedError(step, [batch], fault, self.advice())
            if fault:
                self.events.write(step, [batch], fault, "the update was left out")
            else:
                good.append(metrics)
        if not good:
            raise DivergedError(
                steps[-1],
                batches,
                f"no update of the last {len(steps)} steps could be made; {fault}",
                self.advice(),
            )
        loss = float(np.mean([m["loss"] for m in good]))
        limit = self.training.max_loss_rise
        if limit and loss > limit * self.lowest:
            raise DivergedError(
                steps[-1],
                batches,
                f"the mean loss rose to {loss:.4g}, more than"
                f" config.training.max_loss_rise={limit:g} times the lowest so far,"
                f" {self.lowest:.4g}",
                self.advice(),
            )
        self.lowest = min(self.lowest, loss)
        rates = self.speed.rates(float(sum(m["tokens"] for m in fetched)), len(fetched), seconds)
        norms = np.array([m["gradient_norms"] for m in good], np.float64)
        values = {
            "loss": loss,
            **means_of([{**m["terms"], **m["metrics"]} for m in good]),
            "gradient_norm": float(np.sqrt(np.square(norms).sum(1)).mean()),
            "learning_rate": float(self.schedule(steps[-1] - 1)),
            **rates,
        }
        self.writer.write(steps[-1], values, "train")
        self.progress.update(steps[-1], loss, rates["tokens_per_second"])

    def _fault(self, metrics: Metrics) -> str:
        """What of a step is not finite, or ''."""
        bad_terms = [k for k, (total, _) in metrics["terms"].items() if not np.isfinite(total)]
        bad = [
            path
            for path, norm in zip(self.paths, metrics["gradient_norms"], strict=True)
            if not np.isfinite(norm)
        ]
        if not bad_terms and not bad and np.isfinite(metrics["loss"]):
            return ""
        what = (
            f"the loss term '{bad_terms[0]}' is {metrics['terms'][bad_terms[0]][0]}"
            if bad_terms
            else f"the loss is {metrics['loss']}"
        )
        if not bad:
            return what
        return (
            f"{what}; the gradient is not finite in {len(bad)} of {len(self.paths)} tensors,"
            f" first in {bad[0]}"
        )


def due(step: int, every: int) -> bool:
    """Whether something that is done every so many steps is to be done now; 0 = never."""
    return every > 0 and step % every == 0


def means_of(sums: list[dict[str, tuple[Any, Any]]]) -> dict[str, float]:
    """Sums over all divided by counts over all; what never counted is left out."""
    totals: dict[str, float] = {}
    for name in sums[0]:
        total = sum(float(s[name][0]) for s in sums)
        count = sum(float(s[name][1]) for s in sums)
        if count > 0:
            totals[name] = total / count
    return totals
