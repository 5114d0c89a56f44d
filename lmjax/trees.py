"""Names of the leaves of a pytree."""

from collections.abc import Callable
from typing import Any

import jax


def names_of(path: Any) -> tuple[str, ...]:
    """Returns the keys, fields and indices of a `jax.tree_util` path, outermost first."""
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)


def map_named(function: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """Maps `function(names, leaf, *other_leaves)` over a pytree; see `names_of`.

    Args:
      rest: pytrees with the structure of `tree`.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, *leaves: function(names_of(path), *leaves), tree, *rest
    )
