"""Predictions of a task for rows, from given parameters."""

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
    """A task's forward pass, compiled once per batch shape."""

    def __init__(
        self,
        task: Task,
        collate: Collator,
        mesh: jax.sharding.Mesh,
        shardings: Any,
        tokenizer: Tokenizer,
        pick: Callable[[Any], Any] = lambda params: params,
    ):
        """Prepares the forward pass; compilation happens on first use.

        Args:
          shardings: shardings of the parameters passed to `predict`.
          tokenizer: the tokenizer of the examples.
          pick: selects the task's parameters from those passed to `predict`.
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
        """Returns the outputs of each example for `Task.predict`, and mean losses and metrics.

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
        """Returns predictions for all rows, and mean losses and metrics.

        Args:
          task: used instead of the predictor's task to turn outputs into predictions, e.g. after
            `Task.tune`.
        """
        outputs, means = self.outputs(params, rows, examples)
        return (task or self._task).predict(rows, examples, outputs), means
