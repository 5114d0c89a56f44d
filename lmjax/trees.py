"""Names of the leaves of a tree of parameters."""

from collections.abc import Callable
from typing import Any

import jax


def names_of(path: Any) -> tuple[str, ...]:
    """The keys, fields and indices of a path of `jax.tree_util`, outermost first."""
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)


def map_named(function: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """Maps `function(names, leaf, *other_leaves)` over a tree; see `names_of`.

    Args:
      rest: trees with the structure of `tree`.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, *leaves: function(names_of(path), *leaves), tree, *rest
    )
