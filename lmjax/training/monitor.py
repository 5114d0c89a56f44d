"""Monitoring of a run: its metrics, divergence, speed, progress bar and profile."""

import collections
import dataclasses
import datetime
import json
import math
import pathlib
import re
import sys
import time
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import rich.progress

from lmjax.errors import ConfigError
from lmjax.tables import markdown_table
from lmjax.training.plan import TrainingConfig
from lmjax.training.run_directory import MetricsWriter
from lmjax.training.step import Metrics

_SECONDS_BETWEEN_LINES = 15.0


class DivergedError(RuntimeError):
    """Training diverged; the last good checkpoint stays.

    Attributes:
      step: at which it was detected.
      batches: indices of the batches that caused it; empty if an evaluation detected it.
      reason: what was detected, without the advice at the end of the message.
    """

    def __init__(self, step: int, batches: Sequence[int], reason: str, advice: str):
        super().__init__(f"step {step}: {reason}. {advice}")
        self.step, self.batches, self.reason = step, list(batches), reason


@dataclasses.dataclass(frozen=True)
class Speed:
    """Converts steps and seconds to rates; fields are None if unknown.

    Attributes:
      flops_per_step: FLOPs of the matrix products of a step.
      peak_flops: peak FLOP/s of all devices.
    """

    flops_per_step: float | None
    peak_flops: float | None

    def rates(self, tokens: float, steps: int, seconds: float) -> dict[str, float]:
        """Tokens and FLOPs per second, and model FLOPs utilization (`mfu`)."""
        rates = {"tokens": tokens, "tokens_per_second": tokens / seconds}
        if self.flops_per_step is not None:
            rates["flops_per_second"] = self.flops_per_step * steps / seconds
            if self.peak_flops is not None:
                rates["mfu"] = rates["flops_per_second"] / self.peak_flops
        return rates


class EventsWriter:
    """Appends faults of a run, and the action taken, to `events.jsonl`.

    Each line is a JSON object: time (seconds since 1970), step, batches (their indices, see
    `python -m experiments.show_batch`), reason, action.
    """

    def __init__(self, directory: str | pathlib.Path):
        self._path = pathlib.Path(directory) / "events.jsonl"

    def write(self, step: int, batches: Sequence[int], reason: str, action: str) -> None:
        """Writes one line, and prints it to stderr."""
        if jax.process_index() != 0:
            return
        event = {"step": step, "batches": list(batches), "reason": reason, "action": action}
        with self._path.open("a") as file:
            file.write(json.dumps({"time": time.time(), **event}) + "\n")
        which = f"{batches[0]}" if len(batches) == 1 else f"{batches[0]} to {batches[-1]}"
        print(f"step {step}, batch {which}: {reason}; {action}", file=sys.stderr, flush=True)


class Monitor:
    """Logs the metrics of training steps, and raises if training diverged.

    Device values are fetched one interval late, so that the device never waits for the host.
    """

    def __init__(
        self,
        training: TrainingConfig,
        param_names: Sequence[str],
        schedule: Callable[[int], Any],
        speed: Speed,
        writer: MetricsWriter,
        progress: "TrainingProgress",
        events: EventsWriter,
        advice: Callable[[], str],
    ):
        """Starts the clock.

        Args:
          training: the intervals and limits.
          param_names: paths of the parameters, in the order of their gradients.
          schedule: count of updates -> learning rate.
          speed: computes rates.
          writer: receives the metrics.
          progress: receives the loss and the rate.
          events: receives updates that were skipped.
          advice: returns the end of the message of a DivergedError.
        """
        self.training, self.param_names, self.schedule = training, param_names, schedule
        self.speed, self.writer, self.progress, self.events = speed, writer, progress, events
        self.advice = advice
        self.earlier: list[tuple[int, int, Metrics]] = []
        self.current: list[tuple[int, int, Metrics]] = []
        self.lowest = math.inf
        self.since = time.perf_counter()

    def restart_clock(self) -> None:
        """Restarts the clock of the rates; call it after an evaluation or a checkpoint."""
        self.since = time.perf_counter()

    def add(self, step: int, batch: int, metrics: Metrics) -> None:
        """Records the metrics of a step and the index of its batch.

        Raises:
          DivergedError: an earlier step diverged.
        """
        self.current.append((step, batch, metrics))
        if due(step, self.training.log_every):
            self._report(self.earlier)
            self.earlier, self.current = self.current, []

    def flush(self) -> None:
        """Reports all recorded steps; raises like `add`."""
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
                self.events.write(step, [batch], fault, "the update was skipped")
            else:
                good.append(metrics)
        if not good:
            raise DivergedError(
                steps[-1],
                batches,
                f"all updates of the last {len(steps)} steps were skipped; {fault}",
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
        """A description of what is not finite in the metrics of a step, or ''."""
        bad_terms = [k for k, (total, _) in metrics["terms"].items() if not np.isfinite(total)]
        bad = [
            path
            for path, norm in zip(self.param_names, metrics["gradient_norms"], strict=True)
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
            f"{what}; the gradient is not finite in {len(bad)} of {len(self.param_names)} tensors,"
            f" first in {bad[0]}"
        )


def due(step: int, every: int) -> bool:
    """Whether `step` is a multiple of `every`; never if `every` is 0."""
    return every > 0 and step % every == 0


def means_of(sums: list[dict[str, tuple[Any, Any]]]) -> dict[str, float]:
    """Total sums divided by total counts; omits names whose total count is 0.

    Args:
      sums: name -> (sum, count) of each batch.
    """
    totals: dict[str, float] = {}
    for name in sums[0]:
        total = sum(float(s[name][0]) for s in sums)
        count = sum(float(s[name][1]) for s in sums)
        if count > 0:
            totals[name] = total / count
    return totals


class TrainingProgress:
    """Shows progress on stderr, from the first process: a bar, or a line every 15 seconds.

    The bar is for terminals.
    """

    def __init__(self, total: int, description: str, start: int = 0):
        """Starts at step `start` of `total`; the time left is extrapolated from the steps since."""
        self._total, self._description = total, description
        self._start, self._step = start, start
        self._began = self._last_line = time.monotonic()
        self._quiet = jax.process_index() != 0
        console = rich.console.Console(stderr=True)
        self._bar: rich.progress.Progress | None = None
        if console.is_terminal and not self._quiet:
            self._bar = rich.progress.Progress(
                rich.progress.TextColumn("{task.description}"),
                rich.progress.BarColumn(),
                rich.progress.MofNCompleteColumn(),
                rich.progress.TextColumn("{task.fields[report]}"),
                console=console,
            )
            self._task = self._bar.add_task(description, total=total, completed=start, report="")

    def update(self, step: int, loss: float, tokens_per_second: float) -> None:
        """Shows that `step` updates were made."""
        self._step = step
        if self._quiet:
            return
        now = time.monotonic()
        report = self._report(now, loss, tokens_per_second)
        if self._bar is not None:
            self._bar.update(self._task, completed=step, report=report)
        elif now - self._last_line >= _SECONDS_BETWEEN_LINES or step == self._total:
            self._last_line = now
            line = f"{self._description}: step {step}/{self._total}  {report}"
            print(line.rstrip(), file=sys.stderr, flush=True)

    def print(self, line: str) -> None:
        """Prints a line, above the bar if there is one."""
        if self._quiet:
            return
        if self._bar is not None:
            self._bar.console.print(line, highlight=False, markup=False, soft_wrap=True)
        else:
            print(f"{self._description}: {line}", file=sys.stderr, flush=True)

    def _report(self, now: float, loss: float, tokens_per_second: float) -> str:
        parts = [f"loss {loss:.4f}", f"{tokens_per_second:,.0f} tokens/s"]
        done = self._step - self._start
        if done > 0:
            left = round((now - self._began) / done * (self._total - self._step))
            parts.append(f"{datetime.timedelta(seconds=left)} left")
        return "  ".join(parts)

    def __enter__(self) -> "TrainingProgress":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()


def wide_console(stderr: bool = False) -> rich.console.Console:
    """A console; without a terminal it is wide enough for a table of parameters."""
    console = rich.console.Console(stderr=stderr)
    return console if console.is_terminal else rich.console.Console(stderr=stderr, width=120)


class Profile:
    """Takes a profile of some steps with `jax.profiler`, as a context manager.

    TensorBoard and XProf show it (`tensorboard --logdir WORKDIR/profile`).
    """

    def __init__(
        self,
        directory: pathlib.Path,
        steps: tuple[int, int] | None,
        hlo: Callable[[], str],
        show: Callable[[str], None],
    ):
        """Checks nothing; see `check_profile`.

        Args:
          directory: of the profile.
          steps: the first and the last step to profile; None profiles nothing.
          hlo: returns the text of the compiled step.
          show: prints the table of operations.
        """
        self._directory, self._running = directory, False
        self._first, self._last = steps or (-1, -1)
        self._hlo, self._show = hlo, show

    def start(self, step: int) -> None:
        """Starts the profiler if `step` is the first of the profile; call it before the step."""
        if step == self._first:
            jax.profiler.start_trace(self._directory)
            self._running = True

    def stop(self, step: int, outputs: Any) -> None:
        """Stops the profiler and prints the table if `step` is the last of the profile.

        Args:
          step: that was dispatched.
          outputs: its arrays, which the profiler waits for.
        """
        if step != self._last:
            return
        jax.block_until_ready(outputs)
        self._close()
        hlo = self._hlo()  # all processes compile together
        if jax.process_index() == 0:
            seconds = operation_seconds(self._directory, "jit_step")
            table = operation_table(seconds, hlo, step - self._first + 1)
            self._show("\n".join(table))

    def _close(self) -> None:
        if self._running:
            jax.profiler.stop_trace()
            self._running = False

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *_: object) -> None:
        self._close()


def operation_seconds(directory: pathlib.Path, module: str) -> dict[str, float]:
    """Returns the time of each operation of a compiled program in the latest profile.

    Args:
      directory: as given to `jax.profiler.start_trace`.
      module: name of the program, such as 'jit_step'.

    Returns:
      Name of the operation in the program's HLO text -> seconds, summed over devices and calls.
    """
    path = max(directory.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    seconds: collections.Counter[str] = collections.Counter()
    for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
        for line in plane.lines:
            for event in line.events:
                stats = dict(event.stats)
                if stats.get("hlo_module") == module:
                    seconds[stats["hlo_op"]] += event.duration_ns / 1e9
    return dict(seconds)


_INSTRUCTION = re.compile(r"^ +(?:ROOT )?%?([\w.-]+) = .*?[\]})] ([\w-]+)\(")
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_CALLED = re.compile(r"calls=%?([\w.-]+)")
# Their bodies' operations are events of their own.
_CONTROL = ("while", "call", "conditional")


def operation_table(seconds: Mapping[str, float], hlo: str, steps: int, top: int = 10) -> list[str]:
    """Groups operations by the scope that they come from, most expensive first.

    Args:
      seconds: of each operation; see `operation_seconds`.
      hlo: text of the compiled program, whose metadata name the scopes.
      steps: calls of the program.
      top: number of groups to show; the others are one row.

    Returns:
      Lines of a Markdown table, after one that says how much is spent outside of matrix products.
    """
    opcodes, names, callees, products = {}, {}, {}, set[str]()
    computation = ""
    for line in hlo.splitlines():
        if line.startswith(("%", "ENTRY")):
            computation = line.removeprefix("ENTRY ").removeprefix("%").split(" ")[0]
        elif found := _INSTRUCTION.match(line):
            name, opcode = found.groups()
            opcodes[name] = opcode
            names[name] = op.group(1) if (op := _OP_NAME.search(line)) else ""
            if called := _CALLED.search(line):
                callees[name] = called.group(1)
            if opcode in ("dot", "convolution") or "gemm" in line:
                products |= {name, computation}
    groups: dict[tuple[str, str], list[float]] = {}
    for name, spent in seconds.items():
        if not spent or opcodes.get(name) in _CONTROL:
            continue
        times = groups.setdefault(_scope(names.get(name, "")), [0.0, 0.0])
        times[0] += spent
        times[1] += spent if name in products or callees.get(name) in products else 0.0
    total, product = (sum(times[i] for times in groups.values()) for i in (0, 1))
    if not total:
        return ["the profile has no operations of this program"]
    ranked = sorted(groups.items(), key=lambda item: -item[1][0])
    shown = [(*scope, times) for scope, times in ranked[:top]]
    if rest := [times for _, times in ranked[top:]]:
        shown.append(
            (f"{len(rest)} others", "", [sum(column) for column in zip(*rest, strict=True)])
        )
    rows = [
        [scope, direction, f"{1e3 * t / steps:.1f}", f"{t / total:.0%}", f"{dots / t:.0%}"]
        for scope, direction, (t, dots) in shown
    ]
    header = ["scope", "pass", "ms a step", "share", "in matrix products"]
    return [
        f"{1e3 * total / steps:.1f} ms of operations a step,"
        f" {1 - product / total:.0%} outside of matrix products",
        *markdown_table(header, rows, "llrrr"),
    ]


def _scope(op_name: str) -> tuple[str, str]:
    """Converts the metadata of an operation to its scope and 'forward', 'backward' or ''.

    'jit(step)/transpose(jvp(loss))/BertEncoder/layer_3/attention/dot_general' comes from the
    backward pass of `loss/BertEncoder/layer_*/attention`.
    """
    scope: list[str] = []
    for part in op_name.split("/")[:-1]:
        inner = re.fullmatch(r"((?:transpose\(|jvp\(|vmap\()*)(\w+)\)*", part)
        if inner is None or inner[2] in ("checkpoint", "rematted_computation", "while", "body"):
            continue
        if "jvp(" in inner[1]:
            scope = []  # a recomputed block repeats the path to it
        scope.append(re.sub(r"\d+$", "*", inner[2]) if inner[2].startswith("layer_") else inner[2])
    direction = "backward" if "transpose(" in op_name else "forward" if "jvp(" in op_name else ""
    return "/".join(scope) or "(none)", direction


def check_profile(steps: tuple[int, int] | None, done: int, total: int) -> None:
    """Checks that the steps to profile will be made.

    Args:
      steps: the first and the last step to profile, or None.
      done: steps that the run has made already.
      total: steps of the run.

    Raises:
      ConfigError: some of `steps` are not between `done` + 1 and `total`.
    """
    if steps is not None and not done < steps[0] <= steps[1] <= total:
        raise ConfigError(
            f"--profile: cannot profile steps {steps[0]} to {steps[1]}; this run makes steps"
            f" {done + 1} to {total}"
        )


# Peak FLOP/s of dense products of one jax device, by the first pattern that its `device_kind`
# contains: (16-bit operands, float32 operands at jax's default precision). From the vendors' data
# sheets, without sparsity. NVIDIA: bfloat16, or float16 before Ampere (which has no tensor cores
# for bfloat16); float32 operands run as TF32 since Ampere. TPU: float32 operands run in one
# bfloat16 pass; v2 and v3 have two jax devices per chip.
_PEAK_FLOPS: tuple[tuple[str, float, float], ...] = (
    ("TPU v2", 45e12 / 2, 45e12 / 2),
    ("TPU v3", 123e12 / 2, 123e12 / 2),
    ("TPU v4 lite", 137e12, 137e12),
    ("TPU v4", 275e12, 275e12),
    ("TPU v5 lite", 197e12, 197e12),
    ("TPU v5e", 197e12, 197e12),
    ("TPU v5", 459e12, 459e12),
    ("TPU v6", 918e12, 918e12),
    ("B200", 2250e12, 1125e12),
    ("GH200", 989e12, 494.5e12),
    ("H100 PCIe", 756e12, 378e12),
    ("H100 NVL", 835e12, 417.5e12),
    ("H100", 989e12, 494.5e12),
    ("H200", 989e12, 494.5e12),
    ("H800", 989e12, 494.5e12),
    ("A100", 312e12, 156e12),
    ("A800", 312e12, 156e12),
    ("A10G", 70e12, 35e12),
    ("A10", 125e12, 62.5e12),
    ("A30", 165e12, 82e12),
    ("A40", 149.7e12, 74.8e12),
    ("RTX A6000", 154.8e12, 77.4e12),
    ("L40S", 362e12, 183e12),
    ("L40", 181e12, 90.5e12),
    ("L4", 121e12, 60e12),
    ("RTX 4090", 165.2e12, 82.6e12),
    ("RTX 3090", 71e12, 35.6e12),
    ("V100-PCIE", 112e12, 14e12),
    ("V100", 125e12, 15.7e12),
    ("T4", 65e12, 8.1e12),
)


def peak_flops(device: Any, dtype: Any) -> float | None:
    """Peak FLOP/s of dense products on `device`, the denominator of model FLOPs utilization.

    Args:
      device: a jax.Device.
      dtype: of the operands: bfloat16, float16 or float32.

    Returns:
      None if unknown: for other devices (every CPU) and other dtypes.
    """
    dtype = jnp.dtype(dtype)
    if device.platform == "cpu":
        return None
    for kind, half, single in _PEAK_FLOPS:
        # Whole words: an "RTX A1000" is not an A100.
        if re.search(rf"\b{kind}(?![0-9])", device.device_kind, re.IGNORECASE):
            if dtype in (jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float16)):
                return half
            return single if dtype == jnp.dtype(jnp.float32) else None
    return None
