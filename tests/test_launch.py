"""The SLURM script, with stand-ins for SLURM's own commands."""

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import pytest
import yaml

from lmjax.training.run_directory import read_metrics
from tests.runs import ROOT, config, write_text

SCRIPT = ROOT / "launch" / "slurm.sh"
# Starts two tasks as srun would, and ends with the larger of their codes.
SRUN = """#!/bin/bash
export SLURM_STEP_NODELIST=localhost SLURM_NTASKS=2 SLURM_STEP_NUM_NODES=1
shift
for i in 0 1; do SLURM_PROCID=$i SLURM_LOCALID=$i "$@" & tasks+=($!); done
for task in "${tasks[@]}"; do wait "$task"; code=$?; (( code > worst )) && worst=$code; done
exit "${worst:-0}"
"""
SCONTROL = """#!/bin/bash
echo "$@" >> "$SAID"
"""


def submit(place: pathlib.Path, srun: str, *flags: str) -> tuple[int, str]:
    """Exit code of the script, and what it asked of scontrol."""
    for name, text in (("srun", srun), ("scontrol", SCONTROL)):
        file = place / name
        file.write_text(text)
        file.chmod(0o755)
    said = place / "said"
    here = f"{place}{os.pathsep}{pathlib.Path(sys.executable).parent}"
    environment = os.environ | {
        "PATH": f"{here}{os.pathsep}{os.environ['PATH']}",
        "SLURM_JOB_ID": str(os.getpid()),
        "SAID": str(said),
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "1",
    }
    ended = subprocess.run(["bash", str(SCRIPT), *flags], cwd=ROOT, env=environment, check=False)
    return ended.returncode, said.read_text() if said.exists() else ""


@pytest.mark.parametrize(("code", "again"), [(0, False), (2, False), (3, False), (75, True)])
def test_a_job_is_queued_again_only_when_it_was_preempted(
    code: int, again: bool, tmp_path: pathlib.Path
) -> None:
    found, said = submit(tmp_path, f"#!/bin/bash\nexit {code}\n")
    assert found == code
    assert said == (f"requeue {os.getpid()}\n" if again else "")


@pytest.mark.slow
def test_the_slurm_script_trains_with_two_processes(tmp_path: pathlib.Path) -> None:
    settings: dict[str, Any] = config(write_text(tmp_path / "text.txt"))
    settings["training"] |= {"steps": 10}
    settings["mesh"] = {"data": -1}
    file = tmp_path / "config.py"
    file.write_text(
        "from ml_collections import ConfigDict\n"
        f"def get_config():\n    return ConfigDict({settings!r})\n"
    )
    run = tmp_path / "run"
    assert submit(tmp_path, SRUN, f"--config={file}", f"--workdir={run}") == (0, "")
    assert json.loads((run / "versions.json").read_text())["process_count"] == 2
    assert [line["step"] for line in read_metrics(run)] == [0, 5, 10, 10]


def test_the_jobset_starts_as_many_pods_as_its_processes() -> None:
    jobset = yaml.safe_load((ROOT / "launch" / "jobset.yaml").read_text())
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    (command,) = container["args"]
    assert job["completions"] == job["parallelism"] == 2
    assert "--processes=2 --process=$JOB_COMPLETION_INDEX" in command
    host = f"{jobset['metadata']['name']}-train-0-0.{jobset['metadata']['name']}:8476"
    assert f"--coordinator={host}" in command
