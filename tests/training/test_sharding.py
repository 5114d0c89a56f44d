"""Who holds what on the mesh."""

import dataclasses
import io
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import rich.console
from jax.sharding import PartitionSpec as P

from configs import bert
from lmjax.training.plan import make_objective
from lmjax.training.sharding import (
    MeshConfig,
    bytes_per_device,
    layout,
    make_mesh,
    shardings,
    spec_of,
)
from lmjax.training.step import init_state
from tests import tiny

pytestmark = pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 devices")


@pytest.mark.parametrize(
    ("path", "shape", "spec"),
    [
        ("encoder/stack/blocks/layer_0/attention/query/kernel", (16, 16), P("fsdp", "tensor")),
        (
            "encoder/stack/blocks/layers/attention/query/kernel",
            (3, 16, 16),
            P(None, "fsdp", "tensor"),
        ),
        ("encoder/stack/blocks/layers/attention/query/bias", (3, 16), P(None, "tensor")),
        ("encoder/stack/blocks/layer_0/attention/output/kernel", (16, 16), P("tensor", "fsdp")),
        ("encoder/stack/blocks/layer_0/attention/output/bias", (16,), P()),
        ("encoder/stack/blocks/layer_0/feed_forward/inner/kernel", (16, 64), P("fsdp", "tensor")),
        ("encoder/stack/blocks/layer_0/feed_forward/outer/kernel", (64, 16), P("tensor", "fsdp")),
        ("encoder/layers/layer_0/attention/content_bias", (2, 8), P("tensor", None)),
        ("encoder/layers/layer_0/attention/segment_embedding", (2, 2, 8), P(None, "tensor", None)),
        ("encoder/embeddings/token/embedding", (50, 16), P("tensor", "fsdp")),
        ("encoder/embeddings/token/embedding", (51, 16), P(None, "fsdp")),
        ("encoder/stack/blocks/layer_0/attention_norm/scale", (16,), P()),
        ("opt_state/1/mu/head/output/kernel", (16, 3), P("fsdp", None)),
        ("head/output/kernel", (15, 3), P(None, None)),
    ],
)
def test_where_a_parameter_lies(path: str, shape: tuple[int, ...], spec: P) -> None:
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    found = spec_of(path, shape, mesh)
    expected = tuple(spec) + (None,) * (len(shape) - len(spec))
    assert tuple(found) + (None,) * (len(shape) - len(found)) == expected


@pytest.mark.parametrize("name", tiny.NAMES)
def test_moments_lie_where_their_parameters_do(name: str) -> None:
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    objective = tiny.objective(name)
    state = jax.eval_shape(
        lambda: init_state(objective, optax.adamw(1e-3), 0, tiny.batch(name, 0), True)
    )
    places = shardings(state, mesh)
    assert jax.tree.leaves(places.opt_state[0].mu) == jax.tree.leaves(places.params)
    assert jax.tree.leaves(places.ema) == jax.tree.leaves(places.params)
    if name == "xlnet":
        assert places.mems.spec == P(None, ("data", "fsdp"))


def test_the_layout_is_shown_a_row_for_what_is_alike_in_all_layers() -> None:
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    objective = tiny.objective("bert")
    trunk = dataclasses.replace(objective.model.trunk, layers=3)
    model = dataclasses.replace(objective.model, trunk=trunk)
    objective = dataclasses.replace(objective, model=model)
    state = jax.eval_shape(
        lambda: init_state(objective, optax.adamw(1e-3), 0, tiny.batch("bert", 0), False)
    )
    console = rich.console.Console(width=140, record=True, file=io.StringIO())
    console.print(layout(state, mesh))
    shown = console.export_text()
    assert "8 devices: data 2 x fsdp 2 x sequence 1 x tensor 2" in shown
    (row,) = [line for line in shown.splitlines() if "layer_*/attention/query/kernel" in line]
    # Three kernels of 16 x 16 float32 in four parts.
    assert re.search(r"\b3 .*\[16, 16\].*fsdp, tensor.*\b768 B", row)
    assert bytes_per_device(state, mesh) > 3 * bytes_per_device(state.params, mesh)


def test_eight_devices_hold_an_eighth_of_the_matrices() -> None:
    config = bert.get_config("base")
    objective = make_objective(config.objective.to_dict(), config.model.to_dict(), 30_528)
    ids = jnp.zeros((1, 8), jnp.int32)
    batch = {
        **dict.fromkeys(
            ("tokens", "token_types", "segment_ids", "positions", "target_positions"), ids
        ),
        "label": ids[:, 0],
    }
    params = jax.eval_shape(lambda: objective.init(jax.random.key(0), batch))
    whole = sum(4 * int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))
    for split in (MeshConfig(fsdp=8), MeshConfig(fsdp=4, tensor=2), MeshConfig(fsdp=2, tensor=4)):
        held = bytes_per_device(params, make_mesh(split))
        assert whole / 8 < held < 1.05 * whole / 8
    assert bytes_per_device(params, make_mesh(MeshConfig(data=8))) == whole
