"""What fine-tuning exports reads texts in `transformers` as it does here."""

import functools
import json
import pathlib
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.convert.huggingface import abstract_params
from lmjax.data.rows import Notes, Row
from lmjax.data.tokenizers import Tokenizer
from lmjax.tasks.base import Task
from lmjax.tasks.classification import Classification, Regression
from lmjax.tasks.collate import Collator
from lmjax.tasks.finetuning import export_model
from lmjax.tasks.generation import Generation
from lmjax.tasks.multiple_choice import MultipleChoice
from lmjax.tasks.question_answering import QuestionAnswering
from lmjax.tasks.tagging import Tagging
from tests.tasks import small

pytest.importorskip("torch", reason="torch is not installed: pip install -e '.[huggingface]'")
pytest.importorskip("transformers", reason="transformers is not installed, as torch")

import torch
import transformers

KINDS = {"gpt": "bpe", "roberta": "bpe", "xlnet": "unigram"}
FAMILIES = (*small.FAMILIES, "roberta", "distilbert")
FIRST = ["bak dol.", "nok gal fik, bak bak dol nok", "dol! (gal) bak", "bak [MASK] dol [SEP] gal"]
SECOND = ["gal", "bak nok? dol dol gal", "fik fik fik nok", "dol, nok"]
LONG = "nok " * 70 + "dol"
LENGTH = 60


@functools.cache
def tokenizer(family: str) -> Tokenizer:
    return small.tokenizer(KINDS.get(family, "wordpiece"))


def export(
    kind: type[Task], family: str, folder: pathlib.Path, **fields: Any
) -> tuple[Task, dict[str, Any]]:
    """A task with random parameters, written to folder/model."""
    read = tokenizer(family)
    model, vocabulary = small.model(family, read.size), small.vocabulary(read)
    task = kind(model=model, vocabulary=vocabulary, length=LENGTH, **fields)
    rng = np.random.default_rng(0)
    shapes = abstract_params(task.network)
    flat = {n: jnp.asarray(0.5 * rng.normal(size=x.shape), jnp.float32) for n, x in shapes.items()}
    params = flax.traverse_util.unflatten_dict(flat, sep="/")
    assert export_model(task, read, params, folder) == ""
    return task, params


def agree(task: Task, params: Any, folder: pathlib.Path, rows: list[Row], *texts: Any) -> None:
    """Checks that `transformers` reads the texts as the task reads its rows, and says the same."""
    family = type(task.model).__name__.removesuffix("Config").lower()
    examples = task.encode(rows, tokenizer(family), Notes(), False)
    batch = Collator(task, len(examples))(examples)
    ours = jax.jit(task.forward)(params, jax.tree.map(jnp.asarray, batch), None)["logits"]

    reader = transformers.AutoTokenizer.from_pretrained(folder / "model")
    length = batch["tokens"].shape[-1]
    given = reader(
        *texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    )
    shaped = {name: array.reshape(batch["tokens"].shape) for name, array in given.items()}
    np.testing.assert_array_equal(shaped["input_ids"], batch["tokens"])
    np.testing.assert_array_equal(shaped["attention_mask"], batch["segment_ids"])
    if not task.model.published_token_types:
        assert "token_type_ids" not in shaped
    else:
        np.testing.assert_array_equal(shaped["token_type_ids"], batch["token_types"])

    (name,) = json.loads((folder / "model" / "config.json").read_text())["architectures"]
    model = getattr(transformers, name).from_pretrained(folder / "model").eval()
    with torch.no_grad():
        found = model(**shaped)
    if "start_logits" in found:
        theirs = np.stack([found.start_logits, found.end_logits], -1)
    else:
        theirs = found.logits.numpy()
    real = batch["segment_ids"] > 0 if theirs.ndim == 3 else ...
    np.testing.assert_allclose(theirs[real], np.asarray(ours)[real], atol=1e-4)
    assert np.abs(theirs[real]).max() > 0.1


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", [Classification, Regression])
def test_one_text_and_a_pair(kind: Any, family: str, tmp_path: pathlib.Path) -> None:
    labels = ("no", "so", "yes") if kind is Classification else ("score",)
    task, params = export(kind, family, tmp_path, labels=labels)
    gold: Any = "no" if kind is Classification else 0.5
    one = [{"text": a, "gold": gold} for a in [*FIRST, LONG]]
    agree(task, params, tmp_path, one, [*FIRST, LONG])
    two = [{"text": a, "pair": b, "gold": gold} for a, b in zip(FIRST, SECOND, strict=True)]
    agree(task, params, tmp_path, two, FIRST, SECOND)
    said = json.loads((tmp_path / "model" / "config.json").read_text()).get("problem_type")
    assert said == (None if kind is Classification else "regression")


@pytest.mark.parametrize("family", small.FAMILIES)
def test_tags(family: str, tmp_path: pathlib.Path) -> None:
    task, params = export(Tagging, family, tmp_path, labels=("O", "B-X"), score="words")
    rows = [{"words": a.split(), "gold": ["O"] * len(a.split())} for a in FIRST]
    agree(task, params, tmp_path, rows, FIRST)


@pytest.mark.parametrize("family", FAMILIES)
def test_answers(family: str, tmp_path: pathlib.Path) -> None:
    task, params = export(QuestionAnswering, family, tmp_path, question_length=LENGTH // 2)
    rows = [
        {"id": "", "question": a, "context": b, "gold": [], "starts": []}
        for a, b in zip(FIRST, SECOND, strict=True)
    ]
    agree(task, params, tmp_path, rows, FIRST, SECOND)


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "gpt"])
def test_choices(family: str, tmp_path: pathlib.Path) -> None:
    task, params = export(MultipleChoice, family, tmp_path, most_choices=2)
    rows = [{"context": a, "choices": SECOND[:2], "gold": 0} for a in FIRST]
    firsts = [a for a in FIRST for _ in range(2)]
    agree(task, params, tmp_path, rows, firsts, SECOND[:2] * len(FIRST))


def test_answers_that_are_written(tmp_path: pathlib.Path) -> None:
    task, params = export(Generation, "gpt", tmp_path, target_length=8)
    rows = [{"prompt": a, "gold": b} for a, b in zip(FIRST, SECOND, strict=True)]
    examples = task.encode(rows, tokenizer("gpt"), Notes(), False)
    ours = [made["text"] for made in task.write(params, tokenizer("gpt"), examples)]
    reader = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    given = reader(FIRST, padding=True, return_tensors="pt")
    made = model.generate(**given, max_new_tokens=8, do_sample=False)
    written = made[:, given["input_ids"].shape[1] :]
    assert reader.batch_decode(written, skip_special_tokens=True) == ours
