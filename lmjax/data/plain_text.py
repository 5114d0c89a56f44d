"""Text that is nothing but text: what a tokenizer reads, special tokens spelt out or not."""

import contextlib
import json
import secrets
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import tokenizers

from lmjax.errors import ConfigError, first_line


def respelt(inner: tokenizers.Tokenizer, special: Collection[str]) -> tokenizers.Tokenizer:
    """A copy with the same ids in which no text can spell these tokens."""
    secret = secrets.token_hex(16)
    spelling = {token: f"{token}{secret}" for token in special}
    values = json.loads(inner.to_str())
    model = values["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {spelling.get(token, token): i for token, i in model["vocab"].items()}
    else:
        model["vocab"] = [[spelling.get(token, token), score] for token, score in model["vocab"]]
    if model.get("unk_token") in spelling:
        model["unk_token"] = spelling[model["unk_token"]]
    if "merges" in model:
        continues = model.get("continuing_subword_prefix") or ""
        model["merges"] = [
            (first, second)
            for first, second in model["merges"]
            if spelling.keys().isdisjoint((first, second, first + second.removeprefix(continues)))
        ]
    for token in values["added_tokens"]:
        token["content"] = spelling.get(token["content"], token["content"])
    values["post_processor"] = None  # it names them, and adds nothing here
    return tokenizers.Tokenizer.from_str(json.dumps(values))


@contextlib.contextmanager
def named(texts: Sequence[str]) -> Iterator[None]:
    """Names the text that a tokenizer does not take."""
    try:
        yield
    except BaseException as error:
        if not is_refusal(error):
            raise
        for place, text in enumerate(texts):
            check_text(text, f"text {place}")
        raise ConfigError(f"a text cannot be tokenized ({first_line(error)})") from error


def is_refusal(error: BaseException) -> bool:
    """Whether the library raised it; a panic of Rust's is no `Exception`."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def check_text(text: Any, where: str) -> None:
    """Refuses what no tokenizer reads.

    Raises:
      ConfigError: no string, or one with half of a surrogate pair, which has no UTF-8.
    """
    if not isinstance(text, str):
        raise ConfigError(f"{where}: a text is expected, not {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        around = text[max(0, error.start - 20) : error.start + 20]
        raise ConfigError(
            f"{where}: half of a surrogate pair (U+{ord(text[error.start]):04X}) at character"
            f" {error.start:,}, {around!r}; mend it, or put U+FFFD in its place"
        ) from None
