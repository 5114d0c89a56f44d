"""The next token's logits of a text, for each kind of network that reads left to right."""

import dataclasses
from typing import Any, Protocol

import flax.struct
import jax
import jax.numpy as jnp

from lmjax.models.gpt import Gpt
from lmjax.models.xlnet import Xlnet
from lmjax.nn.attention import Cache
from lmjax.nn.masks import padding, permutation


@flax.struct.dataclass
class Text:
    """Some texts in slots, ending together.

    Attributes:
      tokens: [batch, slots] int32; row r is text from begin[r] up to end.
      begin: [batch] int32, padding before it.
      prompt: [] int32, the first slot that is generated.
      end: [] int32.
    """

    tokens: jax.Array
    begin: jax.Array
    prompt: jax.Array
    end: jax.Array

    @property
    def slots(self) -> int:
        return self.tokens.shape[1]

    def append(self, tokens: jax.Array) -> "Text":
        """With one more token a row. tokens: [batch] int32."""
        written = jax.lax.dynamic_update_slice(self.tokens, tokens[:, None], (0, self.end))
        return self.replace(tokens=written, end=self.end + 1)  # type: ignore[attr-defined]


class Reader(Protocol):
    """How a network reads; a static argument of compiled functions, so it is hashable.

    What it keeps of the text read so far is a pytree whose arrays have the batch as axis
    `batch_axis`.
    """

    @property
    def network(self) -> Any: ...
    @property
    def batch_axis(self) -> int: ...

    def start(self, params: Any, text: Text, length: int) -> tuple[jax.Array, Any]:
        """Reads the prompts, slots 0..length: logits [batch, vocab_size], what is kept."""

    def step(self, params: Any, text: Text, kept: Any) -> tuple[jax.Array, Any]:
        """Reads the last token; as `start`."""


@dataclasses.dataclass(frozen=True)
class CausalReader:
    """GPT, with the keys and values of what it has read in a cache."""

    network: Gpt
    batch_axis: int = 1

    def start(self, params: Any, text: Text, length: int) -> tuple[jax.Array, Any]:
        cache = Cache.empty(self.network.config.trunk, text.tokens.shape[0], text.slots)
        return self._read(params, text, text.tokens[:, :length], jnp.arange(length), cache)

    def step(self, params: Any, text: Text, kept: Any) -> tuple[jax.Array, Any]:
        last = text.end - 1
        tokens = jax.lax.dynamic_slice_in_dim(text.tokens, last, 1, axis=1)
        return self._read(params, text, tokens, last[None], kept)

    def _read(
        self, params: Any, text: Text, tokens: jax.Array, queries: jax.Array, cache: Cache
    ) -> tuple[jax.Array, Any]:
        keys = jnp.arange(text.slots)[None, None]
        mask = (keys <= queries[None, :, None]) & (keys >= text.begin[:, None, None])
        positions = jnp.maximum(queries[None] - text.begin[:, None], 0)

        def last_logits(module: Gpt) -> tuple[jax.Array, Any]:
            start = queries[0]
            hidden, written = module.encoder.extend(tokens, positions, mask, None, cache, start)
            return module.decode(hidden[:, -1]), written

        return self.network.apply({"params": params}, method=last_logits)


@dataclasses.dataclass(frozen=True)
class PermutationReader:
    """XLNet, from left to right in its query stream; every token reads the whole text anew.

    The prompt's tokens see each other, a generated token what stands before it: with the
    prompt first in the factorisation order, this is an order like any of pretraining's, and
    what is predicted is p(token | prompt, tokens before it) exactly.
    """

    network: Xlnet
    batch_axis: int = 0

    def start(self, params: Any, text: Text, length: int) -> tuple[jax.Array, Any]:
        del length
        return self.step(params, text, None)

    def step(self, params: Any, text: Text, kept: Any) -> tuple[jax.Array, Any]:
        slots = jnp.arange(text.slots)[None]
        generated = slots >= text.prompt
        order = permutation(jnp.where(generated, slots, 0), jnp.where(generated, slots, -1))
        mask = order & padding((slots >= text.begin[:, None]).astype(jnp.int32))
        target = jnp.broadcast_to(text.end, (text.tokens.shape[0], 1))

        def next_logits(module: Xlnet) -> jax.Array:
            segments = jnp.zeros_like(text.tokens)
            output, _ = module(text.tokens, segments, mask, None, target)
            return module.decode(output[:, 0])

        logits: Any = self.network.apply({"params": params}, method=next_logits)
        return logits, None
