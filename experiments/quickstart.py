"""Pretrains the four objectives in turn and shows samples of their predictions.

  python -m experiments.quickstart

Takes about 8 minutes on two CPU cores. Rerun the command to resume an interrupted run, or to show
the results of a finished one again.
"""

import math
import pathlib
import textwrap
from collections.abc import Iterator
from typing import Any

import jax
from absl import flags
from rich.console import Console
from rich.table import Table

from configs.quickstart import OBJECTIVES, get_config
from experiments import command_line
from lmjax.convert.pretrained import Pretrained
from lmjax.evaluation import samples as looks
from lmjax.generation.api import generate
from lmjax.lab.plots import plot_curves
from lmjax.objectives.causal import CausalLM
from lmjax.objectives.masked import MaskedLM
from lmjax.objectives.permuted import PermutedLM
from lmjax.objectives.rtd import ReplacedTokenDetection
from lmjax.tables import markdown_table
from lmjax.training.loop import Result, pretrain

STEPS = flags.DEFINE_integer("steps", None, "Steps per objective; default: the config's.", 1)
COLUMNS = (
    "objective",
    "parameters",
    "tokens seen",
    "held-out at start",
    "at end",
    "unigram on the same targets",
    "tokens/s",
)
WIDTH = 100


def main() -> None:
    workdir = pathlib.Path(command_line.WORKDIR.value or "runs/quickstart")
    console = Console(width=WIDTH)
    results = {}
    for i, name in enumerate(OBJECTIVES, start=1):
        config = get_config(name)
        if STEPS.value is not None:
            config.training.steps = STEPS.value
        title = f"{name} ({i}/{len(OBJECTIVES)})"
        results[name] = pretrain(config, workdir / name, title)
    plot(results, workdir / "curves.png")
    for name, result in results.items():
        console.rule(name)
        for line in samples(result):
            console.print(textwrap.fill(line, WIDTH - 2), markup=False, highlight=False)
            console.print()
    rows = [row for name, result in results.items() for row in table_rows(name, result)]
    console.print(rich_table(rows))
    (workdir / "table.md").write_text("\n".join(markdown_table(COLUMNS, rows)) + "\n")
    console.print(
        "Losses are in nats per target, on held-out text. Targets differ between rows,\n"
        "so compare each loss with the unigram score in the same row.\n"
        f"Curves: {workdir / 'curves.png'}   table: {workdir / 'table.md'}   runs: {workdir}/*",
        markup=False,
        highlight=False,
    )


def table_rows(name: str, result: Result) -> Iterator[tuple[str, ...]]:
    """Yields the row of an objective, and a second one for ELECTRA's discriminator."""
    train = [r for r in result.records if r["split"] == "train"]
    held_out = [r for r in result.records if r["split"] == "validation"]
    rates = sorted(r["tokens_per_second"] for r in train)
    term = result.objective.headline
    start, end = held_out[0], held_out[-1]
    yield (
        f"{name} generator" if "rtd" in end else name,
        f"{result.parameters:,}",
        f"{sum(r['tokens'] for r in train):,.0f}",
        f"{start[term]:.3f}",
        f"{end[term]:.3f}",
        f"{end['unigram']:.3f}",
        f"{rates[len(rates) // 2]:,.0f}",
    )
    if "rtd" in end:
        p = end["replaced"]
        guess = -p * math.log(p) - (1 - p) * math.log(1 - p)
        yield (
            f"{name} discriminator",
            "",
            "",
            f"{start['rtd']:.3f}",
            f"{end['rtd']:.3f}",
            f"{guess:.3f} (given that {p:.0%} are replaced)",
            "",
        )


def rich_table(rows: list[tuple[str, ...]]) -> Table:
    table = Table(*COLUMNS)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        table.add_row(*row)
    return table


def plot(results: dict[str, Result], path: pathlib.Path) -> None:
    """Plots the held-out loss of each objective over tokens; dashed: its unigram score."""
    curves, levels = {}, {}
    for name, result in results.items():
        term = result.objective.headline
        label = f"{name} ({term})"
        seen, x, y = 0.0, [], []
        for record in result.records:
            if record["split"] == "train":
                seen += record["tokens"]
            else:
                x.append(seen / 1e6)
                y.append(record[term])
                levels[label] = record["unigram"]
        curves[label] = (x, y)
    plot_curves(
        path,
        curves,
        xlabel="tokens seen (millions)",
        ylabel="held-out loss (nats per target); dashed: unigram",
        baselines=levels,
    )


def samples(result: Result) -> list[str]:
    """Returns samples of the model's predictions, for reading."""
    objective, tokenizer, key = result.objective, result.tokenizer, jax.random.key(1)
    batch: dict[str, Any] = {name: array[:2] for name, array in result.batch.items()}
    if isinstance(objective, CausalLM):
        prompts = ["returns the", "raises an error if"]
        model = Pretrained(objective.network, result.params, tokenizer)
        found = generate(model, prompts, temperature=0.8, max_new_tokens=60, seed=1)
        return [prompt + new.text for prompt, new in zip(prompts, found, strict=True)]
    if isinstance(objective, MaskedLM):
        return [
            "Masked tokens as [original=prediction], or [original] if correct:",
            *looks.fill_masks(objective, result.params, batch, tokenizer, key),
        ]
    if isinstance(objective, PermutedLM):
        return [
            "Targets sampled in a random factorization order, as [place:original=sample]:",
            *looks.complete_in_order(objective, result.params, batch, tokenizer, key),
        ]
    assert isinstance(objective, ReplacedTokenDetection)
    return [
        "Tokens replaced by the generator, and whether the discriminator found them:",
        *looks.find_replaced(objective, result.params, batch, tokenizer, key),
    ]


if __name__ == "__main__":
    command_line.start(main)
