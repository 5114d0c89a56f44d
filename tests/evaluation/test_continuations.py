"""Where a context ends and what follows begins, and what does not fit."""

import csv
import dataclasses
import json
import lzma
import pathlib
import re

import jax
import numpy as np
import pytest

from lmjax.data.files import BadRowError
from lmjax.data.rows import Notes
from lmjax.data.tokenizers import Tokenizer
from lmjax.errors import ConfigError
from lmjax.evaluation.continuations import (
    continuation_scores,
    encode,
    last_words,
    read_last_words,
    split_last_word,
)
from lmjax.evaluation.scoring import token_scores
from lmjax.models.electra import Electra, ElectraConfig
from lmjax.models.gpt import Gpt, GptConfig
from tests.words import SIZE, random_model, trunk

MODEL = random_model(Gpt(GptConfig(trunk(norm="pre"), max_length=8, vocab_size=SIZE)))


def byte_pairs() -> Tokenizer:
    """Letters, ' a' as one token, and 'xy' as one."""
    import tokenizers
    from tokenizers import models, pre_tokenizers

    pieces = ["a", "b", "x", "y", "Ġ", "Ġa", "xy"]
    model = models.BPE({p: i for i, p in enumerate(pieces)}, [("Ġ", "a"), ("x", "y")])
    inner = tokenizers.Tokenizer(model)
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return Tokenizer(inner)


@pytest.mark.parametrize(
    ("context", "continuation", "scored"),
    [
        ("b", " ab", ["Ġa", "b"]),
        ("b ", "ab", ["Ġa", "b"]),  # the space is of the token that follows it
        ("bx", "y", ["xy"]),  # a token that reaches over the border
        ("", "ab", ["a", "b"]),
        ("ab", "", []),
    ],
)
def test_tokens_belong_to_what_they_say(context: str, continuation: str, scored: list[str]) -> None:
    tokenizer = byte_pairs()
    (passage,) = encode(tokenizer, [(context, continuation)])
    assert [tokenizer.token(i) for i in passage.ids[passage.first :]] == scored
    whole = "".join(tokenizer.token(i) for i in passage.ids)
    assert whole.replace("Ġ", " ") == context + continuation


def test_the_parts_of_a_text_add_up() -> None:
    (found,), cut = continuation_scores(MODEL, [("w6 w9", " w7 w8")])
    (whole,) = token_scores(MODEL, ["w6 w9 w7 w8"])
    np.testing.assert_allclose(found.logs, whole[2:], atol=1e-5)
    assert not cut.any()


def test_a_long_context_loses_its_beginning_and_is_counted() -> None:
    long = " ".join(f"w{i}" for i in range(6, 18))
    pairs = [(long, " w20 w21"), ("w6", " w20 w21"), ("w13 w14 w15 w16 w17", " w20 w21")]
    found, cut = continuation_scores(MODEL, pairs)
    assert cut.tolist() == [True, False, False]
    # Of the eight positions one begins the document and two are scored.
    np.testing.assert_allclose(found[0].logs, found[2].logs, atol=1e-5)


def test_what_cannot_be_scored_is_named() -> None:
    with pytest.raises(ConfigError, match="a continuation has no tokens: ''"):
        continuation_scores(MODEL, [("w6", "")])
    with pytest.raises(ConfigError, match=r"exceeds the 7 tokens of the position table: ' w7 w7"):
        continuation_scores(MODEL, [("w6", " w7" * 9)])


@pytest.mark.parametrize(
    ("text", "context", "word"),
    [
        ("It is a word", "It is a", " word"),
        ('"Yes," he said.\n\n"No," \n', '"Yes," he said.', '\n\n"No,"'),
        ("one  two\r\n", "one", "  two"),
        ("10\u00a0000 men\u2028of 10\u00a0000", "10\u00a0000 men\u2028of", " 10\u00a0000"),
    ],
)
def test_the_last_word_is_what_stands_behind_the_last_space(
    text: str, context: str, word: str
) -> None:
    assert split_last_word(text) == (context, word)
    for alone in (word, word.strip(), "", " \n"):
        with pytest.raises(BadRowError, match="no word before the last one"):
            split_last_word(alone)


def test_a_last_word_is_right_where_each_of_its_tokens_is_the_likeliest() -> None:
    """Beside the network's own logits, one token at a time."""
    network = Gpt(GptConfig(trunk(norm="pre"), max_length=16, vocab_size=13))
    model = dataclasses.replace(random_model(network, seed=0), tokenizer=byte_pairs())
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(["a", "b", "xy"], rng.integers(1, 3))) for _ in range(202)]
    texts = [" ".join(words[i : i + 3]) for i in range(200)]
    found = last_words(model, [split_last_word(text) for text in texts])
    assert model.tokenizer is not None
    ids = model.tokenizer.encode_batch(texts)
    context = model.tokenizer.encode_batch([split_last_word(text)[0] for text in texts])
    rows = np.zeros((len(texts), 16), np.int32)  # what is behind a token changes nothing
    for row, tokens in zip(rows, ids, strict=True):
        row[: len(tokens) + 1] = [model.tokenizer.roles["eod"], *tokens]
    every = np.asarray(jax.nn.log_softmax(model(rows)))
    expected, nats = [], []
    for logs, tokens, shown in zip(every, ids, context, strict=True):
        last = tokens[len(shown) :]
        logs = logs[len(shown) : len(tokens)]
        expected.append(bool((logs.argmax(-1) == last).all()))
        nats.append(-logs[np.arange(len(last)), last].sum())
    assert found.right.tolist() == expected
    np.testing.assert_allclose(found.nats, nats, atol=1e-4)
    assert found.perplexity == pytest.approx(np.exp(np.mean(nats)), rel=1e-4)
    assert 0 < found.share.right == sum(expected) < found.share.count == len(texts)
    assert found.cut == 0


def test_last_words_are_read_of_every_form(tmp_path: pathlib.Path) -> None:
    texts = ["It is a word", "one two", 'three, "four"']
    as_json = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (tmp_path / "t.jsonl.xz").write_bytes(lzma.compress(as_json.encode()))
    (tmp_path / "t.json").write_text(json.dumps([{"text": text} for text in texts]))
    (tmp_path / "t.txt").write_text("\n".join(texts))
    (tmp_path / "t.tsv").write_text("\n".join(["text", *texts]))
    with (tmp_path / "t.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["text"], *([text] for text in texts)])
    for name in ("t.jsonl.xz", "t.json", "t.txt", "t.tsv", "t.csv"):
        found = read_last_words(str(tmp_path / name), "text", "refuse", Notes())
        assert [row["context"] + row["word"] for row in found] == texts, name
        assert all(row["where"].startswith(name) for row in found)
    (tmp_path / "t.jsonl").write_text(as_json + '{"text": "alone"}\n{"body": "a b"}\n')
    says = r"--data: 2 of 5 rows .* t.jsonl:4: no word before .* t.jsonl:5: no column 'text'"
    with pytest.raises(ConfigError, match=says) as caught:
        read_last_words(str(tmp_path / "t.jsonl"), "text", "refuse", Notes())
    assert re.search(r"--text_feature.* --on_bad_rows=skip leaves them out", str(caught.value))
    notes = Notes()
    assert len(read_last_words(str(tmp_path / "t.jsonl"), "text", "skip", notes)) == 3
    assert sum(notes.counts.values()) == 2


def test_a_discriminator_has_no_last_word() -> None:
    config = ElectraConfig(trunk(activation="gelu"), max_length=24, vocab_size=SIZE)
    model = random_model(Electra(config))
    with pytest.raises(ConfigError, match="--method: a discriminator predicts no words"):
        last_words(model, [("w6", " w7")])
    assert len(last_words(model, [("w6", " w7")], "pseudo").nats) == 1
