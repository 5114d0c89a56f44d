"""Attention kernels against plain products, and the rules by which they are chosen."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from lmjax.errors import ConfigError
from lmjax.nn import kernels, masks
from lmjax.nn.attention import attention
from lmjax.nn.partition import AXES, platform

LENGTH, HEADS, HEAD_DIM = 128, 2, 16
RNG = np.random.default_rng(0)
QUERY, KEY, VALUE, WEIGHT = (
    jnp.asarray(RNG.normal(size=(2, LENGTH, HEADS, HEAD_DIM)), jnp.float32) for _ in range(4)
)
# Two documents and padding; one document that fills its row.
DOCUMENTS = jnp.stack(
    [jnp.repeat(jnp.array([1, 2, 0]), jnp.array([50, 60, 18])), jnp.ones(LENGTH, int)]
)
MASKS = {
    "documents": masks.same_document(DOCUMENTS),
    "causal documents": masks.same_document(DOCUMENTS) & masks.causal(LENGTH),
    "causal": masks.causal(LENGTH),
    "prefix": masks.same_document(DOCUMENTS)
    & (masks.prefix(jnp.arange(LENGTH)[None] < 7) | masks.causal(LENGTH)),
    "padding": masks.padding(DOCUMENTS),
}


def results(f: Any, mask: masks.Mask) -> Any:
    """Its result and the gradients of a weighted sum of it."""

    def loss(query: jax.Array, key: jax.Array, value: jax.Array) -> Any:
        y = f(query, key, value, mask)
        return (y * WEIGHT).sum(), y

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(QUERY, KEY, VALUE)


def assert_alike(found: Any, expected: Any) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), found, expected)


@pytest.mark.parametrize("name", MASKS)
def test_what_cudnn_is_asked_for_is_plain_attention(name: str) -> None:
    """Its arguments, computed by jax's own implementation of the same function."""

    def asked(query: jax.Array, key: jax.Array, value: jax.Array, mask: masks.Mask) -> jax.Array:
        return kernels.cudnn(query, key, value, mask, jnp.float32, "xla")

    assert_alike(results(asked, MASKS[name]), results(attention, MASKS[name]))


def test_cudnn_is_what_is_called_forward_and_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lowered for CUDA, which needs no GPU but for the version of its cuDNN."""
    from jax._src.cudnn import fused_attention_stablehlo as calls

    monkeypatch.setattr(calls, "check_cudnn_version", lambda: 91000)

    def loss(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        mask = MASKS["causal documents"]
        return kernels.cudnn(query, key, value, mask, jnp.bfloat16).sum()

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
    text = gradient.trace(QUERY, KEY, VALUE).lower(lowering_platforms=("cuda",)).as_text()
    calls_made = re.findall(r"__cudnn\$(\w+)", text)
    assert sorted(set(calls_made)) == ["fmhaScaleBiasSoftmax", "fmhaScaleBiasSoftmaxBackward"]
    assert f"{LENGTH}x{LENGTH}xf32" not in text


@pytest.mark.parametrize("name", ["documents", "causal documents", "causal"])
def test_splash_is_plain_attention(name: str) -> None:
    def interpreted(
        query: jax.Array, key: jax.Array, value: jax.Array, mask: masks.Mask
    ) -> jax.Array:
        return kernels.splash(query, key, value, mask, jnp.float32, interpret=True)

    assert_alike(results(interpreted, MASKS[name]), results(attention, MASKS[name]))


def test_splash_lowers_for_tpus_on_a_mesh() -> None:
    mesh = jax.make_mesh((2, 2, 1, 2), AXES, axis_types=(AxisType.Auto,) * 4)
    wide = jnp.concatenate([QUERY, QUERY])
    mask = masks.same_document(jnp.concatenate([DOCUMENTS] * 2)) & masks.causal(LENGTH)

    def loss(query: jax.Array) -> jax.Array:
        return kernels.splash(query, query, query, mask, jnp.bfloat16).sum()

    with jax.set_mesh(mesh):
        text = jax.jit(jax.grad(loss)).trace(wide).lower(lowering_platforms=("tpu",)).as_text()
    assert text.count("tpu_custom_call") == 3  # forward, and queries and keys backward


def chosen(
    monkeypatch: pytest.MonkeyPatch,
    wanted: Any = "auto",
    here: str = "gpu",
    capability: float = 9.0,
    length: int = LENGTH,
    head_dim: int = 64,
    mask: str = "causal documents",
    dtype: Any = jnp.bfloat16,
    drops: bool = False,
) -> str:
    monkeypatch.setattr(kernels, "platform", lambda: here)
    monkeypatch.setattr(kernels, "_compute_capability", lambda: capability)
    query = jnp.zeros((2, length, HEADS, head_dim))
    return kernels.choose(wanted, query, query, MASKS[mask], dtype, drops)


@pytest.mark.parametrize(
    ("case", "expected", "said"),
    [
        ({}, "cudnn", ""),
        ({"mask": "prefix"}, "cudnn", ""),
        ({"here": "tpu"}, "splash", ""),
        ({"here": "cpu"}, "plain", ""),
        ({"wanted": "plain"}, "plain", ""),
        ({"here": "tpu", "wanted": "plain"}, "plain", ""),
        ({"dtype": jnp.float32}, "plain", "cudnn needs config.model.trunk.dtype='bfloat16'"),
        ({"drops": True}, "plain", "cudnn does not support attention dropout"),
        ({"capability": 7.5}, "plain", "of the Ampere generation"),
        ({"head_dim": 12}, "plain", "a multiple of 8 and at most 128, not 12"),
        ({"head_dim": 256}, "plain", "a multiple of 8 and at most 128, not 256"),
        ({"length": 127}, "plain", "an even length, not 127"),
        ({"here": "tpu", "mask": "prefix"}, "plain", "supports only causal and document masks"),
        ({"here": "tpu", "length": 96}, "plain", "a multiple of 128, not 96"),
    ],
)
def test_auto_takes_the_devices_kernel_where_it_can_and_says_once_where_not(
    case: dict[str, Any],
    expected: str,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    kernels._report.cache_clear()
    for _ in range(2):
        assert chosen(monkeypatch, **case) == expected
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == bool(said)
    assert not said or (said in lines[0] and lines[0].startswith("attention: using plain products"))


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ({"wanted": "splash"}, r"trunk\.attention: 'splash' does not run on this device \(gpu\)"),
        ({"wanted": "cudnn", "here": "cpu"}, r"'cudnn' does not run on this device \(cpu\)"),
        ({"wanted": "cudnn", "drops": True}, r"set config\.model\.trunk\.attention_dropout to 0"),
        (
            {"wanted": "cudnn", "dtype": jnp.float32},
            r"needs config\.model\.trunk\.dtype='bfloat16'",
        ),
    ],
)
def test_a_kernel_that_was_asked_for_by_name_is_refused_where_it_cannot(
    case: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=message):
        chosen(monkeypatch, **case)


def test_a_length_that_is_split_has_no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    mesh = jax.make_mesh((1, 1, 8, 1), AXES, axis_types=(AxisType.Auto,) * 4)
    with (
        jax.set_mesh(mesh),
        pytest.raises(ConfigError, match=r"set config\.mesh\.sequence to 1"),
    ):
        chosen(monkeypatch, wanted="cudnn")


def test_the_platform_is_that_of_the_mesh() -> None:
    assert platform() == "cpu"
    mesh = jax.make_mesh((8, 1, 1, 1), AXES, axis_types=(AxisType.Auto,) * 4)
    with jax.set_mesh(mesh):
        assert jax.jit(lambda: len(platform()))() == 3
