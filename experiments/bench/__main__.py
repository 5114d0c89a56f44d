"""Benchmarks lmjax beside its peers on this machine.

  python -m experiments.bench --suite=train,generate --output=runs/bench

Suites:
  train      a step of the four objectives beside `transformers` in PyTorch
  generate   greedy search beside `transformers`
  finetune   an epoch of texts of many lengths beside `transformers`
  data       loading and corruption beside training
  packing    several segment pairs in a row beside one
  scaling    time per token against length, depth and width beside `transformers`
  startup    from the command to the first step, with and without kept programs

Every subject is a process of its own. Rounds visit the subjects in turn; a table shows the median
time, the median and range of the ratios within a round, and the peak of a process's memory.
--output gets benchmarks.md, results.json and benchmarks.png. Run it on a machine that does nothing
else.
"""

import contextlib
import dataclasses
import importlib.metadata
import os
import pathlib
import platform
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import flags

from experiments import command_line
from experiments.bench import data, finetune, generate, packing, peak, scaling, startup, train
from experiments.bench.rounds import Comparison, Measured, compare
from lmjax.atomic import write_json, write_text
from lmjax.errors import ConfigError
from lmjax.extras import require
from lmjax.tables import markdown_table
from lmjax.training.run_directory import versions

SUITE = flags.DEFINE_list("suite", ["train"], "Suites to run, see above.")
SIZES = flags.DEFINE_list("sizes", ["small", "base"], "Sizes of the training step.")
OBJECTIVES = flags.DEFINE_list("objectives", list(train.CONFIGS), "Objectives to train.")
BATCHES = flags.DEFINE_list("batches", ["1", "8"], "Batch sizes of the search.")
GPT = flags.DEFINE_string("gpt", "small", "Size of configs/gpt.py for the search.")
START = flags.DEFINE_string("start_size", "", "Size of the configs to start; '' = base.")
POINTS = flags.DEFINE_integer("points", 0, "Values of each axis of scaling; 0 = all.")
DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of the matrix products.")
ROUNDS = flags.DEFINE_integer("rounds", 5, "Visits of each subject.", lower_bound=1)
SECONDS = flags.DEFINE_float("seconds", 2.0, "Time of one visit, at least one run.")
OUTPUT = flags.DEFINE_string("output", "runs/bench", "Directory of the results.")


def main() -> None:
    suites: dict[str, Callable[[], list[Comparison]]] = {
        "train": lambda: train.comparisons(SIZES.value, OBJECTIVES.value, DTYPE.value),
        "generate": lambda: generate.comparisons([GPT.value], [int(b) for b in BATCHES.value]),
        "finetune": lambda: finetune.comparisons(SIZES.value, DTYPE.value),
        "data": lambda: data.comparisons(SIZES.value, OBJECTIVES.value, DTYPE.value),
        "packing": lambda: packing.comparisons(SIZES.value, OBJECTIVES.value, DTYPE.value),
        "scaling": lambda: scaling.comparisons(OBJECTIVES.value, DTYPE.value, POINTS.value),
        "startup": lambda: startup.comparisons(OBJECTIVES.value, START.value),
    }
    _check("--suite", SUITE.value, suites)
    _check("--sizes", SIZES.value, train.SIZES)
    _check("--objectives", OBJECTIVES.value, train.CONFIGS)
    if {"train", "generate", "finetune", "scaling"} & set(SUITE.value):
        for name in ("torch", "transformers"):
            require(name, "huggingface", "--suite: the comparison")
    output = pathlib.Path(OUTPUT.value)
    output.mkdir(parents=True, exist_ok=True)
    lines = ["# Benchmarks", "", _machine(), ""]
    found: list[tuple[Comparison, dict[str, Measured]]] = []

    def add(table: Sequence[str]) -> None:
        """Prints a table, and writes all: a benchmark that is killed keeps its tables."""
        print(*table, "", sep="\n", flush=True)
        lines.extend([*table, ""])
        _write(output, lines, found)

    for suite in SUITE.value:
        begin = len(found)
        for comparison in suites[suite]():
            if suite in ("train", "data"):
                subjects = [*comparison.subjects, peak.subject(DTYPE.value)]
                comparison = dataclasses.replace(comparison, subjects=subjects)
            found.append((comparison, compare(comparison, ROUNDS.value, SECONDS.value, _say)))
            add(report(*found[-1]))
        if suite == "scaling":
            table = scaling.exponents(found[begin:])
            add(["### time per token ~ value^exponent", "", *table])


def _check(flag: str, given: Sequence[str], known: Mapping[str, Any]) -> None:
    for name in given:
        if name not in known:
            raise ConfigError(f"{flag}: '{name}' is none of {', '.join(known)}")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def report(comparison: Comparison, found: Mapping[str, Measured]) -> list[str]:
    """Returns the lines of the Markdown table of a comparison."""
    reference = found[comparison.subjects[0].name]
    products = found.get("matrix products")
    peak_rate = None
    if products is not None and not products.error:
        peak_rate = products.facts["flops"] / statistics.median(products.wall)
    unit = f"{comparison.unit}/s" if comparison.unit else ""
    header = [
        "",
        "s a run",
        "CPU s",
        unit,
        "times as fast",
        "range",
        "by CPU time",
        "of the peak",
        "GiB",
    ]
    rows = []
    for subject in comparison.subjects:
        measured = found[subject.name]
        if measured.error:
            rows.append([subject.name, measured.error, *[""] * 7])
            continue
        wall, cpu = statistics.median(measured.wall), statistics.median(measured.cpu)
        work, flops = measured.facts.get("work"), measured.facts.get("flops")
        ratios = ["", "", ""]
        if not reference.error and subject.name != "matrix products":
            ratio, by_cpu = measured.ratio(reference), measured.ratio(reference, "cpu")
            ratios = [
                f"{ratio.median:.2f}",
                f"{ratio.low:.2f}-{ratio.high:.2f}",
                f"{by_cpu.median:.2f}",
            ]
        rate = f"{work / wall:,.0f}" if work and comparison.unit else ""
        share = f"{flops / wall / peak_rate:.0%}" if flops and peak_rate else ""
        memory = f"{measured.facts['memory'] / 2**30:.2f}"
        rows.append([subject.name, f"{wall:.3g}", f"{cpu:.3g}", rate, *ratios, share, memory])
    lines = [f"### {comparison.title}", "", *markdown_table(header, rows)]
    tokens = [m.facts["tokens"] for m in found.values() if "tokens" in m.facts]
    if len(tokens) > 1:
        same = all(other == tokens[0] for other in tokens)
        lines += ["", f"All subjects found {'the same' if same else 'DIFFERENT'} tokens."]
    return lines


def _write(
    output: pathlib.Path,
    lines: Sequence[str],
    found: Sequence[tuple[Comparison, dict[str, Measured]]],
) -> None:
    write_text(output / "benchmarks.md", "\n".join(lines))
    raw = {
        comparison.title: {name: dataclasses.asdict(one) for name, one in measured.items()}
        for comparison, measured in found
    }
    write_json(output / "results.json", {"versions": versions(), "results": raw})
    _draw(output / "benchmarks.png", found)


def _machine() -> str:
    """One line about the machine and the versions."""
    info = pathlib.Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
    cpu = names[0].partition(":")[2].strip() if names else platform.processor()
    found = []
    for name in ("jax", "flax", "torch", "transformers"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found.append(f"{name} {importlib.metadata.version(name)}")
    packages = ", ".join(found)
    return f"{cpu}, {os.cpu_count()} cores; Python {platform.python_version()}, {packages}"


def _draw(path: pathlib.Path, found: Sequence[tuple[Comparison, dict[str, Measured]]]) -> None:
    """Draws the ratios of each comparison with their ranges."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        len(found), 1, figsize=(8, 1 + 1.6 * len(found)), squeeze=False, layout="constrained"
    )
    for axis, (comparison, measured) in zip(axes[:, 0], found, strict=True):
        reference = measured[comparison.subjects[0].name]
        shown = {
            name: one.ratio(reference)
            for name, one in measured.items()
            if name != "matrix products" and not one.error and not reference.error
        }
        medians = [ratio.median for ratio in shown.values()]
        ranges = [
            [ratio.median - ratio.low for ratio in shown.values()],
            [ratio.high - ratio.median for ratio in shown.values()],
        ]
        axis.barh(list(shown), medians, xerr=ranges, height=0.6)
        axis.invert_yaxis()
        axis.set_title(f"{comparison.title}: times as fast", loc="left", fontsize=9)
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    command_line.start(main)
