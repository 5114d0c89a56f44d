"""A causal LM that reads blanks (Xie et al. 2017), written outside of the package."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from lmjax.models.gpt import Gpt, GptConfig
from lmjax.nn.dropout import Seeds
from lmjax.nn.masks import causal, same_document
from lmjax.objectives.base import Batch, Objective, Scored, apply, token_scores


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class BlankedLM(Objective):
    """Each token is predicted from those before it, some of which are hidden.

    Attributes:
      blank_rate: share of the tokens that are read as [MASK], drawn in every step anew.
    """

    headline = "lm"

    model: GptConfig
    blank_rate: float = 0.1

    @property
    def network(self) -> Gpt:
        return Gpt(self.model)

    def corrupt(self, key: jax.Array, example: Batch) -> Batch:
        tokens = example["tokens"]
        blank = jax.random.uniform(key, tokens.shape) < self.blank_rate
        read = jnp.where(blank, self.vocabulary.mask, tokens)
        return {**example, "tokens": read, "original": tokens}

    def loss(self, params: Any, batch: Batch, mems: Any, seeds: Seeds | None) -> Scored:
        logits = apply(self.network, params, *self.inputs(batch), seeds)[:, :-1]
        segment_ids = batch["segment_ids"]
        weights = (segment_ids[:, 1:] == segment_ids[:, :-1]) & (segment_ids[:, 1:] > 0)
        targets = batch["original"][:, 1:]
        return Scored(*token_scores("lm", logits, targets, weights, self.vocabulary))

    def inputs(self, batch: Batch, mems: Any = None) -> tuple[Any, ...]:
        """The text under a causal mask, inside each document."""
        mask = causal(batch["tokens"].shape[1]) & same_document(batch["segment_ids"])
        return (self.text_inputs(batch, mask),)
