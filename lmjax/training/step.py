"""One update and one evaluation, as pure functions of (state, batch)."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lmjax.nn.dropout import Seeds
from lmjax.nn.partition import split_rows
from lmjax.objectives.base import Batch, Objective, Scored, Sum
from lmjax.training.optimizers import ema_update
from lmjax.training.state import TrainState

Metrics = dict[str, Any]

# fold_in of a step's key with an example's index gives the example's key; what the whole
# batch shares takes an index that no example has.
SHARED = 2**31 - 1


def corrupt_batch(
    objective: Objective, key: jax.Array, batch: Batch, first: jax.Array | int = 0
) -> tuple[Batch, Seeds]:
    """Corrupts each example with its own key, and gives the seeds of its dropout.

    Args:
      key: of the step.
      first: index of the batch's first example within the step.
    """
    rows = jax.tree.leaves(batch)[0].shape[0]
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, first + jnp.arange(rows))
    for_corruption, for_dropout = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
    seeds = Seeds.of(for_dropout, jax.random.fold_in(key, SHARED))
    return split_rows(jax.vmap(objective.corrupt)(for_corruption, batch)), seeds


def total_loss(objective: Objective, scored: Scored, counts: dict[str, jax.Array]) -> jax.Array:
    """sum over terms of weight * sum / count, with the counts of the whole batch."""
    weights = objective.weights
    return jnp.sum(
        jnp.stack(
            [
                weights.get(name, 1.0) * total / jnp.maximum(counts[name], 1.0)
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
    """Returns `step(state, batch) -> (state, metrics)`, to be jitted with donated state.

    Loss and gradient are those of the whole batch whatever `accumulation` is: sums are
    divided by the counts of the whole batch, never by a micro-batch's own. With
    `skip_nonfinite` a batch whose loss or gradient is not finite changes nothing but the step.

    Metrics are: `terms` and `metrics` of the objective as (sum, count), `loss` [],
    `tokens` [] (padding not counted), and `gradient_norms` [leaves], the norm of each
    parameter's gradient in the order of `jax.tree.leaves(params)`.
    """

    def score(params: Any, batch: Batch, mems: Any, seeds: Seeds, counts: Any) -> Any:
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
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema is not None:
            ema = ema_update(ema, params, ema_decay)
        new_state = TrainState(
            step=state.step + 1,
            key=state.key,
            params=params,
            opt_state=opt_state,
            mems=scored.mems,
            ema=ema,
        )
        # Not of g.ravel(): that would gather a matrix whose columns are split over devices.
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

        # The counts of the whole batch come first. They do not depend on what the network
        # computes, which the compiler therefore leaves out of this pass. The tokens are counted
        # here too: a sum over devices beside a loop that has sums of its own can wait for it
        # forever on XLA's CPU backend.
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
    """Returns `evaluate(params, mems, key, batch) -> (sums, mems)`: no dropout, no update.

    `sums` joins the terms and the metrics of the objective, and `loss`, as (sum, count);
    the count of `loss` is 1 a batch.
    """

    def evaluate(
        params: Any, mems: Any, key: jax.Array, batch: Batch
    ) -> tuple[dict[str, Sum], Any]:
        corrupted, _ = corrupt_batch(objective, key, batch)
        scored = objective.loss(params, corrupted, mems, None)
        loss = total_loss(objective, scored, _counts(scored))
        return {"loss": (loss, jnp.float32(1)), **scored.terms, **scored.metrics}, scored.mems

    return evaluate


def _choose(condition: jax.Array, new: jax.Array, old: jax.Array) -> jax.Array:
    if jnp.issubdtype(new.dtype, jax.dtypes.prng_key):
        return old  # the same in both
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
