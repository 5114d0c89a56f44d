"""ELECTRA (Clark et al. 2020): a generator and a discriminator that share parameters."""

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping
from typing import Annotated, Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from lmjax.configuration import Interval, OptionalSize, Size
from lmjax.errors import ConfigError
from lmjax.models.family import ModelConfig, check_summary, read_rate
from lmjax.models.heads import SequenceHead, Task
from lmjax.models.network import (
    MaskedNetwork,
    Network,
    Scores,
    ScoringMethod,
    TextInputs,
    every_position,
)
from lmjax.models.published import (
    Fields,
    Published,
    Read,
    Rules,
    bert_layers,
    bert_trunk,
    bert_values,
    dense,
    norm,
    same,
    table,
    text_embeddings,
)
from lmjax.nn.dropout import Seeds
from lmjax.nn.layers import ACTIVATIONS, Dense
from lmjax.nn.transformer import (
    PredictionTransform,
    SegmentTypes,
    Stack,
    Table,
    TextEmbeddings,
    gather_positions,
)
from lmjax.nn.trunk import TransformerConfig
from lmjax.trees import map_named

GENERATOR = 64  # salt that separates the generator's dropout from the discriminator's

Sharing = bool | Literal["disentangled", "all_weights"]


@dataclasses.dataclass(frozen=True)
class ElectraConfig(ModelConfig):
    """ELECTRA's settings.

    Attributes:
      trunk: config of the discriminator's Transformer.
      embedding_size: E, the embedding size of both networks; 0 = the hidden size.
      generator_size: the generator's width as a multiple of the discriminator's; both have the
        same depth.
      share_embeddings: True: both networks use the same embedding tables and norm (§3.2).
        'all_weights': also the same encoder (§3.2). 'disentangled': see `DisentangledEmbeddings`.
        False: each has its own.
      max_length, segment_types: rows of the position and segment tables.
      tie_embeddings: whether the generator decodes with the token table.
      vocab_size: rows of the token table; 0 = the tokenizer's size.
    """

    published_type: ClassVar[str] = "electra"
    published_prefix: ClassVar[str] = "Electra"
    published_base: ClassVar[str] = "electra."
    published_unused: ClassVar[str] = r"(electra\.)?embeddings\.position_ids"
    published_refused: ClassVar[Mapping[str, str]] = {
        "ElectraForCausalLM": "causal ELECTRA is not supported"
    }
    published_heads: ClassVar[Mapping[str, tuple[str, str]]] = {
        "sequence_classification": ("classifier.dense", "classifier.out_proj"),
        "multiple_choice": ("sequence_summary.summary", "classifier"),
    }

    embedding_size: OptionalSize = 0
    generator_size: Annotated[float, Interval("(0, 1]")] = 0.25
    share_embeddings: Sharing = True
    max_length: Size = 512
    segment_types: SegmentTypes = 2
    tie_embeddings: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            _ = self.generator_trunk
        except ConfigError as error:
            raise ConfigError(
                f"generator_size: {self.generator_size} times trunk.hidden_size="
                f"{self.trunk.hidden_size} gives no valid generator; its {error}"
            ) from error
        if self.share_embeddings == "all_weights" and self.generator_size != 1.0:
            raise ConfigError(
                "share_embeddings: 'all_weights' needs two networks of one size; set"
                " generator_size to 1"
            )

    @property
    def embedding_features(self) -> int:
        return self.embedding_size or self.trunk.hidden_size

    @property
    def generator_trunk(self) -> TransformerConfig:
        """Scaled hidden size, heads of the same size (at least one), I = 4 H and the same depth."""
        t = self.trunk
        if self.generator_size == 1.0:
            return t
        hidden = round(t.hidden_size * self.generator_size)
        heads = max(1, hidden // t.head_size)
        grouped = t.kv_heads < t.heads
        return dataclasses.replace(
            t,
            hidden_size=hidden,
            heads=heads,
            # As many query heads share keys and values, if their number allows it.
            key_value_heads=math.gcd(heads, max(1, heads * t.kv_heads // t.heads))
            if grouped
            else 0,
            head_dim=min(t.head_size, hidden),
            intermediate_size=4 * hidden,
            base_width=t.base_width and max(1, round(t.base_width * self.generator_size)),
        )

    def encoder(self) -> "ElectraEncoder":
        return ElectraEncoder(self, self.trunk)

    def masked_lm(self, sentence_head: bool = False) -> "ElectraMaskedLM":
        if sentence_head:
            raise ConfigError(
                "objective.sentence_prediction: ELECTRA has no sentence head; set it to False"
            )
        if self.generator_size != 1.0:
            raise ConfigError(
                "model.generator_size: a masked LM has the size of config.model.trunk; set it to 1"
            )
        return ElectraMaskedLM(self)

    def forward_flops(self, length: int) -> float:
        hidden, features = self.trunk.hidden_size, self.embedding_features
        projection = 2 * length * features * hidden if features != hidden else 0
        return self.trunk.forward_flops(length, length) + projection

    def sequence_head(self, task: Task, classes: int, dropout: float) -> SequenceHead:
        """Follows `transformers`, with a dense gelu layer; the authors' head has no such layer."""
        before = task == "sequence_classification"
        return SequenceHead(
            self.trunk, classes, self.text_token, "gelu", dropout, dropout_before=before
        )

    @classmethod
    def read_published(cls, fields: Fields) -> Read:
        return Read(
            cls(
                bert_trunk(fields),
                embedding_size=fields.get("embedding_size", int),
                generator_size=1.0,  # each published network has its own config
                max_length=fields.get("max_position_embeddings", int),
                segment_types=fields.get("type_vocab_size", int),
                tie_embeddings=fields.get("tie_word_embeddings", bool, True),
                vocab_size=fields.get("vocab_size", int),
            )
        )

    def published_values(self) -> dict[str, Any]:
        return {
            "model_type": "electra",
            "embedding_size": self.embedding_features,
            **bert_values(self),
        }

    def published_network(
        self, architecture: str, names: Collection[str], values: Mapping[str, Any], where: str
    ) -> Network:
        present = {name.split(".")[0] for name in names}
        if "discriminator_predictions" in present:
            return ElectraDiscriminator(self)
        if "generator_predictions" not in present:
            return ElectraEncoder(self, self.trunk)
        _check_generator_activation(self.generator_trunk, where)
        return ElectraGenerator(self)

    def published_head_dropout(self, task: Task, values: Mapping[str, Any], where: str) -> float:
        if task != "multiple_choice":
            return super().published_head_dropout(task, values, where)
        check_summary({"type": "first", "use_proj": True, "activation": "gelu"}, values, where)
        return read_rate("summary_last_dropout", 0.1, values, where)

    def encoder_rules(self, ours: str, tied: tuple[str, ...] = ()) -> Rules:
        return ElectraEncoder(self, self.trunk).rules(ours, tied)


def _check_generator_activation(trunk: TransformerConfig, where: str) -> None:
    """Refuses a generator whose head would differ between lmjax and `transformers`."""
    if trunk.activation != "gelu":
        raise ConfigError(
            f"{where}: 'hidden_act' is not 'gelu'; the generator's head always uses gelu in"
            " transformers, but follows 'hidden_act' here and in the authors' code"
        )


def electra_embeddings(config: ElectraConfig, base: TextEmbeddings | None = None) -> TextEmbeddings:
    """The embedding tables and norm of one network, or of both."""
    return TextEmbeddings(
        config.trunk,
        vocab_size=config.vocab_size,
        features=config.embedding_features,
        max_length=config.max_length,
        segment_types=config.segment_types,
        norm=True,
        base=base,
    )


class DisentangledEmbeddings(nn.Module):
    """Gradient-disentangled embedding sharing (He et al. 2021, "DeBERTaV3", §3.3, eq. 5).

    The discriminator's tables are E_D = sg(E_G) + E_delta: the generator's, without gradient, and
    residuals that start at zero and that the discriminator's loss trains. As in the authors' code
    (apps/tasks/rtd_task.py), this holds for all tables, and the discriminator has its own norm.
    """

    config: ElectraConfig
    base: TextEmbeddings  # the generator's

    def setup(self) -> None:
        self.embeddings = electra_embeddings(self.config, self.base)

    def __call__(
        self, tokens: jax.Array, segments: jax.Array, positions: jax.Array, seeds: Seeds | None
    ) -> jax.Array:
        """tokens, segments, positions: [batch, length] int -> [batch, length, E]."""
        return self.embeddings(tokens, segments, positions, seeds)


class ElectraEncoder(Network):
    """Token ids [batch, length] -> [batch, length, H], with a projection if E differs from H.

    Attributes:
      trunk: config of the discriminator's or the generator's trunk.
      shared: embeddings that belong to another module; None = the encoder has its own.
    """

    config: ElectraConfig
    trunk: TransformerConfig
    shared: TextEmbeddings | DisentangledEmbeddings | None = None

    def setup(self) -> None:
        if self.shared is None:
            self.embeddings = electra_embeddings(self.config)
        if self.config.embedding_features != self.trunk.hidden_size:
            # The authors' code passes no initializer here, which means Glorot uniform.
            self.embeddings_project = Dense(
                self.trunk.hidden_size,
                nn.initializers.glorot_uniform(),
                dtype=self.trunk.compute_dtype,
            )
        self.stack = Stack(self.trunk)

    @property
    def tables(self) -> Any:
        return self.embeddings if self.shared is None else self.shared

    def __call__(self, inputs: TextInputs, seeds: Seeds | None = None) -> jax.Array:
        """Returns the last hidden states [batch, length, hidden_size]."""
        x = self.tables(inputs.tokens, inputs.token_types, inputs.positions, seeds)
        if self.config.embedding_features != self.trunk.hidden_size:
            x = self.embeddings_project(x)
        return self.stack(x, inputs.positions, inputs.mask, seeds)[0]

    def decode(self, hidden: jax.Array) -> jax.Array:
        return self.tables.decode(hidden)

    @nn.nowrap
    def published(self) -> Published:
        return Published("ElectraModel", self.rules(""), bare=True)

    @nn.nowrap
    def rules(self, ours: str, tied: tuple[str, ...] = ()) -> Rules:
        """Like `ModelConfig.encoder_rules`, for the trunk of either network."""
        yield from text_embeddings("electra.embeddings", f"{ours}embeddings", tied)
        if self.config.embedding_features != self.trunk.hidden_size:
            yield from dense("electra.embeddings_project", f"{ours}embeddings_project")
        yield from bert_layers("electra.encoder", f"{ours}stack", self.trunk.layers)


class ElectraGenerator(MaskedNetwork):
    """The masked language model whose samples the discriminator detects."""

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
        self, inputs: TextInputs, target_positions: jax.Array, seeds: Seeds | None = None
    ) -> jax.Array:
        """Returns masked-LM logits [batch, num_predict, vocab_size] at `target_positions`."""
        return self.decode(self.hidden(inputs, target_positions, seeds))

    def hidden(
        self, inputs: TextInputs, target_positions: jax.Array, seeds: Seeds | None = None
    ) -> jax.Array:
        """Returns the encoder's states at `target_positions`: [batch, num_predict, H]."""
        return gather_positions(self.encoder(inputs, seeds), target_positions)

    def masked_logits(self, inputs: TextInputs, target_positions: jax.Array) -> jax.Array:
        return self.decode(self.hidden(inputs, target_positions))

    def whole(self, inputs: TextInputs) -> jax.Array:
        return self(inputs, every_position(inputs))

    @nn.nowrap
    def published(self) -> Published:
        _check_generator_activation(self.config.generator_trunk, "trunk.activation")
        return Published("ElectraForMaskedLM", self._rules())

    @nn.nowrap
    def _rules(self) -> Rules:
        tied = self.config.tie_embeddings
        encoder = ElectraEncoder(self.config, self.config.generator_trunk)
        yield from encoder.rules("encoder/", ("generator_lm_head.weight",) if tied else ())
        yield from dense("generator_predictions.dense", "transform/dense")
        yield from norm("generator_predictions.LayerNorm", "transform/norm")
        if not tied:
            yield table("generator_lm_head", "decoder")
        yield same("generator_lm_head.bias", "output_bias")

    def decode(self, hidden: jax.Array) -> jax.Array:
        """Hidden states [..., hidden_size] -> logits [..., vocab_size]."""
        decoder = self.encoder if self.config.tie_embeddings else self.decoder
        return decoder.decode(self.transform(hidden)) + self.output_bias


class ElectraMaskedLM(ElectraGenerator):
    """A generator by itself, with the outputs that `ModelConfig.masked_lm` describes."""

    def __call__(  # type: ignore[override]
        self, inputs: TextInputs, target_positions: jax.Array, seeds: Seeds | None = None
    ) -> tuple[jax.Array, None]:
        return self.decode(self.hidden(inputs, target_positions, seeds)), None


class ElectraDiscriminator(Network):
    """Detects replaced tokens; its encoder is the one that is fine-tuned.

    Attributes:
      shared: embeddings that belong to another module; None = the discriminator has its own.
      shared_encoder: an encoder that belongs to another module; None = it has its own.
    """

    score_methods: ClassVar[tuple[ScoringMethod, ...]] = ("discriminator",)
    frame: ClassVar[tuple[tuple[str, ...], tuple[str, ...]]] = (("cls",), ("sep",))

    config: ElectraConfig
    shared: TextEmbeddings | DisentangledEmbeddings | None = None
    shared_encoder: ElectraEncoder | None = None

    def setup(self) -> None:
        c = self.config.trunk
        if self.shared_encoder is None:
            self.encoder = ElectraEncoder(self.config, c, self.shared)
        self.dense = Dense(c.hidden_size, c.kernel_initializer(), dtype=c.compute_dtype)
        self.prediction = Dense(1, nn.initializers.glorot_uniform())

    def __call__(self, inputs: TextInputs, seeds: Seeds | None = None) -> jax.Array:
        """Returns logits [batch, length] that tokens are replaced (positive = replaced)."""
        encoder = self.encoder if self.shared_encoder is None else self.shared_encoder
        hidden = encoder(inputs, seeds)
        x = ACTIVATIONS[self.config.trunk.activation](self.dense(hidden))
        return self.prediction(x)[..., 0]

    def score(
        self,
        method: ScoringMethod,
        inputs: TextInputs,
        mask_id: int,
        begin: jax.Array,
        end: jax.Array,
    ) -> Scores:
        """Returns log p(original) of each token, and whether it is classified as original."""
        logits = self(inputs)
        return jax.nn.log_sigmoid(-logits), logits <= 0

    @nn.nowrap
    def published(self) -> Published:
        return Published("ElectraForPreTraining", self._rules())

    @nn.nowrap
    def _rules(self) -> Rules:
        yield from self.config.encoder_rules("encoder/")
        yield from dense("discriminator_predictions.dense", "dense")
        yield from dense("discriminator_predictions.dense_prediction", "prediction")


class _Generating(Network):
    """Base of networks that consist of a generator and another network."""

    config: ElectraConfig

    def setup(self) -> None:
        self.embeddings = electra_embeddings(self.config)
        self.generator = ElectraGenerator(self.config, self.embeddings)

    def generate(
        self, inputs: TextInputs, target_positions: jax.Array, seeds: Seeds | None = None
    ) -> jax.Array:
        """Returns the generator's masked-LM logits [batch, num_predict, vocab_size]."""
        seeds = None if seeds is None else seeds.fold(GENERATOR)
        return self.generator(inputs, target_positions, seeds)

    def whole(self, inputs: TextInputs) -> Any:
        return self(inputs, every_position(inputs))


class Electra(_Generating):
    """The generator and the discriminator, as pretrained together.

    The parameters `embeddings` are the generator's: the token, position and segment tables and the
    norm (`electra/embeddings` in the authors' code). `config.share_embeddings` says whether they
    are the discriminator's too.

    Attributes:
      baseline: whether there is the learned baseline of an adversarial generator.
    """

    score_methods: ClassVar[tuple[ScoringMethod, ...]] = (
        "discriminator",
        "pseudo",
        "pseudo_within_word",
    )
    fills_masks: ClassVar[bool] = True

    baseline: bool = False

    def setup(self) -> None:
        super().setup()
        c, how = self.config, self.config.share_embeddings
        if how == "disentangled":
            self.delta = DisentangledEmbeddings(c, self.embeddings)
        shared = self.delta if how == "disentangled" else self.embeddings if how else None
        encoder = self.generator.encoder if how == "all_weights" else None
        self.discriminator = ElectraDiscriminator(c, shared, encoder)
        if self.baseline:
            initializer = c.generator_trunk.kernel_initializer()
            self.reward = Dense(1, initializer, use_bias=False)

    def generate_with_baseline(
        self, inputs: TextInputs, target_positions: jax.Array, seeds: Seeds | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the logits of `generate`, and w^T h_G [batch, num_predict].

        h_G are the generator's hidden states. The latter passes no gradient to them.
        """
        seeds = None if seeds is None else seeds.fold(GENERATOR)
        hidden = self.generator.hidden(inputs, target_positions, seeds)
        return self.generator.decode(hidden), self.reward(jax.lax.stop_gradient(hidden))[..., 0]

    def discriminate(self, inputs: TextInputs, seeds: Seeds | None = None) -> jax.Array:
        """Returns logits [batch, length] that tokens are replaced (positive = replaced)."""
        return self.discriminator(inputs, seeds)

    def __call__(
        self, inputs: TextInputs, target_positions: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Applies both networks to the same tokens, so that `init` creates all parameters."""
        if self.baseline and self.is_initializing():
            self.generate_with_baseline(inputs, target_positions)
        return self.generate(inputs, target_positions), self.discriminate(inputs)

    @nn.nowrap
    def start_from(self, network: Network, params: Any) -> Any:
        """Starts from another `Electra`, or both networks from a generator (§3.3)."""
        how = self.config.share_embeddings
        if isinstance(network, Electra) and network.config.share_embeddings != how:
            theirs = network.config.share_embeddings
            raise ConfigError(f"its networks need config.model.share_embeddings={theirs}")
        if not isinstance(network, ElectraGenerator):
            return params
        if self.config.generator_size != 1.0:
            raise ConfigError(
                "the discriminator starts as a copy of this generator; set"
                " config.model.generator_size to 1"
            )
        encoder = dict(params["encoder"])
        tables = encoder.pop("embeddings")
        started = {"embeddings": tables, "generator": {**params, "encoder": encoder}}
        if how == "all_weights":
            return started
        if how == "disentangled":
            started["delta"] = {"embeddings": _map_tables(jnp.subtract, tables, tables)}
        own = encoder if how else params["encoder"]
        return {**started, "discriminator": {"encoder": own}}

    @nn.nowrap
    def part(self, params: Any, name: str) -> tuple[Network, Any]:
        config = dataclasses.replace(
            self.config, embedding_size=self.config.embedding_features, share_embeddings=True
        )
        if name == "discriminator":
            return ElectraDiscriminator(config), standalone(params, "discriminator")
        if name != "generator":
            raise ConfigError(f"--part: '{name}' is not one of discriminator, generator")
        config = dataclasses.replace(config, trunk=config.generator_trunk, generator_size=1.0)
        return ElectraGenerator(config), standalone(params, "generator")


class ElectraWithLM(_Generating):
    """A generator, and a language model in place of the discriminator (§3.4).

    The language model reads the generator's samples and predicts the original tokens.

    Attributes:
      copies: whether there is a sigmoid layer in addition to the softmax, which predicts the
        probability of copying the input token (All-Tokens MLM).
    """

    copies: bool = False

    @property
    def language_model_config(self) -> ElectraConfig:
        """Config of an `ElectraGenerator` as wide as the discriminator."""
        return dataclasses.replace(self.config, generator_size=1.0)

    def setup(self) -> None:
        super().setup()
        self.language_model = ElectraGenerator(self.language_model_config, self.embeddings)
        if self.copies:
            self.copying = Dense(1, nn.initializers.glorot_uniform())

    def identify(
        self,
        inputs: TextInputs,
        target_positions: jax.Array | None,
        seeds: Seeds | None = None,
    ) -> tuple[jax.Array, jax.Array | None]:
        """Predicts the original tokens at `target_positions` [batch, num_predict].

        Args:
          target_positions: None = all positions.

        Returns:
          Logits [batch, num_predict, vocab_size], and the logits of copying the input token,
          [batch, num_predict], or None without a copy mechanism.
        """
        model = self.language_model
        hidden = model.encoder(inputs, seeds)
        if target_positions is not None:
            hidden = gather_positions(hidden, target_positions)
        copied = self.copying(hidden)[..., 0] if self.copies else None
        return model.decode(hidden), copied

    def __call__(self, inputs: TextInputs, target_positions: jax.Array) -> tuple[Any, ...]:
        """Applies both networks to the same tokens, so that `init` creates all parameters."""
        return (
            self.generate(inputs, target_positions),
            *self.identify(inputs, target_positions),
        )

    @nn.nowrap
    def part(self, params: Any, name: str) -> tuple[Network, Any]:
        """Returns the language model for either name."""
        del name
        network = ElectraGenerator(self.language_model_config)
        return network, standalone(params, "language_model")


def standalone(
    params: Any, network: Literal["generator", "discriminator", "language_model"]
) -> Any:
    """Extracts the parameters of one network from those of `Electra` or `ElectraWithLM`."""
    own, embeddings = params[network], params["embeddings"]
    if network == "discriminator" and "delta" in params:
        embeddings = _map_tables(jnp.add, params["delta"]["embeddings"], embeddings)
    encoder = own.get("encoder", params["generator"]["encoder"])  # all weights may be shared
    return {**own, "encoder": {"embeddings": embeddings, **encoder}}


def _map_tables(function: Callable[..., Any], own: Any, base: Any) -> Any:
    """Maps function(own, base) over the tables of two embeddings; the norm is `own`'s."""
    return map_named(lambda path, x, y: function(x, y) if path[-1] == "embedding" else x, own, base)
