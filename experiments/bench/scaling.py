"""Time per token of a training step against length, depth and width, beside `transformers`."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.bench import peers, train
from experiments.bench.rounds import Comparison, Measured
from lmjax.tables import markdown_table

TRUNK = {"layers": 4, "hidden_size": 256, "heads": 4}
TOKENS, LENGTH = 2048, 128
AXES: dict[str, Sequence[int]] = {
    "length": (128, 256, 512, 1024, 2048, 4096, 8192),
    "layers": (2, 4, 8, 16, 24),
    "hidden_size": (128, 256, 512, 1024),
}


def comparisons(objectives: list[str], dtype: str, points: int = 0) -> list[Comparison]:
    """One comparison per objective, axis and value; a step has at least `TOKENS` tokens.

    Args:
      points: number of values of each axis; 0 = all.
    """
    found = []
    for objective in objectives:
        for axis, values in AXES.items():
            for value in values[: points or None]:
                title, settings = f"{objective}, {axis} {value}", _settings(objective, axis, value)
                found.append(train.compared(title, peers.variants(dtype)[-1:], dtype, settings))
    return found


def _settings(objective: str, axis: str, value: int) -> dict[str, Any]:
    size, length = dict(TRUNK), LENGTH
    if axis == "length":
        length = value
    else:
        size[axis] = value
        size["heads"] = size["hidden_size"] // 64
    return {
        "objective": objective,
        "size": size,
        "batch": max(1, TOKENS // length),
        "length": length,
        "vocab_size": 8192,
    }


def exponents(found: Sequence[tuple[Comparison, Mapping[str, Measured]]]) -> list[str]:
    """Returns a table: for each objective and axis, time per token ~ value^exponent."""
    points: dict[tuple[str, str], dict[str, list[tuple[float, float]]]] = {}
    for comparison, measured in found:
        objective, axis, value = comparison.title.replace(",", "").split(" ")
        for name, one in measured.items():
            if not one.error:
                seconds = float(np.median(one.wall)) / one.facts["work"]
                curve = points.setdefault((objective, axis), {}).setdefault(name, [])
                curve.append((float(value), seconds))
    names = list(dict.fromkeys(name for curves in points.values() for name in curves))
    rows = []
    for (objective, axis), curves in points.items():
        cells = []
        for name in names:
            x, y = np.log(np.array(curves.get(name, []))).reshape(-1, 2).T
            cells.append(f"{np.polyfit(x, y, 1)[0]:.2f}" if len(x) > 1 else "")
        rows.append([objective, axis, *cells])
    return markdown_table(["objective", "axis", *names], rows, "ll" + "r" * len(names))
