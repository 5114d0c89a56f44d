"""Constrained generation: one of some strings, a regular expression, or a JSON schema.

Before each token, a constraint masks the tokens that cannot lead to a complete text with the logit
-inf; greedy search and sampling choose among the rest. This differs from conditioning the model on
the constraint: the first token may be probable only because of texts that are not allowed.
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
    """Creates the constraint of the settings for `rows` texts; None if there is none.

    Raises:
      ConfigError: the model has no tokenizer or no end-of-text token, the grammar is invalid, the
        tokenizer does not preserve the bytes of texts, or llguidance is not installed.
    """
    if not config.constrained:
        return None
    name = "choices" if config.choices else "regex" if config.regex else "json_schema"
    if model.tokenizer is None:
        raise ConfigError(f"{name}: the model has no tokenizer")
    eos = end_of_text(model, config)
    if eos < 0:
        raise ConfigError(f"{name}: constrained text needs an end-of-text token; unset ignore_eos")
    network: Any = model.network
    vocab = network.config.vocab_size
    if config.choices:
        encoded = model.tokenizer.encode_batch(config.choices)
        for ids in encoded:
            model.check_ids(ids, "choices")
        return Choices([ids.tolist() for ids in encoded], eos, vocab, rows)
    return Grammar(model.tokenizer, name, getattr(config, name), eos, vocab, rows)


class Choices:
    """Restricts a text to one of some token sequences.

    A sequence that is a prefix of another ends with the end-of-document token; others are complete
    after their last token.
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
        # A row is complete as soon as only the end can follow.
        self._nodes = [{} if list(node) == [self._eos] else node for node in self._nodes]

    def complete(self) -> np.ndarray:
        return np.array([not node for node in self._nodes])


class Grammar:
    """Restricts a text to a regular expression or a JSON schema, by llguidance."""

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
        raise ConfigError(f"json_schema: not valid JSON ({error})") from None
    return matcher.grammar_from_json_schema(schema)


def _reader(llguidance: Any, tokenizer: Tokenizer, name: str, eos: int) -> Any:
    """Converts the tokenizer to llguidance's, through a tokenizer file."""
    if tokenizer.kind == "WordPiece":
        raise ConfigError(
            f"{name}: WordPiece does not preserve spaces, so its text is not the concatenation of"
            " its tokens; use choices, or a model with a BPE or unigram tokenizer"
        )
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "tokenizer.json"
        tokenizer.save(path)
        try:
            return llguidance.LLTokenizer(str(path), eos_token=eos)
        except Exception as error:
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise ConfigError(f"{name}: llguidance cannot read the tokenizer ({first})") from error
