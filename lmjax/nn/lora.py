"""Low-rank adapters of kernels (Hu et al. 2021), as functions of parameters.

No layer knows of them: a kernel W that is adapted is W + alpha / rank * A B, computed before
the network reads it, so that every network can be adapted and a merged one is like any other.
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

ADAPTERS = "adapters"  # beside 'encoder' and 'head'
_A, _B = "a", "b"


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Adapters (Hu et al. 2021, §4.1).

    Attributes:
      rank: of A B; 0 = no adapters.
      alpha: A B counts alpha / rank.
      targets: the layers that are adapted, by their names in the trunk: 'query', 'key', 'value'
        and 'output' of attention (XLNet's 'relative', too), 'inner' and 'outer' of the
        feed-forward. The paper adapts 'query' and 'value' (§4.2).
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
        """What A B is multiplied by."""
        return self.alpha / self.rank if self.rank else 0.0


def init_adapters(key: jax.Array, encoder: Any, config: LoraConfig) -> Any:
    """A and B of each kernel, in the tree of the encoder: {..., 'query': {'a', 'b'}}.

    Of a kernel [..., in, out], A is [..., in, rank], uniform within 1 / sqrt(in) as in the
    authors' code (loralib/layers.py), and B [..., rank, out] is 0: the network begins as it is.

    Raises:
      ConfigError: a target that the encoder has not.
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
                f"config.task.adapter.targets: no layer '{target}'; there are {', '.join(known)}"
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
    """Refuses adapters that do not fit the kernels that they are of.

    Args:
      shapes: of parameters, {'encoder/.../kernel': ..., 'adapters/.../a': ...}.
      where: the file that describes them, for messages.

    Raises:
      ConfigError: names the adapter.
    """
    for path in shapes:
        name, _, inner = path.partition("/")
        if name != ADAPTERS:
            continue
        layer = inner.rpartition("/")[0]
        parts = f"{ADAPTERS}/{layer}/{_A}", f"{ADAPTERS}/{layer}/{_B}", f"encoder/{layer}/kernel"
        if path not in parts or not all(part in shapes for part in parts):
            raise ConfigError(f"{where}: '{path}' of the checkpoint is no adapter of a kernel")
        a, b, kernel = (shapes[part].shape for part in parts)
        ranks = min(len(a), len(b)) >= 2 and (a[-1], *a[:-2]) == (b[-2], *b[:-2])
        if not ranks or (*a[:-1], b[-1]) != kernel:
            raise ConfigError(
                f"{where}: an adapter of {list(a)} times {list(b)} does not fit '{parts[2]}' of"
                f" {list(kernel)}"
            )


def merge(params: Any, scale: float) -> Any:
    """Parameters without adapters, which are added to the encoder's kernels.

    Args:
      params: {'encoder', ...}; returned as they are where there are no 'adapters' among them.
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
