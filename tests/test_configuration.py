"""Configs become dataclasses, or say in one line why not."""

import dataclasses
import re
from typing import Any, Literal

import ml_collections
import pytest

from lmjax.configuration import build, build_typed, resolve
from lmjax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Inner:
    width: int
    rate: float = 0.5

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ConfigError(f"width: must be at least 1, got {self.width}")


@dataclasses.dataclass(frozen=True)
class Outer:
    inner: Inner
    name: str = "a"
    kind: Literal["x", "y"] = "x"
    sizes: tuple[int, ...] = (1,)
    limit: int | None = None
    flag: bool = False
    given: Any = None


GOOD: dict[str, Any] = {"inner": {"width": 3}}


def test_builds_nested_dataclasses_with_defaults() -> None:
    assert build(Outer, GOOD, "config") == Outer(Inner(3))


def test_whole_numbers_are_floats_too_and_lists_are_tuples() -> None:
    built = build(Outer, {"inner": {"width": 3, "rate": 1}, "sizes": [1, 2]}, "config")
    assert built.inner.rate == 1.0
    assert isinstance(built.inner.rate, float)
    assert built.sizes == (1, 2)


def test_given_fields_do_not_come_from_the_config() -> None:
    assert build(Outer, GOOD, "config", given=7).given == 7
    with pytest.raises(ConfigError, match=r"config\.given: unknown"):
        build(Outer, {**GOOD, "given": 1}, "config", given=7)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nmae": "b"}, r"config\.nmae: unknown field of Outer; did you mean 'name'\?"),
        ({"inner": {"widht": 3}}, r"config\.inner\.widht: .*'width'"),
        ({"inner": {}}, r"config\.inner\.width: missing"),
        ({"inner": {"width": 0}}, r"config\.inner\.width: must be at least 1"),
        ({"inner": {"width": 2.0}}, r"config\.inner\.width: expected int, got 2\.0"),
        ({"inner": {"width": True}}, r"config\.inner\.width: expected int"),
        ({"inner": 3}, r"config\.inner: expected a block"),
        ({"name": 3}, r"config\.name: expected str"),
        ({"flag": 1}, r"config\.flag: expected bool"),
        ({"kind": "z"}, r"config\.kind: 'z' is not one of 'x', 'y'"),
        ({"sizes": 3}, r"config\.sizes: expected a tuple"),
        ({"sizes": (1, "b")}, r"config\.sizes\[1\]: expected int"),
        ({"limit": "b"}, r"config\.limit: expected int"),
    ],
)
def test_mistakes_are_told_in_one_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(Outer, {**GOOD, **change}, "config")
    assert re.search(message, str(caught.value))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("block", [None, 3, "a", ["a"]])
def test_what_is_no_block_of_fields_is_refused(block: Any) -> None:
    for read in (lambda: build(Outer, block, "config"), lambda: build_typed(block, "config")):
        with pytest.raises(ConfigError, match="config: expected a block of fields"):
            read()


def test_reads_config_dicts() -> None:
    assert build(Outer, ml_collections.ConfigDict(GOOD), "config") == Outer(Inner(3))


def test_optional_takes_none_and_its_type() -> None:
    assert build(Outer, {**GOOD, "limit": None}, "config").limit is None
    assert build(Outer, {**GOOD, "limit": 3}, "config").limit == 3


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("Name", "no import path"),
        ("..Name", "no import path"),
        ("lmjax.", "no import path"),
        (3, "no import path"),
        ("no.such.module.Name", "cannot import 'no.such.module'"),
        ("lmjax.errors.ConfigErorr", "did you mean 'ConfigError'"),
    ],
)
def test_bad_import_paths(path: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve(path, "config.objective.type")


def test_type_chooses_the_dataclass() -> None:
    mapping = {"type": f"{__name__}.Inner", "width": 2}
    assert build_typed(mapping, "config") == Inner(2)
    with pytest.raises(ConfigError, match="is not a dataclass"):
        build_typed({"type": "lmjax.errors.ConfigError"}, "config")
    with pytest.raises(ConfigError, match=r"config\.type: missing"):
        build_typed({}, "config")
