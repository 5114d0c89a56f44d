"""Fine-tunes a pretrained model on a task, and holds it against simple rules.

  python -m experiments.finetune --config=configs/finetune/classification.py \
      --config.init=runs/bert --workdir=runs/packages

`init` is a run of lmjax or a Hugging Face directory; without one the encoder of `config.model`
is trained from scratch. `--config.compare_scratch=true` trains a random encoder of the same
shape beside it, `--config.seeds=N` takes N seeds of each. An interrupted command continues.
"""

import pathlib
from typing import Any

from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from experiments import command_line

WIDTH = 120


def main() -> None:
    config, workdir = command_line.config(), pathlib.Path(command_line.workdir())
    # After the flags: importing it takes seconds.
    from lmjax.tasks.plan import MAY_CHANGE
    from lmjax.training.reporting import RunDirectory

    # The directories of the other seeds are in that of the first.
    with RunDirectory(workdir, config, MAY_CHANGE).alone():
        finetune_all(config, workdir)


def finetune_all(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Fine-tunes with every seed, and from scratch if the config says so; shows the scores."""
    from lmjax.tasks.finetuning import finetune, note_lines
    from lmjax.tasks.plan import prepare

    prepared = prepare(config)
    console = Console(width=WIDTH)
    for line in note_lines(prepared):
        console.print(line, markup=False, highlight=False)
    kinds = [("pretrained", False)] if config.init else [("from scratch", True)]
    if config.compare_scratch and config.init:
        kinds.append(("from scratch", True))
    scores = {}
    for kind, scratch in kinds:
        found = []
        for i in range(config.seeds):
            seed, parts = config.seed + i, []
            if (kind, scratch) != kinds[0]:
                parts.append("scratch")
            if i:
                parts.append(f"seed{seed}")
            # The first run is the workdir's own; those beside it have directories in it.
            place = workdir / "-".join(parts) if parts else workdir
            title = f"{kind}, seed {seed}"
            result = finetune(prepared, config, place, title, seed=seed, scratch=scratch)
            found.append(result.scores)
        scores[kind] = found
    every = {**scores, **{name: [found] for name, found in prepared.baselines.items()}}
    show_scores(console, prepared, every, workdir / "table.md")
    exported = f"for transformers: {workdir / 'model'}"
    if result.not_exported:
        exported = f"none for transformers ({result.not_exported})"
    console.print(
        f"{result.trained:,} of {result.parameters:,} parameters were trained.\n"
        f"Predictions: {workdir / 'predictions.jsonl'}   mistakes: {workdir / 'report.md'}\n"
        f"Model: lmjax.load('{workdir}'); {exported}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def show_scores(
    console: Console, prepared: Any, scores: Any, path: pathlib.Path, name: str = ""
) -> None:
    """Prints scores, as `table_rows` takes them, of a Prepared task, and writes them to `path`."""
    from lmjax.tasks.finetuning import markdown_table, table_rows

    header, *rows = table_rows(scores)
    count = len(prepared.rows[prepared.scored])
    table = Table(*header, title=f"{name}{count:,} rows of {prepared.scored}")
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        table.add_row(*row)
    console.print(table)
    path.write_text("\n".join(markdown_table(scores)) + "\n")


if __name__ == "__main__":
    command_line.start(main)
