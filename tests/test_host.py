"""Settings of the host process: its memory, and the programs that it compiled before."""

import pathlib

import jax.numpy as jnp
import pytest

from lmjax.host import tune_host_memory
from lmjax.training.run_directory import read_metrics
from tests import runs


def test_tuned_memory_still_computes() -> None:
    assert tune_host_memory() in (True, False)
    assert float(jnp.ones((512, 512)).sum()) == 512 * 512


def losses(place: pathlib.Path, cache: pathlib.Path, **variables: str) -> tuple[list[float], str]:
    """The losses of a short run in a process of its own, and what it said."""
    settings = runs.config(runs.write_text(place.parent / "text.txt"))
    settings["training"] |= {"steps": 4, "log_every": 1}
    settings["optimizer"] |= {"warmup_steps": 1}
    child = runs.begin(settings, place, devices=1, LMJAX_CACHE=str(cache), **variables)
    said = child.communicate()[1]
    assert child.returncode == 0, said
    return [line["loss"] for line in read_metrics(place / "run" / "metrics.jsonl")], said


@pytest.mark.slow
def test_a_second_start_compiles_nothing(tmp_path: pathlib.Path) -> None:
    cache = tmp_path / "cache"
    fresh, said = losses(tmp_path / "fresh", cache)
    kept = sorted((cache / "compiled").iterdir())
    assert any("jit_step" in entry.name for entry in kept)
    assert f"compiled programs are kept in {cache / 'compiled'}" in said
    again, _ = losses(tmp_path / "again", cache)
    assert again == fresh
    assert sorted((cache / "compiled").iterdir()) == kept

    for entry in kept:  # as a process leaves it that is killed while it writes
        entry.write_bytes(entry.read_bytes()[:-20])
    torn, said = losses(tmp_path / "torn", cache)
    assert torn == fresh
    assert "Error reading persistent compilation cache entry for 'jit_step'" in said


@pytest.mark.parametrize("how", ["disabled", pytest.param("unwritable", marks=pytest.mark.slow)])
def test_without_a_cache_programs_are_compiled(how: str, tmp_path: pathlib.Path) -> None:
    cache = tmp_path / "cache"
    variables = {}
    if how == "disabled":
        variables["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    else:
        cache.mkdir()
        (cache / "compiled").write_text("not a directory")
    _, said = losses(tmp_path / "run", cache, **variables)
    assert not (cache / "compiled").is_dir()
    assert "compiled programs are kept" not in said
