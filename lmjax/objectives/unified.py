"""Masked LM with bidirectional or left-to-right attention: a hybrid of BERT and GPT."""

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

    Each row is read bidirectionally or from left to right, resampled in every step. A masked
    token attends to itself, which is [MASK]. The paper's right-to-left and sequence-to-sequence
    masks are not implemented.

    Attributes:
      left_to_right: fraction of the rows that are read from left to right.
    """

    left_to_right: Probability = 0.5

    def corrupt(self, key: jax.Array, example: Batch) -> Batch:
        """Like masked LM, and adds `both_sides`, [] bool."""
        # Masked LM splits the key in two (folds 0 and 1); fold 2 leaves its masks unchanged.
        drawn = jax.random.uniform(jax.random.fold_in(key, 2))
        return {**super().corrupt(key, example), "both_sides": drawn >= self.left_to_right}

    def inputs(self, batch: Batch, mems: Any = None) -> tuple[Any, ...]:
        read, targets = super().inputs(batch)
        rows, length = read.tokens.shape
        free = jnp.broadcast_to(batch["both_sides"][:, None, None], (rows, 1, length))
        return read.replace(mask=read.mask & (causal(length) | free)), targets
