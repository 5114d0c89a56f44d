"""Whether data keep up with training: tokens that are trained on, loaded and corrupted."""

import atexit
import dataclasses
from typing import Any

import jax

from experiments.bench import train
from experiments.bench.rounds import Comparison, Made, Subject
from lmjax.data.loader import Loader
from lmjax.data.store import prepare
from lmjax.host import tune_host
from lmjax.training.plan import Plan
from lmjax.training.step import corrupt_batch


def comparisons(sizes: list[str], objectives: list[str], dtype: str) -> list[Comparison]:
    """One table per objective and size; training is the reference."""
    found = []
    for comparison in train.comparisons(sizes, objectives, dtype):
        training = comparison.subjects[-1]
        subjects = [
            Subject(name, f"experiments.bench.{make}", training.settings)
            for name, make in (
                ("training", "train:training_step"),
                ("loading", "data:loading"),
                ("corruption", "data:corruption"),
            )
        ]
        found.append(Comparison(f"data of {comparison.title}", subjects))
    return found


def loading(**settings: Any) -> Made:
    """Loads batches of the embedded corpus as training does."""
    plan = train.plan_of(**settings)
    loader = loader_of(plan)
    return lambda: next(loader), {"work": plan.training.batch_size * plan.examples.length}


def loader_of(plan: Plan) -> Loader:
    """Loads batches of the embedded corpus."""
    # The size of the vocabulary changes nothing but the time to train the tokenizer.
    tokenizer_config = dataclasses.replace(plan.data.tokenizer, vocab_size=2_048)
    data = dataclasses.replace(plan.data, tokenizer=tokenizer_config)
    tokenizer, stores = prepare(data, ("train",))
    store, batch_size = stores["train"], plan.training.batch_size
    vocabulary = tokenizer.vocabulary(store.counts)
    loader = Loader(plan.examples, store, vocabulary, batch_size=batch_size, seed=0)
    atexit.register(loader.close)
    return loader


def corruption(**settings: Any) -> Made:
    """Corrupts a batch on the device as the step does."""
    tune_host()
    plan = train.plan_of(**settings)
    rows = train.full_rows(plan)
    corrupt = jax.jit(lambda rows: corrupt_batch(plan.objective, jax.random.key(0), rows)[0])
    work = rows["tokens"].size
    return lambda: jax.block_until_ready(corrupt(rows)), {"work": work}
