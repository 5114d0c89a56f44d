"""What generation gives, and how ids become text."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np

from lmjax.data.tokenizers import Tokenizer
from lmjax.errors import ConfigError, require_finite
from lmjax.generation.prompts import Prompt

Ended = Literal["eos", "stop", "length"]
RULED_OUT = -np.inf  # the log-probability of a token that was taken for want of another


@dataclasses.dataclass(frozen=True, eq=False)
class Generated:
    """One text.

    Attributes:
      text: what follows the prompt, up to a stop string or the end of the document; of a
        masked model the whole text, masks filled. '' where the model has no tokenizer.
      token_ids: [new tokens] int32, the end of the document included; of a masked model, of
        the masks from left to right.
      log_probs: [new tokens] float32, of each under the model as it is: before temperature,
        penalties and filters. Nats.
      ended: 'eos' at the end of a document, 'stop' at a stop string or where a constraint
        allows nothing more, 'length' at `max_new_tokens`.
      score: of beam search: log-probability / new tokens ** length_penalty.
      follows: the text comes after the prompt; False of a masked model, whose text is the whole.
      accepted: of speculative decoding: which part of the draft's tokens was accepted.
    """

    text: str
    token_ids: np.ndarray
    log_probs: np.ndarray
    ended: Ended
    follows: bool = True
    score: float | None = None
    accepted: float | None = None


def continuation(tokenizer: Tokenizer | None, prompt: Prompt, new: np.ndarray) -> str:
    """The text of `new` after the prompt, with the space that stands between them."""
    if tokenizer is None:
        return ""
    before = tokenizer.decode(prompt.ids[prompt.hidden :])
    whole = tokenizer.decode([*prompt.ids[prompt.hidden :], *new])
    # Half a character at the prompt's end is decoded as U+FFFD and may become whole.
    before = before.rstrip("\ufffd")
    return whole[len(before) :] if whole.startswith(before) else tokenizer.decode(new)


def first_stop(text: str, stop: Sequence[str]) -> int | None:
    """Where the first of the stop strings begins."""
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
    """Cuts new ids, as many as were generated, at the first of what ends them.

    Args:
      ids: [new tokens] int; log_probs: [new tokens] float, `RULED_OUT` where every token was.
      eos: what ends a document, -1 = nothing.
      score, accepted: of `Generated`.

    Raises:
      NonFiniteError: the model's logits were not finite.
      ConfigError: the settings left no token to choose.
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
        # The fewest tokens whose text has a stop string: what came later in a chunk is as if
        # it had never been.
        low, high = 0, shown
        while low + 1 < high:
            middle = (low + high) // 2
            inside = first_stop(continuation(tokenizer, prompt, ids[:middle]), stop) is not None
            low, high = (low, middle) if inside else (middle, high)
        count, text, ended = high, continuation(tokenizer, prompt, ids[:high]), "stop"
        text = text[: first_stop(text, stop)]
    return Generated(text, ids[:count], log_probs[:count], ended, score=score, accepted=accepted)
