"""Text that has to be one of some strings, match a regular expression, or fit a JSON schema.

A constraint says before each token which tokens leave a way to a whole text; the rest get the
logit -inf, so that greedy search and sampling choose among what is left, one token after the
other. That is not the model conditioned on the constraint: a first token may be probable for
the sake of texts that are not allowed.
"""

import json
import pathlib
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np

from lmjax.convert.pretrained import Pretrained
from lmjax.data.tokenizers import Tokenizer
from lmjax.errors import ConfigError
from lmjax.extras import require
from lmjax.generation.prompts import end_of_text
from lmjax.generation.sampling import Constraint
from lmjax.generation.settings import GenerationConfig


def make_constraint(model: Pretrained, config: GenerationConfig, rows: int) -> Constraint | None:
    """What the settings ask for, for so many rows; None where nothing is constrained.

    Raises:
      ConfigError: no tokenizer, no end of text, a grammar that is none, a tokenizer whose tokens
        are not the text's own bytes, or llguidance not installed.
    """
    if not config.constrained:
        return None
    name = "choices" if config.choices else "regex" if config.regex else "json_schema"
    if model.tokenizer is None:
        raise ConfigError(f"{name}: the model has no tokenizer")
    eos = end_of_text(model, config)
    if eos < 0:
        raise ConfigError(f"{name}: constrained text ends where it may; leave ignore_eos out")
    network: Any = model.network
    vocab = network.config.vocab_size
    if config.choices:
        encoded = model.tokenizer.encode_batch(config.choices)
        for ids in encoded:
            model.check_ids(ids, "choices")
        return Choices([ids.tolist() for ids in encoded], eos, vocab, rows)
    return Grammar(model.tokenizer, name, getattr(config, name), eos, vocab, rows)


class Choices:
    """One of some token sequences.

    A sequence that begins another is ended by the end of the document; others are complete with
    their last token.
    """

    def __init__(self, choices: Sequence[Sequence[int]], eos: int, vocab: int, rows: int) -> None:
        self._tree: dict[int, Any] = {}
        for ids in choices:
            node = self._tree
            for token in ids:
                node = node.setdefault(int(token), {})
            node[eos] = {}
        self._eos, self._vocab = eos, vocab
        self._nodes = [self._tree] * rows

    def allowed(self) -> np.ndarray:
        rows = np.zeros((len(self._nodes), self._vocab), bool)
        for row, node in zip(rows, self._nodes, strict=True):
            row[list(node) or slice(None)] = True
        return rows

    def accept(self, tokens: np.ndarray) -> None:
        self._nodes = [
            node[int(token)] if node else node
            for node, token in zip(self._nodes, tokens, strict=True)
        ]
        # Where nothing but the end may follow, it need not be waited for.
        self._nodes = [{} if list(node) == [self._eos] else node for node in self._nodes]

    def complete(self) -> np.ndarray:
        return np.array([not node for node in self._nodes])


class Grammar:
    """A regular expression or a JSON schema, by llguidance."""

    def __init__(
        self, tokenizer: Tokenizer, name: str, text: str, eos: int, vocab: int, rows: int
    ) -> None:
        llguidance = require("llguidance", "constrained", f"{name}: a constraint")
        grammar = _grammar(llguidance, name, text)
        reader = _reader(llguidance, tokenizer, name, eos)
        first = llguidance.LLMatcher(reader, grammar, log_level=0)
        if first.is_error():
            message = first.get_error().strip().splitlines()[0]
            raise ConfigError(f"{name}: {message}")
        self._matchers = [first.deep_copy() for _ in range(rows)]
        self._vocab = vocab

    def allowed(self) -> np.ndarray:
        rows = np.ones((len(self._matchers), self._vocab), bool)
        for row, matcher in zip(rows, self._matchers, strict=True):
            if matcher.is_stopped():
                continue
            bias = np.frombuffer(matcher.compute_logit_bias(), np.uint8)[: self._vocab] > 0
            row[:] = False
            row[: len(bias)] = bias
        return rows

    def accept(self, tokens: np.ndarray) -> None:
        for matcher, token in zip(self._matchers, tokens, strict=True):
            if not matcher.is_stopped():
                matcher.consume_token(int(token))

    def complete(self) -> np.ndarray:
        return np.array([matcher.is_stopped() for matcher in self._matchers])


def _grammar(llguidance: Any, name: str, text: str) -> str:
    matcher = llguidance.LLMatcher
    if name == "regex":
        return matcher.grammar_from_regex(text)
    try:
        schema = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"json_schema: no JSON ({error})") from None
    return matcher.grammar_from_json_schema(schema)


def _reader(llguidance: Any, tokenizer: Tokenizer, name: str, eos: int) -> Any:
    """llguidance's view of the tokenizer, from the file that it reads."""
    if tokenizer.kind == "WordPiece":
        raise ConfigError(
            f"{name}: WordPiece's text is not its tokens one after the other (spaces are put and"
            " taken away); use choices, or a model whose tokenizer is BPE or unigram"
        )
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "tokenizer.json"
        tokenizer.save(path)
        try:
            return llguidance.LLTokenizer(str(path), eos_token=eos)
        except Exception as error:
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise ConfigError(f"{name}: llguidance cannot read the tokenizer ({first})") from error
