"""A prefix LM (Raffel et al. 2020, section 3.2.1), written outside of the package."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from lmjax.models.gpt import Gpt, GptConfig
from lmjax.nn.dropout import Seeds
from lmjax.nn.masks import causal, prefix, same_document
from lmjax.objectives.base import Batch, Objective, Scored, apply, token_scores


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class PrefixLM(Objective):
    """Everyone sees the prefix; what follows it is predicted token by token.

    Attributes:
      longest_prefix: of the length; each example draws its own, in every step anew.
    """

    headline = "lm"

    model: GptConfig
    longest_prefix: float = 0.5

    @property
    def network(self) -> Gpt:
        return Gpt(self.model)

    def corrupt(self, key: jax.Array, example: Batch) -> Batch:
        length = example["tokens"].shape[0]
        size = jax.random.randint(key, (), 1, max(2, int(self.longest_prefix * length) + 1))
        return {**example, "in_prefix": jnp.arange(length) < size}

    def loss(self, params: Any, batch: Batch, mems: Any, seeds: Seeds | None) -> Scored:
        logits = apply(self.network, params, *self.inputs(batch), seeds)[:, :-1]
        segment_ids = batch["segment_ids"]
        weights = (segment_ids[:, 1:] == segment_ids[:, :-1]) & (segment_ids[:, 1:] > 0)
        weights &= ~batch["in_prefix"][:, 1:]
        targets = batch["tokens"][:, 1:]
        return Scored(*token_scores("lm", logits, targets, weights, self.vocabulary))

    def inputs(self, batch: Batch, mems: Any = None) -> tuple[Any, ...]:
        """The text under the mask (prefix | causal), inside each document."""
        seen = prefix(batch["in_prefix"]) | causal(batch["tokens"].shape[1])
        return (self.text_inputs(batch, seen & same_document(batch["segment_ids"])),)
