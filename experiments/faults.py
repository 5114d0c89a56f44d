"""Kills a run at random moments until it finishes, and compares it with an undisturbed run.

  python -m experiments.faults --workdir=/tmp/faults --kills=30

A small XLNet with memory, moving average, dropout and evaluation trains in a process of its own.
Then the same run is killed by SIGKILL `--kills` times, every third time while it saves, and stopped
by SIGTERM a third as often. Other runs have a full disk, a truncated checkpoint or a read-only
directory, for which the program must be allowed to mount a tmpfs. In the end every number in the
last checkpoint and in metrics.jsonl must equal that of the undisturbed run. After SIGTERM only the
checkpoint is compared, because SIGTERM ends an interval of metrics.jsonl early.
"""

import contextlib
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from orbax.checkpoint import v1 as ocp

from experiments import command_line
from lmjax.progress import track
from lmjax.tables import markdown_table
from lmjax.training.run_directory import read_metrics

KILLS = flags.DEFINE_integer("kills", 30, "How often the run is killed.")
SEED = flags.DEFINE_integer("seed", 0, "Seed of the random moments.")
STEPS = flags.DEFINE_integer("steps", 3_000, "Steps of the run; use enough for all kills.")

CLOCK = ("time", "tokens_per_second", "flops_per_second")
SETTINGS = {
    "model.trunk.hidden_size": 32,
    "model.trunk.intermediate_size": 64,
    "model.trunk.dropout": 0.1,
    "training.batch_size": 8,
    "training.log_every": 10,
    "training.eval_every": 100,
    "training.eval_batches": 2,
    "training.checkpoint_every": 10,
}


class Fault(AssertionError):
    """A run did not recover correctly."""


def main() -> None:
    place = pathlib.Path(command_line.workdir())
    place.mkdir(parents=True, exist_ok=True)
    started = time.time()
    peace = place / "peace"
    finish(peace)
    rows = [("undisturbed", f"{STEPS.value} steps", "")]
    for name, number, times in (
        ("SIGKILL", signal.SIGKILL, KILLS.value),
        ("SIGTERM", signal.SIGTERM, max(1, KILLS.value // 3)),
    ):
        run = place / name
        rows.append((name, disturb(run, name, number, times), same(run, peace, name != "SIGTERM")))
    for name, scenario in (
        ("full disk", full_disk),
        ("read-only directory", read_only),
        ("truncated checkpoint", truncated),
    ):
        run = place / name.replace(" ", "-")
        rows.append((name, scenario(run), same(run, peace)))
    columns = ("fault", "result", "all numbers equal")
    print(*markdown_table(columns, rows, "l"), sep="\n")
    print(f"{time.time() - started:.0f} seconds")


def begin(run: pathlib.Path) -> "subprocess.Popen[str]":
    """Starts the run as a process, with stderr redirected to a file."""
    overrides = [f"--config.{field}={value}" for field, value in SETTINGS.items()]
    overrides.append(f"--config.training.steps={STEPS.value}")
    place = pathlib.Path(command_line.workdir())
    environment = {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(place / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    program = [sys.executable, "-m", "experiments.pretrain", "--config=configs/quickstart.py:xlnet"]
    with (place / "said.log").open("w") as log:
        return subprocess.Popen(
            [*program, f"--workdir={run}", *overrides],
            env=os.environ | environment,
            stdout=subprocess.DEVNULL,
            stderr=log,
            text=True,
        )


def said() -> str:
    """Returns the error message of the latest process."""
    lines = (pathlib.Path(command_line.workdir()) / "said.log").read_text().strip().splitlines()
    return next((line for line in lines if line.startswith("error: ")), "nothing")


def finish(run: pathlib.Path) -> None:
    """Runs until the end."""
    if begin(run).wait():
        raise Fault(f"{run}: {said()}")


def fails(run: pathlib.Path, code: int, message: str) -> str:
    """Checks that the run fails with a clear error; returns the message."""
    found = begin(run).wait()
    if found != code or message not in said():
        raise Fault(f"{run}: exit code {found}, expected {code}; message: {said()}")
    return message


def disturb(run: pathlib.Path, name: str, number: int, times: int) -> str:
    """Sends the signal at random moments of `times` processes, then lets the run finish."""
    moments = random.Random(SEED.value)
    steps, saving, done = [], 0, 0
    for life in track(range(times), f"{name} at random moments", times):
        child = begin(run)
        while child.poll() is None and not saves(run):
            time.sleep(0.001)
        time.sleep(moments.uniform(0.0, 2.0))
        if life % 3 == 0:
            while child.poll() is None and not saves(run):
                time.sleep(0.0002)
            time.sleep(moments.uniform(0.0, 0.02))
        elif life % 3 == 1:
            # Also at any time during startup.
            child.kill()
            child.wait()
            child = begin(run)
            time.sleep(moments.uniform(0.0, 10.0))
        saving += saves(run)
        child.send_signal(number)
        code = child.wait()
        done += code in (-signal.SIGKILL, 75)
        if code not in (-signal.SIGKILL, 75, -signal.SIGTERM, 0):
            raise Fault(f"{run}: exit code {code}: {said()}")
        steps.append(latest(run))
    finish(run)
    met = f"{done} times, {saving} of them during a save, at steps {min(steps)} to {max(steps)}"
    if steps[-1] >= STEPS.value:
        met += " (the run finished before the last one: increase --steps)"
    return met


def saves(run: pathlib.Path) -> bool:
    """Whether a checkpoint is being written."""
    folder = run / "checkpoints"
    return folder.is_dir() and any("tmp" in path.name for path in folder.iterdir())


def latest(run: pathlib.Path) -> int:
    """Returns the step of the latest complete checkpoint."""
    folder = run / "checkpoints"
    found = [int(path.name) for path in folder.iterdir() if path.name.isdigit()]
    return max(found, default=0)


@contextlib.contextmanager
def small_disk(place: pathlib.Path, mebibytes: int) -> Iterator[None]:
    place.mkdir(parents=True, exist_ok=True)
    mount(place, "-t", "tmpfs", "-o", f"size={mebibytes}m")
    try:
        yield
    finally:
        subprocess.run(["umount", str(place)], check=True)


def mount(place: pathlib.Path, *options: str) -> None:
    subprocess.run(["mount", *options, "tmpfs", str(place)], check=True)


def full_disk(run: pathlib.Path) -> str:
    """Four MiB fit one checkpoint but not three."""
    disk = run.parent / "disk"
    with small_disk(disk, 4):
        inside = disk / "run"
        met = fails(inside, 4, "No space left on device")
        if (kept := latest(inside)) == 0:
            raise Fault(f"{run}: no checkpoint survived")
        mount(disk, "-o", "remount,size=100m")
        finish(inside)
        shutil.copytree(inside, run)
    return f'"{met}", step {kept} is kept; resumes with more space'


def read_only(run: pathlib.Path) -> str:
    disk = run.parent / "disk"
    with small_disk(disk, 100):
        inside = disk / "run"
        child = begin(inside)
        while not saves(inside):
            time.sleep(0.01)
        child.kill()
        child.wait()
        mount(disk, "-o", "remount,ro")
        met = fails(inside, 2, "is not writable")
        mount(disk, "-o", "remount,rw")
        finish(inside)
        shutil.copytree(inside, run)
    return f'"{met}"; resumes once writable'


def truncated(run: pathlib.Path) -> str:
    """Truncates the largest file of the latest checkpoint."""
    child = begin(run)
    while not (run / "checkpoints").is_dir() or latest(run) < 20:
        time.sleep(0.01)
    child.kill()
    child.wait()
    newest = run / "checkpoints" / str(latest(run))
    files = [path for path in newest.rglob("*") if path.is_file()]
    file = max(files, key=lambda path: path.stat().st_size)
    os.truncate(file, file.stat().st_size // 2)
    met = fails(run, 4, "move it away and rerun the same command to resume from step")
    newest.rename(run / "damaged")
    finish(run)
    return f'"cannot be read (...); {met} ..."; resumes once moved away'


def same(run: pathlib.Path, peace: pathlib.Path, logs_too: bool = True) -> str:
    """Returns 'yes', or raises Fault with the first difference."""
    ours, theirs = state(run), state(peace)
    if ours.keys() != theirs.keys():
        raise Fault(f"{run}: other tensors")
    for name, array in ours.items():
        if not np.array_equal(array, theirs[name]):
            raise Fault(f"{run}: {name} differs")
    logs = [
        [{k: v for k, v in line.items() if k not in CLOCK} for line in read_metrics(path)]
        for path in (run, peace)
    ]
    if logs_too and logs[0] != logs[1]:
        raise Fault(f"{run}: metrics.jsonl differs")
    return "yes"


def state(run: pathlib.Path) -> dict[str, np.ndarray]:
    """Returns all arrays of the last checkpoint by name."""
    warnings.filterwarnings("ignore", "Sharding info not provided")
    stored = ocp.load_checkpointables(run / "checkpoints" / str(STEPS.value))["state"]
    keys = jax.dtypes.prng_key
    return {
        name: np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, keys) else x)
        for name, x in stored.items()
    }


if __name__ == "__main__":
    command_line.start(main)
