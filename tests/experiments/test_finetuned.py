"""The side of `transformers` begins as ours does, and the table says what was found."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from lmjax.errors import ConfigError
from lmjax.tasks.collate import Collator
from lmjax.tasks.initialization import put_in
from lmjax.tasks.plan import prepare
from tests.tasks import small

pytest.importorskip("torch", reason="torch is not installed: pip install -e '.[huggingface]'")
pytest.importorskip("transformers", reason="transformers is not installed, as torch")

import torch
import transformers

from experiments.fidelity import finetuned
from experiments.fidelity.finetuned import End


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ConfigDict:
    """A classification that begins with a random BERT as the published ones come: no head."""
    folder = tmp_path_factory.mktemp("finetuned")
    tokenizer = small.tokenizer()
    values = transformers.BertConfig(
        vocab_size=tokenizer.size,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        initializer_range=0.1,
        classifier_dropout=0.7,
    )
    torch.manual_seed(0)
    transformers.BertModel(values).save_pretrained(folder / "bert")
    tokenizer.save(folder / "bert" / "tokenizer.json")
    made = small.config(
        {"type": "lmjax.tasks.classification.Classification", "head_dropout": 0.3},
        {
            "train": small.write_rows(folder / "train.jsonl", small.labelled(96)),
            "test": small.write_rows(folder / "test.jsonl", small.labelled(32, 1)),
        },
    )
    made.init, made.dropout = str(folder / "bert"), 0.2
    made.training.epochs, made.seeds = 8, 2
    return made


def test_both_sides_begin_as_one_function(config: ConfigDict) -> None:
    prepared = prepare(config)
    task = prepared.task
    batch = Collator(task, 8)(prepared.examples["train"][:8])
    given = jax.tree.map(jnp.asarray, batch)

    params = put_in(jax.jit(task.init)(jax.random.key(0), given), prepared.start)
    ours = jax.jit(lambda params: task.forward(params, given, None)["logits"])(params)

    model = finetuned.published(prepared, config)
    rates = {name: m.p for name, m in model.named_modules() if isinstance(m, torch.nn.Dropout)}
    assert rates.pop("dropout") == 0.3
    assert set(rates.values()) == {0.2}
    assert not model.classifier.bias.any()
    kernel = params["head"]["output"]["kernel"]
    with torch.no_grad():
        model.classifier.weight.copy_(torch.tensor(np.asarray(kernel).T))
        theirs = model.eval()(**finetuned.recipe.arguments(batch)).logits.numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_it_learns_and_predicts_the_rows_of_the_score(config: ConfigDict) -> None:
    prepared = prepare(config)
    end = finetuned.their_end(prepared, config, seed=0, first=70)
    assert end.scores["accuracy"] > 0.8
    assert end.loss < 0.6
    predictions = finetuned.predict(prepared, finetuned.published(prepared, config))
    assert [p["text"] for p in predictions] == [r["text"] for r in prepared.rows["test"]]


def test_what_is_not_repeated_is_refused(config: ConfigDict, tmp_path: pathlib.Path) -> None:
    for field, value in (
        ("task.freeze", "trunk"),
        ("seeds", 1),
        ("optimizer.bias_correction", False),
    ):
        other = config.copy_and_resolve_references()
        other.update_from_flattened_dict({field: value})
        with pytest.raises(ConfigError, match=f"config.{field}"):
            finetuned.check(prepare(other), other)
    model = transformers.BertForSequenceClassification.from_pretrained(config.init)
    model.save_pretrained(tmp_path)
    other = config.copy_and_resolve_references()
    other.init = str(tmp_path)
    with pytest.raises(ConfigError, match="has a classifier"):
        finetuned.published(prepare(config), other)


def test_the_last_losses_are_means_over_steps(tmp_path: pathlib.Path) -> None:
    losses = {20: 9.0, 30: 9.0, 33: 3.0, 36: 1.0}
    lines = [{"step": s, "split": "train", "loss": x} for s, x in losses.items()]
    lines.insert(2, {"step": 30, "split": "validation", "loss": 5.0})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "results.json").write_text(json.dumps({"scores": {"accuracy": 0.5}}))
    assert finetuned.last_steps(tmp_path) == (36, 6)  # 33 lies behind nine tenths
    assert finetuned.our_end(tmp_path) == End({"accuracy": 0.5}, 2.0)


def test_the_table_has_the_interval_of_the_means() -> None:
    def ends(*accuracies: float) -> list[End]:
        return [End({"accuracy": a, "macro_f1": a}, 1 - a) for a in accuracies]

    sides = {"lmjax": ends(0.5, 0.6, 0.9), "transformers": ends(0.6, 0.7, 0.8)}
    header, _, ours, theirs, difference = finetuned.table(sides, "loss")
    assert header == "|  | accuracy | macro_f1 | loss |"
    assert ours.startswith("| lmjax | 0.6000, mean 0.6667 (0.5000 to 0.9000) |")
    assert theirs.startswith("| transformers | 0.7000, mean 0.7000 (0.6000 to 0.8000) |")
    # Welch by hand: variances 13/300 and 1/100, so an error of sqrt(16/900) = 2/15 with
    # (16/900)^2 / ((13/900)^2 + (3/900)^2) * 2 = 2.876 degrees of freedom; t = 3.261.
    assert difference.split("|")[2].strip() == "-0.0333 (-0.4682 to +0.4015)"
