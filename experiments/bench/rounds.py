"""Interleaved measurements of subjects, each in a process of its own.

Rounds visit the subjects in turn (A B C A B C ...), so that a machine whose speed drifts slows all
of them alike. Ratios are taken within a round. Only one subject works at a time.
"""

import dataclasses
import importlib
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

# Runs the work once and waits for its end, and facts about it.
Made: TypeAlias = tuple[Callable[[], Any], dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Subject:
    """What one process measures.

    Attributes:
      name: in reports.
      make: 'package.module:function', which the process calls with `settings`. It returns `Made`.
        The facts may have 'work' (such as tokens per run) and 'flops' (of the matrix products).
      settings: JSON values.
      environment: variables of the process, besides those of this one.
    """

    name: str
    make: str
    settings: Mapping[str, Any]
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Subjects that do the same work.

    Attributes:
      title: of the table.
      subjects: the first one is the reference of the ratios.
      unit: what 'work' counts, in the plural.
    """

    title: str
    subjects: Sequence[Subject]
    unit: str = "tokens"


@dataclasses.dataclass(frozen=True)
class Spread:
    """The median of paired values and their range."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(statistics.median(values), min(values), max(values))


@dataclasses.dataclass(frozen=True)
class Measured:
    """What was measured of a subject.

    Attributes:
      wall, cpu: seconds per run, one value per round; cpu is that of all threads.
      facts: what `make` says, and 'ready', the seconds from the start of the process to the end of
        its first run, and 'memory', the peak of its resident memory in bytes.
      error: why there are no measurements; '' if there are.
    """

    wall: list[float]
    cpu: list[float]
    facts: dict[str, Any]
    error: str = ""

    def ratio(self, reference: "Measured", of: str = "wall") -> Spread:
        """How many times as fast as the reference per unit of work, within each round."""
        more = self.facts.get("work", 1) / reference.facts.get("work", 1)
        pairs = zip(getattr(reference, of), getattr(self, of), strict=True)
        return Spread.of([more * theirs / ours for theirs, ours in pairs])


class Process:
    """The process of a subject."""

    def __init__(self, subject: Subject):
        """Starts it and waits for the end of its first runs, which compile."""
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._child = subprocess.Popen(
            [sys.executable, "-m", "experiments.bench.rounds"],
            env={**os.environ, **subject.environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        started = time.perf_counter()
        found = self._ask({"make": subject.make, "settings": dict(subject.settings)})
        self.error: str = found.get("error", "")
        self.facts: dict[str, Any] = found.get("facts", {})
        self.seconds: float = found.get("seconds", math.inf)
        if not self.error:
            self.facts["ready"] = time.perf_counter() - started - self.seconds

    def _ask(self, message: Any) -> dict[str, Any]:
        assert self._child.stdin is not None and self._child.stdout is not None
        try:
            print(json.dumps(message), file=self._child.stdin, flush=True)
            answer = self._child.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            self._log.seek(0)
            said = self._log.read().strip().splitlines()[-1:]
            return {"error": " ".join([f"ended with code {self._child.wait()}", *said])}
        found: dict[str, Any] = json.loads(answer)
        return found

    def measure(self, runs: int) -> dict[str, Any]:
        """Times `runs` runs: 'wall' and 'cpu' seconds per run, or 'error'."""
        return self._ask(runs)

    def close(self) -> None:
        """Ends the process."""
        self._child.kill()
        self._child.wait()
        self._log.close()


def compare(
    comparison: Comparison, rounds: int, seconds: float, say: Callable[[str], None]
) -> dict[str, Measured]:
    """Measures the subjects of a comparison.

    Args:
      rounds: how often each subject is visited.
      seconds: a visit repeats the run for about that long, and at least once.
      say: prints progress.

    Returns:
      Name of a subject -> what was measured; a subject that failed has an `error`.
    """
    processes: dict[str, Process] = {}
    found: dict[str, Measured] = {}
    try:
        for subject in comparison.subjects:
            say(f"{comparison.title}: starting {subject.name}")
            process = processes[subject.name] = Process(subject)
            found[subject.name] = Measured([], [], process.facts, process.error)
        for i in range(rounds):
            for name, process in processes.items():
                if found[name].error:
                    continue
                say(f"{comparison.title}: round {i + 1}/{rounds}, {name}")
                runs = max(1, min(1000, round(seconds / process.seconds)))
                times = process.measure(runs)
                if error := times.get("error", ""):
                    found[name] = Measured([], [], process.facts, error)
                    continue
                found[name].wall.append(times["wall"])
                found[name].cpu.append(times["cpu"])
                found[name].facts["memory"] = times["memory"]
    finally:
        for process in processes.values():
            process.close()
    return found


def _cpu_seconds() -> float:
    times = os.times()
    return time.process_time() + times.children_user + times.children_system


def main() -> None:
    """The process of a subject: answers each line of stdin with a line of stdout."""
    import resource

    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print must not mix with the answers

    def answer(**values: Any) -> None:
        print(json.dumps(values), file=answers)

    try:
        request = json.loads(sys.stdin.readline())
        module, _, function = request["make"].partition(":")
        run, facts = getattr(importlib.import_module(module), function)(**request["settings"])
        run()
        started = time.perf_counter()
        run()
        answer(facts=facts, seconds=time.perf_counter() - started)
        for line in sys.stdin:
            runs = int(line)
            wall, cpu = time.perf_counter(), _cpu_seconds()
            for _ in range(runs):
                run()
            wall, cpu = time.perf_counter() - wall, _cpu_seconds() - cpu
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            answer(wall=wall / runs, cpu=cpu / runs, memory=peak)
    except Exception as error:
        traceback.print_exc()
        last = str(error).strip().splitlines()[:1]
        answer(error=" ".join([type(error).__name__, *last]))


if __name__ == "__main__":
    main()
