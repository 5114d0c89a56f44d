"""Permutation LM by groups: its likelihood, its limits, and who sees whom."""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.models.xlnet import XlnetConfig
from lmjax.objectives.base import Batch, apply
from lmjax.objectives.factorization import perm_mask, places
from lmjax.objectives.permuted import PermutedLM
from lmjax.objectives.permuted_groups import PermutedGroupsLM
from lmjax.training.step import corrupt_batch
from tests import tiny

SINGLE = tiny.objective("xlnet")
assert isinstance(SINGLE, PermutedLM)
TWO_LAYERS = XlnetConfig(
    dataclasses.replace(tiny.TRUNK, layers=2, initial_std=0.4), vocab_size=tiny.SIZE
)


def by_groups(group_size: int, **settings: Any) -> PermutedGroupsLM:
    fields = {f.name: getattr(SINGLE, f.name) for f in dataclasses.fields(SINGLE)}
    return PermutedGroupsLM(**fields | settings, group_size=group_size)


def corrupted(made: PermutedLM, rows: int = tiny.BATCH) -> Batch:
    found: Batch = jax.jit(lambda b: corrupt_batch(made, jax.random.key(5), b)[0])(
        tiny.batch("xlnet", 0, rows)
    )
    return found


@pytest.mark.parametrize("perm_size", [0, 4])
def test_groups_of_one_token_are_the_permutation_lm(perm_size: int) -> None:
    single = dataclasses.replace(SINGLE, perm_size=perm_size)
    batch, found = corrupted(single), corrupted(by_groups(1, perm_size=perm_size))
    assert found.keys() == batch.keys()
    for name, values in batch.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


def test_groups_follow_the_order_of_single_targets() -> None:
    """Against loops over the order that the permutation LM draws from the same key."""
    size, rows = 2, 32
    made = by_groups(size)
    single, batch = (jax.device_get(corrupted(m, rows)) for m in (SINGLE, made))
    visible = ~np.asarray(perm_mask(batch["query_place"], batch["key_place"]))
    for name in ("target_mapping", "targets", "target_weights"):
        np.testing.assert_array_equal(batch[name], single[name])
    seen: set[bool] = set()
    for row in range(rows):
        used = batch["target_weights"][row] > 0
        targets = batch["target_mapping"][row][used].tolist()
        order = single["key_place"][row]
        group = {}
        for part in ([t for t in targets if t < 8], [t for t in targets if t >= 8]):
            for rank, t in enumerate(sorted(part, key=lambda t: order[t])):
                group[t] = t // 8, rank // size
        ends = [0, tiny.LENGTH - 1]  # [CLS] and [SEP], which stand in the order too
        for i in targets:
            for j in range(tiny.LENGTH):
                if j // 8 > i // 8:
                    sees = False
                elif j in group:
                    sees = group[j] < group[i]
                elif j in ends and j // 8 == i // 8:
                    first = min(order[t] for t in targets if group[t] == group[i])
                    sees = order[j] < first
                else:
                    sees = True
                assert visible[row, i, j] == sees, (row, i, j)
                seen.add(sees)
        for end in ends:  # never sees more than those that see it
            for i in (i for i in targets if visible[row, i, end]):
                assert (visible[row, end] <= visible[row, i] | (np.arange(16) == end)).all()
    assert seen == {True, False}


def ordered_partitions(items: list[int]) -> Iterator[list[tuple[int, ...]]]:
    if not items:
        yield []
        return
    for count in range(1, len(items) + 1):
        for first in itertools.combinations(items, count):
            for rest in ordered_partitions([i for i in items if i not in first]):
                yield [first, *rest]


def test_the_likelihood_is_the_product_over_groups_by_brute_force() -> None:
    """For all ordered partitions of 4 targets: one pass, against a pass for each group.

    In the passes of brute force, tokens that are not yet seen are others, and nothing attends to
    them.
    """
    length, targets = 6, [0, 2, 3, 5]
    made = by_groups(1, model=TWO_LAYERS, num_predict=4, reuse_length=0)
    rng = np.random.default_rng(0)
    tokens = rng.integers(6, tiny.SIZE, length)
    partitions = list(ordered_partitions(targets))
    assert len(partitions) == 75
    group = np.full((75, length), -1)
    for row, partition in enumerate(partitions):
        for number, members in enumerate(partition):
            group[row, list(members)] = number
    query_place, key_place = places(
        jnp.asarray(group), jnp.asarray(group >= 0), jnp.zeros_like(group, bool)
    )

    def batch_of(tokens: np.ndarray, **own: Any) -> Batch:
        ones = jnp.ones(tokens.shape, jnp.int32)
        return {
            "tokens": jnp.asarray(tokens),
            "token_types": 0 * ones,
            "positions": 0 * ones,
            "segment_ids": ones,
            "target_mapping": jnp.broadcast_to(jnp.array(targets), (len(tokens), 4)),
            **own,
        }

    whole = batch_of(
        np.tile(tokens, (75, 1)),
        query_place=query_place,
        key_place=key_place,
        targets=jnp.tile(tokens[targets], (75, 1)),
        target_weights=jnp.ones((75, 4)),
    )
    params = jax.jit(made.init)(jax.random.key(0), whole)

    @jax.jit
    def nll(batch: Batch) -> jax.Array:
        def of_row(row: Batch) -> jax.Array:
            one = jax.tree.map(lambda x: x[None], row)
            return made.loss(params, one, None, None).terms["plm"][0]

        return jax.vmap(of_row)(batch)

    found = np.asarray(nll(whole))

    passes = [(row, now) for row in range(75) for now in range(len(partitions[row]))]
    mask, read = np.zeros((len(passes), length, length), bool), []
    for number, (row, now) in enumerate(passes):
        mine = group[row]
        for i, j in itertools.product(range(length), repeat=2):
            # The context sees itself only. A target sees the earlier groups, too.
            mask[number, i, j] = mine[j] < 0 or (mine[j] < now and mine[j] < mine[i])
        read.append(np.where(mine >= now, rng.integers(6, tiny.SIZE, length), tokens))
    others = batch_of(np.array(read))
    inputs = made.text_inputs(others, jnp.asarray(mask))

    @jax.jit
    def log_probs(inputs: Any) -> jax.Array:
        output, _ = apply(made.network, params, inputs, None, others["target_mapping"])
        logits = apply(made.network, params, output, method="decode")
        return jax.nn.log_softmax(logits)[:, np.arange(4), tokens[targets]]

    log_p = np.asarray(log_probs(inputs))
    expected = np.zeros(75)
    for number, (row, now) in enumerate(passes):
        expected[row] -= log_p[number, [group[row, t] == now for t in targets]].sum()
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert len(np.unique(found.round(4))) == 75  # the partition makes a difference


def test_one_group_of_all_targets_is_a_masked_prediction() -> None:
    """All targets are predicted from the other tokens alone, in a text of other targets."""
    made = by_groups(100, model=TWO_LAYERS, num_predict=6, reuse_length=0)
    clean = tiny.batch("xlnet", 3, 8)
    clean["tokens"][:, [0, -1]] = 9  # no [CLS] and [SEP], which stand in the order
    batch = jax.jit(lambda b: corrupt_batch(made, jax.random.key(1), b)[0])(clean)
    params = jax.jit(made.init)(jax.random.key(0), batch)
    scored = jax.jit(lambda: made.loss(params, batch, None, None))()
    where = np.asarray(batch["target_mapping"])
    masked = np.zeros((8, tiny.LENGTH), bool)
    np.put_along_axis(masked, where, True, axis=1)
    assert (masked.sum(1) == 6).all()
    read = {**batch, "tokens": jnp.where(masked, tiny.VOCABULARY.mask, batch["tokens"])}
    inputs = made.text_inputs(read, jnp.asarray(~masked)[:, None])

    @jax.jit
    def log_probs(inputs: Any) -> jax.Array:
        own = batch["target_mapping"], batch["direction"]
        output, _ = apply(made.network, params, inputs, None, *own)
        return jax.nn.log_softmax(apply(made.network, params, output, method="decode"))

    log_p = np.asarray(log_probs(inputs))
    nll = -np.take_along_axis(log_p, np.asarray(batch["targets"])[..., None], axis=-1)
    assert scored.terms["plm"][1] == nll.size
    np.testing.assert_allclose(scored.terms["plm"][0], nll.sum(), rtol=1e-5)


def test_a_target_is_seen_by_later_groups_only() -> None:
    """Another token in its place changes their scores, and not those of its own group."""
    made = by_groups(2, model=TWO_LAYERS, num_predict=6, reuse_length=0)
    batch = jax.jit(lambda b: corrupt_batch(made, jax.random.key(1), b)[0])(
        tiny.batch("xlnet", 4, 8)
    )
    params = jax.jit(made.init)(jax.random.key(0), batch)
    where, used = np.asarray(batch["target_mapping"]), np.asarray(batch["target_weights"]) > 0
    group = np.take_along_axis(np.asarray(batch["query_place"]), where, axis=1)

    @jax.jit
    def logits(tokens: jax.Array) -> jax.Array:
        output, _ = apply(made.network, params, *made.inputs({**batch, "tokens": tokens}))
        return apply(made.network, params, output, method="decode")

    before, rows = np.asarray(logits(batch["tokens"])), np.arange(8)
    together = 0
    for slot in range(6):
        other = 6 + (batch["targets"][:, slot] + 7) % 40
        after = np.asarray(logits(batch["tokens"].at[rows, where[:, slot]].set(other)))
        changed = (after != before).any(-1)
        later = group > group[:, [slot]]
        both = used & used[:, [slot]]
        np.testing.assert_array_equal(changed[both], later[both])
        together += ((group == group[:, [slot]]) & both).sum() - both[:, slot].sum()
    assert together > 20
