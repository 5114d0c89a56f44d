"""Who holds what: the one place that says how parameters lie on the mesh.

Data parallelism copies parameters and splits rows over the axes `data` and `fsdp`. FSDP
(Rajbhandari et al. 2020, ZeRO stage 3) splits every matrix and its moments over `fsdp`: the
compiler gathers a layer when it is used. Tensor parallelism (Shoeybi et al. 2019 §3) splits
heads and feed-forward neurons over `tensor`: the first product of a sublayer by its
columns, the second by its rows, one sum over devices at its end. Parameters are whole along
`sequence`, which splits the length of a text (`lmjax.nn.partition`).
"""

import math
import re
from typing import Any

import jax
import rich.table
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lmjax.nn.partition import FSDP, ROWS, TENSOR

# Path of a parameter, and the axis of the mesh that each of its dimensions is split over,
# the last dimensions if it has more (a stack of layers has its own in front). The first
# rule that fits holds; what fits none is copied.
RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"(query|key|value|relative|inner|gate)/kernel$", (FSDP, TENSOR)),
    (r"(query|key|value|inner|gate)/bias$", (TENSOR,)),
    (r"(attention/output|outer)/kernel$", (TENSOR, FSDP)),
    (r"(content|position|segment)_bias$", (TENSOR, None)),
    (r"segment_embedding$", (TENSOR, None)),
    (r"token/embedding$", (TENSOR, FSDP)),
    (r"output_bias$", (TENSOR,)),
    (r"(embedding|kernel)$", (FSDP, None)),
)


def spec_of(path: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """How a parameter, or a moment of it, lies on the mesh.

    A dimension that its axis does not divide is copied.

    Args:
      path: names joined by '/'; a moment's ends in its parameter's.
    """
    axes = next((axes for rule, axes in RULES if re.search(rule, path)), ())
    if len(axes) > len(shape):
        return PartitionSpec()
    padded = (*[None] * (len(shape) - len(axes)), *axes)
    return PartitionSpec(
        *(
            axis if axis is not None and size % mesh.shape[axis] == 0 else None
            for axis, size in zip(padded, shape, strict=True)
        )
    )


def shardings(tree: Any, mesh: Mesh) -> Any:
    """Tree of NamedShardings like `tree`, whose leaves have shapes: parameters, or a state.

    Memories, [layers, batch, ...] under the name `mems`, are split as batches are.
    """

    def place(path: Any, leaf: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if re.match(r"mems(/|$)", name):
            return NamedSharding(mesh, PartitionSpec(None, ROWS))
        return NamedSharding(mesh, spec_of(name, tuple(leaf.shape), mesh))

    return jax.tree_util.tree_map_with_path(place, tree)


def bytes_per_device(tree: Any, mesh: Mesh) -> int:
    """What one device holds of a tree of arrays or of their shapes."""
    leaves, places = jax.tree.leaves(tree), jax.tree.leaves(shardings(tree, mesh))
    return sum(_held(leaf, place) for leaf, place in zip(leaves, places, strict=True))


def layout(state: Any, mesh: Mesh) -> rich.table.Table:
    """A table of who holds what: parameters alike in all layers are one row.

    Args:
      state: a TrainState or its shapes; the caption counts all of it, the rows are the
        parameters.
    """
    rows: dict[tuple[str, tuple[int, ...], str], list[int]] = {}
    leaves = jax.tree_util.tree_leaves_with_path(state.params)
    places = jax.tree.leaves(shardings(state.params, mesh))
    for (path, leaf), place in zip(leaves, places, strict=True):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        spec = ", ".join("-" if axis is None else str(axis) for axis in place.spec)
        alike = re.sub(r"layer_\d+", "layer_*", name), tuple(leaf.shape), spec
        rows.setdefault(alike, []).append(_held(leaf, place))
    shape = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    whole = sum(leaf.size * leaf.dtype.itemsize for _, leaf in leaves)
    table = rich.table.Table(
        title=f"{mesh.devices.size} devices: {shape}",
        caption=f"a device holds {in_words(bytes_per_device(state.params, mesh))} of"
        f" {in_words(whole)} of parameters, {in_words(bytes_per_device(state, mesh))} with moments",
    )
    table.add_column("parameter", overflow="fold")
    for column in ("count", "shape", "split over", "bytes a device"):
        table.add_column(column, justify="right")
    for (name, dimensions, spec), held in rows.items():
        table.add_row(name, str(len(held)), str(list(dimensions)), spec or "-", in_words(sum(held)))
    return table


def _held(leaf: Any, place: NamedSharding) -> int:
    key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return math.prod(place.shard_shape(tuple(leaf.shape))) * (8 if key else leaf.dtype.itemsize)


def in_words(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.4g} {unit}"
        count /= 1024
    return f"{count:.4g} TiB"
