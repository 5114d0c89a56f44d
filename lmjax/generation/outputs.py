"""Results of text generation, and decoding of generated ids."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np

from lmjax.data.tokenizers import Tokenizer
from lmjax.errors import ConfigError, require_finite
from lmjax.generation.prompts import Prompt

Ended = Literal["eos", "stop", "length"]
RULED_OUT = -np.inf  # the log-probability of a chosen token if every token was ruled out


@dataclasses.dataclass(frozen=True, eq=False)
class Generated:
    """A generated text.

    Attributes:
      text: the continuation of the prompt, up to a stop string or the end of the document. For a
        masked model, the whole text with filled masks. '' if the model has no tokenizer.
      token_ids: [new tokens] int32, including the end of the document. For a masked model, the
        tokens at the masks, from left to right.
      log_probs: [new tokens] float32, in nats, under the model's own distribution, i.e. before
        temperature, penalties and filters.
      ended: 'eos' at the end of a document, 'stop' at a stop string or the end of a constraint,
        'length' at `max_new_tokens`.
      follows: whether the text continues the prompt; False for masked models.
      score: for beam search: log-probability / new tokens ** length_penalty.
      accepted: for speculative decoding: the fraction of drafted tokens that was accepted.
    """

    text: str
    token_ids: np.ndarray
    log_probs: np.ndarray
    ended: Ended
    follows: bool = True
    score: float | None = None
    accepted: float | None = None


def continuation(tokenizer: Tokenizer | None, prompt: Prompt, new: np.ndarray) -> str:
    """Decodes `new` as a continuation of the prompt, including the space between them."""
    if tokenizer is None:
        return ""
    before = tokenizer.decode(prompt.ids[prompt.hidden :])
    whole = tokenizer.decode([*prompt.ids[prompt.hidden :], *new])
    # An incomplete character at the prompt's end decodes to U+FFFD; `new` may complete it.
    before = before.rstrip("\ufffd")
    return whole[len(before) :] if whole.startswith(before) else tokenizer.decode(new)


def first_stop(text: str, stop: Sequence[str]) -> int | None:
    """Returns the index of the first stop string, or None."""
    found = [place for place in (text.find(string) for string in stop) if place >= 0]
    return min(found, default=None)


def finish(
    tokenizer: Tokenizer | None,
    prompt: Prompt,
    ids: np.ndarray,
    log_probs: np.ndarray,
    eos: int,
    stop: Sequence[str] = (),
    score: float | None = None,
    accepted: float | None = None,
) -> Generated:
    """Truncates generated ids at the first end of document or stop string, and decodes them.

    Args:
      ids: [new tokens] int.
      log_probs: [new tokens] float, `RULED_OUT` where every token was ruled out.
      eos: the id that ends a document; -1 = none.
      score, accepted: fields of `Generated`.

    Raises:
      NonFiniteError: the model's logits were not finite.
      ConfigError: the settings ruled out every token.
    """
    ended: Ended = "length"
    ends = np.flatnonzero(ids == eos)
    count = shown = len(ids)
    if len(ends):
        count, shown, ended = int(ends[0]) + 1, int(ends[0]), "eos"
    if not count or (log_probs[:count] == RULED_OUT).any():
        raise ConfigError(
            "generate: the settings rule out every token of the vocabulary; raise"
            " no_repeat_ngram_size, or ask for fewer max_new_tokens"
        )
    require_finite(log_probs[:count], "generate: log-probabilities of the new tokens")
    require_finite(0.0 if score is None else score, "generate: the score of a beam")
    text = continuation(tokenizer, prompt, ids[:shown])
    if first_stop(text, stop) is not None:
        # Keeps the fewest tokens whose text contains a stop string, so that the result does not
        # depend on the size of the chunk.
        low, high = 0, shown
        while low + 1 < high:
            middle = (low + high) // 2
            inside = first_stop(continuation(tokenizer, prompt, ids[:middle]), stop) is not None
            low, high = (low, middle) if inside else (middle, high)
        count, text, ended = high, continuation(tokenizer, prompt, ids[:high]), "stop"
        text = text[: first_stop(text, stop)]
    return Generated(text, ids[:count], log_probs[:count], ended, score=score, accepted=accepted)
