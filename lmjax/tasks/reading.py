"""Predictions for rows, with parameters as they are."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from lmjax.data.rows import Row
from lmjax.data.tokenizers import Tokenizer
from lmjax.errors import require_finite
from lmjax.tasks.base import Example, Outputs, Task
from lmjax.tasks.batches import Collator, by_length
from lmjax.training.mesh import batch_sharding, global_batch, replicated
from lmjax.training.step import total_loss
from lmjax.training.watch import means_of


class Reader:
    """A task's forward pass, compiled once for each length of its batches."""

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
            scored = task.judge(outputs, batch)
            total = total_loss(task, scored, {n: count for n, (_, count) in scored.terms.items()})
            weight = batch["weight"].sum()
            return outputs, {"loss": (total * weight, weight), **scored.terms, **scored.metrics}

        self._read = jax.jit(
            read, in_shardings=(shardings, batch_sharding(mesh)), out_shardings=replicated(mesh)
        )

    def predict(
        self, params: Any, rows: Sequence[Row], examples: Sequence[Example]
    ) -> tuple[list[Row], dict[str, float]]:
        """Predictions for all rows, and the means of what the loss is made of.

        Raises:
          NonFiniteError: the model's outputs are NaN or infinite.
        """
        outputs: list[Outputs] = [{} for _ in examples]
        sums = []
        for indices, batch in by_length(examples, self._collate):
            placed = global_batch(batch, self._mesh, self._collate.batch_size)
            found, counted = jax.device_get(self._read(params, placed))
            sums.append(counted)
            for place, index in enumerate(indices):
                row = {name: array[place] for name, array in found.items()}
                source = rows[int(examples[index]["row"])]
                for name, array in row.items():
                    if np.issubdtype(array.dtype, np.floating):
                        require_finite(array, f"{source.get('where', 'a row')}: {name}")
                outputs[index] = self._task.unpadded(examples[index], row)
        written = self._task.write(self._pick(params), self._tokenizer, examples)
        for output, more in zip(outputs, written, strict=True):
            output |= more
        return self._task.predict(rows, examples, outputs), means_of(sums)
