"""Cells: what they leave, how they go on, and refusals."""

import fcntl
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
from typing import Any

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

import lmjax
from lmjax.errors import ConfigError
from lmjax.lab.cells import result_of, run_cells
from lmjax.lab.measures import MinimalPairs
from lmjax.lab.plan import read_ablation
from lmjax.lab.report import write_report
from tests.lab import small
from tests.runs import ROOT

REPORT = ("report.md", "report.html", "results.csv")


def run(config: ConfigDict, place: pathlib.Path, **keywords: Any) -> None:
    run_cells(read_ablation(config), config, place, "python -m experiments.ablate", **keywords)


def results(place: pathlib.Path) -> dict[str, dict[str, Any]]:
    found = sorted(place.glob("cells/*/seed*/result.json"))
    return {str(path.relative_to(place)): json.loads(path.read_text()) for path in found}


def report(place: pathlib.Path) -> dict[str, bytes]:
    write_report(place)
    return {name: (place / name).read_bytes() for name in REPORT}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ConfigDict:
    return small.config(tmp_path_factory.mktemp("ablation"))


@pytest.fixture(scope="module")
def whole(config: ConfigDict, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    place = tmp_path_factory.mktemp("whole") / "run"
    run(config, place)
    return place


def test_every_cell_is_trained_and_measured(whole: pathlib.Path) -> None:
    found = results(whole)
    assert list(found) == [
        f"cells/{name}/seed{seed}/result.json" for name in ("blanks", "causal") for seed in (0, 1)
    ]
    for result in found.values():
        measures = result["measures"]
        assert list(measures) == ["blimp", "classification", "loss", "norm"]
        assert all(0 <= measures[name] <= 1 for name in ("blimp", "classification"))
        assert measures["loss"] == result["curve"]["loss"][-1]
        assert result["curve"]["steps"] == [0, 4, 8]
        assert result["curve"]["tokens"] == [0, 4 * 4 * 32, 8 * 4 * 32]
        assert result["cost"]["steps"] == 8
        assert result["cost"]["tokens"] == 8 * 4 * 32
    losses = [result["measures"]["loss"] for result in found.values()]
    assert len(set(losses)) == 4
    model = lmjax.load(whole / "cells" / "blanks" / "seed1", allow_modules=["tests"])
    sizes = sum(np.size(x) for x in jax.tree.leaves(model.params))
    norm = sum(np.abs(x).sum() for x in jax.tree.leaves(model.params))
    assert found["cells/blanks/seed1/result.json"]["measures"]["norm"] == pytest.approx(norm, 1e-5)
    assert found["cells/blanks/seed1/result.json"]["cost"]["parameters"] == sizes
    assert found["cells/causal/seed0/result.json"]["curve"]["flops"][-1] > 0
    assert found["cells/blanks/seed0/result.json"]["curve"]["flops"] is None  # it does not say


def test_a_directory_of_an_earlier_version_resumes(
    config: ConfigDict, whole: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    place = pathlib.Path(shutil.copytree(whole, tmp_path / "run"))
    before = results(place)
    kept = json.loads((place / "config.json").read_text()) | {"seeds_together": True}
    older = json.loads(json.dumps(kept))
    for variant in older["variants"].values():
        variant["says"] = variant.pop("description")
    (place / "config.json").write_text(json.dumps(older))
    run(config, place)
    assert results(place) == before
    with pytest.raises(ConfigError, match=r"config\.seeds_together: .* delete the field"):
        run(ConfigDict(kept), place)


@pytest.mark.slow
def test_an_interrupted_ablation_ends_with_the_same_report(
    config: ConfigDict,
    whole: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    measure, calls = MinimalPairs.measure, []

    def interrupted(self: Any, place: pathlib.Path, name: str, seed: int) -> float | None:
        calls.append(place)
        if len(calls) in (2, 4):  # within the first variant, and within the second
            raise KeyboardInterrupt
        return measure(self, place, name, seed)

    monkeypatch.setattr(MinimalPairs, "measure", interrupted)
    for done in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            run(config, tmp_path / "run")
        assert len(results(tmp_path / "run")) == done
    write_report(tmp_path / "run")  # of what there is
    assert "of 4" in (tmp_path / "run" / "report.md").read_text()
    run(config, tmp_path / "run")
    assert results(tmp_path / "run") == results(whole)
    assert report(tmp_path / "run") == report(whole)


def test_a_variant_that_another_process_is_at_is_left_to_it(
    config: ConfigDict, whole: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    place = tmp_path / "run"
    shutil.copytree(whole, place)
    result_of(place / "cells" / "causal", 0).unlink()
    said: list[str] = []
    with (place / "cells" / "causal" / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        run(config, place, say=said.append)
    assert said == ["causal: another process is working on it"]
    assert len(results(place)) == 3
    run(config, place, say=said.append)
    assert len(said) == 1
    assert results(place) == results(whole)


def test_a_measure_from_outside_is_in_the_report(whole: pathlib.Path) -> None:
    text = report(whole)["report.md"].decode()
    (head,) = (line for line in text.splitlines() if line.startswith("| variant |  |"))
    assert head.endswith("| norm ↓ |")
    difference, _ = (line for line in text.splitlines() if line.startswith("| norm | blanks | "))
    assert difference.split(" | ")[2][0] in "+-"
    cells = {name: cell["measures"]["norm"] for name, cell in results(whole).items()}
    (line,) = (line for line in text.splitlines() if line.startswith("| norm | causal | "))
    assert f"{cells['cells/causal/seed0/result.json']:.4g}" in line


def test_a_variant_that_is_none_is_refused(config: ConfigDict, tmp_path: pathlib.Path) -> None:
    with pytest.raises(ConfigError, match="--only: 'bert' is not one of causal, blanks"):
        run(config, tmp_path / "run", only=["bert"])
    assert not (tmp_path / "run").exists()


def test_another_ablations_directory_is_refused(config: ConfigDict, whole: pathlib.Path) -> None:
    other = ConfigDict(config.to_dict())
    other.pretraining.optimizer.learning_rate = 5e-3
    with pytest.raises(ConfigError, match=r"pretraining\.optimizer\.learning_rate"):
        run(other, whole)


@pytest.fixture(scope="module")
def looking(config: ConfigDict) -> ConfigDict:
    """A rule for known numbers: `sure` differs at the first look, `late` at the second."""
    values = config.to_dict()
    del values["seeds"], values["variants"]["blanks"]
    values["budget"] = {"unit": "steps", "amount": 2.0}
    for name in ("sure", "late"):
        values["variants"][name] = {"description": name, "changes": {}}
    known = {
        "causal": (0.0, 0.1, 0.2),
        "sure": (5.0, 5.1001),
        "late": (0.6, 0.9, 0.9),
    }
    kind = "tests.lab.measure.Known"
    values["measures"] = {"known": {"type": kind, "description": "known", "values": known}}
    values["sequential"] = {"measure": "known", "looks": [2, 3], "spending": "pocock"}
    return ConfigDict(values)


@pytest.fixture(scope="module")
def looked(
    looking: ConfigDict, tmp_path_factory: pytest.TempPathFactory
) -> tuple[pathlib.Path, list[str]]:
    said: list[str] = []
    place = tmp_path_factory.mktemp("looked") / "run"
    run(looking, place, say=said.append)
    return place, said


def test_a_decided_variant_gets_no_more_seeds(looked: tuple[pathlib.Path, list[str]]) -> None:
    place, said = looked
    assert said == ["look at 2 seeds: undecided: late", "look at 3 seeds: undecided: none"]
    seeds = {path.name: len(list(path.glob("seed*"))) for path in place.glob("cells/*")}
    assert seeds == {"causal": 3, "sure": 2, "late": 3}
    text = report(place)["report.md"].decode()
    assert "late: decided at 3 seeds. sure: decided at 2 seeds." in text


def test_an_interrupted_look_continues_with_the_same_decisions(
    looking: ConfigDict, looked: tuple[pathlib.Path, list[str]], tmp_path: pathlib.Path
) -> None:
    place = pathlib.Path(shutil.copytree(looked[0], tmp_path / "run"))
    shutil.rmtree(place / "cells" / "late" / "seed2")
    result_of(place / "cells" / "sure", 1).unlink()
    said: list[str] = []
    with (place / "cells" / "sure" / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        run(looking, place, say=said.append)  # the look cannot end
    assert said == [
        "sure: another process is working on it",
        "look at 2 seeds: not all cells of sure are finished; run the command again when they are",
    ]
    run(looking, place, say=said.append)
    assert said[2:] == looked[1]
    assert report(place) == report(looked[0])


def test_another_rule_is_refused(
    looking: ConfigDict, looked: tuple[pathlib.Path, list[str]]
) -> None:
    for field, value in (("looks", (3, 5)), ("spending", "obrien_fleming")):
        other = ConfigDict(looking.to_dict())
        with other.unlocked():
            other.sequential[field] = value
        with pytest.raises(ConfigError, match=rf"config\.sequential\.{field}: .*another config"):
            run(other, looked[0])
    other = ConfigDict(looking.to_dict())
    del other["sequential"]
    with pytest.raises(ConfigError, match=r"config\.sequential"):
        run(other, looked[0])


@pytest.mark.slow
def test_an_ablation_survives_kill_9(config: ConfigDict, tmp_path: pathlib.Path) -> None:
    file = tmp_path / "config.py"
    file.write_text(
        "from ml_collections import ConfigDict\n"
        f"def get_config():\n    return ConfigDict({config.to_dict()!r})\n"
    )

    def begin(place: str) -> "subprocess.Popen[bytes]":
        (tmp_path / place).mkdir(exist_ok=True)
        return subprocess.Popen(
            [sys.executable, "-m", "experiments.ablate", f"--config={file}", "--workdir=run"],
            cwd=tmp_path / place,
            env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
        )

    assert begin("whole").wait() == 0
    killed = 0
    for _ in range(12):
        child = begin("killed")
        try:
            assert child.wait(timeout=6 + 3 * killed) == 0
            break
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGKILL)
            child.wait()
            killed += 1
            time.sleep(0.1)
    assert killed > 0
    ours, theirs = tmp_path / "killed" / "run", tmp_path / "whole" / "run"
    assert {n: (ours / n).read_bytes() for n in REPORT} == {
        n: (theirs / n).read_bytes() for n in REPORT
    }
