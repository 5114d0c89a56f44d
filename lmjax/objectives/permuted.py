"""Permutation language modelling: XLNet's objective."""

import dataclasses
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.configuration import Interval, OptionalSize, Size
from lmjax.errors import ConfigError
from lmjax.models.xlnet import Xlnet, XlnetConfig
from lmjax.nn.dropout import Seeds
from lmjax.nn.masks import permutation, same_document
from lmjax.objectives.base import Batch, Objective, Scored, apply, token_scores
from lmjax.objectives.factorization import choose_targets, factorization_order, places
from lmjax.objectives.masked import to_slots


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class PermutedLM(Objective):
    """XLNet (Yang et al. 2019 eq. 3 and 5): predicts targets in a random factorization order.

    An example is split into two parts, the first `reuse_length` tokens and the rest (or a single
    part if reuse_length = 0), each with its own targets and order. The second part attends to all
    of the first, the first to none of the second. This is the authors' data_utils.py, run on the
    device.

    Attributes:
      num_predict: targets per example; 85 of 512 in the paper (K = 6). They are divided between
        the parts; the first part gets the odd one.
      reuse_length: tokens of the first part, whose states become memory (reuse_len).
      perm_size: number of positions that are permuted together (perm_size). Longer parts are
        ordered block by block with the same permutation; 0 = the whole part.
      spans: choose n-grams with p(n) ~ 1/n for n = 1..max_ngram, each in a context of
        alpha * n tokens; False chooses single tokens uniformly (Table 6, row 6).
      max_ngram, alpha: 5 and 6 in the paper (beta = 1).
    """

    headline = "plm"

    model: XlnetConfig
    num_predict: Size = 85
    reuse_length: OptionalSize = 0
    perm_size: OptionalSize = 0
    spans: bool = True
    max_ngram: Annotated[int, Interval("[1, 1000]")] = 5
    alpha: Annotated[int, Interval("[1, 1000]")] = 6

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.perm_size and self.reuse_length % self.perm_size:
            raise ConfigError(
                f"perm_size: {self.perm_size} does not divide reuse_length={self.reuse_length};"
                " choose a divisor"
            )

    @property
    def network(self) -> Xlnet:
        return Xlnet(self.model)

    def parts(self, length: int) -> list[tuple[int, int]]:
        """Returns (tokens, targets) of each part of an example."""
        if not self.reuse_length:
            return [(length, self.num_predict)]
        second = self.num_predict // 2
        return [
            (self.reuse_length, self.num_predict - second),
            (length - self.reuse_length, second),
        ]

    def check_length(self, length: int) -> None:
        for tokens, targets in self.parts(length):
            if tokens < 1:
                raise ConfigError(
                    f"config.objective.reuse_length: {self.reuse_length} must be less than"
                    f" config.data.examples.length={length}"
                )
            if targets >= tokens:
                raise ConfigError(
                    f"config.objective.num_predict: {targets} targets do not fit in a part of"
                    f" {tokens} tokens; about a sixth of the length is usual"
                )
            if self.perm_size and tokens % self.perm_size:
                raise ConfigError(
                    f"config.objective.perm_size: {self.perm_size} does not divide a part of"
                    f" {tokens} tokens"
                )

    def init_mems(self, batch_size: int) -> Any:
        return self.network.empty_mems(batch_size)

    def order(self, key: jax.Array, is_target: jax.Array) -> jax.Array:
        """Draws the place in the order of each position of a part, [size] int.

        is_target: [size] bool.
        """
        size = is_target.shape[0]
        return factorization_order(key, size, self.perm_size or size)

    def corrupt(self, key: jax.Array, example: Batch) -> Batch:
        """Adds `query_place`, `key_place`, `target_mapping`, `targets`, `target_weights`.

        Places are [length]: `perm_mask[i, j]`, which hides j from i, is
        query_place[i] <= key_place[j]. Targets are [num_predict]. In backward text, n-grams are
        chosen in forward reading order (`reverse` of `_sample_mask`).
        """
        tokens, real = example["tokens"], example["segment_ids"] > 0
        vocabulary = self.vocabulary
        functional = (tokens == vocabulary.sep) | (tokens == vocabulary.cls) | ~real
        starts_word = jnp.asarray(np.asarray(vocabulary.starts_word))[tokens]
        length = tokens.shape[0]

        def forward(part: jax.Array) -> jax.Array:
            if "direction" not in example:
                return part
            return jnp.where(example["direction"] < 0, part[::-1], part)

        chosen, query_places, key_places, begin = [], [], [], 0
        for part, (size, count) in enumerate(self.parts(length)):
            for_targets, for_order = jax.random.split(jax.random.fold_in(key, part))
            here = slice(begin, begin + size)
            is_masked = choose_targets(
                for_targets,
                forward(starts_word[here]),
                count,
                spans=self.spans,
                max_ngram=self.max_ngram,
                alpha=self.alpha,
            )
            is_masked = forward(is_masked)
            order = self.order(for_order, is_masked & ~functional[here])
            query_place, key_place = places(order, is_masked, functional[here])
            # All places of a part come after those of the previous part.
            query_places.append(query_place + begin + part)
            key_places.append(key_place + begin + part)
            chosen.append(is_masked & ~functional[here])
            begin += size
        slots = to_slots(jnp.concatenate(chosen), jnp.arange(length), self.num_predict)
        return {
            **example,
            "query_place": jnp.concatenate(query_places),
            "key_place": jnp.concatenate(key_places),
            "target_mapping": slots.positions,
            "targets": tokens[slots.positions],
            "target_weights": slots.weights,
        }

    def loss(self, params: Any, batch: Batch, mems: Any, seeds: Seeds | None) -> Scored:
        output, mems = apply(self.network, params, *self.inputs(batch, mems), seeds)
        logits = apply(self.network, params, output, method="decode")
        terms, metrics = token_scores(
            "plm", logits, batch["targets"], batch["target_weights"], self.vocabulary
        )
        return Scored(terms, metrics, mems)

    def forward_flops(self, length: int) -> float:
        """Counts both streams; keys, values and encoded distances count once per row."""
        trunk, memory = self.model.trunk, self.model.memory_length
        keys, width = memory + length, trunk.heads * trunk.head_size
        # forward_flops counts keys and values for each query row. This is right for the content
        # stream, but the query stream has no keys and values, and the memory has nothing else.
        streams = trunk.forward_flops(length + self.num_predict, keys)
        projections = 2 * trunk.hidden_size * width
        extra = 2 * (memory - self.num_predict) * projections
        by_distance = 2 * (length + self.num_predict) * (keys + length) * width
        head = 2 * self.num_predict * trunk.hidden_size * self.model.vocab_size
        return streams + trunk.layers * (extra + by_distance) + head

    def inputs(self, batch: Batch, mems: Any = None) -> tuple[Any, ...]:
        in_order = permutation(batch["query_place"], batch["key_place"])
        return (
            self.text_inputs(batch, in_order & same_document(batch["segment_ids"])),
            mems,
            batch["target_mapping"],
            batch.get("direction"),
            self.reuse_length,
        )
