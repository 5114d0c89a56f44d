"""What the compiled step sends between devices: what the split calls for, and nothing whole."""

import collections
import dataclasses
import re

import jax
import optax
import pytest

from lmjax.training.sharding import MeshConfig, batch_sharding, make_mesh, replicated, shardings
from lmjax.training.step import init_state, make_train_step
from tests import tiny

pytestmark = pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 devices")

HIDDEN, HEADS = 32, 8
OPTIMIZER = optax.adamw(1e-3)
# Eight devices each, but for tensor: ELECTRA's generator has four heads.
SPLITS = {
    "data": MeshConfig(8),
    "fsdp": MeshConfig(1, 8),
    "sequence": MeshConfig(1, 1, 8),
    "tensor": MeshConfig(2, 1, 1, 4),
}
KINDS = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
SHAPE = r"f32\[([\d,]*)\]"
Sent = dict[str, collections.Counter[tuple[int, ...]]]


def sent(name: str, split: str) -> tuple[Sent, list[tuple[int, ...]]]:
    """Shapes of the float results of each kind of collective, and those of the parameters."""
    objective = tiny.objective(name)
    trunk = dataclasses.replace(
        objective.model.trunk, heads=HEADS, hidden_size=HIDDEN, intermediate_size=48
    )
    model = dataclasses.replace(objective.model, trunk=trunk)
    objective = dataclasses.replace(objective, model=model)
    mesh, batch = make_mesh(SPLITS[split]), tiny.batch(name, 0)
    with jax.set_mesh(mesh):
        state = jax.eval_shape(lambda: init_state(objective, OPTIMIZER, 0, batch, False))
        places = shardings(state, mesh)
        step = jax.jit(
            make_train_step(objective, OPTIMIZER),
            in_shardings=(places, batch_sharding(mesh)),
            out_shardings=(places, replicated(mesh)),
        )
        text = step.lower(state, batch).compile().as_text()
    found: Sent = collections.defaultdict(collections.Counter)
    for results, kind in re.findall(rf"= (\(.*?\)|\S+) ({KINDS})(?:-start)?\(", text):
        for dimensions in re.findall(SHAPE, results):
            found[kind][tuple(map(int, dimensions.split(","))) if dimensions else ()] += 1
    return found, [leaf.shape for leaf in jax.tree.leaves(state.params)]


def slow_but_gpt() -> list[object]:
    return [
        name if name == "gpt" else pytest.param(name, marks=pytest.mark.slow) for name in tiny.NAMES
    ]


@pytest.mark.parametrize("name", slow_but_gpt())
def test_copies_of_the_model_only_sum(name: str) -> None:
    found, _ = sent(name, "data")
    assert set(found) == {"all-reduce"}


@pytest.mark.parametrize("name", slow_but_gpt())
def test_fsdp_gathers_parameters_and_no_activations(name: str) -> None:
    found, parameters = sent(name, "fsdp")
    # What the masked positions' gradients are: some targets of some rows, some features.
    assert all(tiny.LENGTH not in shape for shape in found.pop("all-to-all", {}))
    assert set(found) <= {"all-gather", "all-reduce", "reduce-scatter"}
    known = {tuple(sorted(shape)) for shape in parameters}
    assert any(len(shape) == 2 for shape in found["all-gather"])
    for shape in found["all-gather"]:
        # A kernel, its transpose, or no more than a row a text (the pooler's).
        small = len(shape) <= 2 and max(shape) <= HIDDEN
        assert tuple(sorted(shape)) in known or small, shape
    # No matrix is gathered more often than forward, backward and decoding take it.
    assert max(found["all-gather"].values()) <= 7


@pytest.mark.parametrize("name", slow_but_gpt())
def test_sequence_gathers_keys_and_values_alone(name: str) -> None:
    found, _ = sent(name, "sequence")
    heads = {"electra": [HEADS, HEADS // 2]}.get(name, [HEADS])
    for count in heads:
        features = 4
        keys = (tiny.BATCH, tiny.LENGTH, count, features)
        assert found["all-gather"].pop(keys) == 2, "keys and values"
        part = (tiny.BATCH, tiny.LENGTH // 8, count, features)
        assert found["reduce-scatter"].pop(part) == 2, "their gradients"
    if name == "xlnet":
        # The query stream's last states, and what becomes memory.
        assert set(found["all-gather"]) <= {
            (tiny.BATCH, 8, HIDDEN),
            (1, tiny.BATCH, 8, HIDDEN),
        }
    else:
        assert not found["all-gather"]
    assert not found["reduce-scatter"]
    assert not found["all-to-all"]


@pytest.mark.parametrize("name", slow_but_gpt())
def test_tensor_only_sums_at_the_ends_of_sublayers(name: str) -> None:
    found, parameters = sent(name, "tensor")
    assert not found["all-gather"] and not found["all-to-all"]
    rows = tiny.BATCH // 2 * tiny.LENGTH
    sums = [shape for shape in found["all-reduce"] if len(shape) == 2 and shape[0] == rows]
    assert sums, "of the attention's and the feed-forward's outputs"
    # XLNet's distances, forward and backward, have no batch either.
    known = {shape for shape in parameters if len(shape) > 2} | {(2, 40, HEADS // 4, 4)}
    known |= {(2, HEADS // 4, 4)}
    for shape in found["all-reduce"]:
        assert len(shape) <= 2 or shape in known, shape
