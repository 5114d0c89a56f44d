"""The report of an ablation: tables with intervals, published results, curves and costs.

Writes report.md with curves.svg and cost.svg, a self-contained report.html, and results.csv. The
report depends only on the results of the cells, so that the same cells give the same bytes.
"""

import csv
import html
import io
import math
import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from markdown_it import MarkdownIt

from lmjax.errors import ConfigError
from lmjax.lab import plots
from lmjax.lab.results import Results, read_results
from lmjax.lab.sequential import Sequential, expected
from lmjax.lab.statistics import (
    LEVEL,
    MOST_SEEDS,
    Difference,
    Interval,
    detectable,
    direction,
    paired,
    power_law,
    seeds_needed,
    significant,
    upper_deviation,
)
from lmjax.tables import markdown_table

_READING = """\
Intervals are 95% confidence intervals of the mean (Student's t). Differences are paired by seed and
tested with a paired t test. p (Holm) is corrected for the number of variants, separately for each
measure, and a difference is significant if it is below 0.05. Both methods assume that seeds are
independent and means normally distributed, which so few seeds cannot show. A seed changes the
initial parameters, the order of the data, the corruption and dropout, but not the held-out text:
whether a difference holds on other text is not tested. "Not significant" does not mean equal; the
interval shows how large a difference could still be. "Detectable" is the true difference that these
tests would find with a probability of at least 80%, for the observed deviation of the differences
and this number of seeds, whatever the other variants do. Few seeds estimate the deviation badly.
"""
_PLANNING = """\
The seeds find the smallest difference with a probability of at least 80% by the report's paired t
test, corrected by Holm's method, whatever the other variants do. They assume the deviation of the
pilot's differences. A pilot of few seeds often underestimates it: the cautious number assumes the
upper limit of its one-sided 80% interval, and suffices for four of five pilots.
"""
_LOOKS = """
The seeds were added by a rule that was fixed in advance. The intervals of differences and both p
values are adjusted for its looks, in all measures (t statistics with alpha spending, and repeated
confidence intervals); those of scores are not.
"""
_CSS = """\
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: 0.2rem 0.8rem; border-bottom: 1px solid #ddd; text-align: left; }
code { overflow-wrap: anywhere; } svg { max-width: 100%; height: auto; }
"""


def write_report(directory: str | pathlib.Path) -> None:
    """Writes the report of the finished cells of an ablation into its directory."""
    place = pathlib.Path(directory)
    results = read_results(place)
    drawn = {"curves.svg": plots.curves(results), "cost.svg": plots.costs(results)}
    images = {name: svg for name, svg in drawn.items() if svg is not None}
    text = as_markdown(results, images)
    for name, content in {
        **images,
        "report.md": text,
        "report.html": _as_html(results.described["name"], text, images),
        "results.csv": _as_csv(results),
    }.items():
        (place / name).write_text(content)


def as_markdown(results: Results, images: Collection[str]) -> str:
    """Formats the report, with links to the plots in `images`."""
    described = results.described
    notes = [f"{m['description']}: {m['note']}" for m in results.measures if m.get("note")]
    parts = [
        f"# {described['name']}: {described['question']}",
        _size(results),
        f"```bash\n{described['command']}\n```",
        f"## Scores\n\n{' '.join(['Means and 95% intervals.', *notes])}\n\n{_scores(results)}",
        f"## Differences to {results.base}\n\n{_differences(results)}",
        _rule(results),
        _published(results),
        _scaling(results),
        f"## Each seed\n\n{_seeds(results)}",
    ]
    if "curves.svg" in images:
        same = (
            "All losses have the same targets."
            if described["comparable_losses"]
            else "Each variant has its own targets; the levels of the losses are not comparable."
        )
        parts.append(f"## Curves\n\n{same} Bands are 95% intervals.\n\n![curves](curves.svg)")
    cost = f"## Cost of a cell's pretraining\n\n{_costs(results)}"
    if "cost.svg" in images:
        cost += "\n\n![scores against FLOPs](cost.svg)"
    reading = f"## How to read it\n\n{_READING}{_LOOKS if results.rule else ''}"
    return "\n\n".join(part for part in [*parts, cost, reading] if part)


def _size(results: Results) -> str:
    described, rule = results.described, results.rule
    seeds = f"up to {rule.looks[-1]}" if rule else f"{len(described['seeds'])}"
    done = f"{results.done} cells" if rule else f"{results.done} of {results.wanted} cells"
    return (
        f"{described['budget']} for each of {len(described['variants'])} variants and {seeds}"
        f" seeds. {done} are done."
    )


def _scores(results: Results) -> str:
    rows = []
    for name, variant in results.described["variants"].items():
        found = [
            _interval(results.interval(name, m["name"]), m["percent"]) for m in results.measures
        ]
        rows.append(
            [f"{name} (base)" if name == results.base else name, variant["description"], *found]
        )
    heads = [_head(m) + (" ↑" if m["direction"] == "higher" else " ↓") for m in results.measures]
    return _table(["variant", "", *heads], rows)


def _differences(results: Results) -> str:
    rows = []
    for m in results.measures:
        tested = results.tested(m["name"])
        for name, (difference, p) in tested.items():
            up = difference.interval.mean > 0
            better = "better" if up == (m["direction"] == "higher") else "worse"
            interval = _interval(difference.interval, m["percent"], signed=True)
            rows.append(
                [
                    _head(m),
                    name,
                    interval,
                    _p(difference.p),
                    _p(p),
                    _detectable(results, difference, len(tested), m["percent"]),
                    better if significant(p) else "not significant",
                ]
            )
    heads = ["measure", "variant", "difference", "p", "p (Holm)", "detectable", ""]
    return _table(heads, rows) if rows else "None yet."


def _detectable(results: Results, difference: Difference, tests: int, percent: bool) -> str:
    """The smallest difference that one of several tests would have found with power 0.8."""
    seeds, level = difference.interval.count, (1 - LEVEL) / tests
    if seeds < 2 or math.isnan(difference.p):
        return ""
    if not difference.varies:
        return "no spread"
    if results.rule:
        level = results.rule.limit(level, results.rule.looks.index(seeds))
    return _number(detectable(difference.deviation, seeds, level), percent)


def _rule(results: Results) -> str:
    """Which look decided each comparison."""
    rule = results.rule
    if rule is None:
        return ""
    m = results.measure(rule.measure)
    looks = ", ".join(map(str, rule.looks))
    kind = {"obrien_fleming": "O'Brien-Fleming", "pocock": "Pocock"}[rule.spending]
    lines = [f"Looks at {looks} seeds, by {_head(m)}, with {kind}-like spending of the error rate."]
    for name, (difference, p) in results.tested(rule.measure).items():
        decided, seeds = significant(p), difference.interval.count
        last = "not decided" if seeds == rule.looks[-1] else "not decided yet"
        lines.append(f"{name}: {'decided' if decided else last} at {seeds} seeds.")
    return f"## Looks\n\n{' '.join(lines)}"


def planned(results: Results, differences: Mapping[str, float], rule: Sequential | None) -> str:
    """Plans the seeds of an ablation whose finished cells are a pilot.

    Args:
      results: of the pilot.
      differences: measure -> the smallest difference of interest, in the unit of its values.
      rule: a sequential rule whose power is wanted, or None.

    Returns:
      A table with the number of seeds that each comparison needs for power 0.8.

    Raises:
      ConfigError: a measure is unknown, a difference is not positive, or the pilot has too few
        seeds or no spread.
    """
    rows = []
    for measure, smallest in differences.items():
        known = [m["name"] for m in results.measures]
        if measure not in known:
            raise ConfigError(f"--plan: '{measure}' is not one of {', '.join(known)}")
        m, base = results.measure(measure), results.base
        # Variants without cells will be tested too; those whose cells have no value will not.
        names = [
            name
            for name, cells in results.cells.items()
            if name != base and (results.values(name, measure) or not cells)
        ]
        if not names:
            raise ConfigError(f"--plan: no variant but {base} has the measure '{measure}'")
        for name in names:
            pairs = results.pairs(name, measure)
            if len(pairs) < 2:
                raise ConfigError(
                    f"--plan: {measure} of {name} and {base} has {len(pairs)} seeds in common; a"
                    " pilot needs at least 2"
                )
            difference = paired(*zip(*pairs.values(), strict=True))
            deviation, level = difference.deviation, (1 - LEVEL) / len(names)
            if math.isnan(difference.p):
                raise ConfigError(f"--plan: {measure} of {name} or {base} is not a finite number")
            if not difference.varies:
                raise ConfigError(
                    f"--plan: {measure} of {name} differs by the same amount from {base} for all"
                    " seeds; without a spread there is nothing to plan"
                )
            likely, cautious = (
                seeds_needed(smallest, x, level)
                for x in (deviation, upper_deviation(deviation, len(pairs)))
            )
            numbers = [_number(x, m["percent"]) for x in (deviation, smallest)]
            row = [_head(m), name, str(len(pairs)), *numbers, _seeds_text(likely)]
            row.append(_seeds_text(cautious))
            if rule:
                outcome = expected(rule, smallest / deviation, level)
                row += [f"{outcome.power:.2f}", f"{outcome.seeds:.1f}"]
            rows.append(row)
    heads = ["measure", "variant", "pilot seeds", "deviation", "smallest difference", "seeds"]
    more = ["power of the rule", "its mean seeds"] if rule else []
    table = _table([*heads, "seeds, cautious", *more], rows)
    return f"{table}\n\n{_PLANNING}"


def _seeds_text(seeds: int | None) -> str:
    return f"over {MOST_SEEDS}" if seeds is None else str(seeds)


def _published(results: Results) -> str:
    paper = results.described["published"]
    if not paper or results.base not in paper["values"]:
        return ""
    m = results.measure(paper["compare_to"])
    sign = 1.0 if m["direction"] == paper["direction"] else -1.0
    rows, same, widest = [], 0, 0.0
    verdicts: dict[str, list[str]] = {"agrees": [], "disagrees": [], "undecided": []}
    for name, (difference, p) in results.tested(m["name"]).items():
        if name not in paper["values"]:
            continue
        value = paper["values"][name]
        there = value - paper["values"][results.base]
        verdict = direction(difference.interval.mean, p, sign * there)
        verdicts[verdict].append(name)
        same += difference.interval.mean * sign * there > 0
        widest = max(widest, abs(difference.interval.low), abs(difference.interval.high))
        here = _interval(difference.interval, m["percent"], signed=True)
        rows.append([name, f"{value:g}", f"{there:+.2g}", here, verdict])
    if not rows:
        return ""
    table = _table(["variant", "paper", "its difference", "difference here", "direction"], rows)
    lines = [f"{same} of {len(rows)} differences have the paper's sign."]
    if verdicts["agrees"]:
        lines.append(f"Significant, and in the paper's direction: {', '.join(verdicts['agrees'])}.")
    if verdicts["disagrees"]:
        lines.append(f"Significant, and against the paper: {', '.join(verdicts['disagrees'])}.")
    if verdicts["undecided"]:
        lines.append(
            f"Undecided at this number of seeds: {', '.join(verdicts['undecided'])}; neither the"
            " paper's direction nor the other is shown."
        )
    if math.isfinite(widest):
        lines.append(
            f"Differences beyond {_number(widest, m['percent'])} lie outside all intervals."
        )
    source = f"{paper['source']}: {paper['measure']}; here: {_head(m)}."
    return f"## Comparison with the paper\n\n{source}\n\n{table}\n\n{' '.join(lines)}"


def _scaling(results: Results) -> str:
    wanted = results.described.get("scaling")
    if not wanted:
        return ""
    points = [
        (cell["cost"][wanted["over"]], cell["measures"][wanted["measure"]])
        for cells in results.cells.values()
        for cell in cells.values()
    ]
    points = [(x, y) for x, y in points if x is not None and y is not None]
    if len({x for x, _ in points}) < 3:
        return "## Scaling\n\nA power law needs three sizes."
    law = power_law(*zip(*points, strict=True))
    over = wanted["over"].replace("_", " ")
    m = results.measure(wanted["measure"])
    inside = "inside" if law.low <= wanted["exponent"] <= law.high else "outside"
    return (
        f"## Scaling\n\n{m['description']} = {law.factor:.4g} * ({over}) ^ {law.exponent:.4f},"
        f" by least squares of the logarithms of {len(points)} cells. The exponent's 95% interval,"
        f" {law.low:.4f} to {law.high:.4f}, assumes independent cells and the law."
        f" {wanted['source']}: {wanted['exponent']:g}, {inside} of it."
    )


def _seeds(results: Results) -> str:
    seeds = results.described["seeds"]
    rows = []
    for m in results.measures:
        for name in results.cells:
            values = results.values(name, m["name"])
            numbers = [_number(values[s], m["percent"]) if s in values else "" for s in seeds]
            rows.append([_head(m), name, *numbers])
    return _table(["measure", "variant", *(f"seed {seed}" for seed in seeds)], rows)


def _costs(results: Results) -> str:
    rows = []
    for name, cells in results.cells.items():
        costs = [cell["cost"] for cell in cells.values()]
        if costs:
            flops = costs[0]["flops"]
            tokens = sum(cost["tokens"] for cost in costs) / len(costs)
            numbers = [f"{costs[0]['parameters']:,}", f"{costs[0]['steps']:,}", f"{tokens:,.0f}"]
            rows.append([name, *numbers, "unknown" if flops is None else f"{flops:.3g}"])
    return _table(["variant", "parameters", "steps", "tokens", "FLOPs"], rows)


def _head(measure: Mapping[str, Any]) -> str:
    return measure["description"] + (", %" if measure["percent"] else "")


def _number(value: float, percent: bool, signed: bool = False) -> str:
    sign = "+" if signed else ""
    return f"{100 * value:{sign}.1f}" if percent else f"{value:{sign}.4g}"


def _interval(found: Interval | None, percent: bool, signed: bool = False) -> str:
    if found is None:
        return "none"
    mean = _number(found.mean, percent, signed)
    if found.count < 2:
        return mean
    low, high = (_number(x, percent, signed) for x in (found.low, found.high))
    return f"{mean} [{low}, {high}]"


def _p(value: float) -> str:
    if math.isnan(value):
        return ""
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(markdown_table(heads, rows, "l"))


def _as_html(title: str, text: str, images: Mapping[str, str]) -> str:
    """Renders the Markdown text as one HTML file with embedded plots."""
    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
    for name, svg in images.items():
        begin = body.index(f'<img src="{name}"')
        end = body.index("/>", begin) + len("/>")
        body = body[:begin] + svg[svg.index("<svg") :] + body[end:]
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>\n{_CSS}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}</body></html>\n'


def _as_csv(results: Results) -> str:
    """Formats one row per cell: variant, seed, measures and costs."""
    file = io.StringIO()
    names = [m["name"] for m in results.measures]
    costs = ["parameters", "steps", "tokens", "flops"]
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["variant", "seed", *names, *costs])
    for variant, cells in results.cells.items():
        for seed, cell in cells.items():
            writer.writerow(
                [variant, seed]
                + [cell["measures"][name] for name in names]
                + [cell["cost"][name] for name in costs]
            )
    return file.getvalue()
