"""Learning rate schedules: functions of the number of updates already made.

The first update sees count 0 and so, under warmup, a learning rate of 0: TensorFlow's
`global_step` and optax count alike, and the papers' numbers assume it.
"""

import typing
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from lmjax.errors import ConfigError

ScheduleName = Literal[
    "linear",
    "linear_product",
    "linear_after_warmup",
    "cosine",
    "inverse_sqrt",
    "constant_then_decay",
    "constant",
]
Schedule = Callable[[jax.typing.ArrayLike], jax.Array]


def make_schedule(
    name: ScheduleName,
    learning_rate: float,
    steps: int,
    warmup_steps: int = 0,
    final_ratio: float = 0.0,
    decay_fraction: float = 0.1,
) -> Schedule:
    """The schedule `name`, with t = count, W = warmup_steps, N = steps, r = final_ratio.

    Every schedule is `learning_rate` times

    - `linear`: t/W before W, then r + (1-r)(1 - t/N). The decay counts from step 0, so the
      rate jumps down by W/N at t = W (BERT, optimization.py).
    - `linear_product`: min(1, t/W) (r + (1-r)(1 - t/N)) (ELECTRA, model/optimization.py).
    - `linear_after_warmup`: t/W before W, then r + (1-r)(1 - (t-W)/(N-W)) (XLNet,
      model_utils.py; its r is 0.001).
    - `cosine`: t/W before W, then r + (1-r)(1 + cos(pi (t-W)/(N-W)))/2 (GPT-1 section 4.1,
      GPT-3 appendix B with r = 0.1).
    - `inverse_sqrt`: min(t/W, sqrt(W/t)) (Vaswani et al. 2017, equation 3, whose peak, here
      `learning_rate`, is (d_model W)^-0.5).
    - `constant_then_decay`: t/W before W, then 1, and over the last `decay_fraction` of
      the steps linearly down to r (Hu et al. 2024, section 4, "WSD").
    - `constant`: t/W before W, then 1.

    Past N each keeps its last value (`inverse_sqrt` and `constant` do not know N).

    Returns:
      A function of the count, int32 [] or an array of them, to float32 of the same shape.

    Raises:
      ConfigError: unknown name, or numbers that do not fit together.
    """
    names = typing.get_args(ScheduleName)
    if name not in names:
        raise ConfigError(f"config.optimizer.schedule: '{name}' is not one of {', '.join(names)}")
    if steps < 1:
        raise ConfigError(f"config.training.steps: {steps} is not positive")
    if steps < warmup_steps and name not in ("constant", "inverse_sqrt"):
        raise ConfigError(
            f"config.optimizer.warmup_steps: {warmup_steps} exceeds config.training.steps, "
            f"{steps}; shorten the warmup"
        )

    def schedule(count: jax.typing.ArrayLike) -> jax.Array:
        t = jnp.asarray(count, jnp.float32)
        warmup = jnp.minimum(t / warmup_steps, 1.0) if warmup_steps else jnp.ones_like(t)
        from_start = jnp.clip(t / steps, 0.0, 1.0)
        after_warmup = jnp.clip((t - warmup_steps) / max(steps - warmup_steps, 1), 0.0, 1.0)

        def above_final(x: jax.Array) -> jax.Array:
            return final_ratio + (1.0 - final_ratio) * x

        if name == "linear":
            multiplier = jnp.where(t < warmup_steps, warmup, above_final(1.0 - from_start))
        elif name == "linear_product":
            multiplier = warmup * above_final(1.0 - from_start)
        elif name == "linear_after_warmup":
            multiplier = warmup * above_final(1.0 - after_warmup)
        elif name == "cosine":
            multiplier = warmup * above_final(0.5 * (1.0 + jnp.cos(jnp.pi * after_warmup)))
        elif name == "inverse_sqrt":
            # Without warmup the first update divides by 1, not by 0.
            peak = max(warmup_steps, 1)
            multiplier = warmup * jnp.sqrt(peak / jnp.maximum(t, peak))
        elif name == "constant_then_decay":
            left = jnp.clip((steps - t) / (decay_fraction * steps), 0.0, 1.0)
            multiplier = warmup * above_final(left)
        else:
            multiplier = warmup
        return learning_rate * multiplier

    return schedule
