"""Fine-tunes a pretrained model on a task and compares it with simple baselines.

  python -m experiments.finetune --config=configs/finetune/classification.py \
      --config.init=runs/bert --workdir=runs/packages

`init` is a run of lmjax or a Hugging Face directory; without it, the encoder of `config.model` is
trained from scratch. `--config.compare_scratch=true` also trains a random encoder of the same
shape; `--config.seeds=N` trains N seeds of each. Rerun the same command to resume an interrupted
run.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from experiments import command_line

WIDTH = 120


def main() -> None:
    config, workdir = command_line.config(), pathlib.Path(command_line.workdir())
    # Imported after the flags are parsed: this takes seconds.
    from lmjax.tasks.plan import FinetuneConfig
    from lmjax.training.run_directory import RunDirectory

    # The directories of the other seeds are inside the directory of the first.
    with RunDirectory(workdir, config, FinetuneConfig).locked():
        finetune_all(config, workdir)


def finetune_all(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Fine-tunes with every seed, also from scratch if requested, and shows the scores."""
    from lmjax.configuration import build
    from lmjax.tasks.finetuning import finetune, note_lines, suffix_of
    from lmjax.tasks.plan import FinetuneConfig, prepare

    prepared = prepare(config)
    settings = build(FinetuneConfig, config, "config")
    console = Console(width=WIDTH)
    for line in note_lines(prepared):
        console.print(line, markup=False, highlight=False)
    kinds = [("pretrained", False)] if settings.init else [("from scratch", True)]
    if settings.compare_scratch and settings.init:
        kinds.append(("from scratch", True))
    results: dict[str, list[Any]] = {}
    for kind, scratch in kinds:
        found = results[kind] = []
        for i in range(settings.seeds):
            seed, parts = settings.seed + i, []
            if (kind, scratch) != kinds[0]:
                parts.append("scratch")
            if i:
                parts.append(f"seed{seed}")
            # The first run uses the workdir itself; the others use directories inside it.
            place = workdir / "-".join(parts) if parts else workdir
            title = f"{kind}, seed {seed}"
            found.append(finetune(prepared, config, place, title, seed=seed, scratch=scratch))
    show_scores(console, prepared, results, workdir)
    result = results[kinds[-1][0]][-1]
    exported = f"for transformers: {workdir / 'model'}"
    if result.not_exported:
        exported = f"none for transformers ({result.not_exported})"
    files = [suffix_of(prepared, split) for split in prepared.scored]
    predictions, reports = (
        ", ".join(str(workdir / name.format(suffix)) for suffix in files)
        for name in ("predictions{}.jsonl", "report{}.md")
    )
    console.print(
        f"{result.trained:,} of {result.parameters:,} parameters were trained.\n"
        f"Predictions: {predictions}   mistakes: {reports}\n"
        f"Model: lmjax.load('{workdir}'), python -m experiments.predict --model={workdir};"
        f" {exported}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def show_scores(
    console: Console,
    prepared: Any,
    results: Mapping[str, Sequence[Any]],
    place: pathlib.Path,
    name: str = "",
) -> None:
    """Prints the scores of each set with those of the baselines, and writes them to table.md.

    Args:
      prepared: a Prepared.
      results: name of a row -> the Result of each seed.
      name: a prefix of the title.
    """
    from lmjax.tasks.finetuning import score_table, suffix_of, table_rows

    for split in prepared.scored:
        scores = {line: [r.sets[split].scores for r in found] for line, found in results.items()}
        scores |= {rule: [found] for rule, found in prepared.baselines[split].items()}
        header, *rows = table_rows(scores)
        count = len(prepared.rows[split])
        table = Table(*header, title=f"{name}{count:,} rows of {split}")
        for column in table.columns[1:]:
            column.justify = "right"
        for row in rows:
            table.add_row(*row)
        console.print(table)
        text = "\n".join(score_table(scores)) + "\n"
        (place / f"table{suffix_of(prepared, split)}.md").write_text(text)
    for line, found in results.items():
        for result in found if prepared.task.tunes else ():
            told = "  ".join(f"{key} {value:.4f}" for key, value in result.chosen.items())
            same = " (the scored rows)" if "validation" in prepared.scored else ""
            console.print(f"{line}: selected on validation{same}: {told}", highlight=False)


if __name__ == "__main__":
    command_line.start(main)
