"""Taps: named activations that can be read, replaced and differentiated.

A module names an activation with `tap`. It is then known by its path in the network, such as
`encoder/stack/blocks/layer_0/attention/context`; in a scanned trunk, the layers share a path,
`encoder/stack/blocks/layers/attention/context`, and the arrays have a leading axis [layers].

`read` returns activations, and `edited` runs a network with some of them changed. Both work under
jit, grad and vmap, with scanned and rematerialized layers. A network that is applied in any other
way compiles as if it had no taps.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import flax.traverse_util
import jax
import jax.numpy as jnp

from lmjax.errors import ConfigError

# Collections of variables. Attention weights are apart, because reading them excludes fused
# attention kernels.
TAPS, WEIGHTS, EDITS = "taps", "attention_weights", "edits"


@flax.struct.dataclass
class Edit:
    """A change of an activation: scale * activation + offset.

    Both broadcast to the activation; in a scanned trunk they have a leading axis [layers]. Zero
    and the array of another run replace an activation (activation patching), scale 0 alone ablates
    it, scale 1 with an offset steers it. The gradient of a loss with respect to an offset of zeros
    is that with respect to the activation.
    """

    scale: jax.Array | float = 1.0
    offset: jax.Array | float = 0.0


def tap(module: nn.Module, name: str, x: jax.Array, collection: str = TAPS) -> jax.Array:
    """Names an activation of a module, and returns it, edited if it has an edit."""
    if module.has_variable(EDITS, name):
        edit: Any = module.get_variable(EDITS, name)
        x = x * edit.scale + edit.offset
    if not module.is_initializing():
        module.sow(collection, name, x, init_fn=lambda: None, reduce_fn=lambda _, new: new)
    return x


def weights_tap(module: nn.Module, name: str) -> Callable[[jax.Array], jax.Array] | None:
    """Returns a tap of attention weights, or None if they are neither read nor edited."""
    reading = module.is_mutable_collection(WEIGHTS) and not module.is_initializing()
    if reading or module.has_variable(EDITS, name):
        return lambda x: tap(module, name, x, WEIGHTS)
    return None


def read(
    network: nn.Module, params: Any, *inputs: Any, weights: bool = False, method: Any = None
) -> tuple[Any, dict[str, jax.Array]]:
    """Applies a network to `inputs`, and returns its output and its activations by path.

    Args:
      weights: whether to read attention weights too, [batch, heads, queries, keys] each.
      method: of the network, by default `__call__`.
    """
    mutable = [TAPS, WEIGHTS] if weights else [TAPS]
    output, found = network.apply({"params": params}, *inputs, method=method, mutable=mutable)
    activations: dict[str, jax.Array] = {}
    for collection in found.values():
        activations |= flax.traverse_util.flatten_dict(collection, sep="/")
    return output, activations


def edited(
    network: nn.Module,
    params: Any,
    *inputs: Any,
    edits: Mapping[str, Edit],
    method: Any = None,
) -> Any:
    """Applies a network to `inputs` with edits of activations, by path.

    Raises:
      ConfigError: the network has no such activation, or an edit does not broadcast to it.
    """
    known = jax.eval_shape(lambda: read(network, params, *inputs, weights=True, method=method)[1])
    made = {}
    for path, edit in edits.items():
        if path not in known:
            raise ConfigError(f"edits: no activation '{path}'; known: {', '.join(sorted(known))}")
        shape = known[path].shape
        for part in (edit.scale, edit.offset):
            if not _broadcasts(jnp.shape(part), shape):
                raise ConfigError(
                    f"edits: an array of shape {jnp.shape(part)} does not broadcast to '{path}',"
                    f" {shape}"
                )
        scanned = "/layers/" in path
        made[path] = jax.tree.map(
            lambda part, shape=shape, scanned=scanned: (
                jnp.broadcast_to(part, shape) if scanned else jnp.asarray(part)
            ),
            edit,
        )
    variables = {"params": params, EDITS: flax.traverse_util.unflatten_dict(made, sep="/")}
    return network.apply(variables, *inputs, method=method)


def _broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    sizes = zip(reversed(shape), reversed(to), strict=False)
    return len(shape) <= len(to) and all(size in (1, wanted) for size, wanted in sizes)
