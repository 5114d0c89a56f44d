"""One update and one evaluation, as pure functions of (state, batch), and their compilation.

`TrainState` is what a run carries from step to step, `make_train_step` is the update, and
`Program` compiles it for a mesh.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from lmjax.nn.dropout import Seeds
from lmjax.nn.partition import split_rows
from lmjax.objectives.base import Batch, Objective, Scored, Sum
from lmjax.training.optimizers import OptimizerConfig, Schedule, ema_update, make_optimizer
from lmjax.training.plan import TrainingConfig
from lmjax.training.sharding import batch_sharding, replicated, shardings
from lmjax.trees import map_named

Metrics = dict[str, Any]
MakeOptimizer = Callable[[OptimizerConfig, int, Any], tuple[optax.GradientTransformation, Schedule]]

# The key of an example is fold_in(key of the step, index of the example). Randomness that the
# whole batch shares uses an index that no example has.
SHARED = 2**31 - 1


@flax.struct.dataclass
class TrainState:
    """The state of a run; a checkpoint stores it with the position in the data.

    Attributes:
      step: [] int32, the number of updates made.
      key: [] typed PRNG key; all randomness of a step is folded from it.
      params: the objective's parameters, float32.
      opt_state: the state of the optax transformation.
      mems: memory carried from batch to batch, arrays [layers, batch, ...], or None.
      ema: exponential moving average of the parameters, float32, or None.
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
    """The state before the first step. Jit it with the shardings of the state.

    Args:
      objective: what is trained.
      optimizer: whose state is initialized.
      seed: [] uint32, of the parameters and of all randomness of the run.
      batch: a clean batch [batch, ...]; only its shapes matter.
      with_ema: whether the state has a moving average of the parameters.
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


def corrupt_batch(
    objective: Objective, key: jax.Array, batch: Batch, first: jax.Array | int = 0
) -> tuple[Batch, Seeds]:
    """Corrupts each example with its own key, and derives the seeds of its dropout.

    Args:
      objective: whose `corrupt` is mapped over the examples.
      key: of the step.
      batch: clean, arrays [batch, ...].
      first: index of the first example of `batch` within the step.

    Returns:
      The corrupted batch, and the dropout seeds of each example.
    """
    rows = jax.tree.leaves(batch)[0].shape[0]
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, first + jnp.arange(rows))
    for_corruption, for_dropout = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
    seeds = Seeds.of(for_dropout, jax.random.fold_in(key, SHARED))
    with jax.named_scope("corrupt"):
        return split_rows(jax.vmap(objective.corrupt)(for_corruption, batch)), seeds


def total_loss(objective: Objective, scored: Scored, counts: dict[str, jax.Array]) -> jax.Array:
    """[] float32: the sum over terms of weight * sum / count.

    Args:
      objective: whose weights are used.
      scored: the terms of the batch, or of a micro-batch of it.
      counts: of each term in the whole batch.
    """
    return jnp.sum(
        jnp.stack(
            [
                objective.weight(name) * total / jnp.maximum(counts[name], 1.0)
                for name, (total, _) in scored.terms.items()
            ]
        )
    )


def make_train_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    accumulation: int = 1,
    ema_decay: float = 0.0,
    skip_nonfinite: bool = False,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Makes `step(state, batch) -> (state, metrics)`. Jit it with the state donated.

    `metrics` are the `terms` and `metrics` of the objective as (sum, count), `loss` [], `tokens`
    [] (without padding), and `gradient_norms` [leaves], the norm of each parameter's gradient in
    the order of `jax.tree.leaves(params)`.

    Args:
      objective: what is trained.
      optimizer: makes updates of gradients.
      accumulation: micro-batches per update. Loss and gradient do not depend on it: sums are
        divided by the counts of the whole batch, not by those of a micro-batch.
      ema_decay: of the moving average, for a state that has one.
      skip_nonfinite: a batch whose loss or gradient is not finite changes only `state.step`.
    """

    def score(params: Any, batch: Batch, mems: Any, seeds: Seeds, counts: Any) -> Any:
        with jax.named_scope("loss"):
            scored = objective.loss(params, batch, mems, seeds)
            if counts is None:
                counts = _counts(scored)
            return total_loss(objective, scored, counts), scored

    gradient = jax.value_and_grad(score, has_aux=True)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        corrupted, seeds = corrupt_batch(
            objective, jax.random.fold_in(state.key, state.step), batch
        )
        if accumulation == 1:
            (loss, scored), grads = gradient(state.params, corrupted, state.mems, seeds, None)
            tokens = _tokens(corrupted)
        else:
            loss, scored, grads, tokens = accumulate(state, corrupted, seeds)
        with jax.named_scope("optimizer"):
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
            # Weight decay would change parameters without a gradient.
            updates = map_named(
                lambda path, x: x if objective.trainable(path) else jnp.zeros_like(x), updates
            )
            params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema is not None:
            with jax.named_scope("ema"):
                ema = ema_update(ema, params, ema_decay)
        new_state = TrainState(
            step=state.step + 1,
            key=state.key,
            params=params,
            opt_state=opt_state,
            mems=scored.mems,
            ema=ema,
        )
        # Without g.ravel(), which would gather a matrix whose columns are split over devices.
        norms = jnp.stack([jnp.sqrt(jnp.square(g).sum()) for g in jax.tree.leaves(grads)])
        if skip_nonfinite:
            good = jnp.isfinite(loss) & jnp.isfinite(norms).all()
            kept = dataclasses.replace(state, step=new_state.step)
            new_state = jax.tree.map(lambda new, old: _choose(good, new, old), new_state, kept)
        return new_state, {
            "loss": loss,
            "terms": scored.terms,
            "metrics": scored.metrics,
            "tokens": tokens,
            "gradient_norms": norms,
        }

    def accumulate(state: TrainState, corrupted: Batch, seeds: Seeds) -> Any:
        micro = (
            _split(corrupted, accumulation, axis=0),
            _split(state.mems, accumulation, axis=1),
            Seeds(
                examples=_split(seeds.examples, accumulation, axis=0),
                step=jnp.broadcast_to(seeds.step, (accumulation,)),
            ),
        )

        # The counts of the whole batch come first. They do not depend on the output of the network,
        # so the compiler removes the network from this pass. Tokens are counted here too: on XLA's
        # CPU backend, a sum over devices next to a loop that sums over devices can deadlock.
        def count(_: None, part: Any) -> tuple[None, Any]:
            batch, mems, seeds = part
            scored = objective.loss(state.params, batch, mems, seeds)
            return None, (_counts(scored), _tokens(batch))

        counts, tokens = jax.tree.map(lambda c: c.sum(0), jax.lax.scan(count, None, micro)[1])

        def add(grads: Any, part: Any) -> tuple[Any, Any]:
            (loss, scored), more = gradient(state.params, *part, counts)
            return jax.tree.map(jnp.add, grads, more), (loss, scored)

        zeros = jax.tree.map(jnp.zeros_like, state.params)
        grads, (losses, scored) = jax.lax.scan(add, zeros, micro)
        terms, metrics = jax.tree.map(lambda x: x.sum(0), (scored.terms, scored.metrics))
        whole = Scored(terms=terms, metrics=metrics, mems=_join(scored.mems, axis=1))
        return losses.sum(), whole, grads, tokens

    return step


def make_eval_step(objective: Objective) -> Callable[..., tuple[dict[str, Sum], Any]]:
    """Makes `evaluate(params, mems, key, batch) -> (sums, mems)`, without dropout and update.

    `sums` has the terms and the metrics of the objective, and `loss`, as (sum, count). The count
    of `loss` is 1 per batch.
    """

    def evaluate(
        params: Any, mems: Any, key: jax.Array, batch: Batch
    ) -> tuple[dict[str, Sum], Any]:
        corrupted, _ = corrupt_batch(objective, key, batch)
        scored = objective.loss(params, corrupted, mems, None)
        loss = total_loss(objective, scored, _counts(scored))
        return {"loss": (loss, jnp.float32(1)), **scored.terms, **scored.metrics}, scored.mems

    return evaluate


class Program:
    """The compiled functions of a run on its mesh; nothing is compiled before the first call.

    Attributes:
      objective: what is trained.
      training: of the run.
      mesh: the devices to compile for, which may be absent (`jax.experimental.topologies`).
      abstract_batch: shapes and shardings of a global batch.
      abstract_state: shapes and shardings of a TrainState.
      shardings: the shardings of a TrainState alone.
      param_names: paths of the parameters, in the order of `jax.tree.leaves(params)`.
      schedule: count of updates -> learning rate.
      initialize: (seed [] uint32) -> TrainState before the first step, created sharded.
      step: (state, batch) -> (state, metrics); donates `state`.
      evaluate: (params, mems, key, batch) -> (sums, mems).
    """

    def __init__(
        self,
        objective: Objective,
        row: Mapping[str, Any],
        training: TrainingConfig,
        optimizer: OptimizerConfig,
        mesh: jax.sharding.Mesh,
        make_optimizer: MakeOptimizer = make_optimizer,
    ):
        """Traces shapes only.

        Args:
          objective: over the vocabulary of the run.
          row: a clean example without a batch axis; only names, shapes and dtypes matter.
          training: of the run.
          optimizer: config of the optimizer.
          mesh: the devices to compile for.
          make_optimizer: (config, steps, parameter shapes) -> (transformation, schedule).
        """
        self.objective, self.training, self.mesh = objective, training, mesh
        whole, rows = replicated(mesh), batch_sharding(mesh)
        self.abstract_batch: dict[str, jax.ShapeDtypeStruct] = {
            name: jax.ShapeDtypeStruct((training.batch_size, *x.shape), x.dtype, sharding=rows)
            for name, x in row.items()
        }

        def blank() -> dict[str, jax.Array]:
            return {name: jnp.zeros(x.shape, x.dtype) for name, x in self.abstract_batch.items()}

        def corrupted() -> Any:
            keys = jax.random.split(jax.random.key(0), training.batch_size)
            return jax.vmap(objective.corrupt)(keys, blank())

        shapes = jax.eval_shape(lambda: objective.init(jax.random.key(0), corrupted()))
        transformation, self.schedule = make_optimizer(optimizer, training.steps, shapes)
        self.param_names = [
            jax.tree_util.keystr(path, simple=True, separator="/")
            for path, _ in jax.tree_util.tree_leaves_with_path(shapes)
        ]

        def initialize(seed: jax.Array) -> TrainState:
            return init_state(objective, transformation, seed, blank(), training.ema_decay > 0)

        abstract = jax.eval_shape(initialize, np.uint32(0))
        self.shardings = places = shardings(abstract, mesh)
        self.abstract_state = jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
            abstract,
            places,
        )
        self.initialize = jax.jit(initialize, out_shardings=places)
        self.step = jax.jit(
            make_train_step(
                objective,
                transformation,
                training.accumulation,
                training.ema_decay,
                training.skip_nonfinite,
            ),
            in_shardings=(places, rows),
            out_shardings=(places, whole),
            donate_argnums=0,
        )
        self.evaluate = jax.jit(
            make_eval_step(objective),
            in_shardings=(places.params, places.mems, whole, rows),
            out_shardings=(whole, places.mems),
        )


def _choose(condition: jax.Array, new: jax.Array, old: jax.Array) -> jax.Array:
    if jnp.issubdtype(new.dtype, jax.dtypes.prng_key):
        return old  # the key never changes
    return jnp.where(condition, new, old)


def _counts(scored: Scored) -> dict[str, jax.Array]:
    return {name: count for name, (_, count) in scored.terms.items()}


def _tokens(batch: Batch) -> jax.Array:
    return (batch["segment_ids"] > 0).sum()


def _split(tree: Any, parts: int, axis: int) -> Any:
    """[.., batch, ..] -> [parts, .., batch / parts, ..].

    Part j takes the rows j, j + parts, ...: rows of every device, so that nothing moves.
    """

    def split(x: jax.Array) -> jax.Array:
        shape = (*x.shape[:axis], x.shape[axis] // parts, parts, *x.shape[axis + 1 :])
        return jnp.moveaxis(x.reshape(shape), axis + 1, 0)

    return jax.tree.map(split, tree)


def _join(tree: Any, axis: int) -> Any:
    """Undoes `_split`."""

    def join(x: jax.Array) -> jax.Array:
        x = jnp.moveaxis(x, 0, axis + 1)
        return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])

    return jax.tree.map(join, tree)
