"""A step of training beside `transformers`, for the four objectives in two sizes."""

from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments.bench import peers
from experiments.bench.rounds import Comparison, Made, Subject
from experiments.command_line import open_config
from lmjax.data.examples.stand_in import stand_in_row
from lmjax.host import tune_host
from lmjax.training.plan import Plan, make_plan
from lmjax.training.sharding import global_batch
from lmjax.training.step import Program

# The laptop size of the benchmarks, and BERT base.
SMALL = {"layers": 6, "hidden_size": 384, "heads": 6}
BASE = {"layers": 12, "hidden_size": 768, "heads": 12}
SIZES = {"small": (SMALL, 16), "base": (BASE, 8)}
VOCABULARIES = {"bert": 30_522, "gpt": 50_257, "xlnet": 32_000, "electra": 30_522}  # of base
CONFIGS = {"bert": "base", "gpt": "small", "xlnet": "base", "electra": "base"}


def comparisons(
    sizes: list[str], objectives: list[str], dtype: str, length: int = 128
) -> list[Comparison]:
    """One table per objective and size; the first subject is the peer as shipped.

    Args:
      sizes: of `SIZES`; 'tiny' is only good for trying the benchmark.
      dtype: 'float32' or 'bfloat16' (lmjax's trunk, and PyTorch's autocast).
    """
    found = []
    for name in sizes:
        for objective in objectives:
            size, batch = SIZES.get(name, ({"layers": 1, "hidden_size": 32, "heads": 2}, 4))
            if objective == "electra":
                narrow = 128 if name == "small" else size["hidden_size"]
                size = {**size, "embedding_size": narrow, "generator_size": 4}
            settings = {
                "objective": objective,
                "size": size,
                "batch": batch,
                "length": length,
                "vocab_size": {"base": VOCABULARIES[objective], "small": 30_522}.get(name, 500),
            }
            step = "experiments.bench.peers:training_step"
            theirs = [peers.subject(step, v, **settings) for v in peers.variants(dtype)]
            ours = Subject(
                "lmjax", "experiments.bench.train:training_step", {**settings, "dtype": dtype}
            )
            title = f"{objective} {name}, {batch} x {length} tokens, {dtype}"
            found.append(Comparison(title, [*theirs, ours]))
    return found


def plan_of(
    objective: str, size: dict[str, int], batch: int, length: int, vocab_size: int, dtype: str
) -> Plan:
    """lmjax's plan of what `peers.training_step` does."""
    overrides: dict[str, Any] = {
        "model.trunk.layers": size["layers"],
        "model.trunk.hidden_size": size["hidden_size"],
        "model.trunk.heads": size["heads"],
        "model.trunk.intermediate_size": 4 * size["hidden_size"],
        "model.trunk.dropout": 0.1,
        "model.trunk.attention_dropout": 0.1,
        "model.trunk.dtype": dtype,
        "data.tokenizer.vocab_size": vocab_size,
        "data.examples.length": length,
        "training.batch_size": batch,
    }
    predictions = round(0.15 * length) + 1
    own: dict[str, dict[str, Any]] = {
        "bert": {"objective.max_predictions": predictions},
        "gpt": {},
        "xlnet": {
            "model.trunk.activation_dropout": 0.1,
            "model.memory_length": 0,
            "data.examples.reuse_length": length // 2,
            "objective.reuse_length": length // 2,
            "objective.perm_size": length // 2,
            "objective.num_predict": length // 6,
        },
        "electra": {
            "model.embedding_size": size.get("embedding_size", 0),
            "model.generator_size": 1 / size.get("generator_size", 1),
            "objective.max_predictions": predictions,
        },
    }
    stated = {name: str(value) for name, value in (overrides | own[objective]).items()}
    opened = open_config(f"configs/{objective}.py:{CONFIGS[objective]}", stated)
    return make_plan(ConfigDict(opened.values))


def full_rows(plan: Plan) -> dict[str, np.ndarray]:
    """A batch of random tokens without padding."""
    vocabulary, batch = plan.objective.vocabulary, plan.training.batch_size
    row = stand_in_row(plan.examples, vocabulary)
    rows = {name: np.stack([np.asarray(array)] * batch) for name, array in row.items()}
    shape = rows["tokens"].shape
    rows["tokens"] = np.random.default_rng(0).integers(10, vocabulary.size, shape, np.int32)
    rows["segment_ids"] = np.ones(shape, np.int32)
    return rows


def training_step(**settings: Any) -> Made:
    """lmjax's step on `peers.training_step`'s work; it also corrupts the batch."""
    tune_host()
    plan = plan_of(**settings)
    rows = full_rows(plan)
    row = {name: array[0] for name, array in rows.items()}
    program = Program(plan.objective, row, plan.training, plan.optimizer, plan.mesh)
    batch, length = plan.training.batch_size, plan.examples.length
    with jax.set_mesh(plan.mesh):
        placed = global_batch(rows, plan.mesh, batch)
        state = program.initialize(np.uint32(0))

    def step() -> None:
        nonlocal state
        with jax.set_mesh(plan.mesh):
            state, metrics = program.step(state, placed)
        jax.block_until_ready(metrics)

    flops = plan.objective.forward_flops(length)
    return step, {
        "work": batch * length,
        "flops": None if flops is None else 3 * flops * batch,
        "device": jax.devices()[0].device_kind,
    }
