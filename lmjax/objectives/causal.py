"""Causal language modelling: GPT's objective."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from lmjax.configuration import NonNegativeInt, Weight
from lmjax.models.family import ModelConfig
from lmjax.models.gpt import GptConfig
from lmjax.models.network import Network
from lmjax.nn.dropout import Seeds
from lmjax.nn.masks import causal, same_document
from lmjax.nn.partition import pad_length
from lmjax.objectives.base import Batch, Objective, Scored, apply, token_scores, weighted_sum


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class CausalLM(Objective):
    """Predicts each token from those before it in its document (Radford et al. 2018 eq. 1).

    Attributes:
      z_loss: weight of the mean squared log normalizer, which keeps logits from drifting
        (Chowdhery et al. 2022 §5: 1e-4); 0 = off.
      loss_chunk: number of positions of a row whose logits are in memory at once. Logits are
        recomputed in the backward pass, so [batch, length, vocab_size] is never allocated.
        0 = all positions at once, which is faster.
    """

    default_model = GptConfig
    headline = "lm"
    scores_every_token = True

    model: ModelConfig
    z_loss: Weight = 0.0
    loss_chunk: NonNegativeInt = 0

    @property
    def weights(self) -> dict[str, float]:
        return {"z_loss": self.z_loss}

    @property
    def network(self) -> Network:
        return self.model.causal_lm()

    def loss(self, params: Any, batch: Batch, mems: Any, seeds: Seeds | None) -> Scored:
        hidden = apply(self.network, params, *self.inputs(batch), seeds, method="hidden")
        return self.score(params, hidden, batch)

    def predicted(self, batch: Batch, ahead: int = 1) -> jax.Array:
        """Returns [batch, length] bool, whether to predict the token `ahead` positions later.

        It must belong to the same document.
        """
        segment_ids = batch["segment_ids"]
        following = jnp.pad(segment_ids[:, ahead:], ((0, 0), (0, ahead)))
        return (segment_ids == following) & (following > 0)

    def score(self, params: Any, hidden: jax.Array, batch: Batch, ahead: int = 1) -> Scored:
        """Scores the tokens `ahead` positions later; if that is not 1, all names end with it.

        hidden: [batch, length, hidden_size].
        """
        targets = jnp.roll(batch["tokens"], -ahead, axis=1)
        scored = hidden, targets, self.predicted(batch, ahead)
        suffix = "" if ahead == 1 else f"_{ahead}"
        if not 0 < self.loss_chunk < targets.shape[1]:
            return self._score(params, suffix, *scored)
        chunks = jax.tree.map(lambda x: split_positions(x, self.loss_chunk), scored)
        score = jax.checkpoint(lambda chunk: self._score(params, suffix, *chunk))
        return jax.tree.map(lambda sums: sums.sum(0), jax.lax.map(score, chunks))

    def _score(
        self, params: Any, suffix: str, hidden: jax.Array, targets: jax.Array, weights: jax.Array
    ) -> Scored:
        logits = apply(self.network, params, hidden, method="decode")
        terms, metrics = token_scores(f"lm{suffix}", logits, targets, weights, self.vocabulary)
        if self.z_loss:
            log_z = jax.nn.logsumexp(logits.astype(jnp.float32), axis=-1)
            terms[f"z_loss{suffix}"] = weighted_sum(jnp.square(log_z), weights)
        return Scored(terms, metrics)

    def forward_flops(self, length: int) -> float | None:
        encoder = self.model.forward_flops(length)
        head = 2 * length * self.model.trunk.hidden_size * self.model.vocab_size
        return None if encoder is None else encoder + head

    def inputs(self, batch: Batch, mems: Any = None) -> tuple[Any, ...]:
        mask = same_document(batch["segment_ids"]) & causal(batch["tokens"].shape[1])
        return (self.text_inputs(batch, mask),)


def split_positions(x: jax.Array, size: int) -> jax.Array:
    """[batch, length, ...] -> [chunks, batch, size, ...], padded with zeros.

    Each chunk takes every chunks-th position, so that it uses all devices over which the length
    is split.
    """
    chunks = -(-x.shape[1] // size)
    x = pad_length(x, chunks * size)
    return jnp.moveaxis(x.reshape(x.shape[0], size, chunks, *x.shape[2:]), 2, 0)
