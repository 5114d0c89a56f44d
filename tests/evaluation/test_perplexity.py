"""Perplexity in windows, against reading every token with its own context."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmjax.errors import ConfigError
from lmjax.evaluation.perplexity import perplexity, windows
from lmjax.models.bert import BertConfig, BertForPreTraining
from lmjax.models.gpt import Gpt, GptConfig
from tests.words import SIZE, random_model, trunk

END = 5
MODEL = random_model(Gpt(GptConfig(trunk(norm="pre"), max_length=12, vocab_size=SIZE)))
RNG = np.random.default_rng(0)
DOCUMENTS = [" ".join(f"w{i}" for i in RNG.integers(6, SIZE, n)) for n in (30, 1, 11, 0, 7)]


@given(st.integers(0, 60), st.integers(2, 12), st.data())
def test_each_token_is_scored_once_with_what_was_promised(
    count: int, length: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, length - 1))
    found = [0] * count
    for window in windows(count, length, stride):
        assert window.end - window.begin <= length
        for token in range(window.scored, window.end):
            found[token] += 1
            assert token - window.begin >= min(token, length - stride)
    assert found == [0] * min(count, 1) + [1] * (count - 1 if count else 0)


@given(st.integers(1, 60), st.integers(2, 12), st.data())
def test_windows_are_those_of_transformers_documentation(
    count: int, length: int, data: st.DataObject
) -> None:
    """Its recipe for models of fixed length, whose labels are shifted by one in a window."""
    stride = data.draw(st.integers(1, length - 1))
    theirs = []
    before = 0
    for begin in range(0, count, stride):
        end = min(begin + length, count)
        first = max(end - (end - before), begin + 1)  # labels[:, :-target_length] = -100
        if first < end:
            theirs.append((begin, end, first))
        before = end
        if end == count:
            break
    assert [tuple(window) for window in windows(count, length, stride)] == theirs


def log_p(ids: list[int], context: list[int]) -> float:
    logits = np.asarray(MODEL(np.array([context + [0] * (12 - len(context))])))[
        0, len(context) - 1
    ].astype(np.float64)
    return float(logits[ids[-1]] - logits.max() - np.log(np.exp(logits - logits.max()).sum()))


@pytest.mark.parametrize(("length", "stride"), [(12, 1), (12, 6), (8, 3)])
def test_windows_by_a_loop(length: int, stride: int) -> None:
    assert MODEL.tokenizer is not None
    nats, count = 0.0, 0
    for document in DOCUMENTS:
        ids = [END, *MODEL.tokenizer.encode_batch([document])[0].tolist()]
        count += len(ids) - 1
        for window in windows(len(ids), length, stride):
            for token in range(window.scored, window.end):
                nats -= log_p(ids[: token + 1], ids[window.begin : token])
    found = perplexity(MODEL, DOCUMENTS, length, stride)
    assert found.nats == pytest.approx(nats, rel=1e-5)
    assert found.tokens == found.words == count == 49
    assert found.bytes == sum(len(d) for d in DOCUMENTS)
    assert found.unknown == 0
    assert perplexity(MODEL, ["w6 what w7"]).unknown == 1
    assert found.per_token == pytest.approx(math.exp(nats / 49), rel=1e-4)
    assert found.bits_per_byte == pytest.approx(nats / math.log(2) / found.bytes, rel=1e-4)


def test_what_has_no_perplexity() -> None:
    bert = random_model(BertForPreTraining(BertConfig(trunk(), max_length=12, vocab_size=SIZE)))
    for model, settings, message in (
        (bert, {}, "a BertForPreTraining has no perplexity"),
        (MODEL, {"length": 13}, "--length: 13 is not between 2 and the model's 12 positions"),
        (MODEL, {"length": 8, "stride": 8}, "--stride: 8 is not between 1 and --length=8"),
    ):
        with pytest.raises(ConfigError, match=message):
            perplexity(model, DOCUMENTS, **settings)
    with pytest.raises(ConfigError, match="--data: no text in it"):
        perplexity(MODEL, [""])
