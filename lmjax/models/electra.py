"""ELECTRA (Clark et al. 2020): a small generator and a discriminator, embeddings shared."""

import dataclasses

import flax.linen as nn
import jax

from lmjax.errors import ConfigError
from lmjax.nn.dropout import Seeds
from lmjax.nn.embeddings import PredictionTransform, TextEmbeddings, gather_positions
from lmjax.nn.layers import ACTIVATIONS, Dense
from lmjax.nn.transformer import Stack
from lmjax.nn.trunk import TransformerConfig

GENERATOR = 64  # the salt that sets the generator's dropout apart from the discriminator's


@dataclasses.dataclass(frozen=True)
class ElectraConfig:
    """ELECTRA's settings.

    Attributes:
      trunk: the discriminator's Transformer.
      embedding_size: E, of the tables that both networks share; 0 = the hidden size.
      generator_size: the generator's width as a multiple of the discriminator's; its
        depth is the same.
      max_length, segment_types: rows of the position and segment tables.
      vocab_size: rows of the token table; 0 = as many as the tokenizer has.
    """

    trunk: TransformerConfig
    embedding_size: int = 0
    generator_size: float = 0.25
    max_length: int = 512
    segment_types: int = 2
    vocab_size: int = 0

    def __post_init__(self) -> None:
        if not 0.0 < self.generator_size <= 1.0:
            raise ConfigError(f"generator_size: must lie in (0, 1], got {self.generator_size}")
        if self.embedding_size < 0:
            raise ConfigError("embedding_size: must not be negative; 0 = the hidden size")

    @property
    def embedding_features(self) -> int:
        return self.embedding_size or self.trunk.hidden_size

    @property
    def generator_trunk(self) -> TransformerConfig:
        """Hidden size scaled, heads of the same size (at least one), I = 4 H, same depth."""
        t = self.trunk
        hidden = round(t.hidden_size * self.generator_size)
        return dataclasses.replace(
            t,
            hidden_size=hidden,
            heads=max(1, hidden // t.head_size),
            head_dim=min(t.head_size, hidden),
            intermediate_size=4 * hidden,
        )


class ElectraEncoder(nn.Module):
    """Embeddings [batch, length, E] -> hidden states [batch, length, H]."""

    trunk: TransformerConfig

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array, seeds: Seeds | None) -> jax.Array:
        c = self.trunk
        if x.shape[-1] != c.hidden_size:
            # Glorot: the authors' code passes no initializer here.
            project = Dense(
                c.hidden_size,
                nn.initializers.glorot_uniform(),
                dtype=c.compute_dtype,
                name="embeddings_project",
            )
            x = project(x)
        return Stack(c, name="stack")(x, mask, seeds)


class Electra(nn.Module):
    """Both networks of pretraining around one set of embeddings.

    Shared are the token, position and segment tables and the embedding norm (§3.2;
    `electra/embeddings` in the authors' code).
    """

    config: ElectraConfig

    def setup(self) -> None:
        c = self.config
        self.embeddings = TextEmbeddings(
            c.trunk,
            vocab_size=c.vocab_size,
            features=c.embedding_features,
            max_length=c.max_length,
            segment_types=c.segment_types,
            norm=True,
        )
        self.generator = ElectraEncoder(c.generator_trunk)
        self.generator_transform = PredictionTransform(c.generator_trunk, c.embedding_features)
        self.generator_bias = self.param("generator_bias", nn.initializers.zeros, (c.vocab_size,))
        self.discriminator = ElectraEncoder(c.trunk)
        self.discriminator_dense = Dense(
            c.trunk.hidden_size, c.trunk.initializer(), dtype=c.trunk.compute_dtype
        )
        self.discriminator_prediction = Dense(1, nn.initializers.glorot_uniform())

    def generate(
        self,
        tokens: jax.Array,
        segments: jax.Array,
        positions: jax.Array,
        mask: jax.Array,
        target_positions: jax.Array,
        seeds: Seeds | None = None,
    ) -> jax.Array:
        """The generator's masked-LM logits [batch, num_predict, vocab_size]."""
        seeds = None if seeds is None else seeds.fold(GENERATOR)
        x = self.embeddings(tokens, segments, positions, seeds)
        hidden = self.generator(x, mask, seeds)
        targets = self.generator_transform(gather_positions(hidden, target_positions))
        return self.embeddings.decode(targets) + self.generator_bias

    def discriminate(
        self,
        tokens: jax.Array,
        segments: jax.Array,
        positions: jax.Array,
        mask: jax.Array,
        seeds: Seeds | None = None,
    ) -> jax.Array:
        """Logits [batch, length] that a token is replaced (positive = replaced)."""
        hidden = self.discriminator(
            self.embeddings(tokens, segments, positions, seeds), mask, seeds
        )
        x = ACTIVATIONS[self.config.trunk.activation](self.discriminator_dense(hidden))
        return self.discriminator_prediction(x)[..., 0]

    def __call__(
        self,
        tokens: jax.Array,
        segments: jax.Array,
        positions: jax.Array,
        mask: jax.Array,
        target_positions: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        """Both networks on the same tokens; touches every parameter, for `init`."""
        return (
            self.generate(tokens, segments, positions, mask, target_positions),
            self.discriminate(tokens, segments, positions, mask),
        )
