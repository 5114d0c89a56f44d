"""Optimizers and learning rate schedules of the papers, and the rules for weight decay."""

import dataclasses
import math
import re
import typing
from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib

from lmjax.configuration import Interval, NonNegativeInt, Probability, Rate, check_ranges
from lmjax.errors import ConfigError
from lmjax.trees import map_named

OptimizerName = Literal["adamw", "lamb", "adafactor", "lion", "muon"]
ScheduleName = Literal["linear", "linear_product", "linear_after_warmup", "cosine", "constant"]
DecayRule = Literal["papers", "matrices", "all", "none"]
LayerDecayForm = Literal["intended", "released"]
Schedule = Callable[[jax.typing.ArrayLike], jax.Array]

# Rank of the parameters of one layer; a scanned stack of layers has one more axis in front.
_RANK = {"kernel": 2, "embedding": 2, "bias": 1, "scale": 1}
# XLNet's biases of relative attention decay although their names contain "bias" (xlnet
# model_utils.py, AdamWeightDecayOptimizer.include_in_weight_decay).
_DECAYED_BIASES = ("content_bias", "position_bias", "segment_bias")
# The parts of a model below its first layer.
_EMBEDDINGS = {"embeddings", "embeddings_project", "token", "mask_embedding"}
# Kernels narrower than this are classification heads; Adam updates them, not Muon.
_MUON_MIN_SIZE = 16
# The RMS of an AdamW update, which Muon's updates are scaled to (Liu et al. 2025, section 2.2).
_MUON_RMS = 0.2


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """An optimizer with its schedule. The defaults are BERT's (Devlin et al. 2019, A.2).

    Attributes:
      learning_rate: the peak of the schedule.
      name: `adamw`; `lamb` (You et al. 2020); `adafactor` (Shazeer and Stern 2018, with
        steps relative to the parameters' scale); `lion` (Chen et al. 2023; take b2 = 0.99
        and a learning rate 3 to 10 times smaller); `muon` (Jordan 2024, for the kernels,
        scaled as AdamW's updates are, with AdamW for all else).
      schedule, warmup_steps, final_ratio: see `make_schedule`.
      b1, b2: decay of the first and second moment (adamw, lamb, lion, muon's AdamW).
      epsilon: added to the root of the second moment, outside of the root.
      bias_correction: divide the moments by 1 - b^t. BERT, XLNet and ELECTRA do not; GPT
        and LAMB do. It matters in short fine-tuning runs (Mosbach et al. 2021).
      weight_decay: added to the update as weight_decay * parameter, before the learning rate.
      decay: which parameters decay. `papers`: all but norms and biases, embeddings and
        XLNet's attention biases included; `matrices`: kernels and tables of embeddings
        only (nanoGPT's "at least two axes"); `all`; `none`.
      clip_norm: maximum global norm of the gradient; 0 = no clipping.
      momentum: of Muon.
      kernel_share: factor of the learning rate of kernels, except those that project
        embeddings; a trunk with `base_width` sets it.
      layer_decay: ratio of each layer's learning rate to that of the layer above it, with
        embeddings below the first layer; 1 = the same rate. ELECTRA fine-tunes with 0.8 or 0.9
        (Clark et al. 2020, A.2).
      layer_decay_form: `intended` is the paper's: the top layer of n learns at layer_decay
        times the head's rate, embeddings at layer_decay^(n+1). `released` is the authors' code
        (model/optimization.py, `_get_layer_lrs`), which still counts a pooler that the model no
        longer has: layer_decay^2 and layer_decay^(n+2).
    """

    # Larger values make float32 overflow within a few steps.
    learning_rate: Annotated[float, Interval("(0, 1000]")]
    name: OptimizerName = "adamw"
    schedule: ScheduleName = "linear"
    warmup_steps: NonNegativeInt = 0
    final_ratio: Probability = 0.0
    b1: Rate = 0.9
    b2: Rate = 0.999
    epsilon: Annotated[float, Interval("(0, inf)")] = 1e-6
    bias_correction: bool = False
    weight_decay: Annotated[float, Interval("[0, 100]")] = 0.01
    decay: DecayRule = "papers"
    clip_norm: Annotated[float, Interval("[0, inf)")] = 1.0
    momentum: Rate = 0.95
    kernel_share: Annotated[float, Interval("(0, 2**20]")] = 1.0
    layer_decay: Annotated[float, Interval("(0, 1]")] = 1.0
    layer_decay_form: LayerDecayForm = "intended"

    def __post_init__(self) -> None:
        check_ranges(self)
        for field, literal in (
            ("name", OptimizerName),
            ("schedule", ScheduleName),
            ("decay", DecayRule),
            ("layer_decay_form", LayerDecayForm),
        ):
            value, known = getattr(self, field), typing.get_args(literal)
            if value not in known:
                raise ConfigError(f"{field}: '{value}' is not one of {', '.join(known)}")


def make_optimizer(
    config: OptimizerConfig, steps: int, params_shapes: Any, start: int = 0
) -> tuple[optax.GradientTransformation, Schedule]:
    """Makes the gradient transformation, and returns its schedule too, for reports.

    Order: clip the global norm, scale by the moments, multiply by the kernels' share, add the
    weight decay, (LAMB: multiply by the trust ratio,) multiply by the layer's share, multiply by
    -learning rate. Optimizers that use statistics of a whole tensor (LAMB, Adafactor, Muon) treat
    each layer of a scanned stack, [layers, in, out], as a tensor of its own.

    Args:
      config: of the optimizer.
      steps: updates of the schedule, its N.
      params_shapes: nested dict of arrays or ShapeDtypeStructs, such as `jax.eval_shape` returns.
      start: updates before the schedule starts.
    """
    from_start = make_schedule(
        config.schedule, config.learning_rate, steps, config.warmup_steps, config.final_ratio
    )

    def schedule(count: jax.typing.ArrayLike) -> jax.Array:
        return from_start(jnp.asarray(count) - start)

    parts = [_rescale(config, params_shapes)]
    if config.clip_norm:
        parts.insert(0, optax.clip_by_global_norm(config.clip_norm))
    if config.kernel_share != 1:
        slower = map_named(
            lambda path, _: config.kernel_share if _is_inner_kernel(path) else 1.0, params_shapes
        )
        parts.append(_times(slower))
    if config.weight_decay and config.decay != "none":
        mask = decay_mask(params_shapes, config.decay)
        parts.append(optax.add_decayed_weights(config.weight_decay, mask))
    if config.name == "lamb":
        # The ratio is that of update plus decay. Norms and biases have none, as in the authors'
        # lamb_optimizer.py.
        adapted = decay_mask(params_shapes, "papers")
        parts.append(_layer_by_layer(optax.scale_by_trust_ratio(), params_shapes, only=adapted))
    if config.layer_decay < 1:
        shares = layer_shares(params_shapes, config.layer_decay, config.layer_decay_form)
        parts.append(_times(shares))
    parts.append(optax.scale_by_learning_rate(schedule))
    return optax.chain(*parts), schedule


def _times(shares: Any) -> optax.GradientTransformation:
    """Multiplies updates by a tree of factors."""
    return optax.stateless(lambda updates, _: jax.tree.map(jnp.multiply, updates, shares))


def _is_inner_kernel(path: tuple[str, ...]) -> bool:
    return path[-1] == "kernel" and not _EMBEDDINGS & set(path)


def decay_mask(params: Any, rule: DecayRule) -> Any:
    """Tree of bools like `params`: whether each parameter decays under `rule`."""

    def decays(path: tuple[str, ...], leaf: Any) -> bool:
        name = path[-1]
        if rule in ("all", "none"):
            return rule == "all"
        if rule == "papers":
            bias = name == "bias" or (name.endswith("_bias") and name not in _DECAYED_BIASES)
            return not bias and name != "scale"
        # By name before rank: the biases of a scanned stack have two axes.
        if name == "bias" or name == "scale" or name.endswith("_bias"):
            return False
        return leaf.ndim >= 2

    return map_named(decays, params)


def layer_shares(params: Any, layer_decay: float, form: LayerDecayForm) -> Any:
    """Tree like `params`: each parameter's factor of the learning rate.

    A factor is a scalar, or [layers, 1, ...] for the parameters of a scanned stack. Heads have 1.
    """
    depths: dict[tuple[str, ...], Any] = {}

    def note(path: tuple[str, ...], leaf: Any) -> None:
        """Depth 0 for embeddings and i + 1 for layer i; others have none."""
        if (layer := _layer_of(path)) is not None:
            depths[path] = layer + 1
        elif "layers" in path:
            shape = (leaf.shape[0], *[1] * (leaf.ndim - 1))
            depths[path] = np.arange(1, leaf.shape[0] + 1, dtype=np.float32).reshape(shape)
        elif _EMBEDDINGS & set(path):
            depths[path] = 0

    map_named(note, params)
    top = int(max((np.max(depth) for depth in depths.values()), default=0))
    above = 1 if form == "intended" else 2

    def share(path: tuple[str, ...], leaf: Any) -> Any:
        if "final_norm" in path:
            return layer_decay**above
        if path not in depths:
            return 1.0
        return layer_decay ** (top + above - depths[path])

    return map_named(share, params)


def _layer_of(path: tuple[str, ...]) -> int | None:
    """The index i of an unrolled layer, whose path contains `layer_i`; None for others."""
    return next((int(name[6:]) for name in path if re.fullmatch(r"layer_\d+", name)), None)


def ema_update(ema: Any, params: Any, decay: float) -> Any:
    """Exponential moving average of the parameters: decay * ema + (1 - decay) * params."""
    return jax.tree.map(lambda e, p: decay * e + (1.0 - decay) * p, ema, params)


class UncorrectedAdamState(NamedTuple):
    """First and second moments, each like the parameters."""

    mu: Any
    nu: Any


def scale_by_uncorrected_adam(b1: float, b2: float, epsilon: float) -> optax.GradientTransformation:
    """m / (sqrt(v) + epsilon), moments from zero and not corrected (BERT, optimization.py)."""

    def init(params: Any) -> UncorrectedAdamState:
        return UncorrectedAdamState(
            mu=jax.tree.map(jnp.zeros_like, params),
            nu=jax.tree.map(jnp.zeros_like, params),
        )

    def update(
        gradients: Any, state: UncorrectedAdamState, params: Any = None
    ) -> tuple[Any, UncorrectedAdamState]:
        del params
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, gradients)
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * jnp.square(g), state.nu, gradients)
        updates = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + epsilon), mu, nu)
        return updates, UncorrectedAdamState(mu, nu)

    return optax.GradientTransformation(init, update)


def _rescale(config: OptimizerConfig, params: Any) -> optax.GradientTransformation:
    """The optimizer's rescaling of gradients, before weight decay and learning rate."""
    if config.name == "lion":
        return optax.scale_by_lion(config.b1, config.b2)
    if config.name == "adafactor":
        # The parts of optax.adafactor without its decay, which does not scale with the rate.
        adafactor = optax.chain(
            optax.scale_by_factored_rms(),
            optax.clip_by_block_rms(1.0),
            optax.scale_by_param_block_rms(),
        )
        return _layer_by_layer(adafactor, params)
    make_adam = optax.scale_by_adam if config.bias_correction else scale_by_uncorrected_adam
    adam = make_adam(config.b1, config.b2, config.epsilon)
    if config.name == "muon":
        return _muon(config, adam, params)
    return adam


def _muon(
    config: OptimizerConfig, adam: optax.GradientTransformation, params: Any
) -> optax.GradientTransformation:
    """Orthogonalized momentum for kernels, `adam` for tables, norms, biases and heads."""

    def dimensions(tree: Any) -> Any:
        # Axes before the last two, the layers of a scanned stack, are a batch of matrices.
        return jax.tree.map(lambda _: optax.contrib.MuonDimensionNumbers(-2, -1), tree)

    def label(path: tuple[str, ...], leaf: Any) -> str:
        matrix = path[-1] == "kernel" and leaf.ndim >= 2 and min(leaf.shape[-2:]) >= _MUON_MIN_SIZE
        return "muon" if matrix else "adam"

    muon = optax.chain(
        optax.contrib.scale_by_muon(beta=config.momentum, weight_dimension_numbers=dimensions),
        _scale_to_rms(_MUON_RMS),
    )
    return optax.partition({"muon": muon, "adam": adam}, map_named(label, params))


def _scale_to_rms(rms: float) -> optax.GradientTransformation:
    """Scales orthogonal matrices [..., in, out], of RMS 1/sqrt(max(in, out)), to `rms`."""

    def scale(update: jax.Array) -> jax.Array:
        return update * (rms * math.sqrt(max(update.shape[-2:])))

    return optax.stateless(lambda updates, _: jax.tree.map(scale, updates))


def _layer_by_layer(
    transformation: optax.GradientTransformation, params: Any, only: Any = None
) -> optax.GradientTransformation:
    """Applies `transformation` to each layer of a scanned stack as a parameter of its own.

    Args:
      transformation: one that treats parameters independently.
      params: tree of shapes.
      only: tree of bools; parameters marked False pass unchanged. None marks all True.
    """

    def label(path: tuple[str, ...], leaf: Any) -> str:
        stacked = leaf.ndim > _RANK.get(path[-1], leaf.ndim)
        return f"{leaf.shape[0]} layers" if stacked else "single"

    labels = map_named(label, params)
    if only is not None:
        labels = jax.tree.map(lambda name, yes: name if yes else "unchanged", labels, only)
    transformations = {
        name: _vmap(transformation) if name.endswith("layers") else transformation
        for name in set(jax.tree.leaves(labels))
    }
    transformations["unchanged"] = optax.identity()
    return optax.partition(transformations, labels)


def _vmap(transformation: optax.GradientTransformation) -> optax.GradientTransformation:
    """Maps a transformation over the leading axis of all parameters."""
    return optax.GradientTransformation(
        jax.vmap(transformation.init), jax.vmap(transformation.update)
    )


def make_schedule(
    name: ScheduleName,
    learning_rate: float,
    steps: int,
    warmup_steps: int = 0,
    final_ratio: float = 0.0,
) -> Schedule:
    """Makes a learning rate schedule: a function of the number of updates already made.

    The first update sees count 0 and so, under warmup, a learning rate of 0: TensorFlow's
    `global_step` and optax count alike, and the papers' numbers assume it.

    With t = count, W = warmup_steps, N = steps and r = final_ratio, each schedule is
    `learning_rate` times

    - `linear`: t/W before W, then r + (1-r)(1 - t/N). The decay counts from step 0, so the
      rate jumps down by W/N at t = W (BERT, optimization.py).
    - `linear_product`: min(1, t/W) (r + (1-r)(1 - t/N)) (ELECTRA, model/optimization.py).
    - `linear_after_warmup`: t/W before W, then r + (1-r)(1 - (t-W)/(N-W)) (XLNet,
      model_utils.py; its r is 0.001).
    - `cosine`: t/W before W, then r + (1-r)(1 + cos(pi (t-W)/(N-W)))/2 (GPT-1 section 4.1,
      GPT-3 appendix B with r = 0.1).
    - `constant`: t/W before W, then 1.

    After N each keeps its last value. (The last three are optax's schedules up to rounding; the
    first two are not in optax.)

    Returns:
      A function of the count, int32 [] or an array of counts, to float32 of the same shape.

    Raises:
      ConfigError: unknown name, or numbers that contradict each other.
    """
    names = typing.get_args(ScheduleName)
    if name not in names:
        raise ConfigError(f"config.optimizer.schedule: '{name}' is not one of {', '.join(names)}")
    if steps < 1:
        raise ConfigError(f"config.training.steps: {steps} is not positive")
    if steps < warmup_steps and name != "constant":
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
        else:
            multiplier = warmup
        return learning_rate * multiplier

    return schedule
