"""Plain text for tokenizers, in which special tokens cannot be spelled out."""

import contextlib
import json
import secrets
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import tokenizers

from lmjax.errors import ConfigError, first_line


def respelt(inner: tokenizers.Tokenizer, special: Collection[str]) -> tokenizers.Tokenizer:
    """Returns a copy with the same ids whose text input cannot spell these special tokens."""
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
    values["post_processor"] = None  # it refers to them, and is not used here
    return tokenizers.Tokenizer.from_str(json.dumps(values))


@contextlib.contextmanager
def named(texts: Sequence[str]) -> Iterator[None]:
    """Converts errors of the tokenizer to a ConfigError that names the text."""
    try:
        yield
    except BaseException as error:
        if not is_refusal(error):
            raise
        for place, text in enumerate(texts):
            check_text(text, f"text {place}")
        raise ConfigError(f"a text cannot be tokenized ({first_line(error)})") from error


def is_refusal(error: BaseException) -> bool:
    """Whether the tokenizers library raised it; Rust panics are not an `Exception`."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def check_text(text: Any, where: str) -> None:
    """Checks that a tokenizer can read `text`.

    Raises:
      ConfigError: it is not a string, or has an unpaired surrogate, which UTF-8 cannot encode.
    """
    if not isinstance(text, str):
        raise ConfigError(f"{where}: expected a str, got {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        around = text[max(0, error.start - 20) : error.start + 20]
        raise ConfigError(
            f"{where}: an unpaired surrogate (U+{ord(text[error.start]):04X}) at character"
            f" {error.start:,}, {around!r}; fix it, or replace it with U+FFFD"
        ) from None
