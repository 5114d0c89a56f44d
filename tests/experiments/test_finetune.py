"""The command as a user gives it: mistakes told in a line, killed and continued, one table."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from lmjax.training.run_directory import read_metrics
from tests.tasks import small

ROOT = pathlib.Path(__file__).resolve().parents[2]
SMALL = [
    "--config.mesh.data=1",
    "--config.model.trunk.layers=1",
    "--config.model.trunk.hidden_size=16",
    "--config.model.trunk.intermediate_size=32",
    "--config.tokenizer.vocab_size=160",
    "--config.task.length=16",
    "--config.training.batch_size=8",
    "--config.training.epochs=4",
    "--config.optimizer.learning_rate=1e-2",
]


def begin(*arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "experiments.finetune",
            "--config=configs/finetune/classification.py",
            *arguments,
        ],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def files(folder: pathlib.Path) -> list[str]:
    return [
        f"--config.data.{split}={small.write_rows(folder / f'{split}.jsonl', rows)}"
        for split, rows in (("train", small.labelled(160)), ("test", small.labelled(40, 1)))
    ]


def test_a_mistake_is_one_line_and_nothing_on_disk(tmp_path: pathlib.Path) -> None:
    child = begin(*files(tmp_path), "--config.task.label=tag", f"--workdir={tmp_path / 'run'}")
    out, error = child.communicate(timeout=60)
    assert child.returncode == 2
    (line,) = error.splitlines()
    assert line.startswith("error: config.data.train: ")
    assert "no column 'tag' (config.task.label; the row has: text, label)" in line
    assert not out
    assert not (tmp_path / "run").exists()


def test_a_second_command_is_refused_while_the_first_lives(tmp_path: pathlib.Path) -> None:
    place = tmp_path / "run"
    place.mkdir()
    first = (
        "import fcntl, time; f = open('.lock', 'w'); fcntl.flock(f, fcntl.LOCK_EX); f.write('me')"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", f"{first}; f.flush(); print(flush=True); time.sleep(600)"],
        cwd=place,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None
    holder.stdout.readline()
    arguments = [*files(tmp_path), *SMALL, "--config.seeds=2", f"--workdir={place}"]
    child = begin(*arguments)
    _, error = child.communicate(timeout=120)
    assert child.returncode == 2
    assert error.startswith(f"error: --workdir: '{place}' is in use by me; wait until it ends")
    assert [path.name for path in place.iterdir()] == [".lock"]
    holder.kill()
    holder.communicate()
    # The lock of a killed process holds nobody up.
    again = begin(*arguments[:-2], "--config.task.label=tag", f"--workdir={place}")
    _, error = again.communicate(timeout=120)
    assert "no column 'tag'" in error


@pytest.mark.slow
def test_a_killed_command_continues_and_prints_one_table(tmp_path: pathlib.Path) -> None:
    arguments = [*files(tmp_path), *SMALL]
    whole = begin(*arguments, f"--workdir={tmp_path / 'whole'}")
    out, error = whole.communicate(timeout=300)
    assert whole.returncode == 0, error
    assert "from scratch" in out
    assert "majority" in out

    place = tmp_path / "killed"
    child = begin(*arguments, f"--workdir={place}")
    while not any((place / "checkpoints").glob("[0-9]*/_CHECKPOINT_METADATA")):
        assert child.poll() is None, child.stderr and child.stderr.read()
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    again = begin(*arguments, f"--workdir={place}")
    _, error = again.communicate(timeout=300)
    assert again.returncode == 0, error
    for name in ("predictions.jsonl", "results.json", "table.md"):
        assert (place / name).read_text() == (tmp_path / "whole" / name).read_text()
    steps = [line["step"] for line in read_metrics(place) if line["split"] == "validation"]
    assert steps == sorted(set(steps))

    first = json.loads((place / "results.json").read_text())["scores"]
    model = place / "model"
    both = begin(
        *arguments,
        f"--config.init={model}",
        "--config.seeds=2",
        "--config.training.epochs=1",
        f"--workdir={tmp_path / 'both'}",
    )
    out, error = both.communicate(timeout=600)
    assert both.returncode == 0, error
    assert "2 seeds" in out
    names = {p.name for p in (tmp_path / "both").iterdir() if p.is_dir()}
    assert {"seed1", "scratch", "scratch-seed1", "model"} <= names
    assert first["accuracy"] > 0.8
