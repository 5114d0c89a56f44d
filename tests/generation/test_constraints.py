"""Constrained text is allowed text, and of that the most probable or a sample."""

import itertools
import json
import re
from typing import Any

import numpy as np
import pytest

import lmjax
from lmjax.convert.pretrained import Pretrained
from lmjax.errors import ConfigError
from tests.generation import models


@pytest.fixture(scope="module")
def writer() -> Pretrained:
    return models.gpt(text=True)


CHOICES = ["yes", "yet", "ye", "no", "maybe"]


def test_greedy_follows_the_most_probable_allowed_token(writer: Pretrained) -> None:
    (made,) = lmjax.generate(writer, "Is it?", choices=CHOICES)
    tokenizer = writer.tokenizer
    assert tokenizer is not None
    eod = tokenizer.roles["eod"]
    paths = [[*ids, eod] for ids in tokenizer.encode_batch(CHOICES)]
    prompt = [eod, *tokenizer.encode_batch(["Is it?"])[0]]
    text: list[int] = []
    while True:
        following = {path[len(text)] for path in paths if path[: len(text)] == text}
        if following == {eod}:
            break
        logits = np.asarray(writer(np.array([[*prompt, *text]])))[0, -1]
        text.append(max(following, key=lambda token: logits[token]))
        if text[-1] == eod:
            break
    assert made.token_ids.tolist() == text
    assert made.ended == ("eos" if text[-1] == eod else "stop")


def test_samples_are_among_the_choices_and_all_are_drawn(writer: Pretrained) -> None:
    made = lmjax.generate(
        writer, ["Is it?", "Why"], choices=CHOICES, temperature=3.0, num_return_sequences=32
    )
    assert {text.text for text in made} == set(CHOICES)
    ended = {(text.text, text.ended) for text in made}
    # 'ye' may go on and is ended by the end of the document; the others cannot.
    assert ended == {(choice, "eos" if choice == "ye" else "stop") for choice in CHOICES}


def test_text_that_is_cut_says_so(writer: Pretrained) -> None:
    (made,) = lmjax.generate(writer, "Is it?", choices=["maybe"], max_new_tokens=3)
    assert (made.text, made.ended) == ("may", "length")


PATTERN = r"[0-9]{2,4}-(a|bc)+"


def test_text_matches_the_regular_expression(writer: Pretrained) -> None:
    pytest.importorskip("llguidance", reason="llguidance is not installed")
    made = lmjax.generate(
        writer,
        ["Is it?", "Why"],
        regex=PATTERN,
        temperature=1.0,
        num_return_sequences=8,
        max_new_tokens=40,
    )
    whole = [text for text in made if text.ended != "length"]
    assert len({text.text for text in whole}) > 4
    for text in whole:
        assert re.fullmatch(PATTERN, text.text)
    (digits,) = lmjax.generate(writer, "Is it?", regex="[0-9]{3}")
    assert re.fullmatch("[0-9]{3}", digits.text) and digits.ended in ("stop", "eos")
    # Of all of them the one that greedy search over digits finds.
    assert writer.tokenizer is not None
    ids = writer.tokenizer.encode_batch(["Is it?", "0123456789"])
    text = [writer.tokenizer.roles["eod"], *ids[0]]
    for _ in range(3):
        logits = np.asarray(writer(np.array([text])))[0, -1]
        text.append(int(ids[1][np.argmax(logits[ids[1]])]))
    assert digits.token_ids.tolist()[:3] == text[-3:]


def test_text_fits_the_json_schema(writer: Pretrained) -> None:
    pytest.importorskip("llguidance", reason="llguidance is not installed")
    schema = {
        "type": "object",
        "properties": {"kind": {"enum": ["cat", "dog"]}, "old": {"type": "boolean"}},
        "required": ["kind", "old"],
        "additionalProperties": False,
        "x-guidance": {"whitespace_flexible": False},
    }
    made = lmjax.generate(
        writer,
        "Is it?",
        json_schema=json.dumps(schema),
        temperature=1.0,
        num_return_sequences=64,
        max_new_tokens=40,
    )
    values = [json.loads(text.text) for text in made]
    possible = [dict(kind=k, old=o) for k, o in itertools.product(("cat", "dog"), (True, False))]
    assert all(value in possible for value in values) and values[1:] != values[:-1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"regex": "(a"}, "regex: "),
        ({"json_schema": "{"}, "json_schema: not valid JSON"),
        ({"json_schema": '{"type": "nothing"}'}, "json_schema: "),
        ({"regex": "a", "choices": ["b"]}, "set only one of choices, regex and json_schema"),
        ({"regex": "a", "num_beams": 2}, "beam search does not support constraints"),
        ({"choices": ["a"], "ignore_eos": True}, "unset ignore_eos"),
    ],
)
def test_what_cannot_be_is_refused(
    writer: Pretrained, settings: dict[str, Any], message: str
) -> None:
    if "ignore_eos" not in settings:
        pytest.importorskip("llguidance", reason="llguidance is not installed")
    with pytest.raises(ConfigError, match=message):
        lmjax.generate(writer, "Is it?", **settings)
