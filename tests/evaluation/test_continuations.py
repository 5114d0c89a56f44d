"""Where a context ends and what follows begins, and what does not fit."""

import numpy as np
import pytest

from lmjax.data.tokenizers import Tokenizer
from lmjax.errors import ConfigError
from lmjax.evaluation.continuations import continuation_scores, encode
from lmjax.evaluation.scoring import token_scores
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
    with pytest.raises(ConfigError, match="a continuation has no token: ''"):
        continuation_scores(MODEL, [("w6", "")])
    with pytest.raises(ConfigError, match=r"does not fit .* room for 7 tokens: ' w7 w7"):
        continuation_scores(MODEL, [("w6", " w7" * 9)])
