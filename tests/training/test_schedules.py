"""Schedules against numbers worked out from the papers' code by hand."""

import math

import jax
import numpy as np
import pytest

from lmjax.errors import ConfigError
from lmjax.training.optimizers import make_schedule

WARMUP, STEPS = 10, 100


def rates(name, counts, **options):
    schedule = make_schedule(name, 1.0, STEPS, WARMUP, **options)
    return [float(schedule(count)) for count in counts]


def test_bert_counts_its_decay_from_step_zero_and_jumps():
    got = rates("linear", [0, 5, 9, 10, 50, 100])
    np.testing.assert_allclose(got, [0, 0.5, 0.9, 0.9, 0.5, 0], atol=1e-7)


def test_electra_multiplies_warmup_and_decay():
    got = rates("linear_product", [0, 5, 10, 50, 100])
    np.testing.assert_allclose(got, [0, 0.475, 0.9, 0.5, 0], atol=1e-7)


def test_xlnet_decays_after_warmup_to_a_thousandth():
    got = rates("linear_after_warmup", [0, 5, 10, 55, 100], final_ratio=0.001)
    np.testing.assert_allclose(got, [0, 0.5, 1.0, 0.5005, 0.001], rtol=1e-5, atol=1e-7)


def test_cosine():
    got = rates("cosine", [0, 5, 10, 55, 100, 150], final_ratio=0.1)
    np.testing.assert_allclose(got, [0, 0.5, 1.0, 0.55, 0.1, 0.1], rtol=1e-5, atol=1e-7)


def test_constant():
    np.testing.assert_allclose(rates("constant", [0, 5, 10, 1000]), [0, 0.5, 1, 1])


@pytest.mark.parametrize(
    "name", ["linear", "linear_product", "linear_after_warmup", "cosine", "constant"]
)
def test_without_warmup_the_first_update_has_the_full_rate_and_jit_agrees(name):
    schedule = make_schedule(name, 3e-4, STEPS)
    assert math.isclose(float(schedule(0)), 3e-4, rel_tol=1e-6)
    counts = np.arange(2 * STEPS)
    got = np.asarray(jax.jit(schedule)(counts))
    assert np.isfinite(got).all() and (got >= 0).all() and (np.diff(got) <= 0).all()
    np.testing.assert_allclose(got, [float(schedule(c)) for c in counts], rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize(
    ("field", "arguments"),
    [
        ("schedule", dict(name="lineer", learning_rate=1.0, steps=10)),
        ("warmup_steps", dict(name="linear", learning_rate=1.0, steps=10, warmup_steps=11)),
        ("config.training.steps", dict(name="linear", learning_rate=1.0, steps=0)),
    ],
)
def test_impossible_numbers_are_refused_by_name(field, arguments):
    with pytest.raises(ConfigError, match=field):
        make_schedule(**arguments)
