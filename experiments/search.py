"""Searches hyper-parameters: every trial is trained under the same budget and measured.

  python -m experiments.search --config=configs/searches/optimizer.py:gpt --workdir=runs/search

The sampler is a grid, random, or Optuna's TPE (`pip install -e '.[search]'`). What is done is kept,
and the same command goes on; a larger `--config.trials` adds to it.
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
    # After the flags: importing it takes seconds.
    from lmjax.lab.search import flags, search, shown

    command = shlex.join(["python", "-m", "experiments.search", *sys.argv[1:]])
    found = search(config, workdir, command)
    names = list(found[0].fields)
    table = Table("trial", *names, config.measure, title=f"{len(found)} trials, the best first")
    for f in found[:_SHOWN]:
        table.add_row(str(f.number), *(shown(f.fields[name]) for name in names), shown(f.value))
    Console(width=120).print(table)
    print(f"The best: {flags(found[0])}")
    print(f"All: {workdir}/trials.csv, {workdir}/best.json")


if __name__ == "__main__":
    command_line.start(main)
