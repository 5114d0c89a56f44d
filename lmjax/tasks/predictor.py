"""Predictions for rows, by a task and its parameters as they are."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from lmjax.data.rows import Row
from lmjax.data.tokenizers import Tokenizer
from lmjax.errors import require_finite
from lmjax.tasks.base import Example, Outputs, Task
from lmjax.tasks.collate import Collator, by_length
from lmjax.training.monitor import means_of
from lmjax.training.sharding import batch_sharding, global_batch, replicated
from lmjax.training.step import total_loss


class Predictor:
    """A task's forward pass, compiled once for each shape of its batches."""

    def __init__(
        self,
        task: Task,
        collate: Collator,
        mesh: jax.sharding.Mesh,
        shardings: Any,
        tokenizer: Tokenizer,
        pick: Callable[[Any], Any] = lambda params: params,
    ):
        """Compiles nothing yet.

        Args:
          shardings: of the parameters that `predict` is given.
          tokenizer: of the start.
          pick: takes the task's own from them.
        """
        self._task, self._collate, self._mesh = task, collate, mesh
        self._tokenizer, self._pick = tokenizer, pick

        def read(params: Any, batch: Any) -> Any:
            outputs = task.forward(task.merged(pick(params)), batch, None)
            scored = task.compute_loss(outputs, batch)
            total = total_loss(task, scored, {n: count for n, (_, count) in scored.terms.items()})
            weight = batch["weight"].sum()
            return outputs, {"loss": (total * weight, weight), **scored.terms, **scored.metrics}

        self._read = jax.jit(
            read, in_shardings=(shardings, batch_sharding(mesh)), out_shardings=replicated(mesh)
        )

    def outputs(
        self, params: Any, rows: Sequence[Row], examples: Sequence[Example]
    ) -> tuple[list[Outputs], dict[str, float]]:
        """What `Task.predict` reads of each example, and the means of what the loss is made of.

        Raises:
          NonFiniteError: the model's outputs are NaN or infinite.
        """
        outputs: list[Outputs] = [{} for _ in examples]
        sums = []
        for indices, batch in by_length(examples, self._collate):
            placed = global_batch(batch, self._mesh, len(batch["weight"]))
            found, counted = jax.device_get(self._read(params, placed))
            sums.append(counted)
            for place, index in enumerate(indices):
                example = examples[index]
                own = {name: array[place] for name, array in found.items()}
                outputs[index] = self._task.unpadded(example, own)
                source = rows[int(example["row"])]
                for name, array in outputs[index].items():
                    if np.issubdtype(array.dtype, np.floating):
                        require_finite(array, f"{source.get('where', 'a row')}: {name}")
        written = self._task.write(self._pick(params), self._tokenizer, examples)
        for output, more in zip(outputs, written, strict=True):
            output |= more
        return outputs, means_of(sums)

    def predict(
        self,
        params: Any,
        rows: Sequence[Row],
        examples: Sequence[Example],
        task: Task | None = None,
    ) -> tuple[list[Row], dict[str, float]]:
        """Predictions for all rows, and the means of what the loss is made of.

        Args:
          task: decides instead of the predictor's own, as after `Task.tune`.
        """
        outputs, means = self.outputs(params, rows, examples)
        return (task or self._task).predict(rows, examples, outputs), means
