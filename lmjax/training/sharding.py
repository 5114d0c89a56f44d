"""Who holds what: the one place that says how parameters lie on the mesh.

Data parallelism copies parameters and splits rows over the axes `data` and `fsdp`. FSDP
(Rajbhandari et al. 2020, ZeRO stage 3) splits every matrix and its moments over `fsdp`: the
compiler gathers a layer when it is used. Tensor parallelism (Shoeybi et al. 2019 §3) splits
heads and feed-forward neurons over `tensor`: the first product of a sublayer by its
columns, the second by its rows, one sum over devices at its end.
"""

import math
import re
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lmjax.training.mesh import DATA, FSDP, TENSOR

# Path of a parameter, and the axis of the mesh that each of its dimensions is split over,
# the last dimensions if it has more (a stack of layers has its own in front). The first
# rule that fits holds; what fits none is copied.
RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"(query|key|value|relative|inner)/kernel$", (FSDP, TENSOR)),
    (r"(query|key|value|inner)/bias$", (TENSOR,)),
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
            return NamedSharding(mesh, PartitionSpec(None, (DATA, FSDP)))
        return NamedSharding(mesh, spec_of(name, tuple(leaf.shape), mesh))

    return jax.tree_util.tree_map_with_path(place, tree)


def bytes_per_device(tree: Any, mesh: Mesh) -> int:
    """What one device holds of a tree of arrays or of their shapes."""
    total = 0
    for leaf, sharding in zip(
        jax.tree.leaves(tree), jax.tree.leaves(shardings(tree, mesh)), strict=True
    ):
        shape = sharding.shard_shape(tuple(leaf.shape))
        width = 4 if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf.dtype.itemsize
        total += math.prod(shape) * width
    return total
