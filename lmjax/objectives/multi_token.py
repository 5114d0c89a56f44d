"""Multi-token prediction: one head for each of the next tokens."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

import jax
import jax.numpy as jnp

from lmjax.configuration import Interval
from lmjax.errors import ConfigError
from lmjax.models.gpt import Gpt, GptConfig
from lmjax.models.network import TextInputs
from lmjax.nn.dropout import Seeds
from lmjax.nn.taps import read
from lmjax.nn.transformer import ENTERING, LEAVING, Block, rematerialized
from lmjax.objectives.base import Batch, Scored, apply
from lmjax.objectives.causal import CausalLM

# Salt that separates the dropout masks of the heads from those of the layers.
_HEADS = 1 << 16


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class MultiTokenLM(CausalLM):
    """Predicts the next n tokens at every position (Gloeckle et al. 2024 §2, eq. 2).

    Each head is one Transformer block on the output of a shared trunk, and all heads share the
    final norm and the output layer. As in the authors' released models, head 1 is the last block
    of the decoder, so that `config.model.trunk.layers` counts the trunk and head 1. Without the
    other heads, the model is a causal LM like any other; they are used only by this loss.

    The loss is the sum over heads of their mean cross entropies: `lm` of the next token, which
    counts for bits per byte, and `lm_2` to `lm_n`. A head predicts only tokens of the same
    document.

    Attributes:
      future_tokens: the number of heads, n.
    """

    model: GptConfig
    future_tokens: Annotated[int, Interval("[1, 100]")] = 4

    @property
    def weights(self) -> dict[str, float]:
        further = range(2, self.future_tokens + 1)
        return {"z_loss": self.z_loss} | {f"z_loss_{i}": self.z_loss for i in further}

    @property
    def network(self) -> "MultiTokenGpt":
        return MultiTokenGpt(self.model, self.future_tokens)

    def check_length(self, length: int) -> None:
        super().check_length(length)
        if self.future_tokens >= length:
            raise ConfigError(
                f"config.objective.future_tokens: rows of {length} tokens have no token"
                f" {self.future_tokens} positions ahead; reduce it, or raise"
                " config.data.examples.length"
            )

    def loss(self, params: Any, batch: Batch, mems: Any, seeds: Seeds | None) -> Scored:
        (inputs,) = self.inputs(batch)
        hidden, activations = read(self.network, params, inputs, seeds, method="hidden")
        scored = self.score(params, hidden, batch)
        trunk = before_last_block(activations, self.model.trunk.layers)
        for ahead in range(2, self.future_tokens + 1):
            hidden = apply(self.network, params, trunk, inputs, ahead, seeds, method="further")
            further = self.score(params, hidden, batch, ahead)
            # `unigram` is that of the next token.
            scored = Scored(scored.terms | further.terms, further.metrics | scored.metrics)
        return scored

    def forward_flops(self, length: int) -> float | None:
        layers = self.model.trunk.layers + self.future_tokens - 1
        trunk = dataclasses.replace(self.model.trunk, layers=layers)
        heads = 2 * self.future_tokens * length * trunk.hidden_size * self.model.vocab_size
        return trunk.forward_flops(length, length) + heads


class MultiTokenGpt(Gpt):
    """A decoder with further heads, which only the method `further` reads.

    Attributes:
      heads: the number of heads, including head 1, the decoder's last block.
    """

    heads: int

    def setup(self) -> None:
        super().setup()
        block = rematerialized(Block, self.config.trunk)
        self.further_heads = [block(self.config.trunk) for _ in range(self.heads - 1)]

    def hidden(self, inputs: TextInputs, seeds: Seeds | None = None) -> jax.Array:
        hidden = super().hidden(inputs, seeds)
        if self.is_initializing():
            for ahead in range(2, self.heads + 1):
                self.further(hidden, inputs, ahead)  # creates its parameters
        return hidden

    def further(
        self, trunk: jax.Array, inputs: TextInputs, ahead: int, seeds: Seeds | None = None
    ) -> jax.Array:
        """Returns the hidden states of the head of the token `ahead` positions later.

        trunk: [batch, length, hidden_size], the input of the decoder's last block.
        """
        block, last = self.further_heads[ahead - 2], jnp.uint32(self.config.trunk.layers - 1)
        seeds = None if seeds is None else seeds.fold(_HEADS + ahead)
        hidden, _ = block(trunk, last, None, inputs.positions, inputs.mask, seeds, None)
        return self.encoder.stack.normed(hidden)


def before_last_block(activations: Mapping[str, jax.Array], layers: int) -> jax.Array:
    """Selects the input of the last block from the activations of the decoder."""
    blocks = "encoder/stack/blocks"
    if layers == 1:
        return activations[f"{blocks}/{ENTERING}"]
    scanned = f"{blocks}/layers/{LEAVING}"
    if scanned in activations:
        return activations[scanned][-2]
    return activations[f"{blocks}/layer_{layers - 2}/{LEAVING}"]
