"""Sentence embeddings: their losses by hand, ranks by brute force, runs that open again."""

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
from lmjax.nn.dropout import Seeds
from lmjax.tasks.collate import Collator
from lmjax.tasks.embeddings import Embeddings, ranked
from lmjax.tasks.finetuning import finetune
from lmjax.tasks.plan import prepare
from lmjax.training.run_directory import read_metrics
from tests.tasks import small

_LANGUAGES = (("text", 0), ("pair", 40))
TYPE = "lmjax.tasks.embeddings.Embeddings"


def made(family: str, dropout: float = 0.0, **fields: Any) -> tuple[Embeddings, Any]:
    tokenizer = small.tokenizer("bpe" if family == "gpt" else "wordpiece")
    model = small.model(family, tokenizer.size)
    trunk = dataclasses.replace(model.trunk, dropout=dropout)
    model = dataclasses.replace(model, trunk=trunk)
    vocabulary = small.vocabulary(tokenizer)
    return Embeddings(model=model, vocabulary=vocabulary, length=small.LENGTH, **fields), tokenizer


def pairs(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Texts of few words, and the same told in others, as of another language."""
    rng = np.random.default_rng(seed)
    drawn = [rng.choice(12, 3, replace=False) for _ in range(count)]
    return [
        {n: " ".join(small.WORDS[i + shift] for i in ids) for n, shift in _LANGUAGES}
        for ids in drawn
    ]


def fixed(task: Embeddings, first: Any, second: Any, **batch: Any) -> Any:
    norm = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (first, second)]
    return task.compute_loss({"first": norm[0], "second": norm[1]}, batch)


def test_the_contrastive_loss_by_hand() -> None:
    task, _ = made("bert", temperature=0.1)
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 4, 5)).astype(np.float32)
    scored = fixed(task, first, second, weight=np.array([1, 1, 1, 0], np.float32))
    total, hits = 0.0, 0
    for i in range(3):
        cosines = np.array(
            [
                first[i] @ second[j] / np.linalg.norm(first[i]) / np.linalg.norm(second[j])
                for j in range(3)  # the fourth fills up
            ]
        )
        shares = np.exp(cosines / 0.1) / np.exp(cosines / 0.1).sum()
        total -= np.log(shares[i])
        hits += cosines.argmax() == i
    assert float(scored.terms["similarity"][0]) == pytest.approx(total, rel=1e-5)
    assert float(scored.terms["similarity"][1]) == 3
    assert float(scored.metrics["hits"][0]) == hits


def test_the_cosine_loss_by_hand() -> None:
    task, _ = made("bert", loss_form="cosine", label="score", highest=5.0)
    first = np.array([[1.0, 0.0], [3.0, 4.0], [1.0, 1.0]])
    second = np.array([[0.0, 2.0], [3.0, 4.0], [1.0, 1.0]])
    gold = np.array([1.0, 4.0, 0.0])
    scored = fixed(task, first, second, weight=np.array([1.0, 1.0, 0.0]), gold=gold)
    total, count = scored.terms["similarity"]
    assert float(total) == pytest.approx(0.2**2 + (1 - 0.8) ** 2)
    assert float(count) == 2
    assert not task.compares_rows


def test_ranks_by_brute_force() -> None:
    rng = np.random.default_rng(1)
    first, second = rng.normal(size=(2, 30, 4))
    rows = [{"text": "t", "pair": f"pair {i // 2}"} for i in range(30)]
    for i, row in enumerate(ranked(rows, first, second)):
        own = first[i] @ second[i]
        better = [
            first[i] @ second[j] > own for j in range(30) if rows[j]["pair"] != rows[i]["pair"]
        ]
        assert row["rank"] == 1 + sum(better)
        assert row["prediction"] == pytest.approx(own)
        assert row["found"] == rows[int((second @ first[i]).argmax())]["pair"]
    # Where all are alike, no one is found.
    alike = ranked([{"pair": str(i)} for i in range(9)], np.ones((9, 2)), np.ones((9, 2)))
    assert {row["rank"] for row in alike} == {5}


@pytest.mark.parametrize("family", small.FAMILIES)
def test_a_vector_is_of_its_own_text_alone(family: str) -> None:
    """Whatever the batch and the padding: as the encoder gives it for the text by itself."""
    task, tokenizer = made(family)
    rows = [{"text": "bak", "pair": "gal nok dol fik bak"}, {"text": "dol fik", "pair": "nok"}]
    examples = task.encode(rows, tokenizer, Notes(), True)
    batch = Collator(task, 3)(examples)
    params = jax.jit(task.init)(jax.random.key(0), batch)
    outputs = jax.jit(lambda p, b: task.forward(p, b, None))(params, batch)
    alone = Pretrained(task.network.encoder, params["encoder"])
    for i, row in enumerate(rows):
        for name, text in (("first", row["text"]), ("second", row["pair"])):
            joined = task.form.join(tokenizer.encode_batch([text])[0])
            mean = np.asarray(alone(joined.tokens[None], joined.token_types[None])[0]).mean(0)
            expected = mean / np.linalg.norm(mean)
            np.testing.assert_allclose(outputs[name][i], expected, atol=1e-4)


def test_pooling_takes_the_token_that_classifiers_read() -> None:
    for family, token in (("bert", "first"), ("xlnet", "last"), ("gpt", "last_real")):
        task, _ = made(family, pooling="token")
        assert task.network.head.token == token


def test_simcse_reads_the_text_twice_with_different_dropout() -> None:
    task, tokenizer = made("bert", dropout=0.1, loss_form="simcse")
    rows = [task.parse({"text": t}) for t in small.sentences(4)]
    batch = Collator(task, 4)(task.encode(rows, tokenizer, Notes(), True))
    other = dict(batch)
    other["tokens"] = batch["tokens"].copy()
    other["tokens"][:, 1] = batch["tokens"][::-1, 1]
    params = jax.jit(task.init)(jax.random.key(0), batch)
    seeds = Seeds.of(jax.random.split(jax.random.key(1), 4), jax.random.key(2))
    run = jax.jit(lambda b: task.forward(params, b, seeds))
    ours, theirs = run(batch), run(other)
    np.testing.assert_array_equal(ours["second"], theirs["second"])  # the pair is not read
    cosines = np.asarray((ours["first"] * ours["second"]).sum(-1))
    assert (cosines < 0.9999).all() and (cosines > 0.3).all()
    held_out = task.forward(params, other, None)
    assert not np.allclose(held_out["first"], held_out["second"])
    with pytest.raises(ConfigError, match="loss_form"):
        made("bert", loss_form="simcse")


def test_bad_rows_and_fields_are_refused() -> None:
    task, _ = made("bert", label="score")
    with pytest.raises(BadRowError, match="no column 'pair'"):
        task.parse({"text": "bak", "score": 1})
    with pytest.raises(BadRowError, match="no number in column 'score'"):
        task.parse({"text": "bak", "pair": "dol", "score": "high"})
    with pytest.raises(BadRowError, match="no text in column 'pair'"):
        task.parse({"text": "bak", "pair": " ", "score": 1})
    for fields in ({"loss_form": "cosine"}, {"temperature": 0.0}, {"freeze": "trunk"}):
        with pytest.raises(ConfigError):
            made("bert", **fields)


def config_of(folder: pathlib.Path, **task: Any) -> Any:
    train = small.write_rows(folder / "train.jsonl", pairs(160))
    test = small.write_rows(folder / "test.jsonl", pairs(40, 1))
    config = small.config({"type": TYPE, **task}, {"train": train, "validation": test})
    config.dropout = 0.0
    config.training.batch_size = 16
    return config


def test_accumulation_would_take_the_negatives_away(tmp_path: pathlib.Path) -> None:
    config = config_of(tmp_path)
    config.training.accumulation = 2
    with pytest.raises(ConfigError, match="accumulation: 2 micro-batches"):
        prepare(config)


def test_a_run_finds_the_pairs_and_opens_again(tmp_path: pathlib.Path) -> None:
    config = config_of(tmp_path)
    config.training.epochs = 6
    result = finetune(prepare(config), config, tmp_path / "run", "", seed=0)
    before, *_, after = (m for m in read_metrics(tmp_path / "run") if m["split"] == "validation")
    assert after["accuracy@1"] == result.scores["accuracy@1"] > max(0.8, before["accuracy@1"])
    assert next(iter(result.scores)) == "accuracy@1"
    assert result.not_exported == ""
    model = lmjax.load(tmp_path / "run")
    first, second = (model.embed([p[n] for p in result.predictions]) for n in ("text", "pair"))
    cosines = [p["prediction"] for p in result.predictions]
    np.testing.assert_allclose((first * second).sum(1), cosines, atol=1e-4)
    # The encoder is one for `transformers`: mean pooling there gives the same.
    transformers = pytest.importorskip("transformers", reason="opens the encoder")
    torch = pytest.importorskip("torch", reason="opens the encoder")
    theirs = transformers.AutoModel.from_pretrained(tmp_path / "run" / "model").eval()
    assert model.tokenizer is not None
    roles = model.tokenizer.roles
    ids = model.tokenizer.encode_batch([result.predictions[0]["text"]])[0]
    tokens = torch.tensor([[roles["cls"], *ids.tolist(), roles["sep"]]])
    with torch.no_grad():
        mean = theirs(tokens).last_hidden_state[0].mean(0).numpy()
    np.testing.assert_allclose(first[0], mean / np.linalg.norm(mean), atol=1e-4)


@pytest.mark.slow
def test_the_negatives_are_those_of_all_devices(tmp_path: pathlib.Path) -> None:
    losses = []
    for devices in (1, 2):
        config = config_of(tmp_path)
        config.mesh.data, config.training.epochs, config.training.log_every = devices, 1, 1
        finetune(prepare(config), config, tmp_path / f"run{devices}", "", seed=0)
        lines = read_metrics(tmp_path / f"run{devices}")
        losses.append([m["loss"] for m in lines if m["split"] == "train"])
    assert len(losses[0]) == 10
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-3)
