"""Masked diffusion: masked LM at all mask rates, weighted to bound the likelihood of a text."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.models.bert import BertConfig
from lmjax.models.family import ModelConfig
from lmjax.models.network import Network, every_position
from lmjax.nn.attention import MASKED_SCORE
from lmjax.nn.dropout import Seeds
from lmjax.nn.layers import score_targets
from lmjax.nn.masks import same_document
from lmjax.objectives.base import Batch, Objective, Scored, apply, unigram_score, weighted_sum


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class MaskedDiffusion(Objective):
    """MDLM (Sahoo et al. 2024, eq. 10): the negative evidence lower bound of a masked diffusion.

    A time t in (0, 1) is drawn for each row, and each token is masked with probability m(t). The
    sum of -log p over the masked tokens, times m'(t) / m(t), is an unbiased estimate of a bound of
    -log p(text), the same for every schedule m. It equals the mean over all orders of generating
    the tokens one by one. As in the paper, the network does not take the time as input and never
    predicts [MASK], and unmasked tokens never change. The paper spreads the times evenly over a
    batch; here each row draws its own, so that it does not depend on the batch.

    All tokens of the text are masked, those that end documents included. Each row of `Packed`
    examples has one time.

    Attributes:
      schedule: mask rate m(t): 'linear' is t (the paper's log-linear noise), 'cosine' is
        sin(pi t / 2), which masks more.
    """

    default_model = BertConfig
    headline = "bound"
    scores_every_token = True

    model: ModelConfig
    schedule: Literal["linear", "cosine"] = "linear"

    @property
    def network(self) -> Network:
        return self.model.masked_lm()

    def corrupt(self, key: jax.Array, example: Batch) -> Batch:
        """Adds `original` [length], `masked` [length] bool, and `rate_weight` [] float32."""
        for_time, for_tokens = jax.random.split(key)
        # Times below 1e-3 would be rare and have large weights (the authors' sampling_eps).
        time = jax.random.uniform(for_time, minval=1e-3)
        rate, weight = mask_rate(time, self.schedule)
        tokens = example["tokens"]
        drawn = jax.random.uniform(for_tokens, tokens.shape) < rate
        masked = drawn & (example["segment_ids"] > 0)
        return {
            **example,
            "tokens": jnp.where(masked, self.vocabulary.mask, tokens),
            "original": tokens,
            "masked": masked,
            "rate_weight": weight,
        }

    def loss(self, params: Any, batch: Batch, mems: Any, seeds: Seeds | None) -> Scored:
        logits, _ = apply(self.network, params, *self.inputs(batch), seeds)
        is_mask = np.arange(logits.shape[-1]) == self.vocabulary.mask
        logits = jnp.where(is_mask, MASKED_SCORE, logits)
        original, masked = batch["original"], batch["masked"]
        real = batch["segment_ids"] > 0
        losses, hits = score_targets(logits, original)
        bound, _ = weighted_sum(losses * batch["rate_weight"][:, None], masked)
        return Scored(
            {"bound": (bound, real.sum().astype(jnp.float32))},
            {
                "mlm": weighted_sum(losses, masked),
                "mlm_accuracy": weighted_sum(hits, masked),
                "mask_rate": weighted_sum(masked, real),
                "unigram": unigram_score(original, real, self.vocabulary),
            },
        )

    def forward_flops(self, length: int) -> float | None:
        encoder, hidden = self.model.forward_flops(length), self.model.trunk.hidden_size
        head = 2 * length * hidden * (hidden + self.model.vocab_size)
        return None if encoder is None else encoder + head

    def inputs(self, batch: Batch, mems: Any = None) -> tuple[Any, ...]:
        read = self.text_inputs(batch, same_document(batch["segment_ids"]))
        return read, every_position(read)


def mask_rate(
    time: jax.Array, schedule: Literal["linear", "cosine"]
) -> tuple[jax.Array, jax.Array]:
    """Returns m(t) and the weight m'(t) / m(t) of the masked tokens at time t."""
    if schedule == "linear":
        return time, 1.0 / time
    angle = jnp.pi / 2 * time
    return jnp.sin(angle), jnp.pi / 2 / jnp.tan(angle)
