"""A value that nobody means is refused in a line, or is harmless: every field, many odd values."""

import dataclasses
import itertools
import pathlib
import random
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

import lmjax
from configs import adapt, bert, electra, gpt, prompting, roberta, xlnet
from configs.ablations import four_objectives, gpt_size
from configs.ablations.recipe import held_out
from configs.finetune import (
    classification,
    embeddings,
    generation,
    multiple_choice,
    question_answering,
    relations,
    tagging,
)
from configs.searches import optimizer
from lmjax.configuration import build, build_typed, filled
from lmjax.convert.pretrained import Pretrained
from lmjax.convert.warm_start import adapted
from lmjax.data.store import prepare
from lmjax.errors import ConfigError
from lmjax.evaluation.prompting import PromptingConfig, read_questions
from lmjax.generation.settings import GenerationConfig
from lmjax.lab.measures import FineTuning, HeldOut, Measure, MinimalPairs
from lmjax.lab.plan import AblationConfig, read_ablation
from lmjax.lab.search import SearchConfig, read_search
from lmjax.models.bert import BertEncoder
from lmjax.objectives.base import Objective
from lmjax.tasks.collate import Collator, Epochs
from lmjax.tasks.multitask import prepare_several
from lmjax.tasks.plan import FinetuneConfig, MultitaskConfig, read_settings
from lmjax.tasks.plan import prepare as prepare_rows
from lmjax.training.memory_estimate import check_model_fits
from lmjax.training.optimizers import OptimizerConfig, make_optimizer
from lmjax.training.plan import PretrainConfig, make_plan
from lmjax.training.step import init_state, make_train_step
from tests import odd
from tests.runs import write_text
from tests.tasks import small

FAMILIES: dict[str, Any] = {
    "bert": bert,
    "roberta": roberta,
    "gpt": gpt,
    "xlnet": xlnet,
    "electra": electra,
}
STEPS = 3


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return write_text(tmp_path_factory.mktemp("text") / "text.txt")


def pretraining(family: str, text: pathlib.Path) -> dict[str, Any]:
    """A shipped config with every field there is, on a model that compiles in seconds."""
    config = FAMILIES[family].get_config("tiny")
    config.model.trunk.update(layers=1, hidden_size=16, heads=2, intermediate_size=32)
    config.data.corpus = str(text)
    config.data.tokenizer.vocab_size = 300
    config.data.examples.length = 32
    if family == "xlnet":
        config.model.memory_length = 16
        config.objective.update(num_predict=6, reuse_length=16, perm_size=16)
        config.data.examples.reuse_length = 16
    else:
        config.model.max_length = 32
    config.optimizer.warmup_steps = 1
    config.training.update(steps=STEPS, batch_size=8)
    config.mesh = {"data": 1}
    return filled(PretrainConfig, config)


def some(mutated: Iterator[odd.Mutation], every: int) -> Iterator[odd.Mutation]:
    """Every n-th of the mutated configs, for there are many."""
    return itertools.islice(mutated, 0, None, every)


@pytest.mark.parametrize(
    "family",
    [pytest.param(f, marks=[pytest.mark.slow] if f == "roberta" else []) for f in FAMILIES],
)
def test_pretraining(family: str, text: pathlib.Path) -> None:
    config = pretraining(family, text)
    make_plan(ConfigDict(config))
    taken, count = odd.accepted(make_plan, some(odd.mutations(config), 4))
    assert count > 600
    assert len(taken) < count / 8
    for mutation in random.Random(family).sample([x for x in taken if _computes(x[0])], 2):
        assert trained(train, *mutation) == ""


def trained(train: Callable[[ConfigDict], None], field: str, value: Any, config: Any) -> str:
    """What goes wrong in the steps of an accepted config; '' for nothing."""
    try:
        train(ConfigDict(config))
    except ConfigError:  # of the text, which is read only now
        return ""
    except Exception as error:
        return f"{field} = {value!r}: {error!r}"[:300]
    return ""


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_accepted_config_trains(family: str, text: pathlib.Path) -> None:
    config = pretraining(family, text)
    taken, count = odd.accepted(make_plan, odd.mutations(config))
    print(f"{family}: {count:,} mutated, {len(taken):,} accepted")
    wrong = [trained(train, *mutation) for mutation in taken if _computes(mutation[0])]
    assert not any(wrong), "\n".join(filter(None, wrong))


def _computes(field: str) -> bool:
    """Whether a field matters for a step."""
    return field.split(".")[0] in ("objective", "model", "optimizer") or "examples" in field


def train(config: ConfigDict) -> None:
    """Steps of a run, whose losses and parameters are finite."""
    plan = make_plan(config)
    check_model_fits(plan.objective.model, plan.mesh, plan.training.batch_size)
    tokenizer, stores = prepare(plan.data, ("train",))
    objective = plan.objective_for(tokenizer.vocabulary(stores["train"].counts))
    size = plan.training.batch_size
    source = plan.examples.source(
        stores["train"], objective.vocabulary, seed=plan.seed, split="train", rows=size
    )
    rows = [source[i] for i in range(size)]
    batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    take_steps(objective, plan.optimizer, batch)


def take_steps(objective: Objective, config: OptimizerConfig, batch: Any) -> None:
    """Steps on one batch, from random parameters: losses and parameters stay finite."""
    shapes = jax.eval_shape(lambda: init_state(objective, optax.identity(), 0, batch, False))
    optimizer, _ = make_optimizer(config, max(STEPS, config.warmup_steps), shapes.params)
    step = make_train_step(objective, optimizer)

    @jax.jit
    def run(batch: Any) -> Any:
        state = init_state(objective, optimizer, 0, batch, False)

        def one(state: Any, _: Any) -> Any:
            state, metrics = step(state, batch)
            return state, metrics["loss"]

        state, losses = jax.lax.scan(one, state, None, STEPS)
        return state.params, losses

    params, losses = jax.device_get(run(batch))
    assert np.isfinite(losses).all(), losses
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(params))


FINETUNING: dict[str, Any] = {
    "classification": classification,
    "tagging": tagging,
    "question_answering": question_answering,
    "multiple_choice": multiple_choice,
    "relations": relations,
    "generation": generation,
    "embeddings": embeddings,
}


def fine_tuning(task: str) -> dict[str, Any]:
    """A shipped config with every field there is, from scratch."""
    config = FINETUNING[task].get_config()
    config.mesh = {"data": 1}
    return filled(FinetuneConfig, config)


@pytest.mark.parametrize("task", FINETUNING)
def test_fine_tuning(task: str) -> None:
    config = fine_tuning(task)
    read_settings(ConfigDict(config))
    mutated = odd.mutations(config)
    if task != "classification":  # the others differ in their task alone
        mutated = (x for x in mutated if x[0].startswith("task"))
    taken, count = odd.accepted(read_settings, some(mutated, 3))
    assert count > 100
    assert len(taken) < count / 4


@pytest.mark.slow
def test_every_accepted_fine_tuning_trains(tmp_path: pathlib.Path) -> None:
    config = fine_tuning("classification")
    config["data"]["train"] = small.write_rows(tmp_path / "rows.jsonl", small.labelled(32))
    config["data"] |= {"validation": config["data"]["train"], "test": "", "train_rows": 0}
    config["model"]["trunk"] |= {"layers": 1, "hidden_size": 16, "intermediate_size": 32}
    config["task"]["adapter"]["rank"] = 2
    taken, count = odd.accepted(read_settings, odd.mutations(config))
    print(f"{count:,} mutated, {len(taken):,} accepted")

    def train(config: ConfigDict) -> None:
        prepared = prepare_rows(config)
        check_model_fits(prepared.task.model, prepared.mesh)
        collate = Collator(prepared.task, prepared.training.batch_size, 1)
        batch = Epochs(prepared.examples["train"], collate, 0).batch_at(0)
        take_steps(prepared.task, prepared.optimizer, batch)

    wrong = [
        trained(train, *mutation)
        for mutation in taken
        if mutation[0].split(".")[0] in ("task", "model", "optimizer", "dropout")
    ]
    assert not any(wrong), "\n".join(filter(None, wrong))


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A published encoder with random parameters."""
    place = tmp_path_factory.mktemp("start") / "bert"
    tokenizer = small.tokenizer()
    model, ids = small.model("bert", tokenizer.size), np.zeros((1, 1), np.int32)
    network = BertEncoder(model)
    params = network.init(jax.random.key(0), model.inputs(ids, ids, ids == 0))["params"]
    lmjax.save_huggingface(Pretrained(network, params, tokenizer), place)
    return str(place)


def test_adapting(start: str) -> None:
    config = adapt.get_config("bert")
    config.init, config.mesh = start, {"data": 1}
    config.data.examples.length = 32

    def read(config: ConfigDict) -> None:
        make_plan(adapted(config)[0])

    read(config)
    own = (x for x in odd.mutations(config.to_dict()) if _own_of_adapting(x[0]))
    taken, count = odd.accepted(read, some(own, 8))
    assert count > 30
    assert len(taken) < count / 3


def _own_of_adapting(field: str) -> bool:
    """Whether a field is read with the checkpoint, and not only with the plan."""
    return field in ("init", "data") or field.startswith(("model", "data.tokenizer", "objective"))


def test_several_tasks(start: str, tmp_path: pathlib.Path) -> None:
    rows = small.write_rows(tmp_path / "rows.jsonl", small.labelled(16))
    task = {"type": "lmjax.tasks.classification.Classification"}
    config = small.config(task, {"train": rows, "validation": rows}).to_dict()
    config |= {"init": start, "compare_scratch": False}
    task = {"task": config.pop("task"), "data": config.pop("data")}
    config |= {"temperature": 1.0, "tasks": {"one": task, "two": task}}
    config = filled(MultitaskConfig, config)
    prepare_several(ConfigDict(config))
    own = ("temperature", "tasks", "init", "seeds", "compare_scratch", "dropout")
    mutated = (x for x in odd.mutations(config) if x[0].split(".")[0] in own and "two" not in x[0])
    taken, count = odd.accepted(prepare_several, some(mutated, 16))
    assert count > 40
    assert len(taken) < count / 4


@pytest.mark.parametrize("shipped", ["four_objectives", "gpt_size"])
def test_ablations(shipped: str) -> None:
    config = {"four_objectives": four_objectives, "gpt_size": gpt_size}[shipped].get_config()
    config.pretraining.mesh = {"data": 1}
    config.measures = ConfigDict(held_out("held-out loss", "loss"))
    values = filled(AblationConfig, config)
    read_ablation(ConfigDict(values))
    taken, count = odd.accepted(read_ablation, some(odd.mutations(values), 24))
    assert count > 100
    assert len(taken) < count / 4


@pytest.mark.parametrize("measure", [HeldOut, MinimalPairs, FineTuning])
def test_measures(measure: Any) -> None:
    block = {
        "description": "it",
        "data": "",
        "config": {},
        "type": f"{measure.__module__}.{measure.__name__}",
    }
    names = {field.name for field in dataclasses.fields(measure)} | {"type"}
    block = {name: x for name, x in block.items() if name in names}
    # What is in `config` is checked by fine-tuning.
    block |= filled(measure, {name: x for name, x in block.items() if name != "config"})

    def read(config: ConfigDict) -> None:
        build_typed(config.to_dict()["measure"], "config.measure", Measure)

    taken, count = odd.accepted(read, odd.mutations({"measure": block}))
    assert count > 100
    assert len(taken) < count / 3


def test_searches() -> None:
    pytest.importorskip("optuna", reason="optuna is not installed")
    config = optimizer.get_config("gpt")
    config.pretraining.mesh = {"data": 1}
    values = filled(SearchConfig, config)
    own = (x for x in odd.mutations(values) if not x[0].startswith("pretraining."))
    taken, count = odd.accepted(read_search, some(own, 6))
    assert count > 80
    assert len(taken) < count / 3


def test_prompting(tmp_path: pathlib.Path) -> None:
    config = prompting.get_config("classification")
    rows = small.write_rows(tmp_path / "rows.jsonl", small.labelled(8))
    config.data.update(train=rows, test=rows)
    config.template.labels = ("no", "yes")
    values = filled(PromptingConfig, config)
    read_questions(values)
    taken, count = odd.accepted(
        lambda config: read_questions(config.to_dict()), odd.mutations(values)
    )
    assert count > 400
    assert len(taken) < count / 3


def test_generating() -> None:
    values = filled(GenerationConfig, {})

    def read(config: ConfigDict) -> None:
        build(GenerationConfig, config.to_dict()["settings"], "config.settings")

    taken, count = odd.accepted(read, odd.mutations({"settings": values}))
    assert count > 500
    assert len(taken) < count / 3
