"""Replaced-token detection, ELECTRA's objective, and the base of objectives with a generator."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from lmjax.configuration import Probability, Size, Weight
from lmjax.models.electra import Electra, ElectraConfig
from lmjax.models.network import TextInputs
from lmjax.nn.dropout import Seeds
from lmjax.nn.layers import sample_categorical
from lmjax.nn.masks import same_document
from lmjax.nn.trunk import TransformerConfig
from lmjax.objectives.base import Batch, Objective, Scored, Sum, apply, token_scores, weighted_sum
from lmjax.objectives.masked import Masking, MaskRate, choose_targets, replace


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Replacing(Objective):
    """A generator, and a second network that reads its samples in place of masked tokens.

    No gradient flows through the sampling. The network must have the generator methods of
    `lmjax.models.electra.Electra`.

    Positions are drawn without replacement; the authors' code draws them with replacement, which
    occasionally wastes a slot.

    Attributes:
      mask_rate: fraction of the tokens, special tokens included, to mask (0.15; 0.25 for large).
      max_predictions: most tokens of an example to mask; int((mask_rate + 0.005) * length) in the
        paper.
      masking: 'token', 'whole_word' or 'span'.
      mask_fraction: fraction of the chosen tokens that become [MASK]; the others are unchanged.
        All chosen tokens are resampled.
      generator_weight: weight of the generator's loss.
    """

    headline = "mlm"

    model: ElectraConfig
    mask_rate: MaskRate = 0.15
    max_predictions: Size = 19
    masking: Masking = "token"
    mask_fraction: Probability = 0.85
    generator_weight: Weight = 1.0

    def corrupt(self, key: jax.Array, example: Batch) -> Batch:
        """Adds `original`, `target_*` [slots] as `choose_targets`, and the `sampling_key`."""
        for_choice, for_tokens, for_samples = jax.random.split(key, 3)
        tokens, vocabulary = example["tokens"], self.vocabulary
        chosen = choose_targets(
            for_choice, example, vocabulary, self.masking, self.mask_rate, self.max_predictions
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

    def generated(
        self, params: Any, batch: Batch, seeds: Seeds | None
    ) -> tuple[TextInputs, dict[str, Sum], dict[str, Sum]]:
        """Returns the second network's inputs, and the generator's terms and metrics."""
        inputs, where = self.inputs(batch)
        logits = apply(self.network, params, inputs, where, seeds, method="generate")
        terms, metrics = token_scores(
            "mlm", logits, batch["targets"], batch["target_weights"], self.vocabulary
        )
        tokens = sample_replacements(logits, batch)
        metrics["replaced"] = weighted_sum(tokens != batch["original"], batch["segment_ids"] > 0)
        return inputs.replace(tokens=tokens), terms, metrics

    def trunks_flops(self, length: int) -> float:
        """FLOPs of both trunks and the generator's predictions, for one forward pass."""
        c, n = self.model, min(self.max_predictions, length)
        generator, features = c.generator_trunk, c.embedding_features
        total = generator.forward_flops(length, length) + c.trunk.forward_flops(length, length)
        for trunk in (generator, c.trunk):
            if trunk.hidden_size != features:
                total += 2 * length * features * trunk.hidden_size
        return total + self.prediction_flops(generator, n)

    def prediction_flops(self, trunk: TransformerConfig, positions: int) -> float:
        """FLOPs of predicting the tokens at `positions` positions from the output of `trunk`."""
        c = self.model
        return 2 * positions * c.embedding_features * (trunk.hidden_size + c.vocab_size)

    def inputs(self, batch: Batch, mems: Any = None) -> tuple[Any, ...]:
        mask = same_document(batch["segment_ids"])
        return self.text_inputs(batch, mask), batch["target_positions"]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class ReplacedTokenDetection(Replacing):
    """ELECTRA (Clark et al. 2020 §2): L_MLM(generator) + 50 L_Disc(discriminator).

    A sample that equals the original counts as original. The discriminator is scored on all
    tokens except padding, including [CLS] and [SEP].

    Attributes:
      generator_weight, discriminator_weight: 1 and 50 in the paper.
      detects: score 'all' tokens, or only the 'chosen' ones ("ELECTRA 15%" of §3.4).
    """

    discriminator_weight: Weight = 50.0
    detects: Literal["all", "chosen"] = "all"

    @property
    def weights(self) -> dict[str, float]:
        return {"mlm": self.generator_weight, "rtd": self.discriminator_weight}

    @property
    def network(self) -> Electra:
        return Electra(self.model)

    def loss(self, params: Any, batch: Batch, mems: Any, seeds: Seeds | None) -> Scored:
        read, terms, metrics = self.generated(params, batch, seeds)
        replaced = read.tokens != batch["original"]
        detected = apply(self.network, params, read, seeds, method="discriminate")
        scored = batch["segment_ids"] > 0 if self.detects == "all" else chosen_positions(batch)
        binary = optax.sigmoid_binary_cross_entropy(detected, replaced.astype(jnp.float32))
        terms["rtd"] = weighted_sum(binary, scored)
        flagged = detected > 0
        metrics |= {
            "rtd_accuracy": weighted_sum(flagged == replaced, scored),
            "rtd_precision": weighted_sum(replaced, scored & flagged),
            "rtd_recall": weighted_sum(flagged, scored & replaced),
        }
        return Scored(terms, metrics)

    def forward_flops(self, length: int) -> float:
        hidden = self.model.trunk.hidden_size
        return self.trunks_flops(length) + 2 * length * hidden * (hidden + 1)


def chosen_positions(batch: Batch) -> jax.Array:
    """Returns which tokens were chosen for masking: [batch, length] bool."""
    length = batch["tokens"].shape[1]
    where = jnp.where(batch["target_weights"] > 0, batch["target_positions"], length)
    return (where[:, :, None] == jnp.arange(length)).any(axis=1)


def sample_replacements(logits: jax.Array, batch: Batch) -> jax.Array:
    """Replaces the original tokens at the target positions with samples of the generator.

    The temperature is 1, and no gradient passes through the samples.

    Args:
      logits: [batch, num_predict, vocab_size], the generator's logits.

    Returns:
      [batch, length] int32.
    """
    samples = jax.vmap(sample_categorical)(batch["sampling_key"], logits)
    original = batch["original"]
    length = original.shape[1]
    where = jnp.where(batch["target_weights"] > 0, batch["target_positions"], length)

    def fill(tokens: jax.Array, where: jax.Array, samples: jax.Array) -> jax.Array:
        return tokens.at[where].set(samples.astype(tokens.dtype), mode="drop")

    return jax.vmap(fill)(original, where, samples)
