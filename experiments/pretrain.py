"""Pretrains a model, or resumes the run in --workdir.

  python -m experiments.pretrain --config=configs/bert.py:tiny --workdir=runs/bert

If config.init names a model, training starts from it (configs/adapt.py). --dry_run compiles a step
for other devices, which need not be present, and prints its memory and FLOPs:

  python -m experiments.pretrain --config=configs/gpt.py:xl --config.mesh.fsdp=16 --dry_run=v5e:4x4

--profile=10-12 profiles steps 10 to 12 into WORKDIR/profile, which TensorBoard and XProf show.
"""

import json
import re

from absl import flags

from experiments import command_line
from lmjax.errors import ConfigError

DRY_RUN = flags.DEFINE_string(
    "dry_run",
    "",
    "Compile a step for these devices, print its memory and FLOPs, and stop: 'here', 'cpu:8' or"
    " TPUs such as 'v5e:4x4'. Needs no --workdir and no data.",
)
PROFILE = flags.DEFINE_string(
    "profile", "", "Profile these steps, FIRST-LAST such as 10-12, into the profile/ of --workdir."
)


def main() -> None:
    config = command_line.config()
    if DRY_RUN.value:
        from lmjax.training.memory_estimate import dry_run

        return dry_run(config, DRY_RUN.value)
    workdir = command_line.workdir()
    from lmjax.training.loop import pretrain  # after the flags: importing it takes seconds

    profile = profiled_steps(PROFILE.value)
    warm_start = None
    if config.get("init"):
        from lmjax.convert.warm_start import initialization

        config, warm_start = initialization(config)
    result = pretrain(config, workdir, warm_start=warm_start, profile=profile)
    held_out = [line for line in result.records if line["split"] == "validation"]
    for line in (held_out[0], held_out[-1]) if len(held_out) > 1 else held_out:
        numbers = {k: round(v, 4) for k, v in line.items() if k not in ("time", "split")}
        print(f"held-out: {json.dumps(numbers)}")
    print(f"{result.parameters:,} parameters; everything about the run is in {workdir}")


def profiled_steps(value: str) -> tuple[int, int] | None:
    """Parses a value such as '10-12' to the first and last step; None for ''."""
    if not value:
        return None
    found = re.fullmatch(r"(\d+)-(\d+)", value)
    if found is None:
        raise ConfigError(f"--profile: '{value}' is not FIRST-LAST; write steps such as 10-12")
    return int(found[1]), int(found[2])


if __name__ == "__main__":
    command_line.start(main)
