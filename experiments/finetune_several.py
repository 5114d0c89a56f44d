"""Fine-tunes a pretrained model on several tasks: one shared encoder, one head per task.

  python -m experiments.finetune_several --config=configs/finetune/multitask.py \
      --config.init=runs/bert --workdir=runs/several

Prints each task's scores and simple baselines, as `experiments.finetune` does. Rerun the same
command to resume an interrupted run.
"""

import pathlib

from rich.console import Console

from experiments import command_line
from experiments.finetune import WIDTH, show_scores


def main() -> None:
    config, workdir = command_line.config(), pathlib.Path(command_line.workdir())
    # Imported after the flags are parsed: this takes seconds.
    from lmjax.tasks.finetuning import note_lines
    from lmjax.tasks.multitask import finetune_several, prepare_several

    prepared = prepare_several(config)
    console = Console(width=WIDTH)
    for name, one in prepared.items():
        lines = note_lines(one)
        for line in [f"{name}:", *lines] if lines else []:
            console.print(line, markup=False, highlight=False)
    results = finetune_several(prepared, config, workdir)
    for name, one in prepared.items():
        show_scores(console, one, {"fine-tuned": [results[name]]}, workdir / name, f"{name}: ")
    console.print(
        f"Each task has a directory in {workdir} with predictions.jsonl, report.md and model/."
        f" Open it with lmjax.load('{workdir / name}').",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


if __name__ == "__main__":
    command_line.start(main)
