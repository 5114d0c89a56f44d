"""Bad input ends in one line that names the field, exit code 2, and nothing on disk."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
TINY = "--config=configs/bert.py:tiny"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "experiments.pretrain", *arguments]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=configs/bert.py:huge"], "--config: no size 'huge'"),
        (["--config=configs/none.py"], "--config: cannot read 'configs/none.py'"),
        (["--config.training.steps=3"], "config.training.steps"),
        ([TINY, "--config.training.stepz=3"], "config.training.stepz: unknown field"),
        ([TINY, "--config.training.steps=abc"], "config.training.steps: expected int, got 'abc'"),
        ([TINY, "--config.model.trunk.heads=3"], "config.model.trunk.heads: 3 heads"),
        ([TINY, "--config.data.examples.length=1024"], "config.data.examples.length: 1024"),
        ([TINY, "--config.data.corpus=missing.txt"], "config.data.corpus: no such file"),
    ],
)
def test_bad_input(arguments: list[str], message: str, tmp_path: pathlib.Path) -> None:
    workdir = tmp_path / "run"
    found = run(*arguments, f"--workdir={workdir}")
    assert found.returncode == 2
    (line,) = found.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert not found.stdout
    assert not workdir.exists()


def test_text_that_is_not_utf8_and_a_workdir_that_is_a_file(tmp_path: pathlib.Path) -> None:
    text = tmp_path / "latin.txt"
    text.write_bytes(b"caf\xe9 au lait\n")
    found = run(TINY, f"--config.data.corpus={text}", f"--workdir={tmp_path / 'run'}")
    assert found.returncode == 2
    assert "is not UTF-8 at byte 3" in found.stderr
    found = run(TINY, f"--workdir={text}")
    assert found.returncode == 2
    assert "is a file" in found.stderr
    assert text.read_bytes() == b"caf\xe9 au lait\n"
