"""An ablation whose cells take seconds."""

import json
import pathlib

import numpy as np
from ml_collections import ConfigDict

from tests.lab import outside
from tests.runs import write_text
from tests.tasks import small


def config(folder: pathlib.Path) -> ConfigDict:
    """README's ablation on a trunk of one layer, with all measures and one from outside."""
    made = outside.get_config()
    made.seeds = 2
    made.variants.blanks.changes.objective.type = "tests.objectives.outside.BlankedLM"
    made.budget = {"unit": "steps", "amount": 8.0}
    p = made.pretraining
    p.model.trunk.update(layers=1, hidden_size=16, intermediate_size=32, dropout=0.1)
    p.model.max_length = 32
    p.data.corpus = str(write_text(folder / "text.txt"))
    p.data.tokenizer.vocab_size = 100
    p.data.examples.length = 32
    p.optimizer.warmup_steps = 2
    p.training.update(
        batch_size=4, log_every=2, eval_every=4, eval_batches=2, checkpoint_every=4, steps=8
    )
    p.mesh = {"data": 1}
    words = (folder / "text.txt").read_text().split()[:40]
    pairs = [
        {"good": " ".join(words[i : i + 5]), "bad": " ".join(words[i : i + 5][::-1]), "uid": "x"}
        for i in range(12)
    ]
    blimp = folder / "pairs.jsonl"
    blimp.write_text("\n".join(map(json.dumps, pairs)))
    made.measures.blimp.data = str(blimp)
    task = {"type": "lmjax.tasks.classification.Classification"}
    rows = small.write_rows(folder / "rows.jsonl", small.labelled(16))
    judge = small.config(task, {"train": rows, "validation": rows}, "gpt")
    judge.training.epochs = 1
    made.measures.classification.config = judge
    made.measures.classification.seeds = 2
    loss = {
        "type": "lmjax.lab.measures.HeldOut",
        "description": "held-out loss, nats",
        "metric": "lm",
    }
    made.measures.loss = loss
    made.measures.norm = {"type": "tests.lab.measure.Norm", "description": "norm", "order": 1}
    return made


def numbers(values: object) -> list[float]:
    """All numbers in plain values, in order."""
    if isinstance(values, dict):
        return [x for v in values.values() for x in numbers(v)]
    if isinstance(values, list):
        return [x for v in values for x in numbers(v)]
    return [float(values)] if isinstance(values, int | float | np.number) else []
