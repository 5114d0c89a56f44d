"""The interface of a model family: `ModelConfig`, the base class of its config.

A family is one file: a config derived from `ModelConfig`, and its networks. Everything else is
reached through the config: the networks for each purpose, the input format for one text or two,
the heads, and the format in `transformers`. Requesting a capability that a family lacks raises a
ConfigError that names the family. There is no registry, and a family may live outside the package.
"""

import dataclasses
import importlib
import pkgutil
from collections.abc import Collection, Mapping
from typing import Any, ClassVar, NoReturn, Self

import jax
import jax.numpy as jnp
import numpy as np

import lmjax.models
from lmjax.configuration import VocabSize, check_ranges
from lmjax.data.vocabulary import Vocabulary
from lmjax.errors import ConfigError
from lmjax.models.heads import (
    Headed,
    MarkedHead,
    PoolingHead,
    SequenceHead,
    Task,
    Token,
    TokenHead,
)
from lmjax.models.network import Network, TextInputs
from lmjax.models.published import Fields, Read, Rules
from lmjax.nn.masks import padding
from lmjax.nn.trunk import TransformerConfig


@dataclasses.dataclass(frozen=True)
class Joined:
    """One or two texts joined into one input.

    Attributes:
      tokens, token_types: [length] int32.
      first, second: positions at which the texts begin.
    """

    tokens: np.ndarray
    token_types: np.ndarray
    first: int
    second: int


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Base class of model configs; a subclass adds its own settings as fields.

    Attributes:
      trunk: sizes, dropout, initialization and dtype of the stack.
      vocab_size: rows of the token table; 0 = the tokenizer's size.
      causal: whether position i attends only to positions 0 to i.
      left_padded: whether batches are padded on the left.
      text_token: the token whose hidden state represents a whole text.
      published_type: 'model_type' in config.json of `transformers`; '' if there is none.
      published_prefix: prefix of the class names in `transformers`.
      published_base: prefix of the encoder's tensors, which a bare encoder leaves out.
      published_unused: pattern of tensors that a checkpoint may have and its class does not use.
      published_refused: unsupported classes of `transformers`, with a reason or remedy.
      published_heads: tensor names of the layers (transform, output) of a sequence head, by task.
      published_dropouts: fields of config.json that hold a head's dropout rate.
      published_token_types: whether models of `transformers` take token types as input.
    """

    causal: ClassVar[bool] = False
    left_padded: ClassVar[bool] = False
    text_token: ClassVar[Token] = "first"
    published_type: ClassVar[str] = ""
    published_prefix: ClassVar[str] = ""
    published_base: ClassVar[str] = ""
    published_unused: ClassVar[str] = ""
    published_refused: ClassVar[Mapping[str, str]] = {}
    published_heads: ClassVar[Mapping[str, tuple[str, str]]] = {}
    published_dropouts: ClassVar[tuple[str, ...]] = ("classifier_dropout", "summary_last_dropout")
    published_token_types: ClassVar[bool] = True

    trunk: TransformerConfig
    vocab_size: VocabSize = 0

    def __post_init__(self) -> None:
        check_ranges(self)

    @classmethod
    def family(cls) -> str:
        """Name of the family, for error messages."""
        return cls.__name__.removesuffix("Config")

    def _lacks(self, what: str) -> NoReturn:
        raise ConfigError(f"model: {self.family()} {what}; choose another family")

    # Networks.

    def encoder(self) -> Network:
        """Returns a network: (`TextInputs`, seeds) -> states [batch, length, hidden_size]."""
        self._lacks("has no encoder for fine-tuning")

    def masked_lm(self, sentence_head: bool = False) -> Network:
        """Returns a network that is called with (`TextInputs`, target_positions [batch, n], seeds).

        It returns logits [batch, n, vocab_size] of the tokens at the target positions, and sentence
        logits [batch, 2] or None without a sentence head.
        """
        del sentence_head
        self._lacks("has no masked language model")

    def causal_lm(self) -> Network:
        """Returns a `lmjax.models.network.CausalNetwork`."""
        self._lacks("does not support text generation")

    def headed(self, task: Task, classes: int, dropout: float) -> Network:
        """Returns an encoder with the head that `transformers` uses for `task`.

        Relation and embedding heads do not exist in `transformers`: the former is that of Baldini
        Soares et al. (2019), the latter only pools. 'language_model' is `causal_lm`.

        Args:
          classes: number of classes; ignored if the task determines it.
          dropout: dropout rate of the head, if it has dropout.
        """
        if task == "language_model":
            return self.causal_lm()
        encoder, trunk = self.encoder(), self.trunk
        if task == "question_answering":
            return Headed(encoder, TokenHead(trunk, 2, 0.0), task)
        if task == "token_classification":
            return Headed(encoder, TokenHead(trunk, classes, dropout), task)
        if task == "relation_classification":
            return Headed(encoder, MarkedHead(trunk, classes, dropout), task)
        if task == "mean_embedding":
            return Headed(encoder, PoolingHead("mean"), task)
        if task == "token_embedding":
            return Headed(encoder, PoolingHead(self.text_token), task)
        classes = {"multiple_choice": 1, "next_sentence": 2}.get(task, classes)
        return Headed(encoder, self.sequence_head(task, classes, dropout), task)

    def sequence_head(self, task: Task, classes: int, dropout: float) -> SequenceHead:
        """Returns the head for whole texts."""
        del task
        return SequenceHead(self.trunk, classes, self.text_token, "tanh", dropout)

    def for_finetuning(self, dropout: float) -> Self:
        """Returns a copy with this dropout in the trunk and without memory of earlier text."""
        trunk = dataclasses.replace(self.trunk, dropout=dropout, attention_dropout=dropout)
        return dataclasses.replace(self, trunk=trunk)

    def pretrained_head(self, params: Mapping[str, Any]) -> Any:
        """Returns the pretrained dense layer of the sequence head, or None.

        Args:
          params: parameters of a pretraining network.
        """
        del params
        return None

    def forward_flops(self, length: int) -> float | None:
        """FLOPs of the encoder's matrix products for one example; None = unknown."""
        return self.trunk.forward_flops(length, length)

    # Input format.

    def check_padding(self, padding: int | None) -> None:
        """Raises ConfigError if the model depends on another id of the padding token."""

    def inputs(self, tokens: jax.Array, token_types: jax.Array, real: jax.Array) -> TextInputs:
        """Builds inputs from whole texts [batch, length]; positions count from the first token."""
        batch, length = tokens.shape
        positions = jnp.broadcast_to(jnp.arange(length), (batch, length))
        return TextInputs(tokens, token_types, positions, padding(real), real)

    def special_tokens(self, pair: bool) -> int:
        """Number of special tokens that `join` adds."""
        return 3 if pair else 2

    def join(
        self, vocabulary: Vocabulary, first: np.ndarray, second: np.ndarray | None = None
    ) -> Joined:
        """Joins the ids of one or two texts: [CLS] a [SEP] b [SEP], token types 0 and 1.

        This is the format of BERT and ELECTRA (BERT §4.1, A.5).
        """
        b = second if second is not None else np.zeros(0, np.int32)
        ends = [vocabulary.sep] if second is not None else []
        tokens = [vocabulary.cls, *first, vocabulary.sep, *b, *ends]
        # A model may have a single token type, or none.
        other = max(0, min(getattr(self, "segment_types", 1) - 1, 1))
        types = [0] * (len(first) + 2) + [other] * (len(b) + len(ends))
        return joined(tokens, types, 1, len(first) + 2)

    def ask(
        self, vocabulary: Vocabulary, prompt: np.ndarray, answer: np.ndarray | None = None
    ) -> Joined:
        """Joins a prompt and the answer of a language model: start prompt delimiter answer."""
        following = answer if answer is not None else np.zeros(0, np.int32)
        tokens = [vocabulary.eod, *prompt, vocabulary.sep, *following]
        return joined(tokens, [0] * len(tokens), 1, len(prompt) + 2)

    # Format in `transformers`.

    @classmethod
    def read_published(cls, fields: Fields) -> Read:
        """Converts config.json to the config. Raises ConfigError."""
        raise NotImplementedError

    def published_values(self) -> dict[str, Any]:
        """Converts to config.json, without architecture and labels. Raises ConfigError."""
        raise NotImplementedError

    def published_network(
        self, architecture: str, names: Collection[str], values: Mapping[str, Any], where: str
    ) -> Network:
        """Returns the network of a checkpoint without a task head.

        Args:
          architecture: the class that config.json names, or ''.
          names: names of the tensors.
          values: contents of config.json.
          where: path of config.json, for error messages.
        """
        raise NotImplementedError

    def published_head_dropout(self, task: Task, values: Mapping[str, Any], where: str) -> float:
        """Returns the dropout rate of a head; raises ConfigError for unsupported heads."""
        del task
        return read_rate("classifier_dropout", self.trunk.dropout, values, where)

    def published_has(self, class_end: str) -> bool:
        """Whether `transformers` has a class of this name after the prefix."""
        return bool(self.published_type) and "Simple" not in class_end

    def encoder_rules(self, ours: str, tied: tuple[str, ...] = ()) -> Rules:
        """Rules of the encoder's tensors. ours: path prefix; tied: names of the output layer."""
        raise NotImplementedError


def joined(tokens: Any, types: Any, first: int, second: int) -> Joined:
    """Converts lists to int32 arrays."""
    return Joined(np.asarray(tokens, np.int32), np.asarray(types, np.int32), first, second)


def read_rate(field: str, default: float, values: Mapping[str, Any], where: str) -> float:
    """Reads a dropout rate from config.json."""
    value = values.get(field)
    value = default if value is None else value
    if not isinstance(value, int | float) or not 0 <= value < 1:
        raise ConfigError(f"{where}: '{field}' is {value!r}; expected a rate in [0, 1)")
    return float(value)


def check_summary(built: Mapping[str, Any], values: Mapping[str, Any], where: str) -> None:
    """Refuses a summary layer (between hidden state and classes) that is not supported."""
    for name, wanted in built.items():
        value = values.get(f"summary_{name}", wanted)
        if value != wanted:
            raise ConfigError(
                f"{where}: 'summary_{name}' is {value!r}; only {wanted!r} is supported"
            )


def published_families() -> dict[str, type[ModelConfig]]:
    """Maps 'model_type' to families: those in this folder and any that have been imported."""
    for module in pkgutil.iter_modules(lmjax.models.__path__):
        importlib.import_module(f"lmjax.models.{module.name}")
    found: dict[str, type[ModelConfig]] = {}
    waiting = [ModelConfig]
    while waiting:
        waiting += (cls := waiting.pop()).__subclasses__()
        if cls.published_type:
            found.setdefault(cls.published_type, cls)
    return found
