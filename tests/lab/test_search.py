"""Searches: what is drawn, that a killed one goes on to the same, and what is refused."""

import csv
import fcntl
import json
import pathlib
from typing import Any

import pytest
from ml_collections import ConfigDict

from configs.searches import optimizer
from lmjax.errors import ConfigError
from lmjax.lab import search as module
from lmjax.lab.search import Found, flags, read_search, search
from lmjax.training.monitor import DivergedError
from tests.lab import small

pytest.importorskip("optuna", reason="optuna is not installed")

RATES = {"optimizer": {"learning_rate": {"low": 1e-4, "high": 1e-1, "log": True}}}
GRID = {
    "optimizer": {"learning_rate": {"choices": [1e-3, 1e-2]}},
    "model": {"trunk": {"norm": {"choices": ["pre", "post"]}}},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The small ablation as a search, measured by its held-out loss alone."""
    made = small.config(tmp_path_factory.mktemp("search")).to_dict()
    del made["base"], made["variants"]
    made["measures"] = {"loss": made["measures"]["loss"]}
    return {**made, "seeds": 1, "measure": "loss", "trials": 3, "seed": 0}


def config(base: dict[str, Any], space: Any = None, sampler: str = "random", **changes: Any) -> Any:
    return ConfigDict(
        {**base, "space": RATES if space is None else space, "sampler": sampler, **changes}
    )


def valued(values: Any, number: int, fields: Any, place: pathlib.Path, command: str) -> float:
    """In place of training: best at a learning rate of 0.01, and without a final norm."""
    rate = fields["optimizer.learning_rate"]
    return abs(rate - 0.01) + (fields.get("model.trunk.norm") == "pre")


def test_a_grid_is_tried_whole(
    base: dict[str, Any], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_run", valued)
    found = search(config(base, GRID, "grid", trials=9), tmp_path / "run", "")
    tried = {(f.fields["optimizer.learning_rate"], f.fields["model.trunk.norm"]) for f in found}
    assert len(found) == 4 and tried == {(r, n) for r in (1e-3, 1e-2) for n in ("pre", "post")}
    assert [f.value for f in found] == sorted(f.value for f in found)
    best = json.loads((tmp_path / "run" / "best.json").read_text())
    assert best == {
        "value": 0.0, "fields": {"optimizer.learning_rate": 1e-2, "model.trunk.norm": "post"},
    }  # fmt: skip
    with (tmp_path / "run" / "trials.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 4


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_a_killed_search_goes_on_to_the_same_trials(
    sampler: str, base: dict[str, Any], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_run", valued)
    wanted = config(base, sampler=sampler, trials=14)
    whole = search(wanted, tmp_path / "whole", "")
    assert len({f.value for f in whole}) == 14
    asked: list[Any] = []

    def killed(values: Any, number: int, fields: Any, *rest: Any) -> float:
        asked.append((number, fields))
        if len(asked) in (3, 8):
            raise KeyboardInterrupt
        return valued(values, number, fields, *rest)

    monkeypatch.setattr(module, "_run", killed)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            search(wanted, tmp_path / "killed", "")
    assert search(wanted, tmp_path / "killed", "") == whole
    assert asked[2] == asked[3] and asked[7] == asked[8]
    longer = search(config(base, sampler=sampler, trials=15), tmp_path / "killed", "")
    assert len(longer) == 15 and len(asked) == 17


def test_a_trial_that_diverges_is_passed_over(
    base: dict[str, Any], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverging(values: Any, number: int, *rest: Any) -> float:
        if number in diverged:
            raise DivergedError(3, [2], "the loss is not finite", "")
        return valued(values, number, *rest)

    monkeypatch.setattr(module, "_run", diverging)
    diverged = {1}
    found = search(config(base), tmp_path / "run", "")
    assert sorted(f.number for f in found) == [0, 2]
    diverged = {0, 1, 2}
    with pytest.raises(ConfigError, match=r"config\.space: all 3 trials diverged"):
        search(config(base), tmp_path / "other", "")


def test_two_processes_do_not_search_in_one_directory(
    base: dict[str, Any], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_run", valued)
    (tmp_path / "run").mkdir()
    with (tmp_path / "run" / ".lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match=r"--workdir: '.*run' is in use by another process"):
            search(config(base), tmp_path / "run", "")
    assert len(search(config(base), tmp_path / "run", "")) == 3


def test_trials_are_trained(base: dict[str, Any], tmp_path: pathlib.Path) -> None:
    found = search(config(base, trials=2), tmp_path / "run", "python")
    assert len({f.value for f in found}) == 2
    for f in found:
        place = tmp_path / "run" / "trials" / str(f.number)
        (result,) = place.glob("cells/trial/seed*/result.json")
        assert json.loads(result.read_text())["measures"]["loss"] == f.value
        rate = f.fields["optimizer.learning_rate"]
        trained = json.loads((result.parent / "config.json").read_text())
        assert trained["optimizer"]["learning_rate"] == rate
        described = json.loads((place / "ablation.json").read_text())
        assert described["variants"]["trial"]["description"] == f"learning_rate {rate:.4g}"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"space": {}}, r"config\.space: empty"),
        ({"space": {"optimizer": 3}}, r"config\.space\.optimizer: expected"),
        ({"space": {"a": {"low": 1}}}, r"config\.space\.a: 'high'"),
        ({"space": {"a": {"low": 2.0, "high": 1.0}}}, r"config\.space\.a: "),
        ({"space": {"optimizer": {"rate": {"choices": [1.0]}}}}, r"rate"),
        ({"sampler": "bayes"}, r"config\.sampler: 'bayes' is not one of 'grid', 'random', 'tpe'"),
        ({"sampler": "grid"}, r"config\.space\.optimizer\.learning_rate: a grid needs choices"),
        ({"measure": "blimp"}, r"config\.measure: 'blimp' is not one of loss"),
        ({"trials": 0}, r"config\.trials: must be at least 1"),
        ({"trails": 3}, r"trails"),
    ],
)
def test_what_cannot_be_searched_is_refused(
    changes: dict[str, Any], message: str, base: dict[str, Any], tmp_path: pathlib.Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        search(config(base, **changes), tmp_path / "run", "")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("objective", ["bert", "gpt", "xlnet", "electra"])
def test_shipped_searches_can_work(objective: str) -> None:
    ablation = read_search(optimizer.get_config(objective))
    assert ablation.measures["loss"].direction == "lower"
    # Each end of two ranges, and each of three choices.
    assert len(ablation.variants) == 1 + 1 + 1 + 2


def test_what_is_found_can_be_trained() -> None:
    found = Found(3, {"optimizer.learning_rate": 0.01, "model.trunk.norm": "pre"}, 1.0)
    assert flags(found) == '--config.optimizer.learning_rate=0.01 --config.model.trunk.norm="pre"'
