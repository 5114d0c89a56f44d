"""Fine-tunes a pretrained model on several tasks at once: one encoder, a head a task.

  python -m experiments.finetune_several --config=configs/finetune/multitask.py \
      --config.init=runs/bert --workdir=runs/several

Each task's scores stand beside simple rules, as those of `experiments.finetune` do. An
interrupted command continues.
"""

import pathlib

from rich.console import Console

from experiments import command_line
from experiments.finetune import WIDTH, show_scores


def main() -> None:
    config, workdir = command_line.config(), pathlib.Path(command_line.workdir())
    # After the flags: importing it takes seconds.
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
        f"Of each task a directory in {workdir}: predictions.jsonl, report.md, model/."
        f" lmjax.load('{workdir / name}') opens it.",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


if __name__ == "__main__":
    command_line.start(main)
