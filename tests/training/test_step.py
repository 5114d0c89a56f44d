"""The step: the same numbers on any mesh, with any accumulation, for any seed."""

import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import checkify

from lmjax.objectives.base import Batch, Objective
from lmjax.training.sharding import MeshConfig, batch_sharding, make_mesh, replicated, shardings
from lmjax.training.step import (
    TrainState,
    corrupt_batch,
    init_state,
    make_eval_step,
    make_train_step,
)
from tests import tiny

OPTIMIZER = optax.adamw(3e-3)
# These share most of their programs with the others.
MORE = [pytest.param(name, marks=pytest.mark.slow) for name in tiny.MORE]


def start(objective: Objective, name: str, seed: int = 0, ema: bool = False) -> TrainState:
    init = functools.partial(init_state, objective, OPTIMIZER, with_ema=ema)
    return jax.jit(lambda: init(seed=seed, batch=tiny.batch(name, 0)))()


@functools.cache
def compiled(name: str, accumulation: int = 1) -> tuple[TrainState, Callable[..., Any]]:
    objective = tiny.objective(name)
    step = make_train_step(objective, OPTIMIZER, accumulation)
    return start(objective, name), jax.jit(step)


def losses_on(
    name: str, config: MeshConfig, steps: int, accumulation: int = 1, **trunk: Any
) -> list[float]:
    mesh = make_mesh(config)
    objective = tiny.objective(name)
    model = objective.model
    model = dataclasses.replace(model, trunk=dataclasses.replace(model.trunk, **trunk))
    objective = dataclasses.replace(objective, model=model)
    with jax.set_mesh(mesh):
        state = start(objective, name)
        places = shardings(state, mesh)
        state = jax.device_put(state, places)
        step = jax.jit(
            make_train_step(objective, OPTIMIZER, accumulation),
            in_shardings=(places, batch_sharding(mesh)),
            out_shardings=(places, replicated(mesh)),
            donate_argnums=0,
        )
        losses = []
        for i in range(steps):
            batch = jax.device_put(tiny.batch(name, i), batch_sharding(mesh))
            state, metrics = step(state, batch)
            losses.append(metrics["loss"])
        assert len(metrics["loss"].devices()) == mesh.devices.size
    return [float(loss) for loss in losses]


@pytest.mark.parametrize("name", [*tiny.NAMES, *MORE])
def test_one_and_eight_devices_train_alike(name: str) -> None:
    alone = losses_on(name, MeshConfig(data=1), 20)
    assert len(set(alone)) == 20
    together = losses_on(name, MeshConfig(data=1, fsdp=2, sequence=2, tensor=2), 20)
    np.testing.assert_allclose(together, alone, rtol=1e-5)


SPLITS = [
    MeshConfig(*sizes)
    for sizes in itertools.product((1, 2, 4, 8), repeat=4)
    if math.prod(sizes) == 8
]


@pytest.mark.slow
@pytest.mark.parametrize("name", tiny.NAMES)
@pytest.mark.parametrize(("scan_layers", "query_chunk"), [(False, 0), (True, 3)])
def test_every_way_to_split_eight_devices_trains_alike(
    name: str, scan_layers: bool, query_chunk: int
) -> None:
    trunk = {"heads": 8, "hidden_size": 32, "layers": 2, "scan_layers": scan_layers}
    alone = losses_on(name, MeshConfig(data=1), 10, **trunk)
    assert len(SPLITS) == 20
    for config in SPLITS:
        found = losses_on(name, config, 10, **trunk, query_chunk=query_chunk)
        np.testing.assert_allclose(found, alone, rtol=1e-5, err_msg=str(config))


@pytest.mark.parametrize(
    ("name", "form"),
    [
        *((name, "plain") for name in tiny.NAMES),
        *(pytest.param(name, "plain", marks=pytest.mark.slow) for name in tiny.MORE),
        *((name, "scanned in chunks") for name in ("gpt", "xlnet")),
        ("bert", "on a mesh"),
    ],
)
def test_every_objective_trains_in_bfloat16(name: str, form: str) -> None:
    mesh, accumulation, trunk = MeshConfig(data=1), 1, {}
    if form == "scanned in chunks":
        accumulation, trunk = 2, {"scan_layers": True, "query_chunk": 5, "layers": 2}
    elif form == "on a mesh":
        mesh = MeshConfig(data=2, tensor=2, sequence=2)
    exact = losses_on(name, mesh, 3, accumulation, **trunk)
    rough = losses_on(name, mesh, 3, accumulation, **trunk, dtype="bfloat16")
    assert rough != exact
    np.testing.assert_allclose(rough, exact, rtol=2e-3)


def test_eight_devices_and_accumulation_together_change_nothing() -> None:
    alone = losses_on("xlnet", MeshConfig(data=1), 3)
    together = losses_on("xlnet", MeshConfig(data=8), 3, accumulation=2)
    np.testing.assert_allclose(together, alone, rtol=1e-5)


def test_a_mixture_on_eight_devices_with_accumulation_trains_alike() -> None:
    alone = losses_on("mixture", MeshConfig(data=1), 3)
    config = MeshConfig(data=2, sequence=2, tensor=2)
    together = losses_on("mixture", config, 3, accumulation=2)
    np.testing.assert_allclose(together, alone, rtol=2e-5)


@pytest.mark.parametrize("name", [*tiny.NAMES, *MORE])
def test_loss_and_gradient_do_not_depend_on_accumulation(name: str) -> None:
    found = []
    for accumulation in (1, 4):
        state, step = compiled(name, accumulation)
        found.append(step(state, tiny.batch(name, 1)))
    new, whole = found[0]
    for new_of_parts, parts in found[1:]:
        np.testing.assert_allclose(parts["loss"], whole["loss"], rtol=1e-5)
        for term, (total, count) in whole["terms"].items():
            np.testing.assert_allclose(parts["terms"][term][0], total, rtol=1e-5)
            assert parts["terms"][term][1] == count
        # After one step Adam's first moment is the gradient, times 1 - b1.
        gradient, gradient_of_parts = new.opt_state[0].mu, new_of_parts.opt_state[0].mu
        for a, b in zip(*map(jax.tree.leaves, (gradient, gradient_of_parts)), strict=True):
            np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-5 * float(abs(a).max()) + 1e-9)
        if new.mems is not None:
            np.testing.assert_allclose(new_of_parts.mems, new.mems, atol=1e-6)


@pytest.mark.parametrize("name", [*tiny.NAMES, *tiny.MORE])
def test_corruption_belongs_to_the_example(name: str) -> None:
    objective, key = tiny.objective(name), jax.random.key(7)
    batch = tiny.batch(name, 2)
    whole, seeds = jax.jit(lambda b: corrupt_batch(objective, key, b))(batch)
    tail = {field: array[10:] for field, array in batch.items()}
    part, part_seeds = corrupt_batch(objective, key, tail, first=10)
    for field in whole:
        if not jnp.issubdtype(whole[field].dtype, jax.dtypes.prng_key):
            np.testing.assert_array_equal(part[field], whole[field][10:])
    np.testing.assert_array_equal(part_seeds.examples, seeds.examples[10:])
    assert part_seeds.step == seeds.step


def test_every_step_corrupts_anew() -> None:
    state, step = compiled("electra")
    batch = tiny.batch("electra", 0)
    losses = [float(step(state.replace(step=jnp.int32(i)), batch)[1]["loss"]) for i in (0, 1, 0)]
    assert losses[0] == losses[2] != losses[1]


def test_a_run_cut_in_two_is_the_same_run_bit_for_bit() -> None:
    state, step = compiled("xlnet")
    whole = state
    for i in range(6):
        whole, _ = step(whole, tiny.batch("xlnet", i))
    for i in range(3):
        state, _ = step(state, tiny.batch("xlnet", i))
    state = jax.tree.map(jnp.copy, state)
    for i in range(3, 6):
        state, _ = step(state, tiny.batch("xlnet", i))
    same = jax.tree.map(lambda a, b: bool((a == b).all()), whole, state)
    assert all(jax.tree.leaves(same))


def test_memory_is_carried_from_step_to_step() -> None:
    objective = tiny.objective("xlnet")
    state, step = compiled("xlnet")
    assert not np.asarray(state.mems).any()

    @jax.jit
    def expected(state: TrainState, batch: Batch) -> jax.Array:
        key = jax.random.fold_in(state.key, state.step)
        corrupted, seeds = corrupt_batch(objective, key, batch)
        return objective.loss(state.params, corrupted, state.mems, seeds).mems

    for i in range(2):
        batch = tiny.batch("xlnet", i)
        mems = expected(state, batch)
        state, _ = step(state, batch)
        assert state.mems.shape == (1, tiny.BATCH, 8, 16)
        np.testing.assert_allclose(state.mems, mems, atol=1e-6)
    assert np.asarray(state.mems).any()


def test_two_seeds_in_one_program_equal_two_runs() -> None:
    objective = tiny.objective("bert")
    step = make_train_step(objective, OPTIMIZER)
    batch = tiny.batch("bert", 0)
    seeds = jnp.arange(2)
    states = jax.jit(jax.vmap(lambda s: init_state(objective, OPTIMIZER, s, batch, False)))(seeds)
    together = jax.jit(jax.vmap(step, in_axes=(0, None)))
    alone = [start(objective, "bert", seed) for seed in (0, 1)]
    one = compiled("bert")[1]
    for i in range(3):
        batch = tiny.batch("bert", i)
        states, metrics = together(states, batch)
        for seed in (0, 1):
            alone[seed], own = one(alone[seed], batch)
            np.testing.assert_allclose(metrics["loss"][seed], own["loss"], rtol=1e-5)


def test_moving_average_follows_the_parameters() -> None:
    objective = tiny.objective("gpt")
    state = start(objective, "gpt", ema=True)
    step = jax.jit(make_train_step(objective, OPTIMIZER, ema_decay=0.75))
    new, _ = step(state, tiny.batch("gpt", 0))
    expected = jax.tree.map(lambda old, now: 0.75 * old + 0.25 * now, state.params, new.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), new.ema, expected)


def test_gradient_norms_tell_which_tensor_is_not_finite() -> None:
    state, step = compiled("gpt")
    leaves, treedef = jax.tree.flatten(state.params)
    leaves[0] = leaves[0].at[0].set(jnp.nan)
    _, metrics = step(state.replace(params=treedef.unflatten(leaves)), tiny.batch("gpt", 0))
    assert metrics["gradient_norms"].shape == (len(leaves),)
    assert not np.isfinite(metrics["gradient_norms"]).all()
    assert not np.isfinite(metrics["loss"])


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] if n == "electra" else []) for n in tiny.NAMES],
)
def test_losses_have_derivatives_in_either_mode(name: str) -> None:
    objective, batch = tiny.objective(name), tiny.batch(name, 0, rows=4)
    corrupted, seeds = corrupt_batch(objective, jax.random.key(0), batch)
    params = start(objective, name).params
    key = jax.random.key(1)
    direction = jax.tree.map(lambda x: jax.random.normal(key, x.shape), params)

    def loss(params: Any) -> jax.Array:
        scored = objective.loss(params, corrupted, objective.init_mems(4), seeds)
        return sum(total / count for total, count in scored.terms.values())

    def along(tree: Any) -> jax.Array:
        return sum(jax.tree.leaves(jax.tree.map(jnp.vdot, tree, direction)))

    @jax.jit
    def derivatives(params: Any) -> dict[str, jax.Array]:
        forward = jax.jvp(loss, (params,), (direction,))[1]
        _, linear = jax.linearize(loss, params)
        # Of the Hessian, by forward over reverse and by reverse over forward.
        twice = jax.jvp(jax.grad(loss), (params,), (direction,))[1]
        again = jax.grad(lambda p: jax.jvp(loss, (p,), (direction,))[1])(params)
        return {
            "reverse": along(jax.grad(loss)(params)),
            "forward": forward,
            "linear": linear(direction),
            "twice": along(twice),
            "again": along(again),
        }

    found = jax.device_get(derivatives(params))
    np.testing.assert_allclose(found["forward"], found["reverse"], rtol=1e-4)
    np.testing.assert_allclose(found["linear"], found["reverse"], rtol=1e-4)
    np.testing.assert_allclose(found["twice"], found["again"], rtol=1e-3)


@pytest.mark.parametrize("name", tiny.NAMES)
def test_evaluation_repeats_itself_and_leads_with_the_headline(name: str) -> None:
    objective = tiny.objective(name)
    state, _ = compiled(name)
    evaluate = jax.jit(make_eval_step(objective))
    batch, key = tiny.batch(name, 3), jax.random.key(0)
    first, _ = evaluate(state.params, state.mems, key, batch)
    again, _ = evaluate(state.params, state.mems, key, batch)
    assert first[objective.headline][0] == again[objective.headline][0]
    total, count = first[objective.headline]
    assert abs(total / count - np.log(tiny.SIZE)) < 0.5  # untrained: nearly uniform
    assert first["unigram"][1] == count


@pytest.mark.parametrize("name", tiny.NAMES)
def test_a_profile_names_the_parts_of_a_step(name: str) -> None:
    objective, batch = tiny.objective(name), tiny.batch(name, 0)
    state = jax.eval_shape(lambda: init_state(objective, OPTIMIZER, 0, batch, True))
    step = jax.jit(make_train_step(objective, OPTIMIZER, ema_decay=0.9))
    text = step.lower(state, batch).as_text(debug_info=True)
    paths = re.findall(r'"jit\([^"]*"', text)
    scopes = {part.split(".")[0] for path in paths for part in path.split("/")}
    wanted = {"optimizer", "ema", "token", "layer_0", "attention", "feed_forward"}
    if name != "gpt":  # which reads its examples as they are
        wanted.add("corrupt")
    assert scopes >= wanted
    assert any("(loss)" in path for path in paths)
    assert any(".decode/" in path for path in paths)


@pytest.mark.parametrize("name", tiny.NAMES)
def test_a_step_makes_no_nan_on_its_way(name: str) -> None:
    objective, batch = tiny.objective(name), tiny.batch(name, 0)
    with jax.debug_nans(True):
        state = jax.jit(lambda: init_state(objective, OPTIMIZER, 0, batch, False))()
        _, metrics = jax.jit(make_train_step(objective, OPTIMIZER))(state, batch)
        jax.block_until_ready(metrics)
    assert np.isfinite(metrics["loss"])


@pytest.mark.parametrize("name", ["bert", "gpt"])
def test_checkify_finds_where_a_loss_is_not_finite(name: str) -> None:
    objective, batch = tiny.objective(name), tiny.batch(name, 0, rows=4)
    params = start(objective, name).params
    corrupted, seeds = corrupt_batch(objective, jax.random.key(0), batch)

    def loss(params: Any) -> jax.Array:
        scored = objective.loss(params, corrupted, objective.init_mems(4), seeds)
        return sum(total / count for total, count in scored.terms.values())

    checked = jax.jit(checkify.checkify(loss, errors=checkify.float_checks))
    error, value = checked(params)
    assert error.get() is None
    assert np.isfinite(value)
    error, _ = checked(jax.tree.map(lambda x: x.at[...].set(jnp.inf), params))
    assert "nan generated by primitive" in error.get()
