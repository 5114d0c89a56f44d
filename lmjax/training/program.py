"""A run's compiled functions, for devices that may be here or only described."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lmjax.objectives.base import Objective
from lmjax.training.mesh import batch_sharding, replicated
from lmjax.training.optimizers import OptimizerConfig, make_optimizer
from lmjax.training.plan import TrainingConfig
from lmjax.training.schedules import Schedule
from lmjax.training.sharding import shardings
from lmjax.training.state import TrainState, init_state
from lmjax.training.step import make_eval_step, make_train_step

MakeTransformation = Callable[
    [OptimizerConfig, int, Any], tuple[optax.GradientTransformation, Schedule]
]


class Program:
    """What a run computes on its mesh; nothing is compiled before it is called.

    Attributes:
      mesh: whose devices it is for.
      batch: shapes of a global batch with their shardings.
      state: shapes of a TrainState with their shardings.
      places: those shardings alone.
      paths: names of the parameters, in the order of `jax.tree.leaves(params)`.
      schedule: the learning rate of an update.
      initial: (seed [] uint32) -> TrainState before the first step, born sharded.
      step: (state, batch) -> (state, metrics); takes the state's memory over.
      evaluate: (params, mems, key, batch) -> (sums, mems).
    """

    def __init__(
        self,
        objective: Objective,
        row: Mapping[str, Any],
        training: TrainingConfig,
        optimizer: OptimizerConfig,
        mesh: jax.sharding.Mesh,
        make_transformation: MakeTransformation = make_optimizer,
    ):
        """Reads shapes only.

        Args:
          objective: over the vocabulary of the run.
          row: a clean example, of which names, shapes and dtypes matter.
          make_transformation: gives the gradient transformation and its schedule, from the
            optimizer's config, the number of steps and the shapes of the parameters.
        """
        self.mesh = mesh
        whole, rows = replicated(mesh), batch_sharding(mesh)
        self.batch: dict[str, jax.ShapeDtypeStruct] = {
            name: jax.ShapeDtypeStruct((training.batch_size, *x.shape), x.dtype, sharding=rows)
            for name, x in row.items()
        }

        def blank() -> dict[str, jax.Array]:
            return {name: jnp.zeros(x.shape, x.dtype) for name, x in self.batch.items()}

        def corrupted() -> Any:
            keys = jax.random.split(jax.random.key(0), training.batch_size)
            return jax.vmap(objective.corrupt)(keys, blank())

        shapes = jax.eval_shape(lambda: objective.init(jax.random.key(0), corrupted()))
        transformation, self.schedule = make_transformation(optimizer, training.steps, shapes)
        self.paths = [
            jax.tree_util.keystr(path, simple=True, separator="/")
            for path, _ in jax.tree_util.tree_leaves_with_path(shapes)
        ]

        def initial(seed: jax.Array) -> TrainState:
            return init_state(objective, transformation, seed, blank(), training.ema_decay > 0)

        abstract = jax.eval_shape(initial, np.uint32(0))
        self.places = places = shardings(abstract, mesh)
        self.state = jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
            abstract,
            places,
        )
        self.initial = jax.jit(initial, out_shardings=places)
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
