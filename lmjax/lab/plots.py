"""Plots of runs as PNG, and reproducible SVG plots for reports."""

import io
import pathlib
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lmjax.lab.results import Results
from lmjax.lab.statistics import interval

# Text is not converted to paths, to keep files small; a fixed salt makes ids reproducible.
_STYLE: Any = {"svg.fonttype": "none", "svg.hashsalt": "lmjax", "font.size": 9, "axes.grid": True}
_STYLE |= {"grid.color": "0.9", "axes.spines.top": False, "axes.spines.right": False}
_BESIDE: Any = {"frameon": False, "loc": "upper left", "bbox_to_anchor": (1.0, 1.0)}


def plot_curves(
    path: str | pathlib.Path,
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    xlabel: str,
    ylabel: str,
    baselines: Mapping[str, float] = types.MappingProxyType({}),
) -> None:
    """Plots named curves to a PNG file.

    Args:
      path: the target file.
      curves: name -> (x, y) of equal length.
      xlabel: label of x with its unit.
      ylabel: label of y with its unit.
      baselines: name -> level of a dashed line; a baseline with the name of a curve has its color.
    """
    # Avoids pyplot, whose global figures would outlive the call. Imported here because it is slow.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    colors = {}
    for name, (x, y) in curves.items():
        (line,) = axes.plot(x, y, label=name, linewidth=1.8)
        colors[name] = line.get_color()
    for name, level in baselines.items():
        label = None if name in curves else name
        color = colors.get(name, "0.4")
        axes.axhline(level, linestyle="--", linewidth=1.1, color=color, label=label)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.grid(True, color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False)
    figure.savefig(str(path), dpi=150)


def curves(results: Results) -> str | None:
    """Plots mean held-out loss over tokens with 95% intervals; None without finished cells."""
    if not results.done:
        return None

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        for name, cells in results.cells.items():
            if not cells:
                continue
            # All seeds of a variant are evaluated at the same steps. Skips the untrained model.
            tokens = np.mean([cell["curve"]["tokens"][1:] for cell in cells.values()], axis=0)
            losses = np.array([cell["curve"]["loss"][1:] for cell in cells.values()])
            (line,) = axes.plot(tokens, losses.mean(0), label=name, linewidth=1.6)
            if len(cells) > 1:
                bands = [interval(column) for column in losses.T.tolist()]
                low, high = [b.low for b in bands], [b.high for b in bands]
                axes.fill_between(tokens, low, high, color=line.get_color(), alpha=0.15, lw=0)
        axes.set_xlabel("tokens read")
        axes.set_ylabel("held-out loss, nats")
        axes.legend(**_BESIDE)

    return _svg((7.4, 3.8), draw)


def costs(results: Results) -> str | None:
    """Plots each measure over the FLOPs of pretraining; None if all variants cost the same."""
    points: dict[str, list[tuple[str, float, Any]]] = {}
    for measure in results.measures:
        for name, cells in results.cells.items():
            flops = [cell["cost"]["flops"] for cell in cells.values()]
            found = results.interval(name, measure["name"])
            if found is not None and flops and None not in flops:
                points.setdefault(measure["name"], []).append((name, flops[0], found))
    if len({flops for listed in points.values() for _, flops, _ in listed}) < 2:
        return None

    def draw(figure: Any) -> None:
        panels = figure.subplots(1, len(points), squeeze=False)[0]
        shown = [measure for measure in results.measures if measure["name"] in points]
        for axes, measure in zip(panels, shown, strict=True):
            scale = 100.0 if measure["percent"] else 1.0
            for name, flops, found in points[measure["name"]]:
                error = (found.high - found.mean) * scale if found.count > 1 else 0.0
                axes.errorbar(
                    flops, found.mean * scale, yerr=error, marker="o", capsize=3, label=name
                )
            axes.set_xlabel("FLOPs of pretraining")
            axes.set_ylabel(measure["description"] + (", %" if measure["percent"] else ""))
        panels[-1].legend(**_BESIDE)

    return _svg((3.2 * len(points) + 1.6, 3.2), draw)


def _svg(size: tuple[float, float], draw: Callable[[Any], None]) -> str:
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return file.getvalue()
