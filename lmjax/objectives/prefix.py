"""Prefix language modelling: the beginning of a document is read from both sides."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from lmjax.configuration import Probability
from lmjax.models.gpt import Gpt, GptConfig
from lmjax.nn.masks import causal, prefix, same_document
from lmjax.objectives.base import Batch
from lmjax.objectives.causal import CausalLM


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class PrefixLM(CausalLM):
    """A decoder that attends to the whole prefix of a document (Raffel et al. 2020 §3.2.1).

    All tokens of the prefix attend to each other, and each later token is predicted from all
    tokens before it. As in the paper (§3.2.3), a random point splits a text. Each document of a
    packed row has its own point, drawn anew in every step. With a prefix of one token, a document
    is read as by a causal LM.

    Attributes:
      longest_prefix: largest share of a document that can be its prefix; at least the last token
        is predicted.
    """

    scores_every_token = False

    model: GptConfig
    longest_prefix: Probability = 1.0

    @property
    def network(self) -> "PrefixGpt":
        return PrefixGpt(self.model)

    def corrupt(self, key: jax.Array, example: Batch) -> Batch:
        """Adds `in_prefix` [length] bool."""
        segment_ids = example["segment_ids"]
        (length,) = segment_ids.shape
        index = jnp.arange(length)
        # By number of the document, from 0 (padding) to length.
        first = jnp.full(length + 1, length).at[segment_ids].min(index)
        tokens = jnp.zeros(length + 1, jnp.int32).at[segment_ids].add(1)
        most = jnp.maximum(1, jnp.floor(self.longest_prefix * (tokens - 1)).astype(jnp.int32))
        size = jax.random.randint(key, (length + 1,), 1, most + 1)
        in_prefix = index - first[segment_ids] < size[segment_ids]
        return {**example, "in_prefix": in_prefix & (segment_ids > 0)}

    def predicted(self, batch: Batch, ahead: int = 1) -> jax.Array:
        is_given = jnp.roll(batch["in_prefix"], -ahead, axis=1)
        return super().predicted(batch, ahead) & ~is_given

    def inputs(self, batch: Batch, mems: Any = None) -> tuple[Any, ...]:
        visible = prefix(batch["in_prefix"]) | causal(batch["tokens"].shape[1])
        return (self.text_inputs(batch, visible & same_document(batch["segment_ids"])),)


class PrefixGpt(Gpt):
    """A decoder that reads a prompt from both sides: it is the prefix of the generated text.

    Scores of a text are those of a causal LM, that is, with a prefix of one token.
    """

    def last_visible(self, start: Any, count: int) -> jax.Array:
        # Only a prompt is read from slot 0 on.
        return jnp.where(start == 0, count - 1, super().last_visible(start, count))
