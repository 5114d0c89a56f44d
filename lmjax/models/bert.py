"""BERT (Devlin et al. 2018): a bidirectional encoder with masked-LM and sentence heads."""

import dataclasses
import re
from collections.abc import Collection, Mapping
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax

from lmjax.configuration import Size
from lmjax.models.family import ModelConfig
from lmjax.models.heads import Task
from lmjax.models.network import MaskedNetwork, Network, TextInputs, every_position
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
from lmjax.nn.layers import Dense
from lmjax.nn.transformer import (
    PredictionTransform,
    SegmentTypes,
    Stack,
    Table,
    TextEmbeddings,
    gather_positions,
)
from lmjax.nn.trunk import TransformerConfig


class MaskedLmNames(NamedTuple):
    """Names of the layers of a masked-LM head in `transformers`.

    Attributes:
      dense, norm: the layers before the decoder.
      decoder: the output layer.
      bias: a second name of the decoder's bias; '' if it has none.
    """

    dense: str
    norm: str
    decoder: str
    bias: str


@dataclasses.dataclass(frozen=True)
class BertConfig(ModelConfig):
    """BERT's settings.

    Attributes:
      trunk: config of the Transformer.
      max_length: rows of the position table, the maximum sequence length.
      segment_types: rows of the token type table.
      tie_embeddings: whether the masked-LM head decodes with the token table.
      vocab_size: rows of the token table; 0 = the tokenizer's size.
      published_lm_layers: names of the masked-LM head's layers in `transformers`.
    """

    published_type: ClassVar[str] = "bert"
    published_prefix: ClassVar[str] = "Bert"
    published_base: ClassVar[str] = "bert."
    published_unused: ClassVar[str] = (
        r"(bert\.)?embeddings\.position_ids"
        r"|(bert\.)?pooler\.dense\.(weight|bias)"  # of classes that read tokens
        r"|cls\.seq_relationship\.(weight|bias)"  # without a pooler
    )
    published_refused: ClassVar[Mapping[str, str]] = {
        "BertLMHeadModel": "causal BERT is not supported"
    }
    published_heads: ClassVar[Mapping[str, tuple[str, str]]] = {
        "next_sentence": ("bert.pooler.dense", "cls.seq_relationship"),
        "sequence_classification": ("bert.pooler.dense", "classifier"),
        "multiple_choice": ("bert.pooler.dense", "classifier"),
    }
    published_lm_layers: ClassVar[MaskedLmNames] = MaskedLmNames(
        dense="cls.predictions.transform.dense",
        norm="cls.predictions.transform.LayerNorm",
        decoder="cls.predictions.decoder",
        bias="cls.predictions.bias",
    )

    max_length: Size = 512
    segment_types: SegmentTypes = 2
    tie_embeddings: bool = True

    def encoder(self) -> "BertEncoder":
        return BertEncoder(self)

    def masked_lm(self, sentence_head: bool = False) -> "BertForPreTraining":
        return BertForPreTraining(self, sentence_head)

    def pretrained_head(self, params: Mapping[str, Any]) -> Any:
        """Returns the pooler, which sentence prediction has trained."""
        return params.get("pooler", {}).get("dense")

    @classmethod
    def read_published(cls, fields: Fields) -> Read:
        return Read(
            cls(
                bert_trunk(fields),
                max_length=fields.get("max_position_embeddings", int),
                segment_types=fields.get("type_vocab_size", int),
                tie_embeddings=fields.get("tie_word_embeddings", bool, True),
                vocab_size=fields.get("vocab_size", int),
            )
        )

    def published_values(self) -> dict[str, Any]:
        return {
            "model_type": self.published_type,
            "position_embedding_type": "absolute",
            **bert_values(self),
        }

    def published_network(
        self, architecture: str, names: Collection[str], values: Mapping[str, Any], where: str
    ) -> Network:
        base = re.escape(self.published_base)
        pooled = any(re.match(rf"({base})?pooler\.", name) for name in names)
        if f"{self.published_lm_layers.dense}.weight" in names:
            sentence = pooled and any(name.startswith("cls.seq_relationship.") for name in names)
            return BertForPreTraining(self, sentence_head=sentence)
        return BertWithPooler(self) if pooled else BertEncoder(self)

    def published_head_dropout(self, task: Task, values: Mapping[str, Any], where: str) -> float:
        if task == "next_sentence":
            return 0.0
        return super().published_head_dropout(task, values, where)

    def published_has(self, class_end: str) -> bool:
        sentences = class_end in ("ForPreTraining", "ForNextSentencePrediction")
        known = not sentences or "next_sentence" in self.published_heads
        return known and super().published_has(class_end)

    def encoder_rules(self, ours: str, tied: tuple[str, ...] = ()) -> Rules:
        base = self.published_base
        yield from text_embeddings(f"{base}embeddings", f"{ours}embeddings", tied)
        yield from bert_layers(f"{base}encoder", f"{ours}stack", self.trunk.layers)

    def lm_rules(self) -> Rules:
        """Rules of the encoder's and the masked-LM head's tensors."""
        names, tied = self.published_lm_layers, self.tie_embeddings
        also = (f"{names.decoder}.weight",) if tied else ()
        yield from self.encoder_rules("encoder/", also)
        yield from dense(names.dense, "transform/dense")
        yield from norm(names.norm, "transform/norm")
        if not tied:
            yield table(names.decoder, "decoder")
        bias = same(f"{names.decoder}.bias", "output_bias")
        if names.bias and tied:
            bias = same(names.bias, "output_bias", (bias.theirs,))
        elif names.bias:
            # Without tying, transformers stores two biases and adds the decoder's.
            bias = dataclasses.replace(bias, copies=(names.bias,))
        yield bias


class BertEncoder(Network):
    """Embeddings and trunk: token ids [batch, length] -> [batch, length, hidden_size]."""

    config: BertConfig

    def setup(self) -> None:
        c = self.config
        self.embeddings = TextEmbeddings(
            c.trunk,
            vocab_size=c.vocab_size,
            features=c.trunk.hidden_size,
            max_length=c.max_length,
            segment_types=c.segment_types,
            norm=True,
        )
        self.stack = Stack(c.trunk)

    def __call__(self, inputs: TextInputs, seeds: Seeds | None = None) -> jax.Array:
        """Returns the last hidden states [batch, length, hidden_size]."""
        x = self.embeddings(inputs.tokens, inputs.token_types, inputs.positions, seeds)
        return self.stack(x, inputs.positions, inputs.mask, seeds)[0]

    def decode(self, hidden: jax.Array) -> jax.Array:
        return self.embeddings.decode(hidden)

    @nn.nowrap
    def published(self) -> Published:
        c = self.config
        return Published(f"{c.published_prefix}Model", c.encoder_rules(""), bare=True)


class BertPooler(nn.Module):
    """tanh(dense(first token)): [batch, length, hidden_size] -> [batch, hidden_size].

    With `starts` [batch, texts], it returns that of each text, [batch, texts, hidden_size].
    """

    config: TransformerConfig

    @nn.compact
    def __call__(self, hidden: jax.Array, starts: jax.Array | None = None) -> jax.Array:
        c = self.config
        dense = Dense(c.hidden_size, c.kernel_initializer(), dtype=c.compute_dtype, name="dense")
        first = hidden[:, 0] if starts is None else gather_positions(hidden, starts)
        return nn.tanh(dense(first))


class BertWithPooler(Network):
    """The encoder and its pooler without a head, as in published encoders."""

    config: BertConfig

    def setup(self) -> None:
        self.encoder = BertEncoder(self.config)
        self.pooler = BertPooler(self.config.trunk)

    def __call__(
        self, inputs: TextInputs, seeds: Seeds | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Returns states [batch, length, hidden_size] and their pool [batch, hidden_size]."""
        hidden = self.encoder(inputs, seeds)
        return hidden, self.pooler(hidden)

    @nn.nowrap
    def published(self) -> Published:
        c = self.config

        def rules() -> Rules:
            yield from c.encoder_rules("encoder/")
            yield from dense(f"{c.published_base}pooler.dense", "pooler/dense")

        return Published(f"{c.published_prefix}Model", rules(), bare=True)


class BertForPreTraining(MaskedNetwork):
    """The encoder with both pretraining heads.

    Attributes:
      sentence_head: whether there is a pooler and a two-way sentence classifier (NSP or SOP).
    """

    config: BertConfig
    sentence_head: bool = True

    def setup(self) -> None:
        c = self.config
        self.encoder = BertEncoder(c)
        self.transform = PredictionTransform(c.trunk, c.trunk.hidden_size)
        self.output_bias = self.param("output_bias", nn.initializers.zeros, (c.vocab_size,))
        if not c.tie_embeddings:
            self.decoder = Table(c.vocab_size, c.trunk.hidden_size, c.trunk)
        if self.sentence_head:
            self.pooler = BertPooler(c.trunk)
            self.sentence = Dense(2, c.trunk.initializer())

    def __call__(
        self, inputs: TextInputs, target_positions: jax.Array, seeds: Seeds | None = None
    ) -> tuple[jax.Array, jax.Array | None]:
        """Computes logits only at `target_positions` [batch, num_predict].

        Returns:
          Masked-LM logits [batch, num_predict, vocab_size], and sentence logits [batch, 2], or
          [batch, texts, 2] if the inputs have `starts`, or None without a sentence head.
        """
        hidden = self.encoder(inputs, seeds)
        targets = self.transform(gather_positions(hidden, target_positions))
        decoder = self.encoder if self.config.tie_embeddings else self.decoder
        logits = decoder.decode(targets) + self.output_bias
        if not self.sentence_head:
            return logits, None
        return logits, self.sentence(self.pooler(hidden, inputs.starts))

    def masked_logits(self, inputs: TextInputs, target_positions: jax.Array) -> jax.Array:
        return self(inputs, target_positions)[0]

    def whole(self, inputs: TextInputs) -> Any:
        outputs = self(inputs, every_position(inputs))
        return outputs if self.sentence_head else outputs[0]

    @nn.nowrap
    def published(self) -> Published | None:
        c, kind = self.config, "ForPreTraining" if self.sentence_head else "ForMaskedLM"
        if not c.published_has(kind):
            return None
        return Published(f"{c.published_prefix}{kind}", self._rules())

    @nn.nowrap
    def _rules(self) -> Rules:
        yield from self.config.lm_rules()
        if self.sentence_head:
            yield from dense(f"{self.config.published_base}pooler.dense", "pooler/dense")
            yield from dense("cls.seq_relationship", "sentence")
