"""Configs in which a field has a value that nobody means, and what becomes of them."""

import copy
import math
import resource
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from lmjax.errors import ConfigError

VALUES: list[Any] = [
    *(math.nan, math.inf, -math.inf, -1.0, 0.0, 0.5, 1.0, 1e-300, 1e-30, 1e30, 1e300),
    *(-(2**31) - 1, -1, 0, 1, 3, 2**15, 2**31 - 1, 2**31, 2**40, 10**400, 10**5000),
    *("", "x", "x\n" * 50, "lmjax.errors.ConfigError", None, True, False),
    *([], [1], [math.nan], {}, {"x": 1}),
]
SECONDS = 5.0  # that reading a config may take
GROWTH = 400 << 20  # bytes that reading all of them may take


def mutations(config: Mapping[str, Any]) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """(field, odd value, config with it), for every field and block."""
    for field in list(_fields(config)):
        *blocks, name = field.split(".")
        for value in VALUES:
            made = copy.deepcopy(dict(config))
            block = made
            for part in blocks:
                block = block[part]
            if type(block[name]) is type(value) and block[name] == value:
                continue
            block[name] = value
            yield field, value, made


def _fields(block: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in block.items():
        yield f"{prefix}{name}"
        if isinstance(value, Mapping):
            yield from _fields(value, f"{prefix}{name}.")


Mutation = tuple[str, Any, dict[str, Any]]


def accepted(
    read: Callable[[ConfigDict], Any], mutated: Iterator[Mutation]
) -> tuple[list[Mutation], int]:
    """The mutated configs that are accepted, and how many there were.

    All others are refused by a ConfigError of one line, at once and without memory.
    """
    taken, count = [], 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for field, value, config in mutated:
        count += 1
        began = time.monotonic()
        try:
            read(ConfigDict(config))
        except ConfigError as error:
            assert "\n" not in str(error), (field, value, error)
            assert str(error).startswith("config."), (field, value, error)
        except Exception as error:
            raise AssertionError(f"{field} = {value!r}: {error!r}") from error
        else:
            taken.append((field, value, config))
        seconds = time.monotonic() - began
        assert seconds < SECONDS, f"{field} = {value!r}: {seconds:.0f} s"
    growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    assert growth < GROWTH, f"{growth:,} bytes"
    return taken, count
