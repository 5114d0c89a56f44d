"""Taps: what is read, and what an edit changes."""

import dataclasses
import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.errors import ConfigError
from lmjax.models.bert import BertConfig
from lmjax.models.gpt import GptConfig
from lmjax.nn.masks import causal
from lmjax.nn.taps import Edit, edited, read
from tests import tiny
from tests.generation import models

TRUNK = dataclasses.replace(tiny.TRUNK, layers=2, norm="pre")
TOKENS = np.random.default_rng(0).integers(6, tiny.SIZE, (3, 8))
BLOCKS = "encoder/stack/blocks"
TOP = f"{BLOCKS}/layer_1/leaving"


def inputs(tokens: Any = TOKENS) -> Any:
    return tiny.text_inputs(tokens, causal(8))


@functools.cache
def gpt(**fields: Any) -> tuple[Any, Any]:
    trunk = dataclasses.replace(TRUNK, **fields)
    network = GptConfig(trunk, max_length=8, vocab_size=tiny.SIZE).causal_lm()
    return network, network.init(jax.random.key(0), inputs())["params"]


@functools.cache
def clean() -> tuple[jax.Array, dict[str, jax.Array]]:
    return read(*gpt(), inputs(), weights=True)


def test_activations_are_those_of_the_forward_pass() -> None:
    network, params = gpt()
    logits, found = clean()
    np.testing.assert_array_equal(logits, network.apply({"params": params}, inputs()))
    own = f"{BLOCKS}/layer_0/attention"
    scores = jnp.einsum("bqhd,bkhd->bhqk", found[f"{own}/queries"], found[f"{own}/keys"])
    scores = jnp.where(np.tril(np.ones((8, 8), bool)), scores / np.sqrt(8), -np.inf)
    weights = found[f"{own}/weights"]
    np.testing.assert_allclose(weights, jax.nn.softmax(scores), atol=1e-6)
    context = jnp.einsum("bhqk,bkhd->bqhd", weights, found[f"{own}/values"])
    np.testing.assert_allclose(found[f"{own}/context"], context, atol=1e-6)
    parts = [f"{BLOCKS}/entering", f"{own}/written", f"{BLOCKS}/layer_0/feed_forward/written"]
    total = sum(found[path] for path in parts)
    np.testing.assert_allclose(found[f"{BLOCKS}/layer_0/leaving"], total, atol=1e-5)
    np.testing.assert_allclose(
        network.apply({"params": params}, found["encoder/stack/normed"], method="decode"),
        logits,
        atol=1e-5,
    )


def test_unread_taps_leave_the_program_as_it_is() -> None:
    network, params = gpt()

    def plain(params: Any, inputs: Any) -> Any:
        return network.apply({"params": params}, inputs)

    def unused(params: Any, inputs: Any) -> Any:
        return read(network, params, inputs)[0]

    def text(f: Any) -> str:
        compiled = jax.jit(f).lower(params, inputs()).compile().as_text()
        lines = compiled.replace("unused", "plain").splitlines()
        return "\n".join(
            line.partition(", metadata=")[0] for line in lines if "HloModule" not in line
        )

    assert text(plain).count(" = ") == text(unused).count(" = ")


@pytest.mark.parametrize("path", list(clean()[1]))
def test_an_activation_replaced_by_itself_changes_nothing(path: str) -> None:
    logits, found = clean()
    again = edited(*gpt(), inputs(), edits={path: Edit(0.0, found[path])})
    np.testing.assert_allclose(again, logits, atol=1e-6)


def test_patching_the_top_layer_gives_the_other_run() -> None:
    logits, found = clean()
    other = np.roll(TOKENS, 1, axis=1)
    patched = edited(*gpt(), inputs(other), edits={TOP: Edit(0.0, found[TOP])})
    np.testing.assert_allclose(patched, logits, atol=1e-6)
    # One position of the first layer changes no earlier prediction.
    at = (jnp.arange(8) == 4)[:, None]
    path = f"{BLOCKS}/layer_0/leaving"
    edit = Edit(1.0 - at, at * found[path])
    run = edited(*gpt(), inputs(other), edits={path: edit})
    plain = edited(*gpt(), inputs(other), edits={})
    np.testing.assert_allclose(run[:, :4], plain[:, :4], atol=1e-6)
    assert float(jnp.abs(run[:, 4:] - plain[:, 4:]).max()) > 1e-3


def test_the_gradient_of_an_offset_is_that_of_the_activation() -> None:
    network, params = gpt()
    path = f"{BLOCKS}/layer_0/feed_forward/neurons"
    shape = clean()[1][path].shape

    def loss(offset: jax.Array) -> jax.Array:
        logits = edited(network, params, inputs(), edits={path: Edit(offset=offset)})
        return jnp.square(logits).mean()

    gradient = jax.jit(jax.grad(loss))(jnp.zeros(shape))
    direction = jax.random.normal(jax.random.key(3), shape)
    step = 1e-2
    slope = (loss(step * direction) - loss(-step * direction)) / (2 * step)
    np.testing.assert_allclose((gradient * direction).sum(), slope, rtol=5e-2)


def test_scanned_and_rematerialized_layers_have_the_same_taps() -> None:
    network, params = gpt(scan_layers=True, remat="nothing_saveable")
    _, unrolled = gpt()
    blocks = unrolled["encoder"]["stack"]["blocks"]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *(blocks[f"layer_{i}"] for i in range(2)))
    params = jax.tree.map(lambda x: x, unrolled)
    params["encoder"]["stack"]["blocks"] = {"layers": stacked}
    logits, found = clean()
    again, scanned = read(network, params, inputs(), weights=True)
    np.testing.assert_allclose(again, logits, atol=1e-5)
    for path, value in scanned.items():
        if "/layers/" in path:
            each = [found[path.replace("layers", f"layer_{i}")] for i in range(2)]
            np.testing.assert_allclose(value, jnp.stack(each), atol=1e-5)
    head = (jnp.arange(2) != 1)[:, None]  # ablates head 1 of layer 0
    expected = edited(*gpt(), inputs(), edits={f"{BLOCKS}/layer_0/attention/context": Edit(head)})
    scale = jnp.stack([head, jnp.ones_like(head)])[:, None, None]
    path = f"{BLOCKS}/layers/attention/context"
    ablated = edited(network, params, inputs(), edits={path: Edit(scale)})
    np.testing.assert_allclose(ablated, expected, atol=1e-5)


def test_a_sweep_in_one_program_equals_a_loop() -> None:
    heads = 1.0 - jnp.eye(2)[:, :, None]
    path = f"{BLOCKS}/layer_1/attention/context"

    def run(scale: jax.Array) -> jax.Array:
        return edited(*gpt(), inputs(), edits={path: Edit(scale)})

    together = jax.jit(jax.vmap(run))(heads)
    np.testing.assert_allclose(together, [run(head) for head in heads], atol=1e-6)


def test_bad_edits_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"no activation 'stack/x'; known: .*layer_1/leaving"):
        edited(*gpt(), inputs(), edits={"stack/x": Edit(0.0)})
    with pytest.raises(ConfigError, match=r"shape \(5,\) does not broadcast to .*\(3, 8, 16\)"):
        edited(*gpt(), inputs(), edits={TOP: Edit(offset=jnp.zeros(5))})


@pytest.mark.parametrize("name", ["xlnet", "electra"])
def test_both_streams_and_both_networks_have_taps(name: str) -> None:
    objective = tiny.objective(name)
    batch = jax.vmap(objective.corrupt)(
        jax.random.split(jax.random.key(0), 2), tiny.batch(name, 0, rows=2)
    )
    batch = {key: jnp.asarray(x) for key, x in batch.items()}
    mems = objective.init_mems(2)
    params = objective.init(jax.random.key(0), batch)
    given = objective.inputs(batch, mems)
    method = "generate" if name == "electra" else None
    output, found = read(objective.network, params, *given, weights=True, method=method)
    wanted = (
        "query_stream_context"
        if name == "xlnet"
        else "generator/encoder/stack/blocks/layer_0/leaving"
    )
    paths = [path for path in found if path.endswith(wanted)]
    assert paths
    edit = {paths[0]: Edit(0.0, found[paths[0]] + 1.0)}
    changed = edited(objective.network, params, *given, edits=edit, method=method)
    first, second = (jax.tree.leaves(x)[0] for x in (output, changed))
    assert float(jnp.abs(first - second).max()) > 1e-4


def test_bert_reads_weights_of_masked_rows() -> None:
    network = BertConfig(tiny.TRUNK, max_length=8, vocab_size=tiny.SIZE).encoder()
    mask = jnp.broadcast_to(jnp.arange(8) < 5, (3, 8, 8))
    given = tiny.text_inputs(TOKENS, mask)
    params = network.init(jax.random.key(0), given)["params"]
    _, found = read(network, params, given, weights=True)
    weights = found["stack/blocks/layer_0/attention/weights"]
    assert float(jnp.abs(weights[..., 5:]).max()) == 0.0
    np.testing.assert_allclose(weights.sum(-1), 1.0, atol=1e-6)


def test_the_documented_code_runs(capsys: pytest.CaptureFixture[str]) -> None:
    page = (pathlib.Path(__file__).parents[2] / "docs" / "activations.md").read_text()
    code = page.partition("```python")[2].partition("```")[0]
    assert 'lmjax.load("runs/quickstart/gpt")' in code
    code = code.replace('lmjax.load("runs/quickstart/gpt")', "given")
    exec(code, {"given": models.gpt(text=True)})
    *paths, difference = capsys.readouterr().out.splitlines()
    assert any(line.startswith("encoder/stack/blocks/layer_1/attention/weights") for line in paths)
    assert float(difference) > 1e-3
