"""Searches hyperparameters: every trial is trained with the same budget and measured.

  python -m experiments.search --config=configs/searches/optimizer.py:gpt --workdir=runs/search

The sampler is a grid, random, or Optuna's TPE (`pip install -e '.[search]'`). Finished trials are
kept; rerun the same command to resume. A larger `--config.trials` adds trials.
"""

import shlex
import sys

from rich.console import Console
from rich.table import Table

from experiments import command_line

_SHOWN = 10


def main() -> None:
    workdir = command_line.workdir()
    config = command_line.config()
    # Imported after the flags are parsed: this takes seconds.
    from lmjax.lab.search import flags, search, shown

    command = shlex.join(["python", "-m", "experiments.search", *sys.argv[1:]])
    found = search(config, workdir, command)
    names = list(found[0].fields)
    table = Table("trial", *names, config.measure, title=f"{len(found)} trials, best first")
    for f in found[:_SHOWN]:
        table.add_row(str(f.number), *(shown(f.fields[name]) for name in names), shown(f.value))
    Console(width=120).print(table)
    print(f"The best: {flags(found[0])}")
    print(f"All: {workdir}/trials.csv, {workdir}/best.json")


if __name__ == "__main__":
    command_line.start(main)
