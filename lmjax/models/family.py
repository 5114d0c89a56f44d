"""What the rest of the project asks of a family of models: `ModelConfig`, the base of its config.

A family is one file: a config derived from `ModelConfig`, and its networks. Everything else about
it is reached from the config: its networks by purpose, how it reads one text or two, what its heads
look like, and its format in `transformers`. A capability that a family lacks raises a ConfigError
that names the family; nothing registers it, and it may live outside of the package.
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
    """One text or two as one input.

    Attributes:
      tokens, token_types: [length] int32.
      first, second: where the texts begin in it.
    """

    tokens: np.ndarray
    token_types: np.ndarray
    first: int
    second: int


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Base of all families' configs; a subclass adds its own settings as fields.

    Attributes:
      trunk: sizes, dropout, initialisation and dtype of the stack.
      vocab_size: rows of the token table; 0 = as many as the tokenizer has.
      causal: position i reads positions 0 to i only.
      left_padded: batches are padded on the left.
      text_token: the hidden state that stands for a whole text.
      published_type: 'model_type' in config.json of `transformers`; '' = there is none.
      published_prefix: how the classes of `transformers` begin.
      published_refused: classes of `transformers` that are not built here, and what to do.
      published_heads: where the layers (transform, output) of a head on a whole text stand.
      published_token_types: `transformers` is to be given the types of tokens.
    """

    causal: ClassVar[bool] = False
    left_padded: ClassVar[bool] = False
    text_token: ClassVar[Token] = "first"
    published_type: ClassVar[str] = ""
    published_prefix: ClassVar[str] = ""
    published_refused: ClassVar[Mapping[str, str]] = {}
    published_heads: ClassVar[Mapping[str, tuple[str, str]]] = {}
    published_token_types: ClassVar[bool] = True

    trunk: TransformerConfig
    vocab_size: VocabSize = 0

    def __post_init__(self) -> None:
        check_ranges(self)

    @classmethod
    def family(cls) -> str:
        """The family's name, for messages."""
        return cls.__name__.removesuffix("Config")

    def _lacks(self, what: str) -> NoReturn:
        raise ConfigError(f"model: {self.family()} {what}; choose another family")

    # Its networks.

    def encoder(self) -> Network:
        """Called with (`TextInputs`, seeds): hidden states [batch, length, hidden_size]."""
        self._lacks("has no encoder for fine-tuning")

    def masked_lm(self, sentence_head: bool = False) -> Network:
        """Called with (`TextInputs`, target_positions [batch, n], seeds).

        It gives logits [batch, n, vocab_size] of what stands at the targets, and sentence logits
        [batch, 2], or None without a sentence head.
        """
        del sentence_head
        self._lacks("has no masked language model")

    def causal_lm(self) -> Network:
        """A `lmjax.models.network.CausalNetwork`."""
        self._lacks("was not built to continue texts")

    def headed(self, task: Task, classes: int, dropout: float) -> Network:
        """An encoder with the head that `transformers` gives it for `task`.

        Relations have Baldini Soares et al.'s (2019), embeddings one that only pools, of which
        `transformers` has neither. 'language_model' is `causal_lm`.

        Args:
          classes: of the labels; not used where the task says how many.
          dropout: of the head, where it has any.
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
        """The head on a whole text."""
        del task
        return SequenceHead(self.trunk, classes, self.text_token, "tanh", dropout)

    def for_finetuning(self, dropout: float) -> Self:
        """The same with this dropout in the trunk, and without memory of earlier text."""
        trunk = dataclasses.replace(self.trunk, dropout=dropout, attention_dropout=dropout)
        return dataclasses.replace(self, trunk=trunk)

    def pretrained_head(self, params: Mapping[str, Any]) -> Any:
        """The transform of a head on a whole text that pretraining has trained, or None.

        Args:
          params: of a pretraining network.
        """
        del params
        return None

    def forward_flops(self, length: int) -> float | None:
        """FLOPs of the encoder's matrix products for one example; None = unknown."""
        return self.trunk.forward_flops(length, length)

    # How it reads text.

    def inputs(self, tokens: jax.Array, token_types: jax.Array, real: jax.Array) -> TextInputs:
        """Whole texts, [batch, length] each; positions count from the first one."""
        batch, length = tokens.shape
        positions = jnp.broadcast_to(jnp.arange(length), (batch, length))
        return TextInputs(tokens, token_types, positions, padding(real), real)

    def special_tokens(self, pair: bool) -> int:
        """How many tokens `join` adds."""
        return 3 if pair else 2

    def join(
        self, vocabulary: Vocabulary, first: np.ndarray, second: np.ndarray | None = None
    ) -> Joined:
        """The input made of the ids of one text or two: [CLS] a [SEP] b [SEP], types 0 and 1.

        As BERT and ELECTRA (BERT §4.1, A.5).
        """
        b = second if second is not None else np.zeros(0, np.int32)
        ends = [vocabulary.sep] if second is not None else []
        tokens = [vocabulary.cls, *first, vocabulary.sep, *b, *ends]
        # A model may have one type alone.
        other = min(getattr(self, "segment_types", 1) - 1, 1)
        types = [0] * (len(first) + 2) + [other] * (len(b) + len(ends))
        return joined(tokens, types, 1, len(first) + 2)

    def ask(
        self, vocabulary: Vocabulary, prompt: np.ndarray, answer: np.ndarray | None = None
    ) -> Joined:
        """A prompt and what a language model answers: start prompt delimiter answer."""
        following = answer if answer is not None else np.zeros(0, np.int32)
        tokens = [vocabulary.eod, *prompt, vocabulary.sep, *following]
        return joined(tokens, [0] * len(tokens), 1, len(prompt) + 2)

    # Its format in `transformers`.

    @classmethod
    def read_published(cls, fields: Fields) -> Read:
        """From config.json to the config. Raises ConfigError."""
        raise NotImplementedError

    def published_values(self) -> dict[str, Any]:
        """From the config to config.json, without architecture and labels. Raises ConfigError."""
        raise NotImplementedError

    def published_network(
        self, architecture: str, names: Collection[str], values: Mapping[str, Any], where: str
    ) -> Network:
        """The network of a checkpoint without a head of a task.

        Args:
          architecture: the class that config.json names, or ''.
          names: of the tensors.
          values: config.json, and `where` it is.
        """
        raise NotImplementedError

    def published_head_dropout(self, task: Task, values: Mapping[str, Any], where: str) -> float:
        """The rate in a head; refuses heads that are not built here."""
        del task
        return read_rate("classifier_dropout", self.trunk.dropout, values, where)

    def published_has(self, class_end: str) -> bool:
        """Whether `transformers` has a class of this name behind the prefix."""
        return bool(self.published_type) and "Simple" not in class_end

    def encoder_rules(self, ours: str, tied: tuple[str, ...] = ()) -> Rules:
        """The encoder's tensors; `ours` begins its paths, `tied` are names of the output layer."""
        raise NotImplementedError


def joined(tokens: Any, types: Any, first: int, second: int) -> Joined:
    """Lists as int32 arrays."""
    return Joined(np.asarray(tokens, np.int32), np.asarray(types, np.int32), first, second)


def read_rate(field: str, default: float, values: Mapping[str, Any], where: str) -> float:
    """A rate in config.json."""
    value = values.get(field)
    value = default if value is None else value
    if not isinstance(value, int | float) or not 0 <= value < 1:
        raise ConfigError(f"{where}: '{field}' is {value!r}; a rate in [0, 1) is expected")
    return float(value)


def check_summary(built: Mapping[str, Any], values: Mapping[str, Any], where: str) -> None:
    """Refuses a layer between hidden state and classes other than the one built here."""
    for name, wanted in built.items():
        value = values.get(f"summary_{name}", wanted)
        if value != wanted:
            raise ConfigError(f"{where}: 'summary_{name}' is {value!r}; only {wanted!r} is built")


def published_families() -> dict[str, type[ModelConfig]]:
    """Families by their 'model_type': those of this folder, and those that were imported."""
    for module in pkgutil.iter_modules(lmjax.models.__path__):
        importlib.import_module(f"lmjax.models.{module.name}")
    found: dict[str, type[ModelConfig]] = {}
    waiting = [ModelConfig]
    while waiting:
        waiting += (cls := waiting.pop()).__subclasses__()
        if cls.published_type:
            found.setdefault(cls.published_type, cls)
    return found
