"""Numbers in any unit: training begins at their mean, and the unit is kept in what is saved."""

import dataclasses
import pathlib
from typing import Any

import jax
import numpy as np
import pytest

import lmjax
from lmjax.convert.pretrained import Pretrained
from lmjax.data.rows import BadRowError, Notes
from lmjax.errors import ConfigError
from lmjax.models.heads import Headed, in_unit
from lmjax.nn.lora import LoraConfig
from lmjax.tasks.classification import Regression
from lmjax.tasks.collate import Collator
from lmjax.tasks.finetuning import finetune
from lmjax.tasks.plan import prepare
from lmjax.training.run_directory import read_metrics
from tests.tasks import small

TOKENIZER = small.tokenizer()


def made(family: str = "bert", **fields: Any) -> Regression:
    vocabulary = small.vocabulary(TOKENIZER)
    model = small.model(family, vocabulary.size, initial_std=0.1)
    return Regression(
        vocabulary=vocabulary, model=model, labels=("score",), **{"length": 16, **fields}
    )


def rows(numbers: list[float]) -> list[dict[str, Any]]:
    texts = small.sentences(len(numbers))
    return [{"text": t, "gold": y} for t, y in zip(texts, numbers, strict=True)]


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        *((family, {}) for family in small.FAMILIES),
        ("bert", {"freeze": "trunk"}),
        ("bert", {"adapter": LoraConfig(rank=2)}),
    ],
)
def test_training_begins_at_the_mean(family: str, fields: dict[str, Any]) -> None:
    given = rows([1990.0, 2010.0, 2003.0])
    task = made(family, **fields).fit(given)
    assert isinstance(task, Regression)
    assert (task.mean, task.scale) == (2001.0, pytest.approx(np.std([1990, 2010, 2003])))
    examples = task.encode(given, TOKENIZER, Notes(), True)
    batch = Collator(task, 3)(examples)
    assert batch["gold"].mean() == pytest.approx(0, abs=1e-6)
    assert batch["gold"].std() == pytest.approx(1)
    params = jax.jit(task.init)(jax.random.key(0), batch)
    outputs = task.forward(task.merged(params), batch, None)
    total, count = task.compute_loss(outputs, batch).terms["standardised_error"]
    # Very nearly what predicting the mean costs.
    assert float(total / count) == pytest.approx(1, abs=0.05)
    told = task.predict(given, examples, [{"logits": x} for x in np.asarray(outputs["logits"])])
    assert all(abs(p["prediction"] - 2001.0) < 0.15 * task.scale for p in told)


def test_numbers_far_from_0_and_1_are_learnt(tmp_path: pathlib.Path) -> None:
    """Prices of millions, told by the first word: better than the mean after 48 steps."""
    given = [
        {"text": r["text"], "price": 2e7 + (3e6 if r["label"] == "yes" else -3e6)}
        for r in small.labelled(96)
    ]
    path = small.write_rows(tmp_path / "rows.jsonl", given)
    config = small.config(
        {"type": "lmjax.tasks.classification.Regression", "label": "price"},
        {"train": path, "validation": path},
    )
    config.training.epochs = 4
    prepared = prepare(config)
    result = finetune(prepared, config, tmp_path / "run", "", seed=0)
    ((name, mean),) = prepared.baselines["validation"].items()
    assert name.startswith("mean (")
    assert result.scores["squared_error"] < 0.5 * mean["squared_error"]
    first, *_ = (m for m in read_metrics(tmp_path / "run") if m["split"] == "validation")
    assert first["squared_error"] == pytest.approx(mean["squared_error"], rel=0.05)
    assert first["standardised_error"] == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize("family", ["bert", "gpt"])
def test_transformers_gives_numbers_in_the_same_unit(family: str, tmp_path: pathlib.Path) -> None:
    """GPT's head has no bias: there the mean is in the bias of the norm in front of it."""
    pytest.importorskip("torch", reason="torch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    import torch

    task = dataclasses.replace(made(family), mean=2001.0, scale=8.0)
    given = rows([2000.0, 2002.0])
    examples = task.encode(given, TOKENIZER, Notes(), True)
    batch = Collator(task, 1)(examples[:1])
    plain = task.network
    params = jax.jit(lambda key: plain.init(key, *task.inputs(batch))["params"])(jax.random.key(0))
    network = task.saved_network
    assert isinstance(network, Headed)
    assert network.head.unit == (2001.0, 8.0)
    model = Pretrained(network, params, TOKENIZER, task.labels, {"pad_token_id": 0})
    lmjax.save_huggingface(model, tmp_path / "model")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    tokens, segments = examples[0]["tokens"][None], examples[0]["token_types"][None]
    (z,) = np.asarray(Pretrained(plain, params)(tokens, segments))[0]
    more = {} if family == "gpt" else {"token_type_ids": torch.tensor(segments)}
    with torch.no_grad():
        (found,) = theirs.eval()(torch.tensor(tokens), **more).logits.numpy()[0]
    assert abs(z) > 0.01
    for number in (found, float(model(tokens, segments)[0, 0])):
        assert number == pytest.approx(2001 + 8 * z, abs=2e-3)


def test_what_is_no_unit_is_refused() -> None:
    with pytest.raises(ConfigError, match="all 3 training rows have the number 4; give a"):
        made().fit(rows([4.0, 4.0, 4.0]))
    for numbers in ([1e39, -1e39], [1e-45, -1e-45], [1e300, -1e300]):
        with pytest.raises(ConfigError, match="do not fit into float32"):
            made().fit(rows(numbers))
    with pytest.raises(BadRowError, match=r"1e\+300 is too far from the mean"):
        made(mean=0.0, scale=1.0).check({"text": "bak", "gold": 1e300})
    for scale in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="scale: must be"):
            made(scale=scale)
    with pytest.raises(ConfigError, match="only a SequenceHead supports it"):
        in_unit(Headed(made().network.encoder, None, "mean_embedding"), (1.0, 2.0))  # type: ignore[arg-type]
    # The labels as they are, if that is wanted.
    task = made(mean=0.0, scale=1.0).fit(rows([4.0, 4.0]))
    assert [float(task.target(row)) for row in rows([4.0, 5.0])] == [4.0, 5.0]  # type: ignore[attr-defined]
