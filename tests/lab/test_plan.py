"""An ablation's config: what it means, and what is refused before anything is trained."""

import importlib
import pathlib
from typing import Any

import pytest
from ml_collections import ConfigDict

from lmjax.configuration import overlaid
from lmjax.errors import ConfigError
from lmjax.lab.budget import Budget, flops_per_step, tokens_per_step
from lmjax.lab.plan import AblationConfig, read_ablation
from lmjax.lab.sequential import Sequential
from lmjax.overrides import with_overrides
from tests.lab import small

CONFIGS = pathlib.Path(__file__).parents[2] / "configs" / "ablations"
SHIPPED = sorted({p.stem for p in CONFIGS.glob("*.py")} - {"__init__", "recipe"})


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ConfigDict:
    return small.config(tmp_path_factory.mktemp("ablation"))


def test_changes_are_laid_over_block_by_block() -> None:
    base = {"a": {"type": "x", "b": 1}, "c": {"d": 1, "e": {"f": 2}}}
    changes = {"a": {"type": "y", "g": 2}, "c": {"e": {"f": 3}}, "h": 4}
    expected = {"a": {"type": "y", "g": 2}, "c": {"d": 1, "e": {"f": 3}}, "h": 4}
    assert overlaid(base, changes) == expected
    assert base["c"] == {"d": 1, "e": {"f": 2}}


@pytest.mark.parametrize("size", ["tiny", "small", "base"])
@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_configs_can_work(name: str, size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file = importlib.import_module(f"configs.ablations.{name}")
    # Reading docstrings would take longer than all else.
    monkeypatch.setattr("lmjax.lab.measures.FineTuning.check", lambda self: None)
    ablation = read_ablation(file.get_config(size))
    assert ablation.base == next(iter(ablation.variants))
    assert ablation.name == name
    assert "blimp" not in ablation.measures  # no pairs were named
    assert "classification" in ablation.measures


def test_a_config_is_read_whole(config: ConfigDict) -> None:
    ablation = read_ablation(config)
    assert ablation.seeds == (0, 1)
    assert list(ablation.variants) == ["causal", "blanks"]
    assert list(ablation.measures) == ["blimp", "classification", "loss", "norm"]
    blanks = ablation.variants["blanks"].config
    assert blanks.objective.to_dict() == {"type": "tests.objectives.outside.BlankedLM"}
    assert blanks.training == ablation.variants["causal"].config.training
    described = ablation.described("python")
    assert described["measures"][0] == {
        "name": "blimp", "description": "BLiMP", "direction": "higher", "percent": True,
        "note": "A pair whose sentences have equal scores counts half.",
    }  # fmt: skip
    assert described["measures"][2]["direction"] == "lower"
    assert described["budget"] == "8 steps"
    assert described["published"] is None
    assert described["sequential"] is None


def test_a_rule_sets_the_seeds(config: ConfigDict) -> None:
    values = config.to_dict()
    del values["seeds"]
    rule = {"sequential.measure": "loss", "sequential.looks": "3,5,8"}
    made = ConfigDict(with_overrides(AblationConfig, values, rule))
    ablation = read_ablation(made)
    assert ablation.seeds == tuple(range(8))
    assert ablation.sequential == Sequential("loss", (3, 5, 8), "obrien_fleming")
    made.sequential.looks = (5, 3)
    with pytest.raises(ConfigError, match=r"config\.sequential.*looks: must be two or more"):
        read_ablation(made)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("base", "cause", r"config\.base: 'cause' is not one of the variants blanks, causal"),
        ("seeds", 0, r"config\.seeds: must be at least 1"),
        ("budget.amount", 0.0, r"config\.budget\.amount: must be positive"),
        ("budget.unit", "hours", r"config\.budget\.unit: 'hours' is not one of"),
        ("variants.blanks.changes", {"training": {"stpes": 3}}, r"variants\.blanks, .*stpes"),
        ("variants.blanks.changes", 3, r"variants\.blanks\.changes: expected a block"),
        ("measures.loss.type", "lmjax.lab.budget.Budget", r"measures\.loss\.type: .* is no"),
        ("measures.norm.order", 3, r"config\.measures\.norm: order: must be 1 or 2, got 3"),
        ("measures.norm.odrer", 3, r"measures\.norm\.odrer: unknown field of Norm; did you mean"),
        ("measures.blimp.data", "nowhere.jsonl", r"config\.measures\.blimp: .*nowhere"),
        (
            "measures.classification.config.data.train",
            "no.jsonl",
            r"measures\.classification: .*no",
        ),
        (
            "scaling",
            {"measure": "losses", "over": "flops", "source": "x", "exponent": -0.1},
            r"config\.scaling\.measure: 'losses' is not one of",
        ),
        (
            "sequential",
            {"measure": "losses", "looks": (3, 5)},
            r"config\.sequential\.measure: 'losses' is not one of blimp",
        ),
        (
            "sequential",
            {"measure": "loss", "looks": (3, 5)},
            r"config\.seeds: the looks of config\.sequential set the seeds",
        ),
        (
            "published",
            {"source": "x", "measure": "y", "direction": "higher", "compare_to": "z", "values": {}},
            r"config\.published\.compare_to: 'z' is not one of blimp",
        ),
    ],
)
def test_what_cannot_work_is_refused(
    config: ConfigDict, field: str, value: Any, message: str
) -> None:
    broken = ConfigDict(config.to_dict())
    *path, last = field.split(".")
    block = broken
    for name in path:
        block = block[name]
    with broken.unlocked(), block.unlocked():
        if last in block:
            del block[last]
        block[last] = value
    with pytest.raises(ConfigError, match=message):
        read_ablation(broken)


def test_budgets_pay_for_steps(config: ConfigDict, tmp_path: pathlib.Path) -> None:
    run = read_ablation(config).variants["causal"].config
    tokens, flops = tokens_per_step(run), flops_per_step(run)
    assert tokens == 4 * 32  # packed rows have no padding
    # By hand: 6 per weight of the layer and the table, and the two products of attention.
    weights = 4 * 16 * 16 + 2 * 16 * 32 + 16 * 100
    assert flops == pytest.approx(3 * 4 * 32 * (2 * weights + 4 * 32 * 16), rel=0.05)
    assert Budget("tokens", 1280.0).steps(run, tmp_path) == 10
    assert Budget("flops", 7 * flops).steps(run, tmp_path) == 7
    assert Budget("steps", 3.0).steps(run, tmp_path) == 3
    assert Budget("seconds", 2.0).steps(run, tmp_path / "timing") > 2
    assert not (tmp_path / "timing").exists()


def test_readme_shows_this_very_ablation() -> None:
    source = (pathlib.Path(__file__).parent / "outside.py").read_text()
    readme = (pathlib.Path(__file__).parents[2] / "README.md").read_text()
    assert source in readme
