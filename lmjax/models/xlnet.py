"""XLNet (Yang et al. 2019): two-stream attention over a Transformer-XL memory."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any, ClassVar, Literal, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lmjax.configuration import NonNegativeInt, OptionalSize
from lmjax.data.vocabulary import Vocabulary
from lmjax.errors import ConfigError
from lmjax.models.family import Joined, ModelConfig, check_summary, joined, read_rate
from lmjax.models.heads import Task, Token
from lmjax.models.network import (
    Network,
    Scores,
    ScoringMethod,
    TextInputs,
    every_position,
    scores_of,
)
from lmjax.models.published import (
    THEIR_ACTIVATIONS,
    Fields,
    Published,
    Read,
    Rule,
    Rules,
    check_trunk,
    dense,
    norm,
    reshaped,
    same,
    table,
)
from lmjax.nn.dropout import Seeds, dropout, shared_dropout
from lmjax.nn.masks import Mask, Pairs, as_mask, content, padding, permutation, with_memory
from lmjax.nn.partition import pad_length, sequence_parts, split_activations, whole_length
from lmjax.nn.positions import relative_distances, sinusoid
from lmjax.nn.relative import QUERY_STREAM, RelativeContext, TwoStreamBlock
from lmjax.nn.transformer import Layers, Table
from lmjax.nn.trunk import TransformerConfig

EMBEDDING, ENCODING, FINAL = 32, 33, 34  # dropout sites
_CLS_TYPE = 2  # token type of [CLS] in the authors' code


@dataclasses.dataclass(frozen=True)
class XlnetConfig(ModelConfig):
    """XLNet's settings.

    Attributes:
      trunk: config of the post-norm Transformer, whose attention has no projection biases.
      memory_length: number of hidden states of earlier text kept per layer (mem_len).
      clamp_length: limit to which relative distances are clipped; 0 = no limit (clamp_len).
      attention_type: 'bi', or 'uni' to hide later positions (attn_type).
      same_length: with 'uni', limits all tokens to the same number of keys by hiding the oldest
        keys (same_length).
      tie_embeddings: whether the output layer decodes with the token table.
      vocab_size: rows of the token table; 0 = the tokenizer's size.
    """

    left_padded: ClassVar[bool] = True
    text_token: ClassVar[Token] = "last"
    published_type: ClassVar[str] = "xlnet"
    published_prefix: ClassVar[str] = "XLNet"
    published_base: ClassVar[str] = "transformer."
    published_refused: ClassVar[Mapping[str, str]] = {
        "XLNetForQuestionAnswering": "its beam search over answers is not supported;"
        " use XLNetForQuestionAnsweringSimple"
    }
    published_heads: ClassVar[Mapping[str, tuple[str, str]]] = {
        "sequence_classification": ("sequence_summary.summary", "logits_proj"),
        "multiple_choice": ("sequence_summary.summary", "logits_proj"),
    }

    memory_length: OptionalSize = 0
    clamp_length: NonNegativeInt = 0
    attention_type: Literal["bi", "uni"] = "bi"
    same_length: bool = False
    tie_embeddings: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.trunk.norm != "post":
            raise ConfigError("trunk.norm: XLNet supports only 'post'")
        for name in ("positions", "key_value_heads", "window", "query_key_norm"):
            if getattr(self.trunk, name) not in ("learned", 0):
                raise ConfigError(
                    f"trunk.{name}: XLNet keeps its relative positions and their attention; leave"
                    " it at its default"
                )
        if self.trunk.attention not in ("auto", "plain"):
            raise ConfigError(
                f"trunk.attention: '{self.trunk.attention}' does not support relative positions,"
                " which XLNet's scores depend on; use 'auto', and trunk.query_chunk for long texts"
            )
        if self.trunk.hidden_size % 2:
            raise ConfigError("trunk.hidden_size: must be even for sinusoidal encodings")

    def encoder(self) -> "XlnetEncoder":
        return XlnetEncoder(self)

    def causal_lm(self) -> Network:
        """Raises ConfigError: XLNet's language model has two streams, see `Xlnet`."""
        self._lacks("was not pretrained to predict all next tokens in one pass")

    def for_finetuning(self, dropout: float) -> Self:
        return dataclasses.replace(super().for_finetuning(dropout), memory_length=0)

    def join(
        self, vocabulary: Vocabulary, first: np.ndarray, second: np.ndarray | None = None
    ) -> Joined:
        """Joins texts as a [SEP] b [SEP] [CLS], types 0, 1, 2 (authors' classifier_utils.py)."""
        v = vocabulary
        b = second if second is not None else np.zeros(0, np.int32)
        ends = [v.sep] if second is not None else []
        tokens = [*first, v.sep, *b, *ends, v.cls]
        types = [0] * (len(first) + 1) + [1] * (len(b) + len(ends)) + [_CLS_TYPE]
        return joined(tokens, types, 0, len(first) + 1)

    @classmethod
    def read_published(cls, fields: Fields) -> Read:
        fields.require(
            "bi_data",
            (False,),
            "set it to false, and pass `direction` for rows with backward text",
        )
        fields.require(
            "reuse_len",
            (0,),
            "set it to null, and set the number of states that enter the memory by `reuse_length`",
        )
        fields.require("attn_type", ("bi", "uni"), "only 'bi' and 'uni' are supported")
        fields.require("untie_r", (True,), "biases shared by all layers are not supported")
        dropout = fields.get("dropout", float, 0.1)
        clamp = fields.optional("clamp_len")
        heads, hidden = fields.get("n_head", int), fields.get("d_model", int)
        trunk = TransformerConfig(
            layers=fields.get("n_layer", int),
            hidden_size=hidden,
            heads=heads,
            intermediate_size=fields.get("d_inner", int),
            head_dim=fields.optional("d_head") or 0,
            activation=fields.activation("ff_activation"),  # type: ignore[arg-type]
            norm="post",
            layer_norm_epsilon=fields.get("layer_norm_eps", float, 1e-12),
            dropout=dropout,
            attention_dropout=dropout,
            activation_dropout=dropout,
            initial_distribution="normal",
            initial_std=fields.get("initializer_range", float, 0.02),
        )
        model = cls(
            trunk,
            memory_length=fields.optional("mem_len") or 0,
            clamp_length=clamp if clamp is not None and clamp > 0 else 0,
            attention_type=fields.get("attn_type", str, "bi"),
            same_length=fields.get("same_length", bool, False),
            tie_embeddings=fields.get("tie_word_embeddings", bool, True),
            vocab_size=fields.get("vocab_size", int),
        )
        return Read(model)

    def published_values(self) -> dict[str, Any]:
        trunk = self.trunk
        check_trunk(trunk, "post", "XLNet")
        return {
            "model_type": "xlnet",
            "vocab_size": self.vocab_size,
            "d_model": trunk.hidden_size,
            "n_layer": trunk.layers,
            "n_head": trunk.heads,
            "d_head": trunk.head_size,
            "d_inner": trunk.intermediate_size,
            "ff_activation": THEIR_ACTIVATIONS[trunk.activation],
            "untie_r": True,
            "attn_type": self.attention_type,
            "same_length": self.same_length,
            "bi_data": False,
            "clamp_len": self.clamp_length or -1,
            "mem_len": self.memory_length or None,
            "dropout": trunk.dropout,
            "initializer_range": trunk.initial_std,
            "layer_norm_eps": trunk.layer_norm_epsilon,
            "tie_word_embeddings": self.tie_embeddings,
        }

    def published_network(
        self, architecture: str, names: Collection[str], values: Mapping[str, Any], where: str
    ) -> Network:
        decodes = any(name.split(".")[0] == "lm_loss" for name in names)
        return Xlnet(self) if decodes else XlnetEncoder(self)

    def published_head_dropout(self, task: Task, values: Mapping[str, Any], where: str) -> float:
        if task.startswith("token"):
            return 0.0
        if task not in self.published_heads:
            return super().published_head_dropout(task, values, where)
        check_summary({"type": "last", "use_proj": True, "activation": "tanh"}, values, where)
        return read_rate("summary_last_dropout", 0.1, values, where)

    def published_has(self, class_end: str) -> bool:
        return class_end != "ForQuestionAnswering"

    def encoder_rules(self, ours: str, tied: tuple[str, ...] = ()) -> Rules:
        trunk = self.trunk
        hidden, heads, size = trunk.hidden_size, trunk.heads, trunk.head_size
        yield table("transformer.word_embedding", f"{ours}token", tied)
        yield reshaped("transformer.mask_emb", f"{ours}mask_embedding", (1, hidden), (1, 1, hidden))
        for i in range(trunk.layers):
            t, o = f"transformer.layer.{i}", f"{ours}layers/layer_{i}"
            for theirs, part in (("q", "query"), ("k", "key"), ("v", "value"), ("r", "relative")):
                yield reshaped(
                    f"{t}.rel_attn.{theirs}",
                    f"{o}/attention/{part}/kernel",
                    (hidden, heads * size),
                    (hidden, heads, size),
                )
            yield Rule(  # stored as [hidden, heads, size], although it maps heads to hidden
                f"{t}.rel_attn.o",
                (f"{o}/attention/output/kernel",),
                lambda x: [x.reshape(hidden, heads * size).T],
                lambda parts: parts[0].T.reshape(hidden, heads, size),
            )
            yield same(f"{t}.rel_attn.r_w_bias", f"{o}/attention/content_bias")
            yield same(f"{t}.rel_attn.r_r_bias", f"{o}/attention/position_bias")
            yield same(f"{t}.rel_attn.r_s_bias", f"{o}/attention/segment_bias")
            yield same(f"{t}.rel_attn.seg_embed", f"{o}/attention/segment_embedding")
            yield from norm(f"{t}.rel_attn.layer_norm", f"{o}/attention_norm")
            yield from dense(f"{t}.ff.layer_1", f"{o}/feed_forward/inner")
            yield from dense(f"{t}.ff.layer_2", f"{o}/feed_forward/outer")
            yield from norm(f"{t}.ff.layer_norm", f"{o}/feed_forward_norm")


class XlnetEncoder(Network):
    """XLNet's content and query streams.

    There are no absolute positions, no embedding norm and no added segment embeddings: positions
    and segments are terms of the attention scores (App. A of the paper).
    """

    config: XlnetConfig

    def setup(self) -> None:
        c = self.config
        self.token = Table(c.vocab_size, c.trunk.hidden_size, c.trunk)
        # The authors pass no initializer, which means Glorot uniform in TensorFlow 1.
        self.mask_embedding = self.param(
            "mask_embedding", nn.initializers.glorot_uniform(), (1, c.trunk.hidden_size)
        )
        self.layers = Layers(c.trunk, TwoStreamBlock)

    def __call__(self, inputs: TextInputs, seeds: Seeds | None = None) -> jax.Array:
        """Returns the content stream only, [batch, length, hidden_size]."""
        return self.streams(inputs, seeds=seeds)[0]

    @nn.nowrap
    def published(self) -> Published:
        return Published("XLNetModel", self.config.encoder_rules(""), bare=True)

    def streams(
        self,
        inputs: TextInputs,
        mems: jax.Array | None = None,
        target_mapping: jax.Array | None = None,
        direction: jax.Array | None = None,
        reuse_length: int = 0,
        seeds: Seeds | None = None,
    ) -> tuple[jax.Array, jax.Array | None]:
        """Runs both streams on one segment.

        Args:
          inputs: token types are only compared for equality; positions are ignored. Tokens of the
            content stream always attend to themselves; the query stream uses the mask as given.
          mems: [layers, batch, memory_length, hidden_size], inputs of each layer for earlier text,
            to which all tokens attend; None without memory.
          target_mapping: [batch, num_predict] int, positions to predict, whose own tokens are
            hidden from the query stream. None = no query stream; the content stream is returned
            at all positions (fine-tuning).
          direction: [batch] int, +1, or -1 for reversed text; None = all +1 (bi_data).
          reuse_length: number of this segment's states that enter the memory (reuse_len); 0 = all.

        Returns:
          Hidden states [batch, num_predict or length, hidden_size] after dropout, and the memory
          for the next segment, with stop_gradient applied.
        """
        trunk = self.config.trunk
        tokens, token_types = inputs.tokens, inputs.token_types
        length, parts = tokens.shape[1], sequence_parts()
        memory_length = 0 if mems is None else mems.shape[2]
        keys = memory_length + length

        key_types = jnp.pad(token_types, ((0, 0), (memory_length, 0)))
        same_type = Pairs(token_types, key_types, "equal")
        mask = with_memory(as_mask(inputs.mask), memory_length)
        if self.config.attention_type == "uni":
            mask &= _unidirectional(length, keys, self.config.same_length)
        context = RelativeContext(
            encoding=self._encoding(length, keys, direction is not None, seeds),
            direction=None if direction is None else (direction < 0).astype(jnp.int32),
            content_mask=content(mask, length, keys),
            content_same_segment=same_type,
        )
        h = split_activations(dropout(self.token(tokens), trunk.dropout, seeds, EMBEDDING))
        g = None
        if target_mapping is not None:
            num_predict = target_mapping.shape[1]
            target_mapping = pad_length(target_mapping, -(-num_predict // parts) * parts)
            context = dataclasses.replace(
                context,
                query_mask=mask.take(target_mapping),
                query_same_segment=same_type.take(target_mapping),
                target_mapping=target_mapping,
            )
            g = jnp.broadcast_to(
                self.mask_embedding, (*target_mapping.shape, self.mask_embedding.shape[-1])
            )
            g_seeds = None if seeds is None else seeds.fold(QUERY_STREAM)
            g = split_activations(dropout(g, trunk.dropout, g_seeds, EMBEDDING))

        (h, g), entering = self.layers((h, g), mems, context, seeds)
        output = h if g is None else whole_length(g)[:, :num_predict]
        output = dropout(output, trunk.dropout, seeds, FINAL)
        return output, self._new_mems(mems, entering, reuse_length)

    def decode(self, hidden: jax.Array) -> jax.Array:
        return self.token.decode(hidden)

    def _encoding(
        self, length: int, keys: int, both_directions: bool, seeds: Seeds | None
    ) -> jax.Array:
        """Returns encoded distances [keys + length, hidden_size]; [2, ...] adds negated ones.

        The whole batch shares one dropout mask, since the encoding has no batch axis.
        """
        c = self.config
        distances = relative_distances(length, keys, c.clamp_length)
        encoding = sinusoid(distances, c.trunk.hidden_size)
        if both_directions:
            encoding = jnp.stack([encoding, sinusoid(-distances, c.trunk.hidden_size)])
        return shared_dropout(encoding, c.trunk.dropout, seeds, ENCODING)

    def _new_mems(
        self, mems: jax.Array | None, inputs: jax.Array, reuse_length: int
    ) -> jax.Array | None:
        """Returns the last `memory_length` states of the old memory and the reused inputs."""
        if not self.config.memory_length:
            return None
        if reuse_length:
            inputs = inputs[:, :, :reuse_length]
        if mems is not None:
            inputs = jnp.concatenate([mems, inputs], axis=2)
        return jax.lax.stop_gradient(inputs[:, :, -self.config.memory_length :])


class Xlnet(Network):
    """The two streams with the LM head: no transform, one bias per token.

    Generation reads the whole text again for each token: the query stream at the next position
    predicts the token from all previous ones. In the factorization order, the prompt comes first
    and is read bidirectionally; the remaining tokens follow from left to right. The prompt's
    hidden states do not depend on later tokens, so the probabilities equal those of evaluating the
    whole text once under this order.
    """

    score_methods: ClassVar[tuple[ScoringMethod, ...]] = (
        "left_to_right",
        "pseudo",
        "pseudo_within_word",
    )
    continues_texts: ClassVar[bool] = True
    fills_masks: ClassVar[bool] = True

    config: XlnetConfig

    def setup(self) -> None:
        c = self.config
        self.encoder = XlnetEncoder(c)
        self.output_bias = self.param("output_bias", nn.initializers.zeros, (c.vocab_size,))
        if not c.tie_embeddings:
            self.decoder = Table(c.vocab_size, c.trunk.hidden_size, c.trunk)

    def __call__(
        self,
        inputs: TextInputs,
        mems: jax.Array | None = None,
        target_mapping: jax.Array | None = None,
        direction: jax.Array | None = None,
        reuse_length: int = 0,
        seeds: Seeds | None = None,
    ) -> tuple[jax.Array, jax.Array | None]:
        """Returns hidden states to decode and the memory; see `XlnetEncoder.streams`."""
        output, mems = self.encoder.streams(
            inputs, mems, target_mapping, direction, reuse_length, seeds
        )
        if self.is_initializing():
            self.decode(output)  # creates its parameters
        return output, mems

    def decode(self, hidden: jax.Array) -> jax.Array:
        """[..., hidden_size] -> logits [..., vocab_size]."""
        decoder = self.encoder if self.config.tie_embeddings else self.decoder
        return decoder.decode(hidden) + self.output_bias

    def whole(self, inputs: TextInputs) -> jax.Array:
        return self.decode(self(inputs)[0])

    def score(
        self,
        method: ScoringMethod,
        inputs: TextInputs,
        mask_id: int,
        begin: jax.Array,
        end: jax.Array,
    ) -> Scores:
        place = jnp.arange(inputs.tokens.shape[1])[None]
        if method == "left_to_right":
            targets, order = every_position(inputs), permutation(place, place)
        else:
            # Masked tokens are hidden from the content stream too: otherwise they would leak
            # through the states of other tokens.
            hidden = (place >= begin[:, None]) & (place < end[:, None])
            targets = begin[:, None]
            order = permutation(jnp.zeros((1, 1), jnp.int32), jnp.where(hidden, 0, -1))
        read = inputs.replace(mask=order & inputs.mask)  # type: ignore[attr-defined]
        logits = self.decode(self(read, None, targets)[0])
        return scores_of(logits, jnp.take_along_axis(inputs.tokens, targets, axis=1))

    def fill(self, inputs: TextInputs, mask_id: jax.Array) -> jax.Array:
        hidden = jnp.where(inputs.tokens == mask_id, 0, -1)
        order = permutation(jnp.zeros((1, 1), jnp.int32), hidden)
        read = inputs.replace(mask=order & inputs.mask)  # type: ignore[attr-defined]
        return self.decode(self(read, None, every_position(inputs))[0])

    def read_prompt(self, tokens: jax.Array, real: jax.Array, width: int) -> tuple[jax.Array, Any]:
        return self._read_anew(tokens, real, jnp.int32(width), width), None

    def read_token(
        self, tokens: jax.Array, real: jax.Array, slot: jax.Array, kept: Any, width: int
    ) -> tuple[jax.Array, Any]:
        return self._read_anew(tokens, real, slot + 1, width), None

    def _read_anew(
        self, tokens: jax.Array, real: jax.Array, target: jax.Array, width: int
    ) -> jax.Array:
        slot = jnp.arange(tokens.shape[1])[None]
        # The prompt comes first, as a whole; the other slots follow in order.
        key_place = jnp.maximum(slot - width + 1, 0)
        query_place = jnp.maximum(key_place, 1)
        mask = permutation(query_place, key_place) & padding(real)
        mapping = jnp.full((tokens.shape[0], 1), jnp.minimum(target, tokens.shape[1] - 1))
        inputs = TextInputs(tokens, jnp.zeros_like(tokens), tokens, mask, real)
        return self.decode(self(inputs, None, mapping)[0][:, 0]).astype(jnp.float32)

    @nn.nowrap
    def published(self) -> Published:
        return Published("XLNetLMHeadModel", self._rules())

    @nn.nowrap
    def _rules(self) -> Rules:
        tied = self.config.tie_embeddings
        yield from self.config.encoder_rules("encoder/", ("lm_loss.weight",) if tied else ())
        if not tied:
            yield table("lm_loss", "decoder")
        yield same("lm_loss.bias", "output_bias")

    def empty_mems(self, batch: int) -> jax.Array | None:
        """Returns the memory before any text: zeros, as in the authors' code."""
        c = self.config
        if not c.memory_length:
            return None
        return jnp.zeros((c.trunk.layers, batch, c.memory_length, c.trunk.hidden_size))


def _unidirectional(length: int, keys: int, same_length: bool) -> Mask:
    """Left-to-right attention mask [1, length, keys]; the memory comes first.

    Transformer-XL's mask: position i attends to the memory and to 0..i. With `same_length`, the
    keys before i among the first `length` keys are hidden (`_create_mask`).
    """
    i, j = jnp.arange(length)[None], jnp.arange(keys)[None]
    seen = Pairs(i + keys - length, j, "at_most")
    if not same_length:
        return seen
    oldest = jnp.where(j < length, -j, -length)
    return seen & Pairs(-i, oldest, "at_most")
