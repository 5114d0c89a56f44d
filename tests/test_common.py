"""What every room shares: tables, optional dependencies, atomic files, names of leaves."""

import json
import pathlib

import jax.numpy as jnp
import optax
import pytest

from lmjax.atomic import write_json, write_text
from lmjax.errors import ConfigError
from lmjax.extras import installed, require
from lmjax.tables import markdown_table
from lmjax.trees import map_named, names_of


def test_tables_are_markdown() -> None:
    assert markdown_table(["", "a"], [["x|y", "1"], ["two\nlines", ""]]) == [
        "|  | a |",
        "| --- | ---: |",
        "| x\\|y | 1 |",
        "| two lines |  |",
    ]
    assert markdown_table(["a", "b"], [], "r")[1] == "| ---: | ---: |"
    assert markdown_table(["a", "b"], [], "rl")[1] == "| ---: | --- |"


def test_a_missing_extra_is_named() -> None:
    assert installed("json") and not installed("no_such_package")
    assert require("json.decoder", "eval", "x").JSONDecoder is json.JSONDecoder
    message = r"field: a score needs no_such_package, .*; pip install 'lmjax\[eval\]'$"
    with pytest.raises(ConfigError, match=message):
        require("no_such_package.part", "eval", "field: a score")


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "file.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "\ud800")
    assert json.loads(path.read_text()) == {"a": 1}
    write_json(path, {"a": pathlib.Path("b")}, default=str)
    assert json.loads(path.read_text()) == {"a": "b"}
    assert list(tmp_path.iterdir()) == [path]


def test_leaves_have_names() -> None:
    params = {"encoder": {"kernel": jnp.zeros(2)}, "head": [jnp.zeros(1), jnp.ones(1)]}
    named = map_named(lambda names, leaf: "/".join(names), params)
    assert named == {"encoder": {"kernel": "encoder/kernel"}, "head": ["head/0", "head/1"]}
    found: list[tuple[str, ...]] = []
    map_named(lambda names, leaf: found.append(names), optax.adam(1.0).init(params))
    assert ("0", "mu", "encoder", "kernel") in found
    assert names_of(()) == ()
