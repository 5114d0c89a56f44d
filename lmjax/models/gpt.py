"""GPT (Radford et al. 2018), GPT-2 (2019) and GPT-3 (Brown et al. 2020): causal decoders.

GPT-1 has a post-norm trunk, GPT-2 a pre-norm trunk with a final norm. GPT-3 is implemented as
GPT-2, with dense attention in place of its alternating sparse attention.
"""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Annotated, Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lmjax.configuration import Interval, Size
from lmjax.data.vocabulary import Vocabulary
from lmjax.errors import ConfigError
from lmjax.models.family import Joined, ModelConfig, joined, read_rate
from lmjax.models.heads import SequenceHead, Task, Token
from lmjax.models.network import CausalNetwork, Network, TextInputs
from lmjax.models.published import (
    THEIR_ACTIVATIONS,
    Fields,
    Published,
    Read,
    Rule,
    Rules,
    check_trunk,
    conv1d,
    norm,
    table,
)
from lmjax.nn.attention import Cache, Caches
from lmjax.nn.dropout import Seeds
from lmjax.nn.masks import Mask, causal
from lmjax.nn.transformer import Stack, Table, TextEmbeddings
from lmjax.nn.trunk import TransformerConfig


@dataclasses.dataclass(frozen=True)
class GptConfig(ModelConfig):
    """GPT's settings.

    Attributes:
      trunk: config of the Transformer.
      max_length: rows of the position table, the maximum sequence length.
      tie_embeddings: whether the output layer decodes with the token table.
      published_lm: class of the language model in `transformers`.
      normalizes_embeddings: whether embeddings are normalized, as in BERT.
      position_std: initial std of the position table (GPT-2's code: 0.01); 0 = the trunk's.
      vocab_size: rows of the token table; 0 = the tokenizer's size.
    """

    causal: ClassVar[bool] = True
    text_token: ClassVar[Token] = "last_real"
    published_type: ClassVar[str] = "gpt2"
    published_prefix: ClassVar[str] = "GPT2"
    published_base: ClassVar[str] = "transformer."
    published_lm: ClassVar[str] = "GPT2LMHeadModel"
    # Causal masks of earlier versions.
    published_unused: ClassVar[str] = r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)"
    published_refused: ClassVar[Mapping[str, str]] = {
        "GPT2DoubleHeadsModel": "load it as GPT2LMHeadModel"
    }
    published_heads: ClassVar[Mapping[str, tuple[str, str]]] = {
        "sequence_classification": ("", "score")
    }
    published_token_types: ClassVar[bool] = False  # GPT-2 in transformers adds them to tokens
    normalizes_embeddings: ClassVar[bool] = False

    max_length: Size = 1024
    position_std: Annotated[float, Interval("[0, 10]")] = 0.0
    tie_embeddings: bool = True

    def encoder(self) -> "GptEncoder":
        return GptEncoder(self)

    def causal_lm(self) -> "Gpt":
        return Gpt(self)

    def sequence_head(self, task: Task, classes: int, dropout: float) -> SequenceHead:
        """GPT-1 §3.3: a linear layer, without dropout."""
        return SequenceHead(self.trunk, classes, self.text_token, "", 0.0, use_bias=False)

    def inputs(self, tokens: jax.Array, token_types: jax.Array, real: jax.Array) -> TextInputs:
        """Builds inputs from whole texts [batch, length].

        Positions count from the first real token, since prompts are padded on the left.
        """
        read = super().inputs(tokens, token_types, real)
        positions = jnp.maximum(jnp.cumsum(real, axis=1) - 1, 0)
        mask = read.mask & causal(tokens.shape[1])
        return read.replace(positions=positions, mask=mask)  # type: ignore[attr-defined]

    def join(
        self, vocabulary: Vocabulary, first: np.ndarray, second: np.ndarray | None = None
    ) -> Joined:
        """Joins texts as: start a delimiter b extract (GPT-1 §3.3).

        The start token is [EOD], which begins documents in pretraining; the delimiter is [SEP] and
        the extract token is [CLS].
        """
        b = second if second is not None else np.zeros(0, np.int32)
        ends = [vocabulary.sep] if second is not None else []
        tokens = [vocabulary.eod, *first, *ends, *b, vocabulary.cls]
        return joined(tokens, [0] * len(tokens), 1, len(first) + 2)

    @classmethod
    def read_published(cls, fields: Fields) -> Read:
        hidden, heads = fields.get("n_embd", int), fields.get("n_head", int)
        layers = fields.get("n_layer", int)
        dropout = fields.get("resid_pdrop", float, 0.1)
        embedding_dropout = fields.get("embd_pdrop", float, 0.1)
        if embedding_dropout != dropout:
            raise ConfigError(
                f"'embd_pdrop' is {embedding_dropout} and 'resid_pdrop' {dropout}; they"
                " share one dropout rate here, so make them equal"
            )
        trunk = TransformerConfig(
            layers=layers,
            hidden_size=hidden,
            heads=heads,
            intermediate_size=fields.optional("n_inner") or 4 * hidden,
            activation=fields.activation("activation_function"),  # type: ignore[arg-type]
            norm="pre",
            layer_norm_epsilon=fields.get("layer_norm_epsilon", float, 1e-5),
            dropout=dropout,
            attention_dropout=fields.get("attn_pdrop", float, 0.1),
            initial_distribution="normal",
            initial_std=fields.get("initializer_range", float, 0.02),
            scale_residual_init=True,
        )
        model = cls(
            trunk,
            max_length=fields.get("n_positions", int),
            tie_embeddings=fields.get("tie_word_embeddings", bool, True),
            vocab_size=fields.get("vocab_size", int),
        )
        by_layer = fields.get("scale_attn_by_inverse_layer_idx", bool, False)
        by_size = fields.get("scale_attn_weights", bool, True)
        scale = 1.0 if by_size else trunk.head_size**0.5
        return Read(model, lambda layer: scale / (layer + 1 if by_layer else 1))

    def published_values(self) -> dict[str, Any]:
        trunk = self.trunk
        check_trunk(trunk, "pre", "GPT-2")
        return {
            "model_type": "gpt2",
            "vocab_size": self.vocab_size,
            "n_positions": self.max_length,
            "n_embd": trunk.hidden_size,
            "n_layer": trunk.layers,
            "n_head": trunk.heads,
            "n_inner": trunk.intermediate_size,
            "activation_function": THEIR_ACTIVATIONS[trunk.activation],
            "resid_pdrop": trunk.dropout,
            "embd_pdrop": trunk.dropout,
            "attn_pdrop": trunk.attention_dropout,
            "layer_norm_epsilon": trunk.layer_norm_epsilon,
            "initializer_range": trunk.initial_std,
            "tie_word_embeddings": self.tie_embeddings,
        }

    def published_network(
        self, architecture: str, names: Collection[str], values: Mapping[str, Any], where: str
    ) -> Network:
        bare = architecture == f"{self.published_prefix}Model"
        return self.encoder() if bare else self.causal_lm()

    def published_head_dropout(self, task: Task, values: Mapping[str, Any], where: str) -> float:
        return read_rate("classifier_dropout", 0.1, values, where)

    def encoder_rules(self, ours: str, tied: tuple[str, ...] = ()) -> Rules:
        yield table("transformer.wte", f"{ours}embeddings/token", tied)
        yield table("transformer.wpe", f"{ours}embeddings/position")
        for i in range(self.trunk.layers):
            t, o = f"transformer.h.{i}", f"{ours}stack/blocks/layer_{i}"
            for theirs, leaf in (("weight", "kernel"), ("bias", "bias")):
                yield Rule(
                    f"{t}.attn.c_attn.{theirs}",
                    tuple(f"{o}/attention/{part}/{leaf}" for part in ("query", "key", "value")),
                    lambda x: np.split(x, 3, axis=-1),
                    lambda parts: np.concatenate(parts, axis=-1),
                )
            yield from conv1d(f"{t}.attn.c_proj", f"{o}/attention/output")
            yield from norm(f"{t}.ln_1", f"{o}/attention_norm")
            yield from conv1d(f"{t}.mlp.c_fc", f"{o}/feed_forward/inner")
            yield from conv1d(f"{t}.mlp.c_proj", f"{o}/feed_forward/outer")
            yield from norm(f"{t}.ln_2", f"{o}/feed_forward_norm")
        yield from norm("transformer.ln_f", f"{ours}stack/final_norm")

    def lm_rules(self) -> Rules:
        """Rules of the language model's tensors."""
        tied = self.tie_embeddings
        yield from self.encoder_rules("encoder/", ("lm_head.weight",) if tied else ())
        if not tied:
            yield table("lm_head", "decoder")


class GptEncoder(Network):
    """Embeddings and trunk: token ids [batch, length] -> [batch, length, hidden_size]."""

    config: GptConfig

    def setup(self) -> None:
        c = self.config
        self.embeddings = TextEmbeddings(
            c.trunk,
            vocab_size=c.vocab_size,
            features=c.trunk.hidden_size,
            max_length=c.max_length,
            segment_types=0,
            norm=c.normalizes_embeddings,
            position_std=c.position_std,
        )
        self.stack = Stack(c.trunk)

    def __call__(self, inputs: TextInputs, seeds: Seeds | None = None) -> jax.Array:
        """Returns the last hidden states [batch, length, hidden_size]."""
        return self.extend(inputs.tokens, inputs.positions, inputs.mask, seeds)[0]

    def extend(
        self,
        tokens: jax.Array,
        positions: jax.Array,
        mask: Mask | jax.Array,
        seeds: Seeds | None = None,
        cache: Caches | None = None,
        start: jax.Array | None = None,
    ) -> tuple[jax.Array, Caches | None]:
        """Returns the last hidden states and the updated cache."""
        x = self.embeddings(tokens, tokens, positions, seeds)
        return self.stack(x, positions, mask, seeds, cache, start)

    def decode(self, hidden: jax.Array) -> jax.Array:
        return self.embeddings.decode(hidden)

    @nn.nowrap
    def published(self) -> Published:
        name = f"{self.config.published_prefix}Model"
        return Published(name, self.config.encoder_rules(""), bare=True)


class Gpt(CausalNetwork):
    """The decoder with its output layer; the mask of its inputs must be causal."""

    keeps_cache: ClassVar[bool] = True

    config: GptConfig

    def setup(self) -> None:
        c = self.config
        self.encoder = GptEncoder(c)
        if not c.tie_embeddings:
            self.decoder = Table(c.vocab_size, c.trunk.hidden_size, c.trunk)

    def hidden(self, inputs: TextInputs, seeds: Seeds | None = None) -> jax.Array:
        return self.encoder(inputs, seeds)

    def decode(self, hidden: jax.Array) -> jax.Array:
        return (self.encoder if self.config.tie_embeddings else self.decoder).decode(hidden)

    def empty_cache(self, rows: int, slots: int) -> Caches:
        return Cache.empty(self.config.trunk, rows, slots)

    def read_slots(
        self, new: jax.Array, real: jax.Array, start: Any, cache: Any
    ) -> tuple[jax.Array, Any]:
        count = new.shape[1]
        slots = jnp.arange(real.shape[1])[None, None]
        mask = (slots <= self.last_visible(start, count)) & real[:, None, :]
        positions = jnp.clip(jnp.cumsum(real, axis=1) - 1, 0, self.config.max_length - 1)
        here = jax.lax.dynamic_slice_in_dim(positions, start, count, axis=1)
        return self.encoder.extend(new, here, mask, None, cache, start)

    @nn.nowrap
    def last_visible(self, start: Any, count: int) -> jax.Array:
        """Returns the last slot to which each of `count` new slots attends, [1, count, 1] int."""
        return start + jnp.arange(count)[None, :, None]

    @nn.nowrap
    def published(self) -> Published:
        return Published(self.config.published_lm, self.config.lm_rules())
