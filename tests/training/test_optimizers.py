"""Optimizers against transcriptions of the originals and against optax."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lmjax.errors import ConfigError
from lmjax.training.optimizers import (
    OptimizerConfig,
    decay_mask,
    ema_update,
    layer_shares,
    make_optimizer,
)

STEPS = 20


def tiny_params(seed=0):
    draw = np.random.default_rng(seed).standard_normal
    tree = {
        "embed": {"embedding": draw((40, 24))},
        "norm": {"scale": 1 + 0.1 * draw(24), "bias": draw(24)},
        "layer_0": {
            "attention": {"query": {"kernel": draw((24, 32)), "bias": draw(32)}},
            "content_bias": draw((2, 16)),
            "output_norm": {"scale": draw(24), "bias": draw(24)},
        },
        "head": {"kernel": draw((24, 2)), "output_bias": draw(40)},
    }
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)


def gradients(params, step):
    rng = np.random.default_rng(100 + step)
    return jax.tree.map(lambda p: jnp.asarray(rng.standard_normal(p.shape), jnp.float32), params)


def train(transformation, params, steps=3):
    state = transformation.init(params)
    update = jax.jit(transformation.update)
    for step in range(steps):
        updates, state = update(gradients(params, step), state, params)
        params = optax.apply_updates(params, updates)
    return params


def assert_trees_close(got, expected, rtol=2e-5, atol=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), got, expected)


def bert_optimization_py(params, steps, lr0, warmup, total, weight_decay):
    """google-research/bert optimization.py in float64: clip, Adam without correction, decay."""
    flat = {jax.tree_util.keystr(path): np.asarray(leaf, np.float64)
            for path, leaf in jax.tree_util.tree_leaves_with_path(params)}  # fmt: skip
    m = {name: np.zeros_like(p) for name, p in flat.items()}
    v = {name: np.zeros_like(p) for name, p in flat.items()}
    for step in range(steps):
        grads = {
            jax.tree_util.keystr(path): np.asarray(leaf, np.float64)
            for path, leaf in jax.tree_util.tree_leaves_with_path(gradients(params, step))
        }
        norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
        grads = {name: g * 1.0 / max(norm, 1.0) for name, g in grads.items()}
        lr = lr0 * step / warmup if step < warmup else lr0 * (1 - step / total)
        for name, p in flat.items():
            m[name] = 0.9 * m[name] + 0.1 * grads[name]
            v[name] = 0.999 * v[name] + 0.001 * grads[name] ** 2
            update = m[name] / (np.sqrt(v[name]) + 1e-6)
            excluded = "norm" in name or ("bias" in name and "content_bias" not in name)
            if not excluded:
                update = update + weight_decay * p
            flat[name] = p - lr * update
    return flat


def test_adamw_is_berts_optimization_py():
    params = tiny_params()
    config = OptimizerConfig(learning_rate=1e-2, warmup_steps=4, weight_decay=0.1)
    transformation, _ = make_optimizer(config, STEPS, params)
    got = train(transformation, params, steps=8)
    expected = bert_optimization_py(params, 8, 1e-2, 4, STEPS, 0.1)
    for path, leaf in jax.tree_util.tree_leaves_with_path(got):
        name = jax.tree_util.keystr(path)
        np.testing.assert_allclose(leaf, expected[name], rtol=2e-5, atol=2e-6, err_msg=name)


def test_adamw_with_bias_correction_is_optax_adamw():
    params = tiny_params()
    config = OptimizerConfig(
        learning_rate=1e-2, schedule="constant", bias_correction=True, decay="all", clip_norm=0.0,
        b2=0.95, epsilon=1e-8,
    )  # fmt: skip
    transformation, schedule = make_optimizer(config, STEPS, params)
    reference = optax.adamw(1e-2, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.01)
    assert_trees_close(train(transformation, params), train(reference, params))
    assert float(schedule(3)) == pytest.approx(1e-2)


def test_first_update_under_warmup_changes_nothing():
    params = tiny_params()
    config = OptimizerConfig(learning_rate=1e-2, warmup_steps=4)
    transformation, _ = make_optimizer(config, STEPS, params)
    jax.tree.map(np.testing.assert_array_equal, train(transformation, params, steps=1), params)


def test_papers_rule_and_matrices_rule():
    params = tiny_params()
    papers = decay_mask(params, "papers")
    assert papers == {
        "embed": {"embedding": True},
        "norm": {"scale": False, "bias": False},
        "layer_0": {
            "attention": {"query": {"kernel": True, "bias": False}},
            "content_bias": True,
            "output_norm": {"scale": False, "bias": False},
        },
        "head": {"kernel": True, "output_bias": False},
    }
    matrices = decay_mask(params, "matrices")
    assert not matrices["layer_0"]["content_bias"]
    assert matrices["embed"]["embedding"] and matrices["head"]["kernel"]
    # The two rows of a stack of biases are no matrix.
    stacked = {"kernel": jnp.ones((2, 3, 4)), "bias": jnp.ones((2, 4)), "scale": jnp.ones((2, 3))}
    assert decay_mask(stacked, "matrices") == {"kernel": True, "bias": False, "scale": False}
    assert all(jax.tree.leaves(decay_mask(params, "all")))
    assert not any(jax.tree.leaves(decay_mask(params, "none")))


def test_lamb_is_optax_lamb_where_the_trust_ratio_applies():
    params = tiny_params()
    config = OptimizerConfig(
        learning_rate=1e-2, name="lamb", schedule="constant", bias_correction=True, clip_norm=0.0
    )
    got = train(make_optimizer(config, STEPS, params)[0], params)
    # optax.lamb takes the ratio for all parameters, norms and biases too.
    reference = train(optax.lamb(1e-2, weight_decay=0.01), params)
    plain = train(optax.adam(1e-2, eps=1e-6), params)
    assert_trees_close(got["embed"], reference["embed"])
    assert_trees_close(got["layer_0"]["attention"]["query"]["kernel"],
                       reference["layer_0"]["attention"]["query"]["kernel"])  # fmt: skip
    assert_trees_close(got["norm"], plain["norm"])


def test_adafactor_is_optax_adafactor():
    params = tiny_params()
    params["embed"]["embedding"] = jnp.tile(params["embed"]["embedding"], (4, 6))  # factored
    config = OptimizerConfig(
        learning_rate=1e-2, name="adafactor", schedule="constant", decay="none", clip_norm=0.0
    )
    got = train(make_optimizer(config, STEPS, params)[0], params)
    assert_trees_close(got, train(optax.adafactor(1e-2), params))


def test_lion_is_optax_lion():
    params = tiny_params()
    config = OptimizerConfig(
        learning_rate=1e-3, name="lion", schedule="constant", b2=0.99, decay="all", clip_norm=0.0
    )
    got = train(make_optimizer(config, STEPS, params)[0], params)
    assert_trees_close(got, train(optax.lion(1e-3, b2=0.99, weight_decay=0.01), params))


def test_muon_orthogonalises_kernels_and_leaves_the_rest_to_adam():
    params = tiny_params()
    options = dict(learning_rate=1e-2, schedule="constant", decay="none", clip_norm=0.0)
    muon = make_optimizer(OptimizerConfig(name="muon", **options), STEPS, params)[0]
    adam = make_optimizer(OptimizerConfig(name="adamw", **options), STEPS, params)[0]
    got, by_adam = train(muon, params, 1), train(adam, params, 1)
    for part in ("embed", "norm", "head"):
        jax.tree.map(np.testing.assert_array_equal, got[part], by_adam[part])
    before = params["layer_0"]["attention"]["query"]["kernel"]
    update = np.asarray(before - got["layer_0"]["attention"]["query"]["kernel"]) / 1e-2
    singular = np.linalg.svd(update / (0.2 * np.sqrt(32)), compute_uv=False)
    # Five Newton-Schulz steps bring all singular values near 1, not to it.
    assert singular.min() > 0.5 and singular.max() < 1.3
    # A matrix of 24 orthonormal rows of 32 has RMS 1 / sqrt(32).
    assert 0.7 * 0.2 < np.sqrt(np.mean(update**2)) < 1.2 * 0.2


@pytest.mark.parametrize("name", ["adamw", "lamb", "adafactor", "muon"])
def test_a_stack_of_layers_trains_as_the_layers_would(name):
    """The same numbers whether layers are a loop or one scan over stacked parameters."""
    layers = [tiny_params(seed)["layer_0"] for seed in range(2)]
    looped = {f"layer_{i}": layer for i, layer in enumerate(layers)}
    stacked = {"layers": jax.tree.map(lambda *x: jnp.stack(x), *layers)}
    looped["embed"] = stacked["embed"] = tiny_params()["embed"]
    config = OptimizerConfig(
        learning_rate=1e-2, name=name, schedule="constant", decay="matrices", clip_norm=1.0
    )

    def run(params, grads):
        transformation, _ = make_optimizer(config, STEPS, params)
        state, update = transformation.init(params), jax.jit(transformation.update)
        for scale in (1.0, -0.5):
            scaled = jax.tree.map(lambda g, scale=scale: scale * g, grads)
            updates, state = update(scaled, state, params)
            params = optax.apply_updates(params, updates)
        return params

    grads = gradients(looped, 0)
    grads_stacked = {
        "layers": jax.tree.map(lambda *x: jnp.stack(x), *(grads[f"layer_{i}"] for i in range(2))),
        "embed": grads["embed"],
    }
    got, expected = run(stacked, grads_stacked), run(looped, grads)
    # content_bias has no rank of its own: its stack is one tensor to LAMB and Adafactor.
    for part in ("attention", "output_norm"):
        for i in range(2):
            one = jax.tree.map(lambda x, i=i: x[i], got["layers"][part])
            assert_trees_close(one, expected[f"layer_{i}"][part], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["lamb", "muon"])
def test_the_update_vmaps_over_seeds(name):
    seeds = [tiny_params(0)["layer_0"], tiny_params(1)["layer_0"]]
    config = OptimizerConfig(learning_rate=1e-2, name=name, schedule="constant")
    transformation, _ = make_optimizer(config, STEPS, seeds[0])

    def first_update(params):
        grads = jax.tree.map(jnp.sin, params)
        return transformation.update(grads, transformation.init(params), params)[0]

    both = jax.tree.map(lambda *x: jnp.stack(x), *seeds)
    got = jax.jit(jax.vmap(first_update))(both)
    expected = jax.jit(first_update)(seeds[1])
    assert_trees_close(jax.tree.map(lambda x: x[1], got), expected, rtol=1e-4)


def test_clipping():
    params = {"kernel": jnp.zeros((2, 2))}
    config = OptimizerConfig(learning_rate=1.0, schedule="constant", b1=0.0, b2=0.0, epsilon=1e8)
    transformation, _ = make_optimizer(config, STEPS, params)  # almost SGD: g / (|g| + 1e8)
    updates, _ = transformation.update({"kernel": jnp.full((2, 2), 5.0)},
                                       transformation.init(params), params)  # fmt: skip
    np.testing.assert_allclose(np.linalg.norm(updates["kernel"]), 1.0 / 1e8, rtol=1e-5)


def test_ema():
    got = ema_update({"w": jnp.ones(2)}, {"w": jnp.zeros(2)}, 0.9)
    np.testing.assert_allclose(got["w"], 0.9)


def electra_layer_lrs(learning_rate, layer_decay, n_layers):
    """google-research/electra, model/optimization.py, `_get_layer_lrs`."""
    key_to_depths = {
        "/embeddings/": 0,
        "/embeddings_project/": 0,
        "task_specific/": n_layers + 2,
    }
    for layer in range(n_layers):
        key_to_depths[f"encoder/layer_{layer}/"] = layer + 1
    return {
        key: learning_rate * (layer_decay ** (n_layers + 2 - depth))
        for key, depth in key_to_depths.items()
    }


def three_layers(scanned):
    kernel = {"kernel": jnp.ones((4, 4))}
    layers = {f"layer_{i}": {"query": kernel} for i in range(3)}
    if scanned:
        layers = {"layers": {"query": {"kernel": jnp.ones((3, 4, 4))}}}
    return {
        "encoder": {
            "embeddings": {"token": {"embedding": jnp.ones((5, 4))}},
            "embeddings_project": kernel,
            "stack": {"blocks": layers},
        },
        "head": {"output": kernel},
    }


@pytest.mark.parametrize("scanned", [False, True])
def test_layers_learn_at_electras_rates(scanned):
    expected = electra_layer_lrs(1.0, 0.8, 3)
    for form, power in (("released", 0), ("intended", 1)):
        shares = layer_shares(three_layers(scanned), 0.8, form)
        encoder, blocks = shares["encoder"], shares["encoder"]["stack"]["blocks"]
        # One power too many in the released code, but for the head.
        scale = 0.8**-power
        assert shares["head"]["output"]["kernel"] == expected["task_specific/"] == 1.0
        for name in ("embeddings", "embeddings_project"):
            for share in jax.tree.leaves(encoder[name]):
                np.testing.assert_allclose(share, expected[f"/{name}/"] * scale)
        for i in range(3):
            share = blocks["layers" if scanned else f"layer_{i}"]["query"]["kernel"]
            share = np.ravel(share)[i if scanned else 0]
            np.testing.assert_allclose(share, expected[f"encoder/layer_{i}/"] * scale, rtol=1e-6)


def test_layer_decay_scales_the_whole_update():
    params = three_layers(False)
    plain = OptimizerConfig(learning_rate=1e-2, weight_decay=0.1)
    slow = OptimizerConfig(learning_rate=1e-2, weight_decay=0.1, layer_decay=0.5)
    moves = []
    for config in (plain, slow):
        after = train(make_optimizer(config, STEPS, params)[0], params, steps=1)
        moves.append(jax.tree.map(jnp.subtract, after, params))
    shares = layer_shares(params, 0.5, "intended")
    assert_trees_close(moves[1], jax.tree.map(jnp.multiply, moves[0], shares))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "adam"),
        ("schedule", "linaer"),
        ("learning_rate", -1.0),
        ("learning_rate", 0.0),
        ("learning_rate", float("inf")),
        ("final_ratio", 1.5),
        ("b2", 1.0),
        ("b1", 0.99999999),  # 1 in float32
        ("epsilon", 0.0),
        ("epsilon", 1e-50),  # 0 in float32
        ("epsilon", float("nan")),
        ("weight_decay", -0.1),
        ("clip_norm", float("inf")),
        ("decay", "some"),
        ("warmup_steps", -5),
        ("layer_decay", 0.0),
        ("layer_decay_form", "paper"),
    ],
)
def test_impossible_values_are_refused_by_name(field, value):
    with pytest.raises(ConfigError, match=f"^{field}: "):
        OptimizerConfig(**{"learning_rate": 1e-3, field: value})


def test_warmup_longer_than_the_run_is_refused():
    with pytest.raises(ConfigError, match=r"config\.optimizer\.warmup_steps"):
        make_optimizer(OptimizerConfig(learning_rate=1e-3, warmup_steps=50), 20, tiny_params())
