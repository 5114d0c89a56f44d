"""Checkpoints: bit for bit, on other meshes, of other models, and after kill -9."""

import os
import signal
import subprocess
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lmjax.errors import ConfigError
from lmjax.training.checkpoints import Checkpoints, Retention
from lmjax.training.sharding import MeshConfig, make_mesh, replicated


class State(NamedTuple):
    step: Any
    params: Any
    opt_state: Any
    ema: Any
    mems: Any
    key: Any


OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))


def make_state(seed=0, width=8):
    draw = np.random.default_rng(seed).standard_normal
    params = {
        "trunk": {"layers": {"kernel": jnp.asarray(draw((2, width, 4)), jnp.float32)}},
        "head": {"bias": jnp.asarray(draw(4), jnp.bfloat16)},
    }
    opt_state = OPTIMIZER.init(params)
    return State(
        jnp.int32(seed), params, opt_state, None, jnp.zeros((2, 0, 4)), jax.random.key(seed)
    )


def abstract(state, sharding=None):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding or x.sharding), state
    )


def data_state(step):
    return {"position": step, "shards": [{"done": True, "name": "a"}, {}], "mixture": None}


def raw(x):
    key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(x) if key else x)


def assert_same(got, expected):
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(raw(a), raw(b))


def test_round_trip_is_exact_and_the_latest_are_kept(tmp_path):
    with Checkpoints(tmp_path / "checkpoints", keep=Retention(2)) as checkpoints:
        assert checkpoints.latest_step() is None
        for step in (1, 2, 3):
            checkpoints.save(step, make_state(step), data_state(step), {"loss": 1.0 / step})
        checkpoints.wait()
        assert checkpoints.steps() == [2, 3]
    with Checkpoints(tmp_path / "checkpoints", keep=Retention(2)) as checkpoints:
        assert checkpoints.latest_step() == 3
        for asked, step in ((None, 3), (2, 2)):
            state, data = checkpoints.restore(asked, abstract(make_state()))
            assert_same(state, make_state(step))
            assert data == data_state(step)
        # The parameters alone, as fine-tuning wants them.
        params = {"params": abstract(make_state().params)}
        assert_same(checkpoints.restore(3, params, partial=True)[0]["params"], make_state(3).params)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["2", "3"]


def test_saving_a_step_twice(tmp_path):
    with Checkpoints(tmp_path, keep=Retention(3)) as checkpoints:
        checkpoints.save(1, make_state(1), {"position": 1})
        checkpoints.save(1, make_state(1), {"position": 1})
        checkpoints.save(2, make_state(2), {"position": 2})
    with Checkpoints(tmp_path, keep=Retention(3)) as checkpoints:
        # Back to 1 and on again: the 2 of the past gives way to that of the present.
        checkpoints.restore(1, abstract(make_state()))
        checkpoints.save(1, make_state(7), {"position": 7})
        checkpoints.save(2, make_state(8), {"position": 8})
        assert checkpoints.restore(1, abstract(make_state()))[1] == {"position": 1}
        state, data = checkpoints.restore(2, abstract(make_state()))
        assert_same(state, make_state(8))
        assert data == {"position": 8}


def test_arrays_may_be_donated_at_once(tmp_path):
    big = {"w": jnp.arange(4_000_000, dtype=jnp.float32)}
    overwrite = jax.jit(lambda x: jax.tree.map(lambda w: w * 0 - 1, x), donate_argnums=0)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, big, {})
        after = overwrite(big)
        restored, _ = checkpoints.restore(1, abstract(after))
    np.testing.assert_array_equal(restored["w"], np.arange(4_000_000, dtype=np.float32))


@pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 devices")
def test_restores_onto_another_mesh(tmp_path):
    one, eight = (replicated(make_mesh(MeshConfig(data=n))) for n in (1, 8))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, jax.device_put(make_state(1), one), {})
        state, _ = checkpoints.restore(1, abstract(make_state(), eight))
        assert_same(state, make_state(1))
        assert all(leaf.sharding == eight for leaf in jax.tree.leaves(state))
        checkpoints.save(2, state, {})
        state, _ = checkpoints.restore(2, abstract(make_state(), one))
        assert_same(state, make_state(1))


def test_a_checkpoint_of_another_model_is_refused_by_tensor(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(ConfigError, match="no checkpoint in"):
            checkpoints.restore(None, abstract(make_state()))
        checkpoints.save(1, make_state(1), {})
        with pytest.raises(ConfigError, match=r"no checkpoint of step 5 .* there: 1"):
            checkpoints.restore(5, abstract(make_state()))
        wider = r"'params\.trunk\.layers\.kernel' is \[2, 8, 4\] .* and \[2, 16, 4\]"
        with pytest.raises(ConfigError, match=wider):
            checkpoints.restore(1, abstract(make_state(width=16)))
        state = make_state()
        with pytest.raises(ConfigError, match=r"has no tensor 'ema\.head\.bias'"):
            checkpoints.restore(1, abstract(state._replace(ema=state.params)))
        with pytest.raises(ConfigError, match="has a tensor 'key'"):
            checkpoints.restore(1, abstract(state._replace(key=None)))


def test_the_latest_those_of_every_so_many_steps_and_the_best_stay(tmp_path):
    state = {"w": jnp.zeros(2)}
    losses = {1: 5.0, 2: 4.0, 3: 1.0, 4: 2.0, 5: 3.0, 6: None, 7: 9.0, 8: 8.0}
    with Checkpoints(tmp_path, keep=Retention(latest=2, every=4, best=1)) as checkpoints:
        for step, loss in losses.items():
            checkpoints.save(step, state, {}, {} if loss is None else {"loss": loss})
            checkpoints.wait()
        assert checkpoints.steps() == [3, 4, 7, 8]


CHILD = """
import sys
import jax.numpy as jnp
from lmjax.training.checkpoints import Checkpoints, Retention

with Checkpoints(sys.argv[1], keep=Retention(2)) as checkpoints:
    for step in range(1, 1000):
        checkpoints.save(step, {"w": jnp.full(4_000_000, step, jnp.float32)}, {"position": step})
        if step > 1:
            print(step, flush=True)  # of which at least the one before is on the disk
"""


def test_kill_9_while_saving_leaves_the_previous_checkpoint(tmp_path):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
    )
    assert child.stdout is not None
    saving = [int(child.stdout.readline()) for _ in range(2)][-1]
    os.kill(child.pid, signal.SIGKILL)  # while `saving` or one after it is being written
    child.wait()
    with Checkpoints(tmp_path, keep=Retention(2)) as checkpoints:
        latest = checkpoints.latest_step()
        assert latest is not None and latest >= saving - 1
        shape = {"w": jax.ShapeDtypeStruct((4_000_000,), jnp.float32)}
        state, data = checkpoints.restore(None, shape)
        assert data == {"position": latest}
        assert (np.asarray(state["w"]) == latest).all()
        checkpoints.save(latest + 1, state, {"position": latest + 1})
    assert all(path.name.isdigit() for path in tmp_path.iterdir())
