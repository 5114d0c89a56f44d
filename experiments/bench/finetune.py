"""An epoch of fine-tuning on texts of many lengths, beside `transformers`."""

import functools

import jax
import numpy as np

from configs.finetune.recipe import finetuning
from experiments.bench import peers, train
from experiments.bench.rounds import Comparison, Made, Subject
from lmjax.host import tune_host
from lmjax.tasks.collate import Collator, Epochs
from lmjax.tasks.finetuning import make_task_optimizer
from lmjax.tasks.plan import Prepared, prepare
from lmjax.training.sharding import global_batch
from lmjax.training.step import Program

BATCHES = 8


def comparisons(sizes: list[str], dtype: str, length: int = 128) -> list[Comparison]:
    """One table per size: BERT classifies sentences; a run is an epoch of `BATCHES` batches."""
    found = []
    for name in sizes:
        size, batch = train.SIZES[name]
        title = f"fine-tuning of bert {name}, {batch} texts of up to {length} tokens, {dtype}"
        settings = {"size": size, "batch": batch, "length": length, "dtype": dtype}
        make = "experiments.bench.{}:finetuning_epoch"
        subjects = [
            peers.subject(make.format("peers"), variant, **settings)
            for variant in peers.variants(dtype)
        ]
        subjects.append(Subject("lmjax", make.format("finetune"), settings))
        found.append(Comparison(title, subjects, "texts"))
    return found


def prepared(size: dict[str, int], batch: int, length: int, dtype: str) -> Prepared:
    """Summaries of functions with their mood, for a random BERT."""
    task = {
        "type": "lmjax.tasks.classification.Classification",
        "length": length,
        "pydocs": "moods",
    }
    config = finetuning(task, {"train_rows": BATCHES * batch}, learning_rate=1e-4, epochs=1)
    config.training.batch_size = batch
    config.mesh = {"data": 1}
    config.model.trunk = {
        "layers": size["layers"],
        "hidden_size": size["hidden_size"],
        "heads": size["heads"],
        "intermediate_size": 4 * size["hidden_size"],
        "attention_dropout": 0.1,
        "dtype": dtype,
    }
    config.model.max_length = max(512, length)
    return prepare(config)


def finetuning_epoch(size: dict[str, int], batch: int, length: int, dtype: str) -> Made:
    """lmjax's epoch."""
    tune_host()
    made = prepared(size, batch, length, dtype)
    data = Epochs(made.examples["train"], Collator(made.task, batch), seed=0)
    training, optimizer = made.training.of_steps(data.batches_per_epoch, made.optimizer)
    row = {name: array[0] for name, array in data.batch_at(0).items()}
    make = functools.partial(make_task_optimizer, made.task.trainable)
    program = Program(made.task, row, training, optimizer, made.mesh, make)
    with jax.set_mesh(made.mesh):
        state = program.initialize(np.uint32(0))

    def epoch() -> None:
        nonlocal state
        with jax.set_mesh(made.mesh):
            for i in range(data.batches_per_epoch):
                placed = global_batch(data.batch_at(i), made.mesh, batch)
                state, metrics = program.step(state, placed)
        jax.block_until_ready(metrics)

    return epoch, {"work": BATCHES * batch}


def batches(made: Prepared, batch: int) -> list[dict[str, np.ndarray]]:
    """The batches of the epoch, each padded to its longest text, for a peer.

    Returns:
      tokens, token_types, segment_ids [batch, longest] and gold [batch] of each.
    """
    data = Epochs(made.examples["train"], Collator(made.task, batch), seed=0)
    found = []
    for i in range(data.batches_per_epoch):
        rows = data.batch_at(i)
        longest = int((rows["segment_ids"] > 0).sum(1).max())
        names = ("tokens", "token_types", "segment_ids")
        found.append({name: rows[name][:, :longest] for name in names} | {"gold": rows["gold"]})
    return found
