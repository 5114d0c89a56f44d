"""All that a run carries from one step to the next."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from lmjax.objectives.base import Batch, Objective


@flax.struct.dataclass
class TrainState:
    """The state of a run: a checkpoint holds it, and the data position beside it.

    Attributes:
      step: [] int32, updates done.
      key: the typed PRNG key that everything random in a step is folded from.
      params: the objective's parameters, float32.
      opt_state: optax's.
      mems: memory carried from batch to batch (arrays [layers, batch, ...]) or None.
      ema: exponential moving average of the parameters, or None.
    """

    step: jax.Array
    key: jax.Array
    params: Any
    opt_state: Any
    mems: Any
    ema: Any


def init_state(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    seed: int | jax.Array,
    batch: Batch,
    with_ema: bool,
) -> TrainState:
    """The state before the first step; to be jitted with its shardings.

    Args:
      batch: a clean batch, of which only the shapes matter.
    """
    for_params, for_steps = jax.random.split(jax.random.key(seed))
    rows = jax.tree.leaves(batch)[0].shape[0]
    keys = jax.random.split(for_params, rows)
    params = objective.init(for_params, jax.vmap(objective.corrupt)(keys, batch))
    return TrainState(
        step=jnp.int32(0),
        key=for_steps,
        params=params,
        opt_state=optimizer.init(params),
        mems=objective.init_mems(rows),
        ema=jax.tree.map(jnp.copy, params) if with_ema else None,
    )
