"""A family written outside of the package: a gated convolutional LM (Dauphin et al. 2017)."""

import dataclasses
from typing import Annotated, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lmjax.configuration import Interval
from lmjax.data.vocabulary import Vocabulary
from lmjax.models.family import Joined, ModelConfig, joined
from lmjax.models.heads import Token
from lmjax.models.network import CausalNetwork, Network, TextInputs
from lmjax.nn.dropout import Seeds, dropout
from lmjax.nn.layers import LayerNorm
from lmjax.nn.transformer import Table


@dataclasses.dataclass(frozen=True)
class ConvConfig(ModelConfig):
    """Residual blocks of a gated linear unit over a causal convolution, without positions.

    Attributes:
      width: positions that a convolution sees, its own included.
    """

    causal: ClassVar[bool] = True
    text_token: ClassVar[Token] = "last_real"

    width: Annotated[int, Interval("[1, 64]")] = 3

    def encoder(self) -> "ConvEncoder":
        return ConvEncoder(self)

    def causal_lm(self) -> "ConvLM":
        return ConvLM(self)

    def join(
        self, vocabulary: Vocabulary, first: np.ndarray, second: np.ndarray | None = None
    ) -> Joined:
        rest = [] if second is None else [vocabulary.sep, *second]
        tokens = [vocabulary.eod, *first, *rest, vocabulary.cls]
        return joined(tokens, [0] * len(tokens), 1, len(first) + 2)

    def forward_flops(self, length: int) -> float:
        hidden = self.trunk.hidden_size
        return 2.0 * self.trunk.layers * length * self.width * hidden * 2 * hidden


class ConvEncoder(Network):
    """Ids to hidden states [batch, length, hidden_size]; padding counts as zeros."""

    config: ConvConfig

    def setup(self) -> None:
        c, trunk = self.config, self.config.trunk
        self.token = Table(c.vocab_size, trunk.hidden_size, trunk)
        self.norms = [LayerNorm(trunk.layer_norm_epsilon) for _ in range(trunk.layers)]
        self.convolutions = [
            nn.Conv(2 * trunk.hidden_size, (c.width,), padding="CAUSAL")
            for _ in range(trunk.layers)
        ]

    def __call__(self, inputs: TextInputs, seeds: Seeds | None = None) -> jax.Array:
        x = self.token(inputs.tokens)
        real = inputs.real[..., None]
        for i, (norm, convolution) in enumerate(zip(self.norms, self.convolutions, strict=True)):
            # Padding on the left must be what is left of a text without padding: zeros.
            values, gates = jnp.split(convolution(jnp.where(real, norm(x), 0.0)), 2, axis=-1)
            own = None if seeds is None else seeds.fold(i)
            x = x + dropout(values * nn.sigmoid(gates), self.config.trunk.dropout, own, 0)
        return x

    def decode(self, hidden: jax.Array) -> jax.Array:
        return self.token.decode(hidden)


class ConvLM(CausalNetwork):
    """The language model, with tied embeddings."""

    config: ConvConfig

    def setup(self) -> None:
        self.encoder = ConvEncoder(self.config)

    def hidden(self, inputs: TextInputs, seeds: Seeds | None = None) -> jax.Array:
        return self.encoder(inputs, seeds)

    def decode(self, hidden: jax.Array) -> jax.Array:
        return self.encoder.decode(hidden)
