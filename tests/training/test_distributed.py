"""Two real processes as one run, over the loopback."""

import os
import pathlib
import signal
import socket
import subprocess
import time
from typing import Any

import numpy as np
import pytest

from lmjax.errors import ConfigError
from lmjax.training.multihost import HEARTBEAT, initialize, launcher
from lmjax.training.run_directory import read_metrics
from tests.runs import begin, config, write_text

Pair = list["subprocess.Popen[str]"]


def short(place: pathlib.Path, steps: int) -> dict[str, Any]:
    """XLNet with its memory, on all devices of all processes."""
    made = config(write_text(place / "text.txt"))
    made["training"] |= {"steps": steps, "checkpoint_every": 10, "max_loss_rise": 0.0}
    return made | {"mesh": {"data": -1}}


def begin_both(settings: dict[str, Any], place: pathlib.Path) -> Pair:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    flags = f"--coordinator=localhost:{port}", "--processes=2"
    return [begin(settings, place, *flags, f"--process={i}", devices=2) for i in range(2)]


def ends(both: Pair, code: int, within: float) -> list[str]:
    """What the processes say, when each has ended in time with this code."""
    said = [child.communicate(timeout=within)[1] for child in both]
    assert [child.returncode for child in both] == [code] * len(both), said
    return said


def losses(place: pathlib.Path) -> list[float]:
    return [record["loss"] for record in read_metrics(place / "run")]


def saved_steps(place: pathlib.Path) -> list[int]:
    names = [path.name for path in (place / "run" / "checkpoints").iterdir()]
    return sorted(int(name) for name in names if name.isdigit())


def wait_for(place: pathlib.Path, step: int, both: Pair) -> None:
    while not (place / "run" / "checkpoints" / str(step)).exists():
        assert all(child.poll() is None for child in both), [c.communicate() for c in both]
        time.sleep(0.01)


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: pathlib.Path) -> None:
    settings = short(tmp_path, 20)
    alone = tmp_path / "alone"
    ends([begin(settings, alone, devices=1)], 0, 200)
    ends(begin_both(settings, tmp_path), 0, 200)
    assert len(losses(alone)) == 6
    np.testing.assert_allclose(losses(tmp_path), losses(alone), rtol=1e-5)


@pytest.mark.slow
def test_what_one_process_has_saved_two_continue_and_the_other_way_round(
    tmp_path: pathlib.Path,
) -> None:
    settings = short(tmp_path, 20)
    alone = tmp_path / "alone"
    ends([begin(settings, alone, devices=1)], 0, 200)
    ends(begin_both(settings, tmp_path), 0, 200)
    longer = settings | {"training": settings["training"] | {"steps": 40}}
    ends(begin_both(longer, alone), 0, 200)
    ends([begin(longer, tmp_path, devices=1)], 0, 200)
    np.testing.assert_allclose(losses(tmp_path), losses(alone), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_when_one_process_is_killed_the_other_says_so_and_ends(
    killed: int, tmp_path: pathlib.Path
) -> None:
    settings = short(tmp_path, 5_000)
    both = begin_both(settings, tmp_path)
    wait_for(tmp_path, 20, both)
    both[killed].kill()
    said = both[1 - killed].communicate(timeout=2 * HEARTBEAT + 30)[1]
    assert both[1 - killed].returncode in (75, -signal.SIGABRT)
    if both[1 - killed].returncode == 75:
        assert "another process was lost or cannot be reached" in said
    else:
        assert "This most likely indicates that another task died" in said
    # Its checkpoint is whole: both begin again there, and SIGTERM to one stops both.
    step = saved_steps(tmp_path)[-1]
    assert step >= 20
    both = begin_both(settings, tmp_path)
    wait_for(tmp_path, step + 20, both)
    both[killed].send_signal(signal.SIGTERM)
    told = ends(both, 75, 60)
    step = saved_steps(tmp_path)[-1]
    assert all(f"error: step {step}: received SIGTERM; saved a" in said for said in told)


@pytest.mark.slow
def test_processes_find_each_other_through_slurm(tmp_path: pathlib.Path) -> None:
    settings = short(tmp_path, 10)
    # The port follows from the job's id.
    slurm = {
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": "2",
        "SLURM_STEP_NUM_NODES": "1",
    }
    both = [
        begin(settings, tmp_path, devices=1, SLURM_PROCID=f"{i}", SLURM_LOCALID=f"{i}", **slurm)
        for i in range(2)
    ]
    ends(both, 0, 200)
    assert len(losses(tmp_path)) == 4


def test_launchers_are_known_by_their_variables() -> None:
    slurm = dict.fromkeys(
        ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID"), "1"
    )
    assert launcher({}) is None
    assert launcher(slurm) is None
    assert launcher(slurm | {"SLURM_NTASKS": "1"}) is None, "srun of one task is no cluster"
    assert launcher(slurm | {"SLURM_NTASKS": "4"}) == "SLURM"
    mpi = {"OMPI_MCA_orte_hnp_uri": "1;tcp://10.0.0.1:1", "OMPI_COMM_WORLD_SIZE": "2"}
    assert launcher(mpi) == "Open MPI"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("localhost", 2, 0), "--coordinator: 'localhost' is not HOST:PORT"),
        (("localhost:x", 2, 0), "--coordinator: 'localhost:x' is not HOST:PORT"),
        (("localhost:1", 0, 0), "--process: 0 of --processes=0"),
        (("localhost:1", 2, 2), "--process: 2 of --processes=2; give 0 to processes - 1"),
        (("localhost:1", 2, -1), "--process: -1 of"),
        (("", 2, 0), "--processes: needs --coordinator=HOST:PORT"),
        (("auto", 2, 0), "--processes: needs --coordinator=HOST:PORT"),
    ],
)
def test_what_does_not_go_together_is_refused(
    arguments: tuple[str, int, int], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        initialize(*arguments)
