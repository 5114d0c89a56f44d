"""An objective that lmjax does not know trains by its import path; README shows it."""

import pathlib

import jax
import numpy as np
import optax

from configs.quickstart import get_config
from lmjax.models.gpt import Gpt
from lmjax.objectives.base import apply
from lmjax.training.plan import make_objective
from lmjax.training.step import corrupt_batch, init_state, make_train_step
from tests import tiny
from tests.objectives.outside import BlankedLM


def make() -> BlankedLM:
    config = get_config("gpt")
    model = config.model.to_dict()
    model["trunk"] |= {"layers": 1, "hidden_size": 16, "intermediate_size": 32}
    model["max_length"] = tiny.LENGTH
    block = {"type": "tests.objectives.outside.BlankedLM", "blank_rate": 0.2}
    made = make_objective(block, model, tiny.SIZE)
    assert isinstance(made, BlankedLM)
    return made


def test_it_trains() -> None:
    objective, optimizer = make(), optax.adamw(1e-2)
    batch = tiny.batch("gpt", 0)
    state = jax.jit(lambda: init_state(objective, optimizer, 0, batch, False))()
    step = jax.jit(make_train_step(objective, optimizer))
    losses = []
    for _ in range(40):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    assert np.mean(losses[-5:]) < 0.6 * losses[0]


def test_blanks_are_predicted_and_not_read() -> None:
    objective, clean = make(), tiny.batch("gpt", 1)
    batch, _ = jax.jit(lambda b: corrupt_batch(objective, jax.random.key(0), b))(clean)
    blank = np.asarray(batch["tokens"]) == tiny.VOCABULARY.mask
    np.testing.assert_array_equal(batch["tokens"][~blank], clean["tokens"][~blank])
    assert abs(blank.mean() - 0.2) < 4 * (0.16 / blank.size) ** 0.5
    params = jax.jit(objective.init)(jax.random.key(1), batch)
    scored = jax.jit(lambda: objective.loss(params, batch, None, None))()
    logits = jax.jit(lambda: apply(Gpt(objective.model), params, *objective.inputs(batch)))()
    log_p = jax.nn.log_softmax(logits)
    nll = -np.take_along_axis(np.asarray(log_p)[:, :-1], clean["tokens"][:, 1:, None], axis=-1)
    real = clean["segment_ids"][:, 1:] > 0
    np.testing.assert_allclose(scored.terms["lm"][0], nll[..., 0][real].sum(), rtol=1e-5)


def test_readme_shows_this_very_file() -> None:
    here = pathlib.Path(__file__).parent
    source = (here / "outside.py").read_text()
    assert len(source.splitlines()) < 60
    assert source in (here.parents[1] / "README.md").read_text()
