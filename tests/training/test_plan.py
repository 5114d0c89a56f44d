"""Every config that cannot work is refused in one line that names the field."""

import copy
import math
from collections.abc import Iterator
from typing import Any

import pytest
from ml_collections import ConfigDict

from lmjax.data.tokenizers import TokenizerConfig
from lmjax.data.vocabulary import Vocabulary
from lmjax.errors import ConfigError
from lmjax.objectives.masked import MaskedLM
from lmjax.training.plan import make_plan
from tests import tiny

GOOD: dict[str, Any] = {
    "seed": 0,
    "objective": {
        "type": "lmjax.objectives.masked.MaskedLM",
        "mask_rate": 0.15,
        "max_predictions": 20,
        "masking": "token",
        "sentence_prediction": True,
    },
    "model": {
        "trunk": {
            "layers": 2,
            "hidden_size": 32,
            "heads": 4,
            "intermediate_size": 64,
            "activation": "gelu",
            "norm": "post",
            "dropout": 0.1,
            "dtype": "float32",
            "remat": "",
        },
        "max_length": 128,
        "segment_types": 2,
        "vocab_size": 0,
    },
    "data": {
        "corpus": "pydocs",
        "tokenizer": {"kind": "wordpiece", "vocab_size": 4096, "lowercase": True},
        "examples": {"type": "lmjax.data.examples.SegmentPairs", "length": 128, "duplicates": 2},
        "cache_dir": "",
    },
    "optimizer": {
        "name": "adamw",
        "learning_rate": 1e-3,
        "schedule": "linear",
        "warmup_steps": 10,
        "b2": 0.98,
        "weight_decay": 0.01,
    },
    "training": {"steps": 100, "batch_size": 16, "accumulation": 2, "ema_decay": 0.0},
    "mesh": {"data": 8},
}
STREAM = "lmjax.data.examples.SegmentStream"
XLNET = {
    "objective.type": "lmjax.objectives.permuted.PermutedLM",
    "objective.mask_rate": None,
    "objective.max_predictions": None,
    "objective.masking": None,
    "objective.sentence_prediction": None,
    "model.max_length": None,
    "model.segment_types": None,
    "model.memory_length": 64,
    "objective.num_predict": 21,
    "objective.reuse_length": 64,
}


def changed(changes: dict[str, Any]) -> ConfigDict:
    """GOOD with fields set; None removes one."""
    config = copy.deepcopy(GOOD)
    for path, value in changes.items():
        *blocks, name = path.split(".")
        block = config
        for key in blocks:
            block = block[key]
        if value is None:
            del block[name]
        else:
            block[name] = value
    return ConfigDict(config)


def refusal(config: ConfigDict) -> str:
    with pytest.raises(ConfigError) as caught:
        make_plan(config)
    message = str(caught.value)
    assert "\n" not in message
    return message


def fields(block: dict[str, Any], where: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in block.items():
        yield f"{where}{name}", value
        if isinstance(value, dict):
            yield from fields(value, f"{where}{name}.")


def test_a_config_becomes_typed_parts() -> None:
    plan = make_plan(changed({}))
    assert isinstance(plan.objective, MaskedLM)
    assert plan.objective.model.trunk.heads == 4
    assert plan.objective.model.vocab_size == plan.objective.vocabulary.size == 4096
    assert plan.mesh.devices.size == 8
    assert (plan.training.batch_size, plan.examples.length, plan.vocab_size) == (16, 128, 0)
    make_plan(changed(XLNET))


@pytest.mark.parametrize(
    ("changes", "field", "also"),
    [
        ({"objektive": {}}, "objektive", "objective"),
        ({"model.trunk.head": 4}, "model.trunk.head", "did you mean 'heads'"),
        ({"training.step": 4}, "training.step", "did you mean 'steps'"),
        ({"objective.vocabulary": 4}, "objective.vocabulary", "unknown"),
        ({"data.examples.lenght": 4}, "data.examples.lenght", "did you mean 'length'"),
        ({"seed": -1}, "seed", "not be negative"),
        ({"model": 3}, "model", "block"),
        ({"data": "pydocs"}, "data", "block"),
        ({"model.trunk": 3}, "model.trunk", "block"),
        ({"model.trunk.heads": 5}, "model.trunk.heads", "hidden_size=32"),
        ({"model.trunk.dropout": 1.0}, "model.trunk.dropout", "[0, 1)"),
        ({"model.vocab_size": -5}, "model.vocab_size", "not be negative"),
        ({"training.batch_size": 12}, "training.batch_size", "use 16"),
        ({"mesh.data": 9}, "mesh.data", "8 available"),
        ({"data.examples.length": 256}, "data.examples.length", "config.model.max_length=128"),
        ({"model.vocab_size": 2**31}, "model.vocab_size", "lie in [0, 2**24]"),
        ({"data.tokenizer.vocab_size": 2**40}, "data.tokenizer.vocab_size", "lie in [100, 2**24]"),
        ({"model.segment_types": -1}, "model.segment_types", "at least 1"),
        ({"model.segment_types": 1}, "model.segment_types", "type=SegmentPairs have 2 segments"),
        (
            {"data.examples": {"type": STREAM, "length": 128, "reuse_length": 64}},
            "model.segment_types",
            "set it to 3",
        ),
        ({"model.trunk.initial_std": math.nan}, "model.trunk.initial_std", "finite"),
        ({"model.trunk.initial_std": -0.1}, "model.trunk.initial_std", "lie in [0, 10]"),
        ({"model.trunk.layer_norm_epsilon": 0.0}, "model.trunk.layer_norm_epsilon", "lie in"),
        ({"objective.mask_rate": math.nan}, "objective.mask_rate", "finite"),
        ({"optimizer.learning_rate": math.inf}, "optimizer.learning_rate", "finite"),
        ({"training.max_loss_rise": math.nan}, "training.max_loss_rise", "finite"),
        ({"training.max_loss_rise": 0.5}, "training.max_loss_rise", "less than it"),
        ({"init": 3}, "init", "expected str"),
        ({"optimizer.warmup_steps": 101}, "optimizer.warmup_steps", "config.training.steps=100"),
        ({"objective.type": None}, "objective.type", "missing"),
        ({"objective.type": "lmjax.models.bert.BertConfig"}, "objective.type", "Objective"),
        ({"objective.type": "lmjax.objectives.base.Objective"}, "objective.type", "model"),
        ({"objective.type": "lmjax.objectives.masked.MaskedLm"}, "objective.type", "MaskedLM"),
        ({"objective.type": "lmjax.objectives.bert.BERT"}, "objective.type", "cannot import"),
        ({"data.examples.type": None}, "data.examples.type", "missing"),
        ({"data.examples": None}, "data.examples", "missing"),
        (
            {"data.examples": {"type": "lmjax.data.store.DataConfig"}},
            "data.examples.type",
            "lmjax.data.examples",
        ),
        (XLNET | {"objective.num_predict": 128}, "objective.num_predict", "64 targets"),
        (XLNET | {"objective.reuse_length": 128}, "objective.reuse_length", "must be less than"),
        (XLNET | {"objective.perm_size": 24}, "objective.perm_size", "does not divide"),
        (XLNET | {"model.trunk.norm": "pre"}, "model.trunk.norm", "post"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_work_is_refused(changes: dict[str, Any], field: str, also: str) -> None:
    message = refusal(changed(changes))
    assert message.startswith(f"config.{field}: ")
    assert also in message


@pytest.mark.parametrize("field", [path for path, _ in fields(GOOD)])
def test_no_field_takes_another_type(field: str) -> None:
    value = dict(fields(GOOD))[field]
    for wrong in (7, [7]) if isinstance(value, str) else ("seven", [7], {"a": 7}):
        if isinstance(value, dict) and isinstance(wrong, dict):
            continue
        assert f"config.{field}" in refusal(changed({field: wrong}))


def test_needed_fields_are_asked_for() -> None:
    for field in ("objective", "data", "optimizer", "training", "model.trunk", "training.steps"):
        assert refusal(changed({field: None})).startswith(f"config.{field}: missing")
    assert refusal(changed({"model": None})).startswith("config.model.trunk: missing")


def test_fields_that_are_left_out_have_their_defaults() -> None:
    config = changed({"seed": None, "mesh": {}, "data.tokenizer": None, "objective.masking": None})
    plan = make_plan(config)
    assert (plan.seed, plan.mesh.devices.size) == (0, 8)
    assert plan.data.tokenizer == TokenizerConfig()
    del config.mesh
    assert make_plan(config).mesh == plan.mesh


def test_the_real_vocabulary_must_fit_the_table() -> None:
    size = tiny.VOCABULARY.size
    plan = make_plan(changed({"model.vocab_size": size + 14}))
    objective = plan.objective_for(tiny.VOCABULARY)
    assert isinstance(objective.vocabulary, Vocabulary)
    assert (objective.model.vocab_size, objective.vocabulary.size) == (size + 14, size)
    assert make_plan(changed({})).objective_for(tiny.VOCABULARY).model.vocab_size == size
    with pytest.raises(ConfigError, match=r"^config\.model\.vocab_size: 49 .* 50 tokens"):
        make_plan(changed({"model.vocab_size": size - 1})).objective_for(tiny.VOCABULARY)
