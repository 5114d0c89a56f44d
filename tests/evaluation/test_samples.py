"""What the samples show is what the model was asked and what it answered."""

import functools
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.evaluation.samples import (
    complete_in_order,
    fill_masks,
    find_replaced,
    render,
)
from lmjax.objectives.base import Objective
from lmjax.objectives.factorization import perm_mask
from tests import tiny

ROWS = 4


class Words:
    """A tokenizer whose text shows the ids."""

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(f"w{int(i)}" for i in ids)


@functools.cache
def made(name: str) -> tuple[Any, Any, dict[str, np.ndarray]]:
    objective: Objective = tiny.objective(name)
    batch = tiny.batch(name, 0, rows=ROWS)
    corrupted = jax.vmap(objective.corrupt)(jax.random.split(jax.random.key(0), ROWS), batch)
    return objective, jax.jit(objective.init)(jax.random.key(1), corrupted), batch


def always(params: Any, name: str, token: int) -> Any:
    """Parameters under which `token` is all that is ever predicted."""
    bias = params[name]
    return {**params, name: bias.at[token].set(100.0)}


def original(batch: dict[str, np.ndarray], row: int) -> str:
    real = batch["segment_ids"][row] > 0
    return Words().decode(batch["tokens"][row][real])


def bias_name(params: Any) -> str:
    (name,) = [name for name, leaf in params.items() if getattr(leaf, "shape", ()) == (tiny.SIZE,)]
    return str(name)


def test_filled_masks_show_truth_and_guess() -> None:
    objective, params, batch = made("bert")
    params = always(params, bias_name(params), 9)
    lines = fill_masks(objective, params, batch, Words(), jax.random.key(2))
    keys = jax.random.split(jax.random.key(2), ROWS)
    corrupted = jax.vmap(objective.corrupt)(keys, batch)
    for row, line in enumerate(lines):
        marks = re.findall(r"\[w\d+(?:=(w\d+))?\]", line)
        assert len(marks) == corrupted["target_weights"][row].sum() > 0
        assert set(marks) <= {"w9", ""}
        assert re.sub(r"\[(w\d+)(=w\d+)?\]", r"\1", line) == original(batch, row)


def test_targets_are_completed_in_their_order() -> None:
    objective, params, batch = made("xlnet")
    params = always(params, bias_name(params), 9)
    key = jax.random.key(3)
    lines = complete_in_order(objective, params, batch, Words(), key)
    corrupted = jax.vmap(objective.corrupt)(jax.random.split(key, ROWS), batch)
    for row, line in enumerate(lines):
        marks = re.findall(r"\[(\d+):w\d+(?:=(w\d+))?\]", line)
        weights = np.asarray(corrupted["target_weights"][row]) > 0
        assert sorted(int(turn) for turn, _ in marks) == list(range(1, weights.sum() + 1))
        assert {said for _, said in marks} <= {"w9", ""}
        assert re.sub(r"\[\d+:(w\d+)(=w\d+)?\]", r"\1", line) == original(batch, row)
        # Each sees those with an earlier turn and none with a later one.
        places = np.sort(np.asarray(corrupted["target_mapping"][row])[weights])
        order = [place for _, place in sorted(zip((int(t) for t, _ in marks), places, strict=True))]
        hidden = np.asarray(perm_mask(corrupted["query_place"][row], corrupted["key_place"][row]))
        for i, earlier in enumerate(order):
            for later in order[i + 1 :]:
                assert hidden[earlier, later]
                assert not hidden[later, earlier]


@pytest.mark.parametrize(("bias", "verdict"), [(100.0, "found"), (-100.0, "missed")])
def test_replaced_tokens_are_found_or_missed(bias: float, verdict: str) -> None:
    objective, params, batch = made("electra")
    flat, tree = jax.tree_util.tree_flatten_with_path(params)
    last = [i for i, (_, leaf) in enumerate(flat) if leaf.shape == (1,)]
    leaves = [leaf for _, leaf in flat]
    assert len(last) == 1
    leaves[last[0]] = jnp.full(1, bias)
    lines = find_replaced(
        objective, jax.tree.unflatten(tree, leaves), batch, Words(), jax.random.key(4)
    )
    for row, line in enumerate(lines):
        marks = re.findall(r"\[w\d+->w\d+ (\w+)\]", line)
        assert marks
        assert set(marks) == {verdict}
        assert ("?" in line) == (verdict == "found")
        assert re.sub(r"\[(w\d+)(->w\d+ \w+|\?)\]", r"\1", line) == original(batch, row)


def test_marks_stand_where_the_tokens_stood() -> None:
    text = render([5, 6, 7, 8], [1, 1, 1, 0], {1: "<here>", 3: "never"}, Words())
    assert text == "w5 <here> w7"
