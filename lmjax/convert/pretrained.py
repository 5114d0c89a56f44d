"""A network with its parameters, tokenizer and labels."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lmjax.data.tokenizers import Tokenizer
from lmjax.errors import ConfigError
from lmjax.models.network import Network
from lmjax.nn.taps import read
from lmjax.nn.transformer import ENTERING, LEAVING, NORMED


@dataclasses.dataclass(frozen=True, eq=False)
class Pretrained:
    """A loaded model.

    Attributes:
      network: a Flax module; `network.apply({"params": params}, ...)` runs the model.
      params: nested dict of float32 arrays.
      tokenizer: None if the checkpoint has none.
      labels: names of the classes of a fine-tuned head; () without a head.
      token_ids: 'pad_token_id', 'bos_token_id', 'eos_token_id', if config.json defines them.
    """

    network: Network
    params: Any
    tokenizer: Tokenizer | None = None
    labels: tuple[str, ...] = ()
    token_ids: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def __call__(self, tokens: Any, token_types: Any = None, real: Any = None) -> Any:
        """Computes the network's outputs for whole texts; compiles once per shape.

        Args:
          tokens: [batch, length] int.
          token_types: [batch, length] int; None = all 0.
          real: [batch, length] bool, False at padding, on either side; None = all True.

        Returns:
          The head's logits; for language models, vocabulary logits of all positions (for BERT
          with a sentence head, also its logits); for an encoder, hidden states.

        Raises:
          ValueError: the shapes differ, a text is longer than the position table, or an id is
            outside of its table.
        """
        return _apply(self.network, self.params, *self._arrays(tokens, token_types, real))

    def hidden_states(self, tokens: Any, token_types: Any = None, real: Any = None) -> jax.Array:
        """Returns the input of the first block and the output of each block.

        The result is [layers + 1, batch, length, hidden_size]. The last entry is the encoder's
        output, after the final norm of a pre-norm trunk.
        """
        return _hidden_states(self.network, self.params, *self._arrays(tokens, token_types, real))

    @property
    def config(self) -> Any:
        """The config of the network's family, such as a `BertConfig`."""
        network: Any = self.network
        return network.config

    @property
    def pad_id(self) -> int:
        """The padding id: that of the pad token if it has a row, else 0."""
        pad = self.token_ids.get("pad_token_id", -1)
        if self.tokenizer is not None:
            pad = self.tokenizer.roles["pad"]
        return pad if 0 <= pad < self.config.vocab_size else 0

    @property
    def begin_id(self) -> int:
        """The id of the token that begins a document.

        Raises:
          ConfigError: the model has no such token.
        """
        begin = self.token_ids.get("bos_token_id")
        if begin is None:
            return self.role_id("eod")
        return self._with_row(begin, "the token that begins a document (bos_token_id)")

    def role_id(self, role: str) -> int:
        """The id of a special token by its role, such as 'mask' or 'cls'.

        Raises:
          ConfigError: the model's token table has no row for this token.
        """
        assert self.tokenizer is not None
        return self._with_row(self.tokenizer.roles[role], f"a {role} token")

    def _with_row(self, index: int, what: str) -> int:
        rows = self.config.vocab_size
        if not 0 <= index < rows:
            raise ConfigError(
                f"model: it has no {what.removeprefix('a ')}: id {index} is outside of its token"
                f" table of {rows} rows; check that the tokenizer belongs to this model"
            )
        return index

    def check_ids(self, ids: np.ndarray, where: str) -> None:
        """Checks that the token table has rows for the ids of a text.

        Args:
          ids: [tokens] int.
          where: the start of the message, such as '--data'.

        Raises:
          ConfigError: an id has no row; names the text, the first such id and its token.
        """
        rows = self.config.vocab_size
        outside = np.flatnonzero((ids < 0) | (ids >= rows))
        if not len(outside):
            return
        index = int(ids[outside[0]])
        token = "" if self.tokenizer is None else self.tokenizer.token(index)
        raise ConfigError(
            f"{where}: {self.named(ids)}: id {index}{f' ({token!r})' if token else ''} is outside"
            f" of the model's token table of {rows} rows; check that the tokenizer belongs to this"
            " model. If tokens were added to it, resize the table and train the new rows first"
        )

    def named(self, ids: np.ndarray) -> str:
        """Returns the beginning of a text, for messages."""
        if self.tokenizer is None:
            return f"ids {', '.join(map(str, ids[:8]))}"
        text = self.tokenizer.decode(np.maximum(ids[:40], 0))
        return f"text {text if len(text) <= 60 else text[:57] + '...'!r}"

    def _arrays(self, tokens: Any, token_types: Any, real: Any) -> tuple[np.ndarray, ...]:
        """Fills in defaults and checks the three arrays."""
        tokens = np.asarray(tokens)
        types = np.zeros(tokens.shape, int) if token_types is None else np.asarray(token_types)
        real = np.ones(tokens.shape, bool) if real is None else np.asarray(real)
        if tokens.ndim != 2 or types.shape != tokens.shape or real.shape != tokens.shape:
            raise ValueError(
                f"tokens {tokens.shape}, token_types {types.shape}, real {real.shape}: all must be"
                " [batch, length]"
            )
        config = self.config
        longest = getattr(config, "max_length", None)
        if longest is not None and tokens.shape[1] > longest:
            raise ValueError(
                f"tokens: {tokens.shape[1]} are more than the {longest} rows of the position"
                " table (config.model.max_length); shorten the text"
            )
        tokens = _in_table("tokens", tokens, real, config.vocab_size)
        kinds = getattr(config, "segment_types", 0) or None  # without a table, they are ignored
        types = _in_table("token_types", types, real, kinds)
        return tokens.astype(np.int32), types.astype(np.int32), real.astype(bool)


def _in_table(name: str, ids: np.ndarray, real: np.ndarray, rows: int | None) -> np.ndarray:
    """Checks ids of real tokens; replaces ids of padding without a row by 0."""
    outside = (ids < 0) | (ids >= rows) if rows is not None else ids < 0
    if (outside & real).any():
        raise ValueError(
            f"{name}: ids from {ids[real].min()} to {ids[real].max()}, but the table has {rows}"
            " rows; check that the tokenizer belongs to this model"
        )
    return np.where(outside, 0, ids)


def read_whole(network: Any, params: Any, tokens: Any, token_types: Any, real: Any) -> Any:
    """Computes the network's outputs for whole texts, [batch, length]; see `Network.whole`."""
    inputs = network.config.inputs(tokens, token_types, real)
    return network.apply({"params": params}, inputs, method="whole")


_apply = jax.jit(read_whole, static_argnums=0)


@functools.partial(jax.jit, static_argnums=0)
def _hidden_states(
    network: Any, params: Any, tokens: Any, token_types: Any, real: Any
) -> jax.Array:
    inputs = network.config.inputs(tokens, token_types, real)
    return hidden_states(network, params, inputs, method="whole")


def hidden_states(network: nn.Module, params: Any, *arguments: Any, **keywords: Any) -> jax.Array:
    """Computes the hidden states of every layer, [layers + 1, batch, length, hidden_size].

    Args:
      network: a network with a single trunk, scanned or not.
      params: its parameters.
      *arguments, **keywords: passed to `network`.
    """
    _, activations = read(network, params, *arguments, **keywords)
    found: dict[str, dict[tuple[str, ...], jax.Array]] = {ENTERING: {}, LEAVING: {}, NORMED: {}}
    for path, value in activations.items():
        *place, name = path.split("/")
        if name in found:
            found[name][tuple(place)] = value
    (entering,) = found[ENTERING].values()
    layers = list(found[LEAVING].items())
    if len(layers) == 1 and layers[0][1].ndim == entering.ndim + 1:  # scanned: stacked already
        leaving = layers[0][1]
    else:
        by_index = sorted(layers, key=lambda item: int(item[0][-1].rpartition("_")[-1]))
        leaving = jnp.stack([value for _, value in by_index])
    for normed in found[NORMED].values():
        leaving = leaving.at[-1].set(normed)
    return jnp.concatenate([entering[None], leaving])
