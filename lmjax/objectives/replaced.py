"""Replaced-token detection: ELECTRA's objective."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lmjax.errors import ConfigError
from lmjax.models.electra import Electra, ElectraConfig
from lmjax.nn.dropout import Seeds
from lmjax.nn.masks import same_document
from lmjax.objectives.base import Batch, Objective, Scored, apply, token_scores, weighted_sum
from lmjax.objectives.masking import Masking, choose, prediction_count, replace


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class ReplacedTokenDetection(Objective):
    """ELECTRA (Clark et al. 2020 §2): L_MLM(generator) + 50 L_Disc(discriminator).

    The generator's samples take the place of the masked tokens; no gradient flows
    through the sampling, and a sample that equals the original counts as original. The
    discriminator is scored on all tokens but padding, [CLS] and [SEP] included.

    Positions are drawn without replacement; the authors' code draws them with, which
    now and then wastes a slot.

    Attributes:
      mask_rate: share of the tokens, specials counted, to mask (0.15; 0.25 for large).
      max_predictions: slots of an example; int((mask_rate + 0.005) * length) in the paper.
      masking: 'token', 'whole_word' or 'span'.
      mask_fraction: of the chosen, become [MASK]; the rest stay and are re-sampled too.
      generator_weight, discriminator_weight: 1 and 50 in the paper.
    """

    headline = "mlm"

    model: ElectraConfig
    mask_rate: float = 0.15
    max_predictions: int = 19
    masking: Masking = "token"
    mask_fraction: float = 0.85
    generator_weight: float = 1.0
    discriminator_weight: float = 50.0

    def __post_init__(self) -> None:
        if not 0.0 < self.mask_rate <= 1.0:
            raise ConfigError(f"mask_rate: must lie in (0, 1], got {self.mask_rate}")
        if self.max_predictions < 1:
            raise ConfigError(f"max_predictions: must be at least 1, got {self.max_predictions}")
        if not 0.0 <= self.mask_fraction <= 1.0:
            raise ConfigError(f"mask_fraction: must lie in [0, 1], got {self.mask_fraction}")

    @property
    def weights(self) -> dict[str, float]:
        return {"mlm": self.generator_weight, "rtd": self.discriminator_weight}

    @property
    def network(self) -> Electra:
        return Electra(self.model)

    def init(self, key: jax.Array, batch: Batch) -> Any:
        return self.network.init(key, *self.inputs(batch))["params"]

    def corrupt(self, key: jax.Array, example: Batch) -> Batch:
        """Adds `original`, `target_*` [max_predictions] and the `sampling_key`."""
        for_choice, for_tokens, for_samples = jax.random.split(key, 3)
        tokens, real = example["tokens"], example["documents"] > 0
        vocabulary = self.vocabulary
        chosen = choose(
            for_choice,
            self.masking,
            candidates=real & ~jnp.asarray(np.asarray(vocabulary.special))[tokens],
            starts_word=jnp.asarray(np.asarray(vocabulary.starts_word))[tokens],
            count=prediction_count(real.sum(), self.mask_rate, self.max_predictions),
            slots=self.max_predictions,
        )
        masked = replace(
            for_tokens,
            tokens,
            chosen,
            mask_token=vocabulary.mask,
            vocab_size=vocabulary.size,
            mask_fraction=self.mask_fraction,
            random_fraction=0.0,
        )
        return {
            **example,
            "tokens": masked,
            "original": tokens,
            "target_positions": chosen.positions,
            "targets": tokens[chosen.positions],
            "target_weights": chosen.weights,
            "sampling_key": for_samples,
        }

    def loss(self, params: Any, batch: Batch, mems: Any, seeds: Seeds | None) -> Scored:
        network = self.network
        logits = apply(network, params, *self.inputs(batch), seeds, method="generate")
        terms, metrics = token_scores(
            "mlm", logits, batch["targets"], batch["target_weights"], self.vocabulary
        )
        tokens = sample_replacements(logits, batch)
        replaced = tokens != batch["original"]
        _, segments, positions, mask, _ = self.inputs(batch)
        discriminate = (tokens, segments, positions, mask, seeds)
        detected = apply(network, params, *discriminate, method="discriminate")
        real = batch["documents"] > 0
        binary = optax.sigmoid_binary_cross_entropy(detected, replaced.astype(jnp.float32))
        terms["rtd"] = weighted_sum(binary, real)
        flagged = detected > 0
        metrics |= {
            "rtd_accuracy": weighted_sum(flagged == replaced, real),
            "rtd_precision": weighted_sum(replaced, real & flagged),
            "rtd_recall": weighted_sum(flagged, real & replaced),
            "replaced": weighted_sum(replaced, real),
        }
        return Scored(terms, metrics)

    def forward_flops(self, length: int) -> float:
        c, n = self.model, min(self.max_predictions, length)
        generator, features = c.generator_trunk, c.embedding_features
        total = generator.forward_flops(length, length) + c.trunk.forward_flops(length, length)
        for trunk in (generator, c.trunk):
            if trunk.hidden_size != features:
                total += 2 * length * features * trunk.hidden_size
        total += 2 * n * features * (generator.hidden_size + c.vocab_size)
        return total + 2 * length * c.trunk.hidden_size * (c.trunk.hidden_size + 1)

    def inputs(self, batch: Batch) -> tuple[Any, ...]:
        return (
            batch["tokens"],
            batch["segments"],
            batch["positions"],
            same_document(batch["documents"]),
            batch["target_positions"],
        )


def sample_replacements(logits: jax.Array, batch: Batch) -> jax.Array:
    """The original tokens with the generator's samples at the target positions.

    Gumbel-max sampling at temperature 1 behind a stop_gradient.

    Args:
      logits: [batch, num_predict, vocab_size], the generator's.

    Returns:
      [batch, length] int32.
    """
    logits = jax.lax.stop_gradient(logits)
    samples = jax.vmap(jax.random.categorical)(batch["sampling_key"], logits)
    original = batch["original"]
    length = original.shape[1]
    where = jnp.where(batch["target_weights"] > 0, batch["target_positions"], length)

    def fill(tokens: jax.Array, where: jax.Array, samples: jax.Array) -> jax.Array:
        return tokens.at[where].set(samples.astype(tokens.dtype), mode="drop")

    return jax.vmap(fill)(original, where, samples)
