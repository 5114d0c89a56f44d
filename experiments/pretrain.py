"""Pretrains one objective, or continues the run in --workdir.

python -m experiments.pretrain --config=configs/bert.py:tiny --workdir=runs/bert
"""

import json

from experiments import command_line


def main() -> None:
    config, workdir = command_line.config(), command_line.workdir()
    from lmjax.training.loop import pretrain  # after the flags: importing it takes seconds

    name = config.objective.type.rsplit(".", 1)[-1] if "objective" in config else ""
    result = pretrain(config, workdir, name)
    held_out = [line for line in result.records if line["split"] == "validation"]
    for line in (held_out[0], held_out[-1]) if len(held_out) > 1 else held_out:
        numbers = {k: round(v, 4) for k, v in line.items() if k not in ("time", "split")}
        print(f"held-out: {json.dumps(numbers)}")
    print(f"{result.parameters:,} parameters; everything about the run is in {workdir}")


if __name__ == "__main__":
    command_line.start(main)
