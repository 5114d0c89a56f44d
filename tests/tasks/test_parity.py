"""The same fine-tuning here and in transformers: weights, batches, AdamW, no dropout."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lmjax
from lmjax.convert.pretrained import Pretrained
from lmjax.tasks.collate import Collator, Epochs
from lmjax.tasks.plan import prepare
from lmjax.training.optimizers import OptimizerConfig, make_optimizer
from lmjax.training.step import init_state, make_train_step
from tests.tasks import small

pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

import transformers

from experiments.fidelity.recipe import train

STEPS = 50
LENGTH = 30  # no part of it is a length of batches: one compile
OPTIMIZER = OptimizerConfig(
    learning_rate=3e-3,
    schedule="linear_after_warmup",
    warmup_steps=5,
    epsilon=1e-8,
    bias_correction=True,
    weight_decay=0.5,  # so much that which parameters decay shows
    clip_norm=1.0,
)


def classification() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    rows = [{**row, "other": row["text"][::-1]} for row in small.labelled(60)]
    return {"type": "lmjax.tasks.classification.Classification", "pair": "other"}, rows


def answers() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    rows = []
    for text in small.sentences(60, words=(26, 30)):
        words = text.split()
        found = {"text": [words[8]], "answer_start": [text.index(words[8])]}
        rows.append({"question": words[7], "context": text, "answers": found})
    task = {"type": "lmjax.tasks.question_answering.QuestionAnswering", "question_length": 4}
    return task, rows


def tags() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    rows = [
        {"words": t.split(), "tags": ["a" if w[1] == "a" else "b" for w in t.split()]}
        for t in small.sentences(60)
    ]
    return {"type": "lmjax.tasks.tagging.Tagging", "score": "words"}, rows


CASES = {
    "BertForSequenceClassification": classification,
    "BertForQuestionAnswering": answers,
    "BertForTokenClassification": tags,
}


@pytest.mark.parametrize("name", CASES)
def test_loss_curves_are_those_of_transformers(name: str, tmp_path: pathlib.Path) -> None:
    block, rows = CASES[name]()
    path = small.write_rows(tmp_path / "rows.jsonl", rows)
    config = small.config(
        block | {"head_dropout": 0.0, "length": LENGTH}, {"train": path, "validation": path}
    )
    config.dropout, config.model.trunk.activation = 0.0, "gelu"
    prepared = prepare(config)
    task, examples = prepared.task, prepared.examples["train"]
    if task.head == "question_answering":
        # Theirs takes padding for possible answers; here there is none.
        examples = [e for e in examples if e["tokens"].shape[-1] == LENGTH]
    epochs = Epochs(examples, Collator(task, 8), seed=0)
    batches = [epochs.batch_at(i) for i in range(STEPS)]
    assert any((batch["weight"] == 0).any() for batch in batches)  # the end of an epoch

    first = jax.tree.map(jnp.asarray, batches[0])
    shapes = jax.eval_shape(lambda: init_state(task, optax.identity(), 0, first, False)).params
    optimizer, _ = make_optimizer(OPTIMIZER, STEPS, shapes)
    state = jax.jit(lambda: init_state(task, optimizer, 0, first, False))()
    labels = task.labels if task.head.endswith("classification") else ()
    lmjax.save_huggingface(Pretrained(task.network, state.params, None, labels), tmp_path / "model")
    model = getattr(transformers, name).from_pretrained(
        tmp_path / "model", attn_implementation="eager"
    )
    theirs = train(model, batches, OPTIMIZER, STEPS)

    step = jax.jit(make_train_step(task, optimizer))
    ours = []
    for batch in batches:
        state, metrics = step(state, batch)
        ours.append(float(metrics["loss"]))
    assert ours[-1] < 0.8 * ours[0]
    assert np.abs(np.array(ours) / np.array(theirs) - 1).max() < 1e-4
