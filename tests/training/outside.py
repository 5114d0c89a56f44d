"""An evaluator and an objective that lmjax does not know, for tests of the training loop."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.nn.dropout import Seeds
from lmjax.nn.layers import cross_entropy
from lmjax.objectives.base import Batch, Scored, apply
from lmjax.objectives.permuted import PermutedLM
from lmjax.training.evaluators import Evaluator

# Tests set these: steps at which `TextLoss` raises KeyboardInterrupt or returns NaN, and the
# checksums of the batches on which `Diverging` diverges.
INTERRUPTED_STEPS: list[int] = []
NAN_STEPS: list[int] = []
DIVERGING_BATCHES: list[int] = []


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class TextLoss(Evaluator):
    """Mean -log p of the tokens of a text under a causal LM, in nats.

    Attributes:
      text: to score.
    """

    text: str

    @functools.cached_property
    def tokens(self) -> np.ndarray:
        return np.asarray(self.tokenizer.encode_batch([self.text])[0])[None]

    @functools.cached_property
    def score(self) -> Callable[[Any, Any], jax.Array]:
        def score(params: Any, tokens: jax.Array) -> jax.Array:
            real = jnp.ones(tokens.shape, bool)
            inputs = self.objective.model.inputs(tokens, jnp.zeros_like(tokens), real)
            logits = apply(self.objective.network, params, inputs)
            return cross_entropy(logits[:, :-1], tokens[:, 1:]).mean()

        return jax.jit(score)

    def evaluate(self, params: Any, step: int) -> dict[str, float]:
        if step in INTERRUPTED_STEPS:
            raise KeyboardInterrupt
        loss = float(self.score(params, self.tokens))
        return {"loss": float("nan") if step in NAN_STEPS else loss, "tokens": self.tokens.size}


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Words(Evaluator):
    """Not a measurement: returns what it should not."""

    def evaluate(self, params: Any, step: int) -> Any:
        return {"word": "good"}


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Diverging(PermutedLM):
    """XLNet's objective, whose loss and gradient are NaN on `DIVERGING_BATCHES`."""

    def corrupt(self, key: jax.Array, example: Batch) -> Batch:
        return {**super().corrupt(key, example), "checksum": checksum(example["tokens"])}

    def loss(self, params: Any, batch: Batch, mems: Any, seeds: Seeds | None) -> Scored:
        scored = super().loss(params, batch, mems, seeds)
        if seeds is None or not DIVERGING_BATCHES:
            return scored
        known = jnp.asarray(DIVERGING_BATCHES, jnp.uint32)
        factor = jnp.where(jnp.isin(batch["checksum"].sum(dtype=jnp.uint32), known), jnp.nan, 1.0)
        terms = {name: (total * factor, count) for name, (total, count) in scored.terms.items()}
        return dataclasses.replace(scored, terms=terms)


def checksum(tokens: Any) -> Any:
    """tokens [..., length] -> uint32 [...], of numpy or jax arrays."""
    factors = np.random.default_rng(0).integers(2**32, size=tokens.shape[-1], dtype=np.uint32)
    return (tokens.astype(np.uint32) * factors).sum(-1, dtype=np.uint32)
