"""Masked tokens told from both sides or from the left alone: a hybrid of BERT and GPT."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from lmjax.configuration import Probability
from lmjax.nn.masks import causal
from lmjax.objectives.base import Batch
from lmjax.objectives.masked import MaskedLM


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class UnifiedLM(MaskedLM):
    """UniLM's masked LM under several attention masks (Dong et al. 2019 §2.3).

    Each example is read in both directions or from left to right, drawn anew in every step; a
    masked token sees itself, which is [MASK]. The paper also reads from right to left, and one
    segment after another; those are left out.

    Attributes:
      left_to_right: share of the examples that are read so.
    """

    left_to_right: Probability = 0.5

    def corrupt(self, key: jax.Array, example: Batch) -> Batch:
        """As of masked LM, and `both_sides` [] bool."""
        # The masks are those of masked LM, which splits the key in two: folds of 0 and 1.
        drawn = jax.random.uniform(jax.random.fold_in(key, 2))
        return {**super().corrupt(key, example), "both_sides": drawn >= self.left_to_right}

    def inputs(self, batch: Batch, mems: Any = None) -> tuple[Any, ...]:
        read, targets = super().inputs(batch)
        rows, length = read.tokens.shape
        free = jnp.broadcast_to(batch["both_sides"][:, None, None], (rows, 1, length))
        return read.replace(mask=read.mask & (causal(length) | free)), targets
