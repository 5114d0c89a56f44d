"""Language models that read a generator's samples: intermediates of masked LM and ELECTRA."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from lmjax.errors import ConfigError
from lmjax.models.electra import ElectraWithLM
from lmjax.nn.dropout import Seeds
from lmjax.nn.layers import score_targets
from lmjax.objectives.base import (
    Batch,
    Scored,
    apply,
    token_scores,
    unigram_score,
    weighted_sum,
)
from lmjax.objectives.rtd import Replacing


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class ReplaceMLM(Replacing):
    """Masked LM with samples in place of [MASK] (Clark et al. 2020 §3.4)."""

    headline = "identity"

    @property
    def weights(self) -> dict[str, float]:
        # The paper does not give the weight of the second network's loss; both are masked LMs.
        return {"mlm": self.generator_weight, "identity": 1.0}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model.share_embeddings is not True:
            raise ConfigError(
                f"type: {type(self).__name__} shares the embeddings of its two networks; set"
                " config.model.share_embeddings to True"
            )

    @property
    def network(self) -> ElectraWithLM:
        return ElectraWithLM(self.model)

    def loss(self, params: Any, batch: Batch, mems: Any, seeds: Seeds | None) -> Scored:
        read, terms, metrics = self.generated(params, batch, seeds)
        where = batch["target_positions"]
        logits, _ = apply(self.network, params, read, where, seeds, method="identify")
        own, scores = token_scores(
            "identity", logits, batch["targets"], batch["target_weights"], self.vocabulary
        )
        return Scored(terms | own, metrics | scores)

    def forward_flops(self, length: int) -> float:
        predicted = min(self.max_predictions, length)
        return self.trunks_flops(length) + self.prediction_flops(self.model.trunk, predicted)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class AllTokensMLM(ReplaceMLM):
    """Replace MLM on all tokens, with a copy mechanism (Clark et al. 2020 §3.4).

    p(token) = D [token is the input token] + (1 - D) softmax(token), where a sigmoid layer
    computes D. All tokens except padding are scored, as in ELECTRA's discriminator.
    """

    @property
    def network(self) -> ElectraWithLM:
        return ElectraWithLM(self.model, copies=True)

    def loss(self, params: Any, batch: Batch, mems: Any, seeds: Seeds | None) -> Scored:
        read, terms, metrics = self.generated(params, batch, seeds)
        logits, copies = apply(self.network, params, read, None, seeds, method="identify")
        original, real = batch["original"], batch["segment_ids"] > 0
        nats, hits = score_targets(logits, original)
        kept = read.tokens == original
        terms["identity"] = weighted_sum(-log_mixture(copies, kept, -nats), real)
        metrics["unigram"] = unigram_score(original, real, self.vocabulary)
        metrics["identity_accuracy"] = weighted_sum(jnp.where(copies > 0, kept, hits), real)
        return Scored(terms, metrics)

    def forward_flops(self, length: int) -> float:
        trunk = self.model.trunk
        head = self.prediction_flops(trunk, length) + 2 * length * trunk.hidden_size
        return self.trunks_flops(length) + head


def log_mixture(copies: jax.Array, kept: jax.Array, log_softmax: jax.Array) -> jax.Array:
    """log(D [kept] + (1 - D) softmax), D = sigmoid(copies); all [...].

    Args:
      copies: logits of copying the input token.
      kept: bool, whether the input token is the target.
      log_softmax: log softmax of the target.
    """
    by_softmax = jax.nn.log_sigmoid(-copies) + log_softmax
    # Where copying is impossible, logaddexp with -inf would have no gradient.
    both = jnp.logaddexp(jax.nn.log_sigmoid(copies), by_softmax)
    return jnp.where(kept, both, by_softmax)
