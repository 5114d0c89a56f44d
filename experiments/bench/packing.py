"""Training on texts with several segment pairs in a row, beside one pair in a row."""

from typing import Any

import jax
import numpy as np

from experiments.bench import train
from experiments.bench.data import loader_of
from experiments.bench.rounds import Comparison, Made, Subject
from lmjax.host import tune_host
from lmjax.training.sharding import global_batch
from lmjax.training.step import Program

PACKABLE = ("bert", "electra")
BATCHES = 4
MOST = 8  # pairs in a row


def comparisons(sizes: list[str], objectives: list[str], dtype: str) -> list[Comparison]:
    """One table per objective and size; tokens are those of texts, without padding."""
    found = []
    for comparison in train.comparisons(sizes, [o for o in objectives if o in PACKABLE], dtype):
        settings = comparison.subjects[-1].settings
        subjects = [
            Subject(name, "experiments.bench.packing:batches", {**settings, "most": most})
            for name, most in (("a pair in a row", 1), (f"up to {MOST} pairs in a row", MOST))
        ]
        found.append(Comparison(f"texts of the embedded corpus: {comparison.title}", subjects))
    return found


def batches(most: int, **settings: Any) -> Made:
    """Trains on batches of the embedded corpus with up to `most` pairs in a row."""
    tune_host()
    plan = train.plan_of(**settings, overrides={"data.examples.pairs_per_row": most})
    loader = loader_of(plan)
    rows = [loader.batch_at(i) for i in range(BATCHES)]
    row = {name: array[0] for name, array in rows[0].items()}
    program = Program(plan.objective, row, plan.training, plan.optimizer, plan.mesh)
    with jax.set_mesh(plan.mesh):
        placed = [global_batch(batch, plan.mesh, plan.training.batch_size) for batch in rows]
        state = program.initialize(np.uint32(0))

    def steps() -> None:
        nonlocal state
        with jax.set_mesh(plan.mesh):
            for batch in placed:
                state, metrics = program.step(state, batch)
        jax.block_until_ready(metrics)

    return steps, {"work": sum(int(np.count_nonzero(batch["segment_ids"])) for batch in rows)}
