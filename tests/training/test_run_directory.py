"""Run directories, metrics files that survive a crash, progress and plots."""

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import jax.numpy as jnp
import ml_collections
import pytest

from lmjax.configuration import Block
from lmjax.errors import ConfigError
from lmjax.training import monitor
from lmjax.training.monitor import TrainingProgress
from lmjax.training.run_directory import (
    MetricsWriter,
    RunDirectory,
    read_metrics,
)


@dataclasses.dataclass(frozen=True)
class Trunk:
    layers: int
    dropout: float = 0.1
    sizes: tuple[int, ...] = (1, 2)


@dataclasses.dataclass(frozen=True)
class Model:
    trunk: Trunk


@dataclasses.dataclass(frozen=True)
class Objective:
    rate: float


@dataclasses.dataclass(frozen=True)
class Training:
    steps: int


@dataclasses.dataclass(frozen=True)
class Kind:
    """What the config becomes."""

    MAY_CHANGE: ClassVar[tuple[str, ...]] = ("training.steps",)

    objective: Annotated[Mapping[str, Any], Block()]
    model: Model
    training: Training
    seed: int = 0


def make_config(**changes):
    config = ml_collections.ConfigDict(
        {
            "seed": 0,
            "objective": {"type": f"{__name__}.Objective", "rate": 0.15},
            "model": {"trunk": {"layers": 2, "sizes": (1, 2)}},
            "training": {"steps": 10},
        }
    )
    config.update_from_flattened_dict(changes)
    return config


def contents(path):
    return {file.name: file.read_bytes() for file in path.iterdir() if file.is_file()}


def begin(path, config, work="checkpoints/1", kind=None):
    """What a run leaves that has begun, and saved or written something."""
    run = RunDirectory(path, config, kind)
    run.claim()
    if work:
        (run.path / work).mkdir(parents=True, exist_ok=True)
    return run


def test_writes_config_and_versions_once_all_is_checked(tmp_path):
    run = RunDirectory(tmp_path / "a" / "run", make_config())
    assert not (tmp_path / "a").exists()
    run.claim()
    config = json.loads((run.path / "config.json").read_text())
    assert config["model"]["trunk"] == {"layers": 2, "sizes": [1, 2]}
    versions = json.loads((run.path / "versions.json").read_text())
    assert versions["jax"] and versions["device_count"] >= 1 and "git_commit" in versions


def test_a_directory_is_made_for_a_run_that_begins_alone(tmp_path):
    run = RunDirectory(tmp_path / "a" / "run", make_config())
    with pytest.raises(ZeroDivisionError), run.locked():
        assert run.path.is_dir()
        raise ZeroDivisionError
    assert not (tmp_path / "a").exists()
    with run.locked():
        run.claim()
    assert (run.path / "config.json").exists()
    (tmp_path / "mine").mkdir()
    with RunDirectory(tmp_path / "mine" / "run", make_config()).locked():
        pass
    assert list((tmp_path / "mine").iterdir()) == []


def test_continues_its_own_config_only(tmp_path):
    begin(tmp_path, make_config())
    RunDirectory(tmp_path, make_config())
    before = contents(tmp_path)
    other = make_config(**{"model.trunk.layers": 3, "objective.rate": 0.2, "seed": 1})
    with pytest.raises(ConfigError) as caught:
        RunDirectory(tmp_path, other)
    message = str(caught.value)
    assert "config.model.trunk.layers: 3, was 2" in message and "config.seed: 1" in message
    assert "another --workdir" in message and "\n" not in message
    assert contents(tmp_path) == before
    with pytest.raises(ConfigError, match=r"config\.training\.steps: 20, was 10"):
        RunDirectory(tmp_path, make_config(**{"training.steps": 20}))
    longer = make_config(**{"training.steps": 20})
    RunDirectory(tmp_path, longer, Kind).claim()
    assert json.loads((tmp_path / "config.json").read_text())["training"]["steps"] == 20


def test_a_config_that_states_a_default_equals_one_that_does_not(tmp_path):
    begin(tmp_path, make_config())  # as runs were stored that state what their config file states
    RunDirectory(tmp_path, make_config(), Kind).claim()
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored["model"]["trunk"] == {"layers": 2, "dropout": 0.1, "sizes": [1, 2]}
    stating = make_config()
    stating.model.trunk.dropout = 0.1
    RunDirectory(tmp_path, stating, Kind)
    stating.model.trunk.dropout = 0.0
    with pytest.raises(ConfigError, match=r"config\.model\.trunk\.dropout: 0\.0, was 0\.1"):
        RunDirectory(tmp_path, stating, Kind)
    # A class that only the stored config names is not imported.
    stored["objective"]["type"] = "no.such.module.Objective"
    (tmp_path / "config.json").write_text(json.dumps(stored))
    with pytest.raises(ConfigError, match=r"config\.objective\.type: .*no\.such\.module"):
        RunDirectory(tmp_path, make_config(), Kind)


def test_a_run_that_failed_before_its_first_step_keeps_no_directory(tmp_path):
    other = make_config(seed=1)
    begin(tmp_path, make_config(), work="checkpoints")
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text('{"step": 0, "split": "validation", "loss": 1.0}\n')
    RunDirectory(tmp_path, other)
    with metrics.open("a") as file:
        file.write('{"step": 1, "split": "train", "loss": 1.0}\n')
    with pytest.raises(ConfigError, match=r"config\.seed: 1, was 0"):
        RunDirectory(tmp_path, other)
    metrics.write_text("lost\n" + metrics.read_text())
    with pytest.raises(ConfigError, match=r"metrics\.jsonl:1: not JSON"):
        RunDirectory(tmp_path, other)


def test_names_three_of_many_differences(tmp_path):
    begin(tmp_path, ml_collections.ConfigDict({"a": 1, "b": 1, "c": 1, "d": 1, "e": 1}))
    with pytest.raises(ConfigError, match=r"config\.c: 2, was 1 and 2 more") as caught:
        RunDirectory(tmp_path, ml_collections.ConfigDict({"a": 2, "b": 2, "c": 2, "d": 2}))
    assert "config.d" not in str(caught.value)


def test_unusable_directories(tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    for path in (file, file / "below"):
        with pytest.raises(ConfigError, match="--workdir"):
            RunDirectory(path, make_config())
    assert file.read_text() == "mine"
    (tmp_path / "foreign" / "checkpoints").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"holds checkpoints but no config\.json"):
        RunDirectory(tmp_path / "foreign", make_config())
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "config.json").write_text('{"seed"')
    with pytest.raises(ConfigError, match="is not JSON"):
        RunDirectory(tmp_path / "torn", make_config())


@pytest.mark.skipif(os.geteuid() == 0, reason="everything is writable to root")
def test_read_only_directory(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigError, match="not writable"):
        RunDirectory(tmp_path, make_config())


def test_metrics_round_trip(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(1, {"loss": jnp.float32(2.5), "tokens": 7})
        writer.write(1, {"loss": 3}, split="validation")
        writer.write(2, {"loss": float("nan")})
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)  # strict JSON: no NaN
    lines = read_metrics(tmp_path)
    assert [(line["step"], line["split"]) for line in lines] == [
        (1, "train"),
        (1, "validation"),
        (2, "train"),
    ]
    assert lines[0]["loss"] == 2.5 and lines[0]["tokens"] == 7 and math.isnan(lines[2]["loss"])
    assert any(file.name.startswith("events") for file in tmp_path.iterdir())


def test_a_crash_leaves_each_step_once(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        for step in range(1, 6):
            writer.write(step, {"loss": float(step)})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "los')  # killed in the middle of a line
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3, 4, 5]
    with MetricsWriter(tmp_path, step=3) as writer:
        for step in range(4, 8):
            writer.write(step, {"loss": 10.0 * step})
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6, 7]
    assert [line["loss"] for line in lines] == [1, 2, 3, 40, 50, 60, 70]
    with MetricsWriter(tmp_path):  # killed before its first checkpoint: from the beginning
        pass
    assert read_metrics(tmp_path) == []


def test_a_broken_line_in_the_middle_is_an_error(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"ste\n{"step": 3}\n')
    with pytest.raises(ValueError):
        read_metrics(tmp_path)


def test_progress_without_a_terminal_is_a_line_now_and_then(capsys, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(monitor.time, "monotonic", lambda: clock[0])
    with TrainingProgress(100, "masked", start=20) as progress:
        for step in range(21, 101):
            clock[0] += 1.0
            progress.update(step, loss=5.0, tokens_per_second=12345.0)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "masked: step 35/100  loss 5.0000  12,345 tokens/s  0:01:05 left"
    assert len(lines) == 6 and lines[-1].startswith("masked: step 100/100")


def test_progress_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    with TrainingProgress(4, "causal") as progress:
        progress.update(4, loss=1.25, tokens_per_second=10.0)
    shown = capsys.readouterr().err
    assert "causal" in shown and "4/4" in shown and "loss 1.2500" in shown
