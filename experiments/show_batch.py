"""Shows a batch of a run, e.g. one that its events.jsonl names.

python -m experiments.show_batch --workdir=runs/bert --batch=1234
"""

import pathlib
from collections.abc import Mapping

import jax
import ml_collections
import numpy as np
from absl import flags

from experiments import command_line
from lmjax.configuration import opening
from lmjax.convert.huggingface import read_json
from lmjax.data.loader import Loader
from lmjax.data.store import prepare
from lmjax.data.tokenizers import Tokenizer
from lmjax.errors import ConfigError
from lmjax.training.plan import make_plan

BATCH = flags.DEFINE_integer("batch", None, "Index of the training batch, from 0.")
PHASE = flags.DEFINE_string("phase", "", "Name of the phase; '' is the first one.")
ROWS = flags.DEFINE_integer("rows", 8, "Number of rows to show, the rarest texts first.", 1)


def main() -> None:
    if BATCH.value is None or BATCH.value < 0:
        raise ConfigError("--batch: missing; give the index of a batch, from 0")
    values = read_json(pathlib.Path(command_line.workdir()) / "config.json")
    # The data does not depend on the mesh.
    values["mesh"] = {"data": 1}
    values.pop("evaluators", None)  # not needed, so their classes are not imported
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        with opening():
            plan = make_plan(ml_collections.ConfigDict(values))
        tokenizer, stores = prepare(plan.data, ("train",))
        vocabulary = tokenizer.vocabulary(stores["train"].counts)
        phases = {phase.name: phase for phase in plan.phases}
        if PHASE.value not in phases:
            raise ConfigError(
                f"--phase: no phase '{PHASE.value}'; the run has {', '.join(map(repr, phases))}"
            )
        phase = phases[PHASE.value]
        loader = Loader(
            phase.examples,
            stores["train"],
            vocabulary,
            batch_size=phase.training.batch_size,
            seed=plan.seed,
        )
        for line in describe(
            loader.batch_at(BATCH.value), tokenizer, vocabulary.log_frequency, ROWS.value
        ):
            print(line)


def describe(
    batch: Mapping[str, np.ndarray], tokenizer: Tokenizer, log_frequency: np.ndarray, rows: int
) -> list[str]:
    """Formats rows of a batch: index, size, unigram score and text.

    Args:
      batch: a clean batch with `tokens` and `segment_ids` [batch, length].
      tokenizer: decodes the text.
      log_frequency: [vocab_size] log frequencies of tokens, in nats.
      rows: number of rows, those with the highest mean unigram score (nats per token) first.
    """
    found = []
    for index, (tokens, documents) in enumerate(
        zip(batch["tokens"], batch["segment_ids"], strict=True)
    ):
        real = tokens[documents > 0]
        score = float(-np.asarray(log_frequency)[real].mean()) if len(real) else 0.0
        what = f"{len(real)} tokens, {len(np.unique(documents[documents > 0]))} documents"
        head = f"row {index}: {what}, unigram score {score:.2f}"
        found.append((score, f"{head}\n{tokenizer.decode(real)}\n"))
    found.sort(key=lambda pair: -pair[0])
    return [text for _, text in found[:rows]]


if __name__ == "__main__":
    command_line.start(main)
