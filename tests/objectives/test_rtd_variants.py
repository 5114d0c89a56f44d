"""Variants of ELECTRA: what the networks share, and how the generator is trained."""

import dataclasses
import functools
import itertools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy
from ml_collections import ConfigDict

import lmjax
from configs import electra
from lmjax.convert.warm_start import adapted
from lmjax.errors import ConfigError
from lmjax.models.electra import (
    Electra,
    ElectraConfig,
    ElectraDiscriminator,
    ElectraMaskedLM,
    standalone,
)
from lmjax.nn.layers import sample_categorical
from lmjax.objectives.base import Batch, apply
from lmjax.objectives.rtd import ReplacedTokenDetection
from lmjax.training.plan import make_objective, make_plan
from lmjax.training.step import TrainState, init_state, make_train_step
from lmjax.trees import map_named
from tests import tiny
from tests.runs import config, write_text

TABLES = ("token", "position", "segment")


def objective(name: str, **model: Any) -> ReplacedTokenDetection:
    made = tiny.objective(name)
    assert isinstance(made, ReplacedTokenDetection)
    return dataclasses.replace(made, model=dataclasses.replace(made.model, **model))


@pytest.fixture(scope="module")
def batch() -> Batch:
    return corrupted(objective("electra"), tiny.batch("electra", 0))


def corrupted(made: ReplacedTokenDetection, clean: Any) -> Batch:
    keys = jax.random.split(jax.random.key(5), len(clean["tokens"]))
    return jax.jit(jax.vmap(made.corrupt))(keys, clean)


def start(made: ReplacedTokenDetection, batch: Batch) -> Any:
    """Random parameters, those that start at zero as well."""
    rng = np.random.default_rng(0)

    def noise(path: tuple[str, ...], x: Any) -> jax.Array:
        return jnp.asarray(0.3 * rng.normal(size=x.shape) + (path[-1] == "scale"), jnp.float32)

    return map_named(noise, jax.eval_shape(made.init, jax.random.key(0), batch))


@functools.partial(jax.jit, static_argnums=0, static_argnames="method")
def outputs_of(network: Any, params: Any, *inputs: Any, method: str | None = None) -> Any:
    return apply(network, params, *inputs, method=method)


@functools.partial(jax.jit, static_argnums=0)
def gradients(made: ReplacedTokenDetection, params: Any, batch: Batch) -> dict[str, Any]:
    """The gradient of each term by itself."""

    def terms(params: Any) -> dict[str, jax.Array]:
        scored = made.loss(params, batch, None, None)
        return {name: total for name, (total, _) in scored.terms.items()}

    _, back = jax.vjp(terms, params)
    names = list(jax.eval_shape(terms, params))
    return {one: back({name: jnp.float32(name == one) for name in names})[0] for one in names}


def moved(tree: Any) -> set[bool]:
    return {bool(np.any(leaf)) for leaf in jax.tree.leaves(tree)}


def test_the_discriminator_reads_the_sum_and_trains_the_residual_alone(batch: Batch) -> None:
    made = objective("electra", share_embeddings="disentangled")
    fresh = jax.jit(made.init)(jax.random.key(0), batch)
    residuals = fresh["delta"]["embeddings"]
    assert moved([residuals[table] for table in TABLES]) == {False}
    params = start(made, batch)
    found = gradients(made, params, batch)
    assert moved(found["rtd"]["embeddings"]) == moved(found["rtd"]["generator"]) == {False}
    assert moved(found["rtd"]["delta"]) == moved(found["rtd"]["discriminator"]) == {True}
    assert moved(found["mlm"]["delta"]) == moved(found["mlm"]["discriminator"]) == {False}
    assert moved(found["mlm"]["embeddings"]) == moved(found["mlm"]["generator"]) == {True}
    inputs, _ = made.inputs(batch)
    network, own = made.network.part(params, "discriminator")
    assert isinstance(network, ElectraDiscriminator)
    for table in TABLES:
        np.testing.assert_array_equal(
            own["encoder"]["embeddings"][table]["embedding"],
            params["embeddings"][table]["embedding"]
            + params["delta"]["embeddings"][table]["embedding"],
        )
    np.testing.assert_allclose(
        outputs_of(network, own, inputs),
        outputs_of(made.network, params, inputs, method="discriminate"),
        atol=1e-6,
    )
    generator = standalone(params, "generator")["encoder"]["embeddings"]
    np.testing.assert_array_equal(
        generator["token"]["embedding"], params["embeddings"]["token"]["embedding"]
    )


def test_all_weights_are_those_of_one_encoder(batch: Batch) -> None:
    made = objective("all weights")
    params = start(made, batch)
    assert params["discriminator"].keys() == {"dense", "prediction"}
    found = gradients(made, params, batch)
    for term in ("mlm", "rtd"):
        assert moved(found[term]["generator"]["encoder"]) == {True}
        assert moved(found[term]["embeddings"]) == {True}
    assert moved(found["rtd"]["generator"]["transform"]) == {False}
    inputs, _ = made.inputs(batch)
    parts = {name: made.network.part(params, name) for name in ("generator", "discriminator")}
    encoders = [parts[name][1]["encoder"] for name in parts]
    jax.tree.map(np.testing.assert_array_equal, *encoders)
    network, own = parts["discriminator"]
    np.testing.assert_allclose(
        outputs_of(network, own, inputs),
        outputs_of(made.network, params, inputs, method="discriminate"),
        atol=1e-6,
    )
    with pytest.raises(ConfigError, match="share_embeddings: 'all_weights' needs two networks of"):
        objective("all weights", generator_size=0.5)


def test_a_frozen_generator_never_changes() -> None:
    made = objective("frozen", share_embeddings="disentangled")
    # Decay would shrink parameters without a gradient.
    optimizer = optax.adamw(1e-2, weight_decay=0.5)
    clean = tiny.batch("electra", 0)
    state: TrainState = jax.jit(lambda: init_state(made, optimizer, 0, clean, False))()
    step = jax.jit(make_train_step(made, optimizer))
    before = state.params
    for _ in range(3):
        state, metrics = step(state, clean)
    kept = {"embeddings", "generator"}
    for name in kept:
        jax.tree.map(np.testing.assert_array_equal, state.params[name], before[name])
    trained = before.keys() - kept
    assert trained == {"discriminator", "delta"}
    for name in trained:
        jax.tree.map(
            lambda a, b: np.testing.assert_(bool((a != b).any())), state.params[name], before[name]
        )
    assert metrics["terms"].keys() == {"rtd"} and "mlm" in metrics["metrics"]


@pytest.mark.parametrize("sharing", [True, "all_weights"])
def test_a_frozen_generator_shares_nothing_that_is_trained(sharing: Any) -> None:
    model = {"share_embeddings": sharing, "generator_size": 1.0}
    with pytest.raises(ConfigError, match=r"^generator_training: the discriminator would train"):
        objective("frozen", **model)


def test_a_language_model_in_place_of_the_discriminator_shares_the_embeddings() -> None:
    block = {"type": "lmjax.objectives.electra_mlm.AllTokensMLM"}
    trunk = {"layers": 1, "hidden_size": 16, "heads": 2, "intermediate_size": 32}
    model = {"trunk": trunk, "share_embeddings": "disentangled", "generator_size": 0.5}
    with pytest.raises(ConfigError, match=r"AllTokensMLM shares .* config.model.share_embeddings"):
        make_objective(block, model, 50)


@pytest.mark.parametrize("sharing", [True, False, "disentangled", "all_weights"])
def test_both_networks_start_from_one_generator(sharing: Any, batch: Batch) -> None:
    made = objective("electra", share_embeddings=sharing, generator_size=1.0)
    alone = ElectraMaskedLM(made.model)
    inputs, where = made.inputs(batch)
    shapes = jax.eval_shape(alone.init, jax.random.key(3), inputs, where)["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)
    started = made.network.start_from(alone, params)
    wanted = jax.eval_shape(made.init, jax.random.key(0), batch)
    heads = {name: wanted["discriminator"][name] for name in ("dense", "prediction")}
    whole = {**started, "discriminator": {**started.get("discriminator", {}), **heads}}
    assert jax.tree.structure(whole) == jax.tree.structure(wanted)
    jax.tree.map(np.testing.assert_array_equal, standalone(whole, "generator"), params)
    jax.tree.map(
        np.testing.assert_array_equal,
        standalone(whole, "discriminator")["encoder"],
        params["encoder"],
    )


def test_what_training_cannot_start_from() -> None:
    one, other = (objective("electra", share_embeddings=s) for s in (True, "disentangled"))
    with pytest.raises(ConfigError, match=r"need config\.model\.share_embeddings=True"):
        other.network.start_from(one.network, {})
    generator = ElectraMaskedLM(dataclasses.replace(one.model, generator_size=1.0))
    with pytest.raises(ConfigError, match=r"set config\.model\.generator_size to 1"):
        one.network.start_from(generator, {})
    with pytest.raises(ConfigError, match=r"^model\.generator_size: a masked LM has the size"):
        one.model.masked_lm()
    with pytest.raises(ConfigError, match=r"^objective\.sentence_prediction: ELECTRA has no"):
        one.model.masked_lm(sentence_head=True)


SMALL = 10  # a vocabulary whose pairs can be counted


@pytest.fixture(scope="module")
def every_pair() -> tuple[ReplacedTokenDetection, Any, Batch, jax.Array]:
    """An adversarial objective, and a batch with one row for each pair of samples.

    Returns:
      The objective, parameters, the batch, and the samples [pairs, 2]. A row has its probability
      as weight, so that sums over the batch are expectations.
    """
    vocabulary = dataclasses.replace(
        tiny.VOCABULARY,
        size=SMALL,
        special=tiny.VOCABULARY.special[:SMALL],
        starts_word=tiny.VOCABULARY.starts_word[:SMALL],
        log_frequency=tiny.VOCABULARY.log_frequency[:SMALL],
    )
    adversarial = objective("adversarial", share_embeddings=True, vocab_size=SMALL)
    made = dataclasses.replace(adversarial, vocabulary=vocabulary, max_predictions=2)
    clean = {k: jnp.asarray(v) for k, v in tiny.batch("electra", 0, rows=2).items()}
    clean["tokens"] = jnp.where(clean["tokens"] < 6, clean["tokens"], clean["tokens"] % 4 + 6)
    one = {name: array[1:] for name, array in corrupted(made, clean).items()}
    assert one["target_weights"].sum() == 2
    params = start(made, one)
    logits = outputs_of(made.network, params, *made.inputs(one), method="generate")[0]
    keys = jax.random.split(jax.random.key(1), 50_000)
    drawn = np.asarray(jax.jit(jax.vmap(lambda key: sample_categorical(key, logits)))(keys))
    pairs = np.array(list(itertools.product(range(SMALL), repeat=2)))
    codes = drawn[:, 0] * SMALL + drawn[:, 1]
    found, first = np.unique(codes, return_index=True)
    assert len(found) == len(pairs)  # some key draws each pair
    rows = {
        name: jnp.repeat(array, len(pairs), axis=0)
        for name, array in one.items()
        if name != "sampling_key"
    }
    p = jax.nn.softmax(logits)
    chance = p[0][pairs[:, 0]] * p[1][pairs[:, 1]]
    rows["sampling_key"] = keys[first]
    rows["target_weights"] = jnp.broadcast_to(chance[:, None], pairs.shape)
    return made, params, rows, jnp.asarray(pairs)


def test_the_expected_gradient_is_that_of_the_expected_reward(every_pair: Any) -> None:
    made, params, rows, pairs = every_pair
    inputs, where = made.inputs(rows)
    cells = jnp.arange(len(pairs))[:, None]
    read = inputs.replace(tokens=rows["original"].at[cells, where].set(pairs))

    def expected_reward(params: Any, fixed: Any) -> jax.Array:
        """The sum over slots of E[R], each slot with the other's samples as they fall."""
        detected = apply(made.network, fixed, read, method="discriminate")
        replaced = read.tokens != rows["original"]
        rewards = optax.sigmoid_binary_cross_entropy(detected, replaced.astype(jnp.float32))
        at = jnp.take_along_axis(rewards, where, 1)
        logits = apply(made.network, params, inputs, where, method="generate")
        p = jnp.take_along_axis(jax.nn.softmax(logits), pairs[..., None], -1)[..., 0]
        still = jax.lax.stop_gradient(p)
        return (p[:, 0] * still[:, 1] * at[:, 0] + still[:, 0] * p[:, 1] * at[:, 1]).sum()

    exact = jax.jit(jax.grad(expected_reward))(params, params)
    found = gradients(made, params, rows)
    for name in ("embeddings", "generator"):
        for ours, theirs in zip(
            *map(jax.tree.leaves, (found["adversarial"][name], exact[name])), strict=True
        ):
            scale = float(jnp.abs(theirs).max())
            np.testing.assert_allclose(-ours, theirs, atol=2e-4 * scale + 1e-7)
    assert moved(exact["generator"]["encoder"]) == {True}
    assert moved(found["adversarial"]["discriminator"]) == {False}
    # Only the baseline's term trains the baseline, and nothing else.
    assert moved(found["adversarial"]["reward"]) == {False}
    assert moved(found["baseline"]["reward"]) == {True}
    assert moved({k: v for k, v in found["baseline"].items() if k != "reward"}) == {False}
    assert "mlm" not in found
    # Another baseline changes the single estimates, not their expectation.
    other = {**params, "reward": jax.tree.map(lambda x: x - 2.0, params["reward"])}
    for ours, theirs in zip(
        *map(jax.tree.leaves, (gradients(made, other, rows)["adversarial"], found["adversarial"])),
        strict=True,
    ):
        np.testing.assert_allclose(ours, theirs, atol=2e-4 * float(np.abs(theirs).max()) + 1e-7)


def test_the_terms_of_an_adversarial_generator_by_a_plain_loop(batch: Batch) -> None:
    made = objective("adversarial")
    params = start(made, batch)

    @jax.jit
    def outputs() -> Any:
        inputs, where = made.inputs(batch)
        method = "generate_with_baseline"
        logits, baseline = apply(made.network, params, inputs, where, method=method)
        read, _, _ = made.sampled(batch, inputs, logits)
        detected = apply(made.network, params, read, method="discriminate")
        return made.loss(params, batch, None, None), baseline, read.tokens, detected

    scored, baseline, read, detected = jax.device_get(outputs())
    reward = matched = count = 0.0
    for row, slot in itertools.product(range(tiny.BATCH), range(4)):
        if batch["target_weights"][row, slot] == 0:
            continue
        at = int(batch["target_positions"][row, slot])
        d = 1 / (1 + np.exp(np.float64(detected[row, at])))  # the probability of an original
        right = d if read[row, at] == batch["original"][row, at] else 1 - d
        s = 1 / (1 + np.exp(-np.float64(baseline[row, slot])))
        reward -= np.log(right)
        matched -= right * np.log(s) + (1 - right) * np.log(1 - s)
        count += 1
    np.testing.assert_allclose(scored.terms["adversarial"], (-reward, count), rtol=1e-5)
    np.testing.assert_allclose(scored.terms["baseline"], (matched, count), rtol=1e-5)
    assert "mlm" in scored.metrics and "mlm" not in scored.terms


def run_config(text: pathlib.Path, objective: dict[str, Any], **model: Any) -> dict[str, Any]:
    made = config(text)
    made["objective"] = {"max_predictions": 4, **objective}
    made["model"] |= {"embedding_size": 8, "generator_size": 1.0, "max_length": 16, **model}
    made["model"].pop("memory_length")
    made["model"]["trunk"] |= {"activation": "gelu"}
    made["data"]["examples"] = {"type": "lmjax.data.examples.ElectraPairs", "length": 16}
    made["training"] |= {"steps": 40, "eval_every": 40, "checkpoint_every": 40, "ema_decay": 0.0}
    made["training"]["batch_size"] = 4
    return made


def losses(lines: list[tuple[int, dict[str, float]]], name: str) -> list[float]:
    return [found[name] for _, found in lines if name in found]


@pytest.mark.parametrize("stage", ["generator", "discriminator"])
def test_the_configs_of_the_stages_can_work(stage: str) -> None:
    plan = make_plan(electra.get_config(f"tiny,{stage}"))
    assert plan.objective.model.generator_size == 1.0
    with pytest.raises(ConfigError, match="unknown size 'x'"):
        electra.get_config("tiny,x")


RTD = {"type": "lmjax.objectives.rtd.ReplacedTokenDetection"}


@pytest.mark.slow
def test_two_stages(tmp_path: pathlib.Path) -> None:
    text = write_text(tmp_path / "text.txt")
    masked = {
        "type": "lmjax.objectives.masked.MaskedLM",
        "sentence_prediction": False,
        "mask_fraction": 0.85,
        "random_fraction": 0.0,
    }
    family = {"type": "lmjax.models.electra.ElectraConfig"}
    first = lmjax.pretrain(
        run_config(text, masked, **family), workdir=tmp_path / "generator", on_metrics=None
    )
    assert isinstance(first.network, ElectraMaskedLM)
    # It can be published by itself.
    lmjax.save_huggingface(first, tmp_path / "published")
    assert isinstance(lmjax.load(tmp_path / "published").config, ElectraConfig)

    frozen = {**RTD, "generator_training": "frozen"}
    second = run_config(text, frozen, share_embeddings="disentangled")
    second |= {"init": str(tmp_path / "generator")}
    lines: list[tuple[int, dict[str, float]]] = []
    both = lmjax.pretrain(
        second, workdir=tmp_path / "run", on_metrics=lambda step, m: lines.append((step, m))
    )
    assert isinstance(both.network, Electra)
    jax.tree.map(np.testing.assert_array_equal, standalone(both.params, "generator"), first.params)
    validation = losses(lines, "validation/rtd")
    assert validation[-1] < validation[0]
    mlm = losses(lines, "validation/mlm")
    assert mlm[0] == mlm[-1]
    residual = both.params["delta"]["embeddings"]["token"]["embedding"]
    assert np.abs(residual).max() > 0

    # What is published is the sum of both tables.
    lmjax.save_huggingface(both, tmp_path / "discriminator")
    tensors = safetensors.numpy.load_file(tmp_path / "discriminator" / "model.safetensors")
    np.testing.assert_array_equal(
        tensors["electra.embeddings.word_embeddings.weight"],
        both.params["embeddings"]["token"]["embedding"] + residual,
    )
    ids = np.arange(6, 18)[None]
    np.testing.assert_allclose(lmjax.load(tmp_path / "discriminator")(ids), both(ids)[1], atol=1e-5)

    second["model"]["generator_size"] = 0.5
    with pytest.raises(ConfigError, match=r"^config\.init: .*set config\.model\.generator_size to"):
        adapted(ConfigDict(second))
    other = run_config(text, RTD, share_embeddings=True) | {"init": str(tmp_path / "run")}
    with pytest.raises(ConfigError, match=r"^config\.init: .*share_embeddings=disentangled"):
        adapted(ConfigDict(other))


def test_a_run_of_one_encoder_with_an_adversarial_generator(tmp_path: pathlib.Path) -> None:
    text = write_text(tmp_path / "text.txt")
    adversarial = {**RTD, "generator_training": "adversarial"}
    made = run_config(text, adversarial, share_embeddings="all_weights")
    lines: list[tuple[int, dict[str, float]]] = []
    opened = lmjax.pretrain(
        made, workdir=tmp_path / "run", on_metrics=lambda step, m: lines.append((step, m))
    )
    for name in ("loss", "rtd", "adversarial", "baseline", "mlm"):
        assert np.isfinite(losses(lines, f"train/{name}")).all(), name
    assert losses(lines, "train/rtd")[-1] < losses(lines, "train/rtd")[0]
    lmjax.save_huggingface(opened, tmp_path / "discriminator")
    ids = np.arange(6, 18)[None]
    published = lmjax.load(tmp_path / "discriminator")
    np.testing.assert_allclose(published(ids), opened(ids)[1], atol=1e-5)
