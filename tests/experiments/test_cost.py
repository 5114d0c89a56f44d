"""The costs that the configs' docstrings name are those that the command computes."""

import importlib
import re

import pytest

from experiments.cost import summary

LINE = re.compile(r"^  (\S+) +(\S+ parameters, \S+ tokens, \S+ FLOPs)$", re.MULTILINE)
CONFIGS = {
    name: importlib.import_module(f"configs.{name}")
    for name in ("bert", "roberta", "gpt", "xlnet", "electra", "diffusion")
}
COSTS = [
    (name, size, cost)
    for name, config in CONFIGS.items()
    for size, cost in LINE.findall(config.__doc__ or "")
]


def test_every_config_tells_its_costs() -> None:
    assert {name for name, _, _ in COSTS} == set(CONFIGS)


@pytest.mark.parametrize(("name", "size", "cost"), COSTS)
def test_a_config_costs_what_it_says(name: str, size: str, cost: str) -> None:
    assert summary(CONFIGS[name].get_config(size)) == cost
