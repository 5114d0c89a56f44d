"""A step of training beside `transformers`, for the four objectives in two sizes."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
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

# The trunk and the rows of a batch: one to try the benchmark, a laptop's, and BERT base.
SIZES = {
    "tiny": ({"layers": 1, "hidden_size": 32, "heads": 2}, 4),
    "small": ({"layers": 6, "hidden_size": 384, "heads": 6}, 16),
    "base": ({"layers": 12, "hidden_size": 768, "heads": 12}, 8),
}
CONFIGS = {"bert": "base", "gpt": "small", "xlnet": "base", "electra": "base"}
_BASE_VOCABULARIES = {"bert": 30_522, "gpt": 50_257, "xlnet": 32_000, "electra": 30_522}


def comparisons(
    sizes: list[str], objectives: list[str], dtype: str, length: int = 128
) -> list[Comparison]:
    """One table per objective and size; the first subject is the peer as shipped.

    Args:
      sizes: names in `SIZES`.
      dtype: 'float32' or 'bfloat16' (lmjax's trunk, and PyTorch's autocast).
    """
    found = []
    for name in sizes:
        for objective in objectives:
            size, batch = SIZES[name]
            vocabularies = {"tiny": 500, "small": 30_522, "base": _BASE_VOCABULARIES[objective]}
            title = f"{objective} {name}, {batch} x {length} tokens, {dtype}"
            settings = {
                "objective": objective,
                "size": size,
                "batch": batch,
                "length": length,
                "vocab_size": vocabularies[name],
            }
            found.append(compared(title, peers.variants(dtype), dtype, settings))
    return found


def compared(
    title: str, variants: Sequence[peers.Variant], dtype: str, settings: dict[str, Any]
) -> Comparison:
    """Compares lmjax's step with variants of the peer's; `settings` are those of both."""
    step = "experiments.bench.peers:training_step"
    theirs = [peers.subject(step, variant, **settings) for variant in variants]
    ours = Subject("lmjax", "experiments.bench.train:training_step", {**settings, "dtype": dtype})
    return Comparison(title, [*theirs, ours])


def cut_to(objective: str, length: int) -> dict[str, Any]:
    """Fields of a base config with examples of `length` tokens."""
    predictions = round(0.15 * length) + 1
    masked = {"model.max_length": max(512, length), "objective.max_predictions": predictions}
    own: dict[str, dict[str, Any]] = {
        "bert": masked,
        "gpt": {"model.max_length": max(1024, length)},
        "xlnet": {
            "data.examples.reuse_length": length // 2,
            "objective.reuse_length": length // 2,
            "objective.perm_size": length // 2,
            "objective.num_predict": length // 6,
        },
        "electra": masked,
    }
    return {"data.examples.length": length, **own[objective]}


def plan_of(
    objective: str,
    size: dict[str, int],
    batch: int,
    length: int,
    vocab_size: int,
    dtype: str,
    overrides: Mapping[str, Any] = MappingProxyType({}),
) -> Plan:
    """lmjax's plan of what `peers.training_step` does, with further `overrides` of fields."""
    values: dict[str, Any] = {
        "model.trunk.layers": size["layers"],
        "model.trunk.hidden_size": size["hidden_size"],
        "model.trunk.heads": size["heads"],
        "model.trunk.intermediate_size": 4 * size["hidden_size"],
        "model.trunk.dropout": 0.1,
        "model.trunk.attention_dropout": 0.1,
        "model.trunk.dtype": dtype,
        "data.tokenizer.vocab_size": vocab_size,
        "training.batch_size": batch,
        **cut_to(objective, length),
    }
    own: dict[str, dict[str, Any]] = {
        "xlnet": {"model.memory_length": 0},
        "electra": {
            "model.embedding_size": peers.embedding_size(size["hidden_size"]),
            "model.generator_size": 1 / peers.GENERATOR,
        },
    }
    values |= own.get(objective, {}) | dict(overrides)
    stated = {name: str(value) for name, value in values.items()}
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
