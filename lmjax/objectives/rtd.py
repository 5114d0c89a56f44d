"""Replaced-token detection, ELECTRA's objective, and the base of objectives with a generator."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from lmjax.configuration import Probability, Size, Weight
from lmjax.errors import ConfigError
from lmjax.models.electra import Electra, ElectraConfig
from lmjax.models.network import TextInputs
from lmjax.nn.dropout import Seeds
from lmjax.nn.layers import sample_categorical, score_targets
from lmjax.nn.masks import same_document
from lmjax.nn.trunk import TransformerConfig
from lmjax.objectives.base import Batch, Objective, Scored, Sum, apply, token_scores, weighted_sum
from lmjax.objectives.masked import Masking, MaskRate, choose_targets, replace
from lmjax.trees import map_named


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
        return self.sampled(batch, inputs, logits)

    def sampled(
        self, batch: Batch, inputs: Any, logits: jax.Array
    ) -> tuple[TextInputs, dict[str, Sum], dict[str, Sum]]:
        """As `generated`, from the generator's `logits` [batch, num_predict, vocab_size]."""
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
      generator_training: 'likelihood' minimizes L_MLM. 'adversarial' maximizes the discriminator's
        loss; see `adversarial_terms`. 'frozen' leaves the generator as it is, such as in the second
        of two stages (§3.3). The last two report L_MLM and do not minimize it.
    """

    discriminator_weight: Weight = 50.0
    detects: Literal["all", "chosen"] = "all"
    generator_training: Literal["likelihood", "adversarial", "frozen"] = "likelihood"

    def __post_init__(self) -> None:
        super().__post_init__()
        shared = self.model.share_embeddings
        if self.generator_training == "frozen" and shared in (True, "all_weights"):
            raise ConfigError(
                "generator_training: the discriminator would train the parameters that it shares"
                " with a frozen generator; set config.model.share_embeddings to False or"
                " 'disentangled'"
            )

    @property
    def weights(self) -> dict[str, float]:
        generator, discriminator = self.generator_weight, self.discriminator_weight
        return {"mlm": generator, "adversarial": generator, "rtd": discriminator}

    @property
    def network(self) -> Electra:
        return Electra(self.model, baseline=self.generator_training == "adversarial")

    def trainable(self, path: tuple[str, ...]) -> bool:
        return self.generator_training != "frozen" or path[0] not in ("embeddings", "generator")

    def loss(self, params: Any, batch: Batch, mems: Any, seeds: Seeds | None) -> Scored:
        if self.generator_training == "frozen":
            params = map_named(self._stopped, params)
        inputs, where = self.inputs(batch)
        if self.generator_training == "adversarial":
            method = "generate_with_baseline"
            logits, baseline = apply(self.network, params, inputs, where, seeds, method=method)
        else:
            logits = apply(self.network, params, inputs, where, seeds, method="generate")
        read, terms, metrics = self.sampled(batch, inputs, logits)
        if self.generator_training != "likelihood":
            terms, metrics = {}, metrics | terms
        replaced = read.tokens != batch["original"]
        detected = apply(self.network, params, read, seeds, method="discriminate")
        scored = batch["segment_ids"] > 0 if self.detects == "all" else chosen_positions(batch)
        binary = optax.sigmoid_binary_cross_entropy(detected, replaced.astype(jnp.float32))
        terms["rtd"] = weighted_sum(binary, scored)
        if self.generator_training == "adversarial":
            samples, rewards = (jnp.take_along_axis(x, where, 1) for x in (read.tokens, binary))
            terms |= adversarial_terms(logits, samples, rewards, baseline, batch["target_weights"])
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

    def _stopped(self, path: tuple[str, ...], leaf: jax.Array) -> jax.Array:
        return leaf if self.trainable(path) else jax.lax.stop_gradient(leaf)


def adversarial_terms(
    logits: jax.Array,
    samples: jax.Array,
    rewards: jax.Array,
    baseline: jax.Array,
    weights: jax.Array,
) -> dict[str, Sum]:
    """Loss terms of a generator that maximizes the discriminator's loss (Clark et al. 2020, F).

    No gradient flows through the samples x^_t, so the generator is trained by REINFORCE (Williams
    1992). With R(x^_t) the discriminator's loss at a masked position t, D the probability of an
    original token and h_G the generator's hidden states,

      grad L_Disc ~ sum_t grad log p_G(x^_t) [R(x^_t) - b_t],
      R(x^_t) = -log D(x^_t) if x^_t = x_t else -log(1 - D(x^_t)),  b_t = -log sigmoid(w^T h_G,t).

    The paper assumes that D at t depends on no other sample, so each sample is credited with its
    own reward alone. The baseline b is learned, "with cross-entropy loss to match the reward": here
    that of sigmoid(w^T h_G) against exp(-R), with respect to w alone.

    Args:
      logits: [batch, n, vocab_size], the generator's.
      samples: [batch, n] int, the samples of these logits.
      rewards: [batch, n], R. No gradient flows into it.
      baseline: [batch, n], w^T h_G.
      weights: [batch, n], 1 in used slots.

    Returns:
      'adversarial', whose value is -R and whose gradient is that of REINFORCE, and 'baseline'.
    """
    rewards = jax.lax.stop_gradient(rewards)
    advantages = rewards - jax.lax.stop_gradient(-jax.nn.log_sigmoid(baseline))
    log_p = -score_targets(logits, samples)[0]
    gains = rewards + advantages * (log_p - jax.lax.stop_gradient(log_p))
    matched = optax.sigmoid_binary_cross_entropy(baseline, jnp.exp(-rewards))
    return {
        "adversarial": weighted_sum(-gains, weights),
        "baseline": weighted_sum(matched, weights),
    }


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
