"""Causal and masked language modelling with one decoder: GPT-BERT's objective."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from lmjax.configuration import Probability
from lmjax.models.gpt import GptConfig
from lmjax.models.network import Network
from lmjax.nn.dropout import Seeds
from lmjax.nn.layers import score_targets
from lmjax.nn.masks import causal, same_document
from lmjax.objectives.base import Batch, Scored, apply, unigram_score, weighted_sum
from lmjax.objectives.masked import WithMasks


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class CausalMaskedLM(WithMasks):
    """GPT-BERT (Charpentier and Samuel 2024, section 2): each row is a causal or a masked LM.

    A masked row is read from both sides, and a masked token is predicted at the position before it
    (masked next-token prediction), so that both kinds share one output layer. Each row is drawn to
    be of one kind, in every step anew. The loss is the mean over rows of their mean losses, so its
    expectation is causal_fraction * causal loss + (1 - causal_fraction) * masked loss.

    Attributes:
      causal_fraction: share of causal rows; the paper trains 1:15 to 1:1 of causal to masked rows.
    """

    default_model = GptConfig
    headline = "lm"

    causal_fraction: Probability = 0.0625

    @property
    def network(self) -> Network:
        return self.model.causal_lm()

    def corrupt(self, key: jax.Array, example: Batch) -> Batch:
        """Adds `original` and `predicted` [length], whether to predict a token, and `is_causal`."""
        for_kind, for_masks = jax.random.split(key)
        tokens = example["tokens"]
        masked, chosen = self.masked(for_masks, example)
        where = jnp.where(chosen.weights > 0, chosen.positions, tokens.shape[0])
        hidden = jnp.zeros(tokens.shape, bool).at[where].set(True, mode="drop")
        is_causal = jax.random.uniform(for_kind) < self.causal_fraction
        # The first token of a document has no position before it.
        preceded = (example["segment_ids"] > 0) & (example["positions"] > 0)
        return {
            **example,
            "tokens": jnp.where(is_causal, tokens, masked),
            "original": tokens,
            "predicted": preceded & (is_causal | hidden),
            "is_causal": is_causal,
        }

    def loss(self, params: Any, batch: Batch, mems: Any, seeds: Seeds | None) -> Scored:
        hidden = apply(self.network, params, *self.inputs(batch), seeds, method="hidden")
        logits = apply(self.network, params, hidden, method="decode")
        targets = jnp.roll(batch["original"], -1, axis=1)
        weights = jnp.pad(batch["predicted"][:, 1:], ((0, 0), (0, 1)))
        losses, hits = score_targets(logits, targets)
        count = weights.sum(1)
        means = (losses * weights).sum(1) / jnp.maximum(count, 1)
        is_causal = batch["is_causal"][:, None]
        return Scored(
            {"lm": weighted_sum(means, count > 0)},
            {
                "causal": weighted_sum(losses, weights & is_causal),
                "causal_accuracy": weighted_sum(hits, weights & is_causal),
                "masked": weighted_sum(losses, weights & ~is_causal),
                "masked_accuracy": weighted_sum(hits, weights & ~is_causal),
                "unigram": unigram_score(targets, weights, self.vocabulary),
            },
        )

    def forward_flops(self, length: int) -> float | None:
        encoder = self.model.forward_flops(length)
        head = 2 * length * self.model.trunk.hidden_size * self.model.vocab_size
        return None if encoder is None else encoder + head

    def inputs(self, batch: Batch, mems: Any = None) -> tuple[Any, ...]:
        rows, length = batch["tokens"].shape
        both_sides = jnp.broadcast_to(~batch["is_causal"][:, None, None], (rows, 1, length))
        mask = same_document(batch["segment_ids"]) & (causal(length) | both_sides)
        return (self.text_inputs(batch, mask),)
