"""Masked language modelling with sentence prediction: BERT's objective."""

import dataclasses
import math
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.configuration import Interval, Probability, Size
from lmjax.data.vocabulary import Vocabulary
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

Masking = Literal["token", "whole_word", "span"]
MaskRate = Annotated[float, Interval("(0, 1]")]

# SpanBERT (Joshi et al. 2020 §3.1): span lengths in words from Geo(0.2) clipped at 10.
SPAN_LENGTHS = np.arange(1, 11)
SPAN_PROBABILITIES = 0.8 ** np.arange(10) / np.sum(0.8 ** np.arange(10))


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class WithMasks(Objective):
    """Base of objectives that predict masked tokens as BERT does (Devlin et al. 2018 §3.1).

    Attributes:
      mask_rate: fraction of the tokens, special tokens included, to predict.
      max_predictions: most tokens of an example to predict (max_predictions_per_seq).
      masking: 'token', 'whole_word' or 'span'.
      mask_fraction, random_fraction: fractions of the chosen tokens that become [MASK] or a
        random token; the others are unchanged.
    """

    model: ModelConfig
    mask_rate: MaskRate = 0.15
    max_predictions: Size = 20
    masking: Masking = "token"
    mask_fraction: Probability = 0.8
    random_fraction: Probability = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mask_fraction + self.random_fraction > 1.0 + 1e-6:
            raise ConfigError("mask_fraction: mask_fraction + random_fraction exceeds 1")

    def masked(self, key: jax.Array, example: Batch) -> "tuple[jax.Array, Chosen]":
        """Returns the masked tokens [length] of an example, and the positions to predict."""
        for_choice, for_tokens = jax.random.split(key)
        chosen = choose_targets(
            for_choice, example, self.vocabulary, self.masking, self.mask_rate, self.max_predictions
        )
        tokens = replace(
            for_tokens,
            example["tokens"],
            chosen,
            mask_token=self.vocabulary.mask,
            vocab_size=self.vocabulary.size,
            mask_fraction=self.mask_fraction,
            random_fraction=self.random_fraction,
        )
        return tokens, chosen


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class MaskedLM(WithMasks):
    """BERT (Devlin et al. 2018 §3.1): mean masked-LM loss + mean sentence loss.

    Masks are resampled in every step (RoBERTa's dynamic masking; the authors' data contains one
    masking per duplicate).

    Attributes:
      sentence_prediction: predict the batch's `label` with the sentence head: NSP or SOP,
        depending on the examples.
    """

    default_model = BertConfig
    headline = "mlm"

    sentence_prediction: bool = True

    @property
    def network(self) -> Network:
        return self.model.masked_lm(self.sentence_prediction)

    def corrupt(self, key: jax.Array, example: Batch) -> Batch:
        """Adds `target_positions`, `targets`, `target_weights` [slots]; see `choose_targets`."""
        tokens = example["tokens"]
        masked, chosen = self.masked(key, example)
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
            label, given = jnp.maximum(batch["label"], 0), batch["label"] >= 0
            terms["sentence"] = weighted_sum(cross_entropy(sentence_logits, label), given)
            hits = jnp.argmax(sentence_logits, -1) == label
            metrics["sentence_accuracy"] = weighted_sum(hits, given)
        return Scored(terms, metrics)

    def forward_flops(self, length: int) -> float | None:
        encoder, n = self.model.forward_flops(length), min(self.max_predictions, length)
        hidden = self.model.trunk.hidden_size
        features = getattr(self.model, "embedding_features", hidden)
        head = 2 * n * features * (hidden + self.model.vocab_size)
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


class Chosen(NamedTuple):
    """Positions to predict, in a fixed number of slots.

    Attributes:
      positions: [slots] int32, ascending; 0 in unused slots.
      weights: [slots] float32, 1 in used slots.
      groups: [slots] int32, equal for positions that share one corruption draw.
    """

    positions: jax.Array
    weights: jax.Array
    groups: jax.Array


def prediction_count(length: jax.Array, rate: float, slots: int) -> jax.Array:
    """min(slots, max(1, round(length * rate))), ties to even as Python's round.

    `create_masked_lm_predictions` of the authors' create_pretraining_data.py; `length`
    includes special tokens but not padding.
    """
    # The table is in double precision, as in Python: 190 * 0.15 is just below 28.5, but not in
    # float32. Examples longer than the table fill all slots; no example exceeds 2**20 tokens
    # (`lmjax.configuration.Size`).
    lengths = np.arange(min(math.ceil((slots + 1) / rate), 2**20) + 1)
    counts = np.clip(np.round(lengths * rate), 1, slots).astype(np.int32)
    return jnp.asarray(counts)[jnp.minimum(length, len(counts) - 1)]


def choose(
    key: jax.Array,
    masking: Masking,
    candidates: jax.Array,
    starts_word: jax.Array,
    count: jax.Array,
    slots: int,
) -> Chosen:
    """Chooses `count` candidates, or all if there are fewer.

    Args:
      masking: 'token' (BERT), 'whole_word' (all pieces of a word or none, BERT's 2019
        release) or 'span' (SpanBERT).
      candidates: [length] bool, positions that may be chosen.
      starts_word: [length] bool, whether the token begins a word.
      count: [] int, the quota.
      slots: static upper bound of `count`.
    """
    if masking == "token":
        taken = choose_tokens(key, candidates, count)
        groups = jnp.arange(candidates.shape[0])
    else:
        # A candidate that follows a non-candidate also begins a word.
        before = jnp.concatenate([jnp.zeros(1, bool), candidates[:-1]])
        words = jnp.cumsum(candidates & (starts_word | ~before)) - 1
        if masking == "whole_word":
            taken = choose_words(key, candidates, words, count)
            groups = jnp.arange(candidates.shape[0])  # 80/10/10 is drawn per piece
        else:
            taken, groups = choose_spans(key, candidates, words, count, slots)
    return to_slots(taken, groups, slots)


def choose_targets(
    key: jax.Array,
    example: Batch,
    vocabulary: Vocabulary,
    masking: Masking,
    mask_rate: float,
    most: int,
) -> Chosen:
    """Chooses the tokens of a clean row that are to be predicted; see `choose`.

    Special tokens and padding are never chosen. If several examples share the row, tokens are
    chosen of each as if it were alone.

    Args:
      mask_rate: share of all real tokens.
      most: maximum number of tokens of an example, and the number of slots if it has its own row.
    """
    tokens = example["tokens"]
    special = jnp.asarray(np.asarray(vocabulary.special))[tokens]
    starts_word = jnp.asarray(np.asarray(vocabulary.starts_word))[tokens]

    def choose_from(key: jax.Array, real: jax.Array) -> Chosen:
        count = prediction_count(real.sum(), mask_rate, most)
        return choose(key, masking, real & ~special, starts_word, count, most)

    if "starts" not in example:
        return choose_from(key, example["segment_ids"] > 0)
    (length,), (examples,) = tokens.shape, example["starts"].shape
    numbers = jnp.arange(examples)
    apart = jax.vmap(choose_from)(
        jax.random.split(key, examples), example["segment_ids"] == 1 + numbers[:, None]
    )
    # Each example rounds its number of tokens, up by less than one.
    slots = min(examples * most, int(length * mask_rate) + examples)
    where = jnp.where(apart.weights > 0, apart.positions, length)
    # A group gets the number of its first position, so that no two examples share one.
    same = apart.groups[:, :, None] == apart.groups[:, None, :]
    first = jnp.where(same, where[:, None, :], length).min(-1)
    taken = jnp.zeros(length, bool).at[where].set(True, mode="drop")
    groups = jnp.zeros(length, jnp.int32).at[where].set(first, mode="drop")
    return to_slots(taken, groups, slots)


def to_slots(taken: jax.Array, groups: jax.Array, slots: int) -> Chosen:
    """Packs the positions where `taken` [length] is True into `slots` slots, ascending."""
    order = jnp.argsort(~taken, stable=True)[:slots]
    used = taken[order]
    positions = jnp.where(used, order, 0).astype(jnp.int32)
    return Chosen(positions, used.astype(jnp.float32), groups[order].astype(jnp.int32))


def choose_tokens(key: jax.Array, candidates: jax.Array, count: jax.Array) -> jax.Array:
    """Chooses `count` candidates, all sets being equally likely. -> [length] bool."""
    return candidates & (_ranks(key, candidates) < count)


def choose_words(
    key: jax.Array, candidates: jax.Array, words: jax.Array, count: jax.Array
) -> jax.Array:
    """Chooses whole words in random order, skipping those that would exceed the quota.

    words: [length] int, index of the word to which a candidate belongs.
    """
    length = candidates.shape[0]
    sizes = jnp.zeros(length, jnp.int32).at[words].add(candidates.astype(jnp.int32))
    order = jnp.argsort(_ranks(key, sizes > 0))

    def visit(taken: jax.Array, word: jax.Array) -> tuple[jax.Array, jax.Array]:
        size = sizes[word]
        take = (size > 0) & (taken + size <= count)
        return taken + jnp.where(take, size, 0), take

    _, takes = jax.lax.scan(visit, jnp.int32(0), order)
    chosen = jnp.zeros(length, bool).at[order].set(takes)
    return candidates & chosen[words]


def choose_spans(
    key: jax.Array, candidates: jax.Array, words: jax.Array, count: jax.Array, slots: int
) -> tuple[jax.Array, jax.Array]:
    """Chooses spans of whole words until the quota is used up; the last span is truncated.

    Joshi et al. 2020 §3.1 and the authors' PairWithSpanMaskingScheme: the length is drawn from
    the clipped geometric distribution, the anchor from the positions that are not yet masked. The
    span extends right from the start of the anchor's word and ends at the first position that
    cannot be masked.

    Returns:
      taken [length] bool, and the index of the span to which each position belongs.
    """
    length = candidates.shape[0]
    index = jnp.arange(length)
    count = jnp.minimum(count, candidates.sum())

    def draw(state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        key, taken, spans, number = state
        key, for_length, for_anchor = jax.random.split(key, 3)
        size = jax.random.choice(for_length, SPAN_LENGTHS, p=jnp.asarray(SPAN_PROBABILITIES))
        free = candidates & ~taken
        anchor = jnp.argmax(jax.random.uniform(for_anchor, (length,)) * free)
        first_word = words[anchor]
        in_span = free & (words >= first_word) & (words < first_word + size)
        # Word indices skip non-candidates, so a gap between two candidates must end the span.
        gaps = jnp.cumsum(~candidates)
        in_span &= gaps == gaps[anchor]
        in_span &= jnp.cumsum(in_span) <= count - taken.sum()
        return key, taken | in_span, jnp.where(in_span, number, spans), number + 1

    def unspent(state: tuple[jax.Array, ...]) -> jax.Array:
        _, taken, _, number = state
        return (taken.sum() < count) & (number < slots)

    state: Any = (key, jnp.zeros(length, bool), index + slots, jnp.int32(0))
    _, taken, spans, _ = jax.lax.while_loop(unspent, draw, state)
    return taken, spans


def replace(
    key: jax.Array,
    tokens: jax.Array,
    chosen: Chosen,
    *,
    mask_token: int,
    vocab_size: int,
    mask_fraction: float,
    random_fraction: float,
) -> jax.Array:
    """Puts [MASK], a random token or the original token at the chosen positions.

    Devlin et al. 2018 App. C.2: 80% / 10% / 10%. As in the authors' code, random tokens are
    uniform over the whole vocabulary, including special tokens and the original.

    Args:
      tokens: [length] int.

    Returns:
      [length] int.
    """
    for_kind, for_token = jax.random.split(key)
    length = tokens.shape[0]
    # One draw per group; group indices are smaller than length + slots.
    draws = jax.random.uniform(for_kind, (length + chosen.positions.shape[0],))
    kind = draws[chosen.groups]
    original = tokens[chosen.positions]
    random = jax.random.randint(for_token, original.shape, 0, vocab_size)
    new = jnp.where(
        kind < mask_fraction,
        mask_token,
        jnp.where(kind < mask_fraction + random_fraction, random, original),
    )
    # Unused slots point past the end, where a scatter drops them.
    where = jnp.where(chosen.weights > 0, chosen.positions, length)
    return tokens.at[where].set(new.astype(tokens.dtype), mode="drop")


def _ranks(key: jax.Array, candidates: jax.Array) -> jax.Array:
    """Ranks candidates in random order, all others after them. -> [length] int."""
    priority = jnp.where(candidates, jax.random.uniform(key, candidates.shape), 2.0)
    return jnp.argsort(jnp.argsort(priority))
