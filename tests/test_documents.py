"""What README, docs and docstrings tell a reader to type is accepted."""

import functools
import pathlib
import re
import shlex
import tomllib
from collections.abc import Iterator

import pytest
from ml_collections import ConfigDict

from experiments.command_line import Opened, open_config
from lmjax.errors import ConfigError
from lmjax.overrides import field_type, with_overrides
from lmjax.training.plan import make_plan

ROOT = pathlib.Path(__file__).resolve().parent.parent


def configs(folder: str, *without: str) -> list[str]:
    files = sorted((ROOT / folder).glob("*.py"))
    return [f"{folder}/{p.name}" for p in files if p.stem not in ("__init__", "recipe", *without)]


PRETRAINING = configs("configs", "adapt", "prompting", "ngram")
# A field that is named without a config is one of all configs of one of these programs.
PROGRAMS = {
    "pretrain": PRETRAINING,
    "finetune": configs("configs/finetune", "multitask"),
    "finetune_several": ["configs/finetune/multitask.py"],
    "ablate": configs("configs/ablations"),
    "search": configs("configs/searches"),
    "evaluate": ["configs/prompting.py"],
    "ngram": ["configs/ngram.py"],
}
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted(p for room in ("lmjax", "experiments", "configs") for p in (ROOT / room).rglob("*.py")),
]
CONFIG = re.compile(r"--config=(configs/\S+?\.py(?::[\w.,-]+)?)(?=[\s`'\"]|$)")
OVERRIDE = re.compile(
    r"""--config\.[a-z_0-9]+(?:\.[a-z_0-9]+)*(?:=(?:'[^']*'|"[^"]*"|[^\s`'",;)]+))?"""
)
BARE = re.compile(r"(?<![-.\w])config\.(?!json)[a-z_]+(?:\.[a-z_]+)+")


def named(path: pathlib.Path) -> Iterator[tuple[str, str]]:
    """(config, override) of all that a document names; '' where it names no config."""
    text = re.sub(r"\\+\n\s*", " ", path.read_text())  # commands over several lines
    text = re.sub(r"(?<!`)`[^`]+`(?!`)", lambda span: " ".join(span[0].split()), text)
    own = str(path.relative_to(ROOT)) if path.is_relative_to(ROOT / "configs") else ""
    for line in text.splitlines():
        config = CONFIG.search(line)
        bare = BARE.findall(line) if path.suffix == ".md" else []
        for override in [*OVERRIDE.findall(line), *bare]:
            if "config.field" not in override and "{" not in override:
                # Those of what several configs share are fields of all of them.
                where = "" if path.stem in ("recipe", "__init__") else own
                yield config[1] if config else where, override.rstrip(".")


FOUND = sorted({(*pair, path.name) for path in DOCUMENTS for pair in named(path)})


@functools.cache
def opened(config: str) -> Opened:
    return open_config(str(ROOT / config), {})


def accepts(config: str, override: str) -> bool:
    field, _, value = override.removeprefix("--").removeprefix("config.").partition("=")
    own = opened(config)
    try:
        field_type(own.kind, own.values, field.split("."))
        # N and WIDTH stand for a number; without a value the field alone is named.
        if value and not value.isupper():
            with_overrides(own.kind, own.values, {field: "".join(shlex.split(value))})
    except ConfigError:
        return False
    return True


@pytest.mark.parametrize(("config", "override", "document"), FOUND)
def test_every_named_field_can_be_set(config: str, override: str, document: str) -> None:
    if config:
        assert accepts(config, override)
        return
    refused = {
        program: [one for one in of if not accepts(one, override)]
        for program, of in PROGRAMS.items()
    }
    assert not all(refused.values()), refused


def test_fields_are_named_at_all() -> None:
    assert len(FOUND) > 60
    assert {document for *_, document in FOUND} > {"README.md", "scale.md", "finetuning.md"}


@pytest.mark.parametrize("config", PRETRAINING)
def test_a_width_is_carried_to_others_as_the_readme_says(config: str) -> None:
    made = ConfigDict(
        open_config(str(ROOT / config), {"model.trunk.base_width": "64", "mesh.data": "1"}).values
    )
    plan = make_plan(made)
    assert plan.optimizer.kernel_share == 64 / plan.objective.model.trunk.hidden_size


def test_every_named_extra_is_there() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    known = set(project["optional-dependencies"])
    for path in DOCUMENTS:
        text = path.read_text()
        named = re.findall(r"(?:\.|lmjax)\[([a-z_]+(?:,[a-z_]+)*)\]['\"]", text)
        required = re.findall(r"require\(\s*[\w\".]+,\s*\"(\w+)\"", text)
        for extras in named + required:
            assert set(extras.split(",")) <= known, f"{path}: {extras}"
