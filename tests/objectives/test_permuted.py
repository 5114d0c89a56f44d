"""XLNet's targets and orders, against transcriptions of data_utils.py."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.models.xlnet import Xlnet, XlnetConfig
from lmjax.objectives.base import apply
from lmjax.objectives.factorization import choose_targets, factorization_order, perm_mask, places
from lmjax.objectives.permuted import PermutedLM
from tests import tiny

MANY = 3000
SIZE, COUNT = 64, 11
STARTS = jnp.asarray(np.random.default_rng(3).random(SIZE) < 0.7)

STARTS_LIST = STARTS.tolist()


def sample_mask(rng: np.random.Generator) -> np.ndarray:
    """`_sample_mask` of the authors' code (an n-gram is n pieces; see its issue 220)."""
    mask = np.zeros(SIZE, bool)
    taken = cursor = 0
    p = 1.0 / np.arange(1, 6)
    p /= p.sum()
    while cursor < SIZE and taken < COUNT:
        n = min(rng.choice(np.arange(1, 6), p=p), COUNT - taken)
        context = n * 6
        left = rng.integers(context)
        begin = cursor + left
        while begin < SIZE and not STARTS_LIST[begin]:
            begin += 1
        if begin >= SIZE or begin + n >= SIZE:
            break
        mask[begin : begin + n] = True
        taken += n
        cursor = begin + n + context - left
    while taken < COUNT:
        i = rng.integers(SIZE)
        if not mask[i]:
            mask[i] = True
            taken += 1
    return mask


def runs(mask: np.ndarray) -> np.ndarray:
    """How many maximal runs of each length a [n, size] mask has, lengths 1 to 6."""
    padded = np.pad(mask, ((0, 0), (1, 1))).astype(int)
    begins = np.argwhere(np.diff(padded, axis=1) == 1)
    ends = np.argwhere(np.diff(padded, axis=1) == -1)
    return np.bincount(np.minimum(ends[:, 1] - begins[:, 1], 6), minlength=7)[1:]


def test_targets_are_drawn_as_the_authors_draw_them() -> None:
    choose = jax.jit(
        jax.vmap(lambda k: choose_targets(k, STARTS, COUNT, spans=True, max_ngram=5, alpha=6))
    )
    found = np.asarray(choose(jax.random.split(jax.random.key(0), MANY)))
    assert (found.sum(1) == COUNT).all()
    rng = np.random.default_rng(0)
    reference = np.stack([sample_mask(rng) for _ in range(MANY)])
    np.testing.assert_allclose(found.mean(0), reference.mean(0), atol=0.045)
    np.testing.assert_allclose(runs(found) / MANY, runs(reference) / MANY, rtol=0.08, atol=0.05)


def test_ngrams_begin_with_a_word_and_are_as_long_as_the_paper_says() -> None:
    """Where the part is long enough for the quota, each run of targets is one n-gram."""
    size, count = 256, 12
    starts = np.random.default_rng(5).random(size) < 0.6
    choose = jax.jit(
        jax.vmap(
            lambda k: choose_targets(
                k, jnp.asarray(starts), count, spans=True, max_ngram=5, alpha=6
            )
        )
    )
    found = np.asarray(choose(jax.random.split(jax.random.key(1), MANY)))
    assert (found.sum(1) == count).all()
    begins = found & ~np.pad(found, ((0, 0), (1, 0)))[:, :-1]
    assert starts[np.nonzero(begins)[1]].all()
    # The first n is drawn freely; the last is cut to the quota.
    first = np.argmax(found, axis=1)
    after = np.array([np.argmin(row[i:]) for row, i in zip(found, first, strict=True)])
    expected = 1 / np.arange(1, 6) / np.sum(1 / np.arange(1, 6))
    share = np.bincount(after, minlength=6)[1:] / MANY
    np.testing.assert_allclose(share, expected, atol=0.045)
    assert abs(after.mean() - 5 / np.sum(1 / np.arange(1, 6))) < 0.12  # 2.19


def test_single_tokens_are_uniform() -> None:
    choose = jax.jit(
        jax.vmap(lambda k: choose_targets(k, STARTS, COUNT, spans=False, max_ngram=5, alpha=6))
    )
    found = np.asarray(choose(jax.random.split(jax.random.key(0), MANY)))
    assert (found.sum(1) == COUNT).all()
    np.testing.assert_allclose(found.mean(0), COUNT / SIZE, atol=0.035)


def test_blocks_come_in_turn_and_are_permuted_alike() -> None:
    order = np.asarray(factorization_order(jax.random.key(1), 12, 4))
    assert sorted(order) == list(range(12))
    np.testing.assert_array_equal(order[4:8] - 4, order[:4])
    np.testing.assert_array_equal(order[8:] - 8, order[:4])


@pytest.mark.parametrize("seed", range(5))
def test_who_sees_whom_by_the_rule(seed: int) -> None:
    rng = np.random.default_rng(seed)
    size = 10
    order = rng.permutation(size)
    is_masked, functional = rng.random(size) < 0.4, rng.random(size) < 0.2
    found = np.asarray(perm_mask(*places(*map(jnp.asarray, (order, is_masked, functional)))))
    for i in range(size):
        for j in range(size):
            if not (is_masked[j] or functional[j]):
                blind = False  # plain tokens are seen by all
            elif not (is_masked[i] or functional[i]):
                blind = True  # and see nothing else
            elif is_masked[i] and not functional[i]:
                blind = order[j] >= order[i]  # a target sees what came before
            else:
                blind = order[j] > order[i]  # a functional token itself too
            assert found[i, j] == blind


def objective(num_predict: int = 5) -> PermutedLM:
    model = XlnetConfig(dataclasses.replace(tiny.TRUNK, layers=2), vocab_size=tiny.SIZE)
    return PermutedLM(
        vocabulary=tiny.VOCABULARY,
        model=model,
        num_predict=num_predict,
        reuse_length=8,
        max_ngram=2,
        alpha=2,
    )


def test_paper_split_of_targets() -> None:
    paper = dataclasses.replace(objective(), num_predict=85, reuse_length=256)
    assert paper.parts(512) == [(256, 43), (256, 42)]


def corrupted(rows: int = 64) -> dict[str, jax.Array]:
    batch = tiny.batch("gpt", 0, rows) | {"segment_ids": np.ones((rows, tiny.LENGTH), np.int32)}
    batch["tokens"][:, 12] = tiny.VOCABULARY.sep
    keys = jax.random.split(jax.random.key(4), rows)
    return jax.jit(jax.vmap(objective().corrupt))(keys, batch)


def test_parts_and_functional_tokens() -> None:
    batch = jax.device_get(corrupted())
    blind = np.asarray(perm_mask(batch["query_place"], batch["key_place"]))
    assert blind[:, :8, 8:].all(), "the first part sees nothing of the second"
    assert not blind[:, 8:, :8].any(), "the second sees all of the first"
    used = batch["target_weights"] > 0
    functional = (batch["targets"] == tiny.VOCABULARY.sep) | (
        batch["targets"] == tiny.VOCABULARY.cls
    )
    assert not (functional & used).any()
    rows = np.arange(len(blind))[:, None]
    np.testing.assert_array_equal(
        batch["targets"][used], batch["tokens"][rows, batch["target_mapping"]][used]
    )
    # No target sees itself.
    itself = blind[rows, batch["target_mapping"], batch["target_mapping"]]
    assert itself[used].all()


def test_text_that_runs_backward_is_masked_as_it_reads_forward() -> None:
    """`reverse` of `_sample_mask`: a word's first piece comes last in a reversed row."""
    length, many = 256, 50
    rng = np.random.default_rng(0)
    example = {
        "tokens": rng.integers(6, tiny.SIZE, length).astype(np.int32),
        "segment_ids": np.ones(length, np.int32),
    }
    made = dataclasses.replace(objective(10), reuse_length=0, max_ngram=5, alpha=6)
    corrupt = jax.jit(jax.vmap(made.corrupt, in_axes=(0, None)))
    keys = jax.random.split(jax.random.key(2), many)
    found = {}
    for direction in (1, -1):
        tokens = example["tokens"][::direction]
        row = {**example, "tokens": tokens, "direction": np.int32(direction)}
        batch = jax.device_get(corrupt(keys, row))
        chosen = np.zeros((many, length), bool)
        np.put_along_axis(chosen, batch["target_mapping"], batch["target_weights"] > 0, axis=1)
        found[direction] = chosen[:, ::direction]
        begins = found[direction] & ~np.pad(found[direction], ((0, 0), (1, 0)))[:, :-1]
        assert tiny.VOCABULARY.starts_word[example["tokens"][np.nonzero(begins)[1]]].all()
    np.testing.assert_array_equal(found[1], found[-1])


def test_padding_is_no_target_and_blocks_are_permuted_inside_parts() -> None:
    made = dataclasses.replace(objective(), perm_size=4)
    batch = tiny.batch("gpt", 0, 32)
    batch["segment_ids"][:, -3:] = 0
    keys = jax.random.split(jax.random.key(4), 32)
    out = jax.device_get(jax.jit(jax.vmap(made.corrupt))(keys, batch))
    used = out["target_weights"] > 0
    assert (out["target_mapping"][used] < tiny.LENGTH - 3).all()
    # Of two targets of a part, one in an earlier block is seen by one in a later block.
    rows = np.arange(32)[:, None, None]
    at = out["target_mapping"]
    blind = np.asarray(perm_mask(out["query_place"], out["key_place"]))[
        rows, at[:, :, None], at[:, None, :]
    ]
    part, block = at // 8, at // 4
    both = used[:, :, None] & used[:, None, :] & (part[:, :, None] == part[:, None, :])
    earlier = both & (block[:, None, :] < block[:, :, None])
    later = both & (block[:, None, :] > block[:, :, None])
    assert earlier.sum() > 20
    assert not blind[earlier].any()
    assert blind[later].all()
    # Inside a block, of two targets exactly one sees the other.
    same = both & (block[:, :, None] == block[:, None, :]) & ~np.eye(at.shape[1], dtype=bool)
    assert same.sum() > 20
    assert (blind ^ blind.transpose(0, 2, 1))[same].all()


def test_memory_is_what_each_layer_read_of_the_first_part() -> None:
    """The last rows of (old memory; inputs of each layer for the reused tokens)."""
    trunk = dataclasses.replace(tiny.TRUNK, layers=2)
    made = dataclasses.replace(
        objective(), model=XlnetConfig(trunk, memory_length=12, vocab_size=tiny.SIZE)
    )
    rows = 3
    batch = corrupted(rows)
    params = jax.jit(made.init)(jax.random.key(0), batch)
    old = jax.random.normal(jax.random.key(1), (2, rows, 12, 16))
    mems = np.asarray(jax.jit(lambda: made.loss(params, batch, old, None).mems)())
    assert mems.shape == old.shape
    np.testing.assert_array_equal(mems[:, :, :4], old[:, :, -4:])
    embedded = np.asarray(params["encoder"]["token"]["embedding"])[np.asarray(batch["tokens"])]
    np.testing.assert_allclose(mems[0, :, 4:], embedded[:, :8], rtol=1e-6)
    # What the second layer read is what a network of the first layer alone gives.
    one = Xlnet(dataclasses.replace(made.model, trunk=dataclasses.replace(trunk, layers=1)))
    first = {"layer_0": params["encoder"]["layers"]["layer_0"]}
    shallow = {**params, "encoder": {**params["encoder"], "layers": first}}
    inputs, *_ = made.inputs(batch)
    read, _ = jax.jit(lambda: apply(one, shallow, inputs, old[:1]))()
    np.testing.assert_allclose(mems[1, :, 4:], read[:, :8], atol=1e-5)
    assert not jax.jit(jax.grad(lambda x: made.loss(params, batch, x, None).mems.sum()))(old).any()


def test_no_target_is_predicted_from_itself() -> None:
    """Another token in a target's place changes others' scores, never its own."""
    made = objective()
    batch = corrupted(8)
    params = jax.jit(made.init)(jax.random.key(0), batch)

    @jax.jit
    def logits(tokens: jax.Array) -> jax.Array:
        output, _ = apply(made.network, params, *made.inputs({**batch, "tokens": tokens}, None))
        return apply(made.network, params, output, method="decode")

    before = np.asarray(logits(batch["tokens"]))
    row = np.arange(8)
    others_changed = 0
    for slot in range(made.num_predict):
        used = np.asarray(batch["target_weights"][:, slot]) > 0
        where = batch["target_mapping"][:, slot]
        changed = batch["tokens"].at[row, where].set(7 + slot)
        after = np.asarray(logits(changed))
        np.testing.assert_array_equal(after[used, slot], before[used, slot])
        others_changed += (after[used] != before[used]).any()
    assert others_changed
