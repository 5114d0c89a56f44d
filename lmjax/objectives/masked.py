"""Masked language modelling with sentence prediction: BERT's objective."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from lmjax.configuration import Probability, Size
from lmjax.errors import ConfigError
from lmjax.models.bert import BertConfig
from lmjax.models.family import ModelConfig
from lmjax.models.network import Network
from lmjax.nn.dropout import Seeds
from lmjax.nn.layers import cross_entropy
from lmjax.nn.masks import same_document
from lmjax.objectives.base import (
    Batch,
    Objective,
    Scored,
    apply,
    token_scores,
    weighted_sum,
)
from lmjax.objectives.masking import Masking, MaskRate, choose_targets, replace


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class MaskedLM(Objective):
    """BERT (Devlin et al. 2018 §3.1): mean masked-LM loss + mean sentence loss.

    Masks are resampled in every step (RoBERTa's dynamic masking; the authors' data contains one
    masking per duplicate).

    Attributes:
      mask_rate: fraction of the tokens, special tokens included, to predict.
      max_predictions: prediction slots per example (max_predictions_per_seq).
      masking: 'token', 'whole_word' or 'span'.
      mask_fraction, random_fraction: fractions of the chosen tokens that become [MASK] or a
        random token; the others are unchanged.
      sentence_prediction: predict the batch's `label` with the sentence head: NSP or SOP,
        depending on the examples.
    """

    default_model = BertConfig
    headline = "mlm"

    model: ModelConfig
    mask_rate: MaskRate = 0.15
    max_predictions: Size = 20
    masking: Masking = "token"
    mask_fraction: Probability = 0.8
    random_fraction: Probability = 0.1
    sentence_prediction: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mask_fraction + self.random_fraction > 1.0 + 1e-6:
            raise ConfigError("mask_fraction: mask_fraction + random_fraction exceeds 1")

    @property
    def network(self) -> Network:
        return self.model.masked_lm(self.sentence_prediction)

    def corrupt(self, key: jax.Array, example: Batch) -> Batch:
        """Adds `target_positions`, `targets`, `target_weights` [max_predictions]."""
        for_choice, for_tokens = jax.random.split(key)
        tokens, vocabulary = example["tokens"], self.vocabulary
        slots = self.max_predictions
        chosen = choose_targets(
            for_choice, example, vocabulary, self.masking, self.mask_rate, slots
        )
        masked = replace(
            for_tokens,
            tokens,
            chosen,
            mask_token=vocabulary.mask,
            vocab_size=vocabulary.size,
            mask_fraction=self.mask_fraction,
            random_fraction=self.random_fraction,
        )
        return {
            **example,
            "tokens": masked,
            "target_positions": chosen.positions,
            "targets": tokens[chosen.positions],
            "target_weights": chosen.weights,
        }

    def loss(self, params: Any, batch: Batch, mems: Any, seeds: Seeds | None) -> Scored:
        logits, sentence_logits = apply(self.network, params, *self.inputs(batch), seeds)
        terms, metrics = token_scores(
            "mlm", logits, batch["targets"], batch["target_weights"], self.vocabulary
        )
        if self.sentence_prediction:
            label = batch["label"]
            ones = jnp.ones(label.shape)
            terms["sentence"] = weighted_sum(cross_entropy(sentence_logits, label), ones)
            hits = jnp.argmax(sentence_logits, -1) == label
            metrics["sentence_accuracy"] = weighted_sum(hits, ones)
        return Scored(terms, metrics)

    def forward_flops(self, length: int) -> float | None:
        encoder, n = self.model.forward_flops(length), min(self.max_predictions, length)
        hidden = self.model.trunk.hidden_size
        head = 2 * n * hidden * (hidden + self.model.vocab_size)
        pooler = 2 * hidden * (hidden + 2) if self.sentence_prediction else 0
        return None if encoder is None else encoder + head + pooler

    def inputs(self, batch: Batch, mems: Any = None) -> tuple[Any, ...]:
        if self.sentence_prediction and "label" not in batch:
            raise ConfigError(
                "config.objective.sentence_prediction: these examples have no sentence label;"
                " set it to False, or use SegmentPairs with next_sentence='nsp' or 'sop'"
            )
        mask = same_document(batch["segment_ids"])
        return self.text_inputs(batch, mask), batch["target_positions"]
