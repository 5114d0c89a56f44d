"""An objective that lmjax does not know trains by its import path; README shows it."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax

from configs.quickstart import get_config
from lmjax.models.gpt import Gpt
from lmjax.objectives.base import apply
from lmjax.training.plan import make_objective
from lmjax.training.step import corrupt_batch, init_state, make_train_step
from tests import tiny
from tests.objectives.outside import PrefixLM


def make() -> PrefixLM:
    config = get_config("gpt")
    model = config.model.to_dict()
    model["trunk"] |= {"layers": 1, "hidden_size": 16, "intermediate_size": 32}
    model["max_length"] = tiny.LENGTH
    block = {"type": "tests.objectives.outside.PrefixLM", "longest_prefix": 0.5}
    made = make_objective(block, model, tiny.SIZE)
    assert isinstance(made, PrefixLM)
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


def test_the_prefix_is_seen_by_all_and_the_rest_only_from_behind() -> None:
    objective = make()
    clean = tiny.batch("electra", 1, rows=1)
    clean["segment_ids"][:] = 1
    batch, _ = jax.jit(lambda b: corrupt_batch(objective, jax.random.key(0), b))(clean)
    params = objective.init(jax.random.key(1), batch)
    size = int(batch["in_prefix"].sum())

    @jax.jit
    def outputs(tokens: jax.Array) -> jax.Array:
        inputs = objective.inputs({**batch, "tokens": tokens})
        return apply(Gpt(objective.model), params, *inputs)

    before = np.asarray(outputs(batch["tokens"]))[0]
    for position in range(tiny.LENGTH):
        after = np.asarray(outputs(jnp.asarray(batch["tokens"]).at[0, position].add(1)))[0]
        changed = (after != before).any(-1)
        first = 0 if position < size else position
        assert not changed[:first].any()
        assert changed[first:].all(), (position, size, changed)


def test_readme_shows_this_very_file() -> None:
    here = pathlib.Path(__file__).parent
    source = (here / "outside.py").read_text()
    assert len(source.splitlines()) < 60
    assert source in (here.parents[1] / "README.md").read_text()
