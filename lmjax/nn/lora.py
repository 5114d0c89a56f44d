"""Low-rank adapters (LoRA, Hu et al. 2021) as functions of the parameters.

Layers are unaware of adapters: an adapted kernel W + alpha / rank * A B is computed before the
network runs. Hence every network can be adapted, and merged parameters are ordinary parameters.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Annotated, Any

import flax.traverse_util
import jax
import jax.numpy as jnp

from lmjax.configuration import Interval, OptionalSize, check_ranges
from lmjax.errors import ConfigError

ADAPTERS = "adapters"  # top-level key, next to 'encoder' and 'head'
_A, _B = "a", "b"


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """LoRA settings (Hu et al. 2021, §4.1).

    Attributes:
      rank: rank of A B; 0 = no adapters.
      alpha: A B is scaled by alpha / rank.
      targets: names of the trunk layers to adapt: 'query', 'key', 'value' and 'output' of
        attention (and XLNet's 'relative'), 'inner' and 'outer' of the feed-forward layer. The
        paper adapts 'query' and 'value' (§4.2).
    """

    rank: OptionalSize = 0
    alpha: Annotated[float, Interval("(0, 2**20]")] = 16.0
    targets: tuple[str, ...] = ("query", "value")

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.rank and not self.targets:
            raise ConfigError("targets: empty; name the layers to adapt")

    @property
    def scale(self) -> float:
        """Scale of A B."""
        return self.alpha / self.rank if self.rank else 0.0


def init_adapters(key: jax.Array, encoder: Any, config: LoraConfig) -> Any:
    """Initializes A and B of each target kernel, in the encoder's tree: {'query': {'a', 'b'}}.

    For a kernel [..., in, out], A [..., in, rank] is uniform within +-1 / sqrt(in), as in the
    authors' code (loralib/layers.py), and B [..., rank, out] is zero, so that the adapted network
    initially equals the original.

    Raises:
      ConfigError: the encoder has no layer of a target's name.
    """
    kernels = {
        path[:-1]: leaf
        for path, leaf in flax.traverse_util.flatten_dict(encoder).items()
        if path[-1] == "kernel"
    }
    known = sorted({path[-1] for path in kernels})
    for target in config.targets:
        if target not in known:
            raise ConfigError(
                f"config.task.adapter.targets: no layer '{target}'; choose from {', '.join(known)}"
            )
    adapters = {}
    chosen = sorted(path for path in kernels if path[-1] in config.targets)
    for i, path in enumerate(chosen):
        *stack, rows, columns = kernels[path].shape
        bound = 1 / math.sqrt(rows)
        adapters[(*path, _A)] = jax.random.uniform(
            jax.random.fold_in(key, i), (*stack, rows, config.rank), minval=-bound, maxval=bound
        )
        adapters[(*path, _B)] = jnp.zeros((*stack, config.rank, columns))
    return flax.traverse_util.unflatten_dict(adapters)


def check_adapters(shapes: Mapping[str, jax.ShapeDtypeStruct], where: str) -> None:
    """Checks that the shapes of adapters match those of their kernels.

    Args:
      shapes: parameter shapes, {'encoder/.../kernel': ..., 'adapters/.../a': ...}.
      where: the file that describes the adapters, for error messages.

    Raises:
      ConfigError: an adapter does not match; the message names it.
    """
    for path in shapes:
        name, _, inner = path.partition("/")
        if name != ADAPTERS:
            continue
        layer = inner.rpartition("/")[0]
        parts = f"{ADAPTERS}/{layer}/{_A}", f"{ADAPTERS}/{layer}/{_B}", f"encoder/{layer}/kernel"
        if path not in parts or not all(part in shapes for part in parts):
            raise ConfigError(f"{where}: '{path}' of the checkpoint is not an adapter of a kernel")
        a, b, kernel = (shapes[part].shape for part in parts)
        ranks = min(len(a), len(b)) >= 2 and (a[-1], *a[:-2]) == (b[-2], *b[:-2])
        if not ranks or (*a[:-1], b[-1]) != kernel:
            raise ConfigError(
                f"{where}: an adapter of shapes {list(a)} and {list(b)} does not fit '{parts[2]}'"
                f" of shape {list(kernel)}"
            )


def merge(params: Any, scale: float) -> Any:
    """Adds the adapters to the encoder's kernels and removes them from the parameters.

    Args:
      params: {'encoder', ...}; returned unchanged if there are no 'adapters'.
    """
    if ADAPTERS not in params:
        return params
    encoder = flax.traverse_util.flatten_dict(params["encoder"])
    adapters = flax.traverse_util.flatten_dict(params[ADAPTERS])
    for (*path, name), a in adapters.items():
        if name == _A:
            kernel = (*path, "kernel")
            encoder[kernel] = encoder[kernel] + scale * jnp.matmul(a, adapters[(*path, _B)])
    rest = {name: part for name, part in params.items() if name != ADAPTERS}
    return {**rest, "encoder": flax.traverse_util.unflatten_dict(encoder)}
