"""Runs an ablation: trains and measures variants times seeds, and writes a report.

  python -m experiments.ablate --config=configs/ablations/four_objectives.py:tiny \
      --workdir=runs/four_objectives

Finished cells are kept; the same command continues an interrupted ablation. It may run in several
processes at once, on machines that share a disk: each takes a variant that no other works on.
--print=commands prints one command per variant, --print=slurm a job array. --report writes the
report of the finished cells in --workdir and needs nothing else. It consists of report.md,
report.html and results.csv. --plan=blimp=0.01 takes the finished cells in --workdir as a pilot, and
prints how many seeds find a difference of 0.01 in the measure `blimp`; with --config, also the
power of that config's sequential rule.
"""

import pathlib
import shlex
import sys

from absl import flags
from rich.console import Console
from rich.markdown import Markdown

from experiments import command_line
from lmjax.errors import ConfigError

ONLY = flags.DEFINE_list("only", [], "Variants to run, separated by commas; all by default.")
PRINT = flags.DEFINE_enum(
    "print", "", ["", "commands", "slurm"], "Print the commands, and run nothing."
)
REPORT = flags.DEFINE_bool(
    "report", False, "Write the report of the finished cells, and run nothing."
)
PLAN = flags.DEFINE_list(
    "plan",
    [],
    "Smallest differences of interest, MEASURE=DIFFERENCE in the unit of results.csv. Prints the"
    " seeds that they need, from the finished cells, and runs nothing.",
)


def main() -> None:
    workdir = pathlib.Path(command_line.workdir())
    if (REPORT.value or PLAN.value) and not (workdir / "ablation.json").exists():
        raise ConfigError(f"--workdir: '{workdir}' holds no ablation.json")
    if PLAN.value:
        _plan(workdir)
        return
    if not REPORT.value:
        config = command_line.config()
        # Imported after the flags are parsed: this takes seconds.
        from lmjax.lab.cells import run_cells
        from lmjax.lab.plan import read_ablation

        ablation = read_ablation(config)
        if PRINT.value:
            names = ONLY.value or list(ablation.variants)
            print("\n".join(as_commands(names) if PRINT.value == "commands" else as_slurm(names)))
            return
        run_cells(ablation, config, workdir, _command(), ONLY.value)
    from lmjax.lab.report import write_report

    write_report(workdir)
    Console(width=120).print(Markdown((workdir / "report.md").read_text()))
    print(f"Report: {workdir / 'report.md'}, {workdir / 'report.html'}, {workdir / 'results.csv'}")


def _plan(workdir: pathlib.Path) -> None:
    from lmjax.lab.plan import read_ablation
    from lmjax.lab.report import planned
    from lmjax.lab.results import read_results

    differences = {}
    for item in PLAN.value:
        measure, _, number = item.partition("=")
        try:
            differences[measure] = float(number)
        except ValueError:
            raise ConfigError(
                f"--plan: '{item}' is not MEASURE=DIFFERENCE, such as blimp=0.01"
            ) from None
    rule = None
    if command_line.CONFIG.value:
        rule = read_ablation(command_line.config()).sequential
    Console(width=120).print(Markdown(planned(read_results(workdir), differences, rule)))


def as_commands(names: list[str]) -> list[str]:
    """One command per variant."""
    return [f"{_command()} --only={name}" for name in names]


def as_slurm(names: list[str]) -> list[str]:
    """A batch script whose array has one task per variant."""
    return [
        "#!/bin/bash",
        f"#SBATCH --job-name=ablation --array=0-{len(names) - 1}",
        "#SBATCH --gpus=1 --signal=TERM@120 --requeue",
        f"variants=({' '.join(names)})",
        f'srun {_command()} --only="${{variants[$SLURM_ARRAY_TASK_ID]}}"',
    ]


def _command() -> str:
    """This command without the flags that only choose what it runs."""
    own = ("--only", "--plan", "--print", "--report")
    given = [a for a in sys.argv[1:] if not a.startswith(own)]
    return shlex.join(["python", "-m", "experiments.ablate", *given])


if __name__ == "__main__":
    command_line.start(main)
