"""Dropout masks belong to the example, the site and the layer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.nn.dropout import Seeds, dropout, shared_dropout

KEYS = jax.random.split(jax.random.key(0), 64)
SEEDS = Seeds.of(KEYS, jax.random.key(1))
ONES = jnp.ones((64, 20, 50))


def mask(seeds: Seeds, salt: int = 1, rate: float = 0.3) -> np.ndarray:
    return np.asarray(dropout(ONES[: len(seeds.examples)], rate, seeds, salt)) == 0


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.9])
def test_rate_and_mean(rate: float) -> None:
    y = np.asarray(dropout(ONES, rate, SEEDS, 1))
    assert abs((y == 0).mean() - rate) < 0.005
    np.testing.assert_allclose(y[y != 0], 1 / (1 - rate), rtol=1e-6)
    per_example = (y == 0).mean((1, 2))
    assert np.abs(per_example - rate).max() < 5 * np.sqrt(rate * (1 - rate) / 1000)


def test_off_leaves_everything() -> None:
    assert dropout(ONES, 0.0, SEEDS, 1) is ONES
    assert dropout(ONES, 0.5, None, 1) is ONES


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def test_sites_layers_examples_and_elements_are_independent() -> None:
    base = mask(SEEDS)
    others = [mask(SEEDS, salt=2), mask(SEEDS.fold(0)), mask(SEEDS.fold(1)), mask(SEEDS, salt=3)]
    for other in others:
        assert abs(correlation(base, other)) < 0.02
    assert abs(correlation(base[:-1], base[1:])) < 0.02
    assert abs(correlation(base[:, :-1], base[:, 1:])) < 0.02
    assert abs(correlation(base[..., :-1], base[..., 1:])) < 0.02
    assert abs(correlation(mask(SEEDS.fold(0)), mask(SEEDS.fold(1)))) < 0.02


def test_a_mask_goes_with_its_example() -> None:
    whole = mask(SEEDS)
    part = Seeds(examples=SEEDS.examples[10:20][::-1], step=SEEDS.step)
    np.testing.assert_array_equal(mask(part), whole[10:20][::-1])


def test_gradient_is_the_mask() -> None:
    x = jnp.asarray(np.random.default_rng(0).normal(size=(64, 5)), jnp.float32)
    y, pull = jax.vjp(lambda x: dropout(x, 0.4, SEEDS, 1), x)
    (g,) = pull(jnp.ones_like(x))
    np.testing.assert_allclose(g * x, y, rtol=1e-6)
    assert set(np.unique(np.asarray(g)).round(4)) == {0.0, np.float32(1 / 0.6).round(4)}


def test_shared_mask_depends_on_the_step_alone() -> None:
    x = jnp.ones((30, 40))
    y = shared_dropout(x, 0.5, SEEDS, 1)
    part = Seeds(examples=SEEDS.examples[:3], step=SEEDS.step)
    np.testing.assert_array_equal(y, shared_dropout(x, 0.5, part, 1))
    other = Seeds(examples=SEEDS.examples, step=SEEDS.step + 1)
    assert (np.asarray(y) != np.asarray(shared_dropout(x, 0.5, other, 1))).any()
