"""ELECTRA (Clark et al. 2020): a small generator and a discriminator, embeddings shared."""

import dataclasses
from typing import Annotated, Any, Literal

import flax.linen as nn
import jax

from lmjax.configuration import Interval, OptionalSize, Size, VocabSize, check_ranges
from lmjax.errors import ConfigError
from lmjax.nn.dropout import Seeds
from lmjax.nn.embeddings import (
    PredictionTransform,
    SegmentTypes,
    Table,
    TextEmbeddings,
    gather_positions,
)
from lmjax.nn.layers import ACTIVATIONS, Dense
from lmjax.nn.masks import Mask
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
      share_embeddings: both networks read the same tables; else each has its own (§3.2).
      max_length, segment_types: rows of the position and segment tables.
      tie_embeddings: the generator decodes with the token table.
      vocab_size: rows of the token table; 0 = as many as the tokenizer has.
    """

    trunk: TransformerConfig
    embedding_size: OptionalSize = 0
    generator_size: Annotated[float, Interval("(0, 1]")] = 0.25
    share_embeddings: bool = True
    max_length: Size = 512
    segment_types: SegmentTypes = 2
    tie_embeddings: bool = True
    vocab_size: VocabSize = 0

    def __post_init__(self) -> None:
        check_ranges(self)
        try:
            _ = self.generator_trunk
        except ConfigError as error:
            raise ConfigError(
                f"generator_size: {self.generator_size} times trunk.hidden_size="
                f"{self.trunk.hidden_size} makes no generator; its {error}"
            ) from error

    @property
    def embedding_features(self) -> int:
        return self.embedding_size or self.trunk.hidden_size

    @property
    def generator_trunk(self) -> TransformerConfig:
        """Hidden size scaled, heads of the same size (at least one), I = 4 H, same depth."""
        t = self.trunk
        if self.generator_size == 1.0:
            return t
        hidden = round(t.hidden_size * self.generator_size)
        return dataclasses.replace(
            t,
            hidden_size=hidden,
            heads=max(1, hidden // t.head_size),
            head_dim=min(t.head_size, hidden),
            intermediate_size=4 * hidden,
            base_width=t.base_width and max(1, round(t.base_width * self.generator_size)),
        )


def electra_embeddings(config: ElectraConfig) -> TextEmbeddings:
    """The tables and the norm that both networks share in pretraining."""
    return TextEmbeddings(
        config.trunk,
        vocab_size=config.vocab_size,
        features=config.embedding_features,
        max_length=config.max_length,
        segment_types=config.segment_types,
        norm=True,
    )


class ElectraEncoder(nn.Module):
    """Ids [batch, length] -> [batch, length, H], with a projection where E is not H.

    Attributes:
      trunk: the discriminator's or the generator's.
      shared: embeddings that belong to another module; None: its own.
    """

    config: ElectraConfig
    trunk: TransformerConfig
    shared: TextEmbeddings | None = None

    def setup(self) -> None:
        if self.shared is None:
            self.embeddings = electra_embeddings(self.config)
        if self.config.embedding_features != self.trunk.hidden_size:
            # Glorot: the authors' code passes no initializer here.
            self.embeddings_project = Dense(
                self.trunk.hidden_size,
                nn.initializers.glorot_uniform(),
                dtype=self.trunk.compute_dtype,
            )
        self.stack = Stack(self.trunk)

    @property
    def tables(self) -> TextEmbeddings:
        return self.embeddings if self.shared is None else self.shared

    def __call__(
        self,
        tokens: jax.Array,
        segments: jax.Array,
        positions: jax.Array,
        mask: Mask | jax.Array,
        seeds: Seeds | None = None,
    ) -> jax.Array:
        """mask: boolean, broadcasts to [batch, length, length]; True = may attend."""
        x = self.tables(tokens, segments, positions, seeds)
        if self.config.embedding_features != self.trunk.hidden_size:
            x = self.embeddings_project(x)
        return self.stack(x, mask, seeds)[0]

    def decode(self, x: jax.Array) -> jax.Array:
        return self.tables.decode(x)


class ElectraGenerator(nn.Module):
    """The masked language model whose samples are to be detected."""

    config: ElectraConfig
    shared: TextEmbeddings | None = None

    def setup(self) -> None:
        c, trunk = self.config, self.config.generator_trunk
        self.encoder = ElectraEncoder(c, trunk, self.shared)
        self.transform = PredictionTransform(trunk, c.embedding_features)
        self.output_bias = self.param("output_bias", nn.initializers.zeros, (c.vocab_size,))
        if not c.tie_embeddings:
            self.decoder = Table(c.vocab_size, c.embedding_features, trunk)

    def __call__(
        self,
        tokens: jax.Array,
        segments: jax.Array,
        positions: jax.Array,
        mask: Mask | jax.Array,
        target_positions: jax.Array,
        seeds: Seeds | None = None,
    ) -> jax.Array:
        """Masked-LM logits [batch, num_predict, vocab_size] at `target_positions`."""
        hidden = self.encoder(tokens, segments, positions, mask, seeds)
        return self.decode(gather_positions(hidden, target_positions))

    def decode(self, hidden: jax.Array) -> jax.Array:
        """Hidden states [..., hidden_size] -> logits [..., vocab_size]."""
        decoder = self.encoder if self.config.tie_embeddings else self.decoder
        return decoder.decode(self.transform(hidden)) + self.output_bias


class ElectraDiscriminator(nn.Module):
    """Which tokens are replaced; the encoder that fine-tuning keeps."""

    config: ElectraConfig
    shared: TextEmbeddings | None = None

    def setup(self) -> None:
        c = self.config.trunk
        self.encoder = ElectraEncoder(self.config, c, self.shared)
        self.dense = Dense(c.hidden_size, c.kernel_initializer(), dtype=c.compute_dtype)
        self.prediction = Dense(1, nn.initializers.glorot_uniform())

    def __call__(
        self,
        tokens: jax.Array,
        segments: jax.Array,
        positions: jax.Array,
        mask: Mask | jax.Array,
        seeds: Seeds | None = None,
    ) -> jax.Array:
        """Logits [batch, length] that a token is replaced (positive = replaced)."""
        hidden = self.encoder(tokens, segments, positions, mask, seeds)
        x = ACTIVATIONS[self.config.trunk.activation](self.dense(hidden))
        return self.prediction(x)[..., 0]


class _Generating(nn.Module):
    """A generator beside another network."""

    config: ElectraConfig

    def setup(self) -> None:
        self.embeddings = electra_embeddings(self.config)
        self.generator = ElectraGenerator(self.config, self.embeddings)

    def generate(
        self,
        tokens: jax.Array,
        segments: jax.Array,
        positions: jax.Array,
        mask: Mask | jax.Array,
        target_positions: jax.Array,
        seeds: Seeds | None = None,
    ) -> jax.Array:
        """The generator's masked-LM logits [batch, num_predict, vocab_size]."""
        seeds = None if seeds is None else seeds.fold(GENERATOR)
        return self.generator(tokens, segments, positions, mask, target_positions, seeds)


class Electra(_Generating):
    """Both networks of pretraining around one set of embeddings.

    Unless `share_embeddings` is off, shared are the token, position and segment tables and the
    embedding norm (§3.2; `electra/embeddings` in the authors' code).
    """

    def setup(self) -> None:
        super().setup()
        shared = self.embeddings if self.config.share_embeddings else None
        self.discriminator = ElectraDiscriminator(self.config, shared)

    def discriminate(
        self,
        tokens: jax.Array,
        segments: jax.Array,
        positions: jax.Array,
        mask: Mask | jax.Array,
        seeds: Seeds | None = None,
    ) -> jax.Array:
        """Logits [batch, length] that a token is replaced (positive = replaced)."""
        return self.discriminator(tokens, segments, positions, mask, seeds)

    def __call__(
        self,
        tokens: jax.Array,
        segments: jax.Array,
        positions: jax.Array,
        mask: Mask | jax.Array,
        target_positions: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        """Both networks on the same tokens; touches every parameter, for `init`."""
        return (
            self.generate(tokens, segments, positions, mask, target_positions),
            self.discriminate(tokens, segments, positions, mask),
        )


class ElectraWithLM(_Generating):
    """A generator, and a language model in the discriminator's place (§3.4).

    The language model reads the generator's samples and tells the tokens they stand for.

    Attributes:
      copies: it has a sigmoid layer beside its softmax, the probability that a token is to
        be copied (All-Tokens MLM).
    """

    copies: bool = False

    @property
    def language_model_config(self) -> ElectraConfig:
        """Of an `ElectraGenerator` as wide as the discriminator would be."""
        return dataclasses.replace(self.config, generator_size=1.0)

    def setup(self) -> None:
        super().setup()
        self.language_model = ElectraGenerator(self.language_model_config, self.embeddings)
        if self.copies:
            self.copying = Dense(1, nn.initializers.glorot_uniform())

    def identify(
        self,
        tokens: jax.Array,
        segments: jax.Array,
        positions: jax.Array,
        mask: Mask | jax.Array,
        target_positions: jax.Array | None,
        seeds: Seeds | None = None,
    ) -> tuple[jax.Array, jax.Array | None]:
        """What stood at `target_positions` [batch, num_predict], at all positions for None.

        Returns:
          Logits [batch, num_predict, vocab_size], and those of copying the token that is
          read, [batch, num_predict], or None without a copy mechanism.
        """
        model = self.language_model
        hidden = model.encoder(tokens, segments, positions, mask, seeds)
        if target_positions is not None:
            hidden = gather_positions(hidden, target_positions)
        copied = self.copying(hidden)[..., 0] if self.copies else None
        return model.decode(hidden), copied

    def __call__(
        self,
        tokens: jax.Array,
        segments: jax.Array,
        positions: jax.Array,
        mask: Mask | jax.Array,
        target_positions: jax.Array,
    ) -> tuple[Any, ...]:
        """Both networks on the same tokens; touches every parameter, for `init`."""
        return (
            self.generate(tokens, segments, positions, mask, target_positions),
            *self.identify(tokens, segments, positions, mask, target_positions),
        )


def standalone(
    params: Any, network: Literal["generator", "discriminator", "language_model"]
) -> Any:
    """Parameters of one network by itself, out of those of `Electra` or `ElectraWithLM`."""
    own = params[network]
    return {**own, "encoder": {"embeddings": params["embeddings"], **own["encoder"]}}
