"""DistilBERT (Sanh et al. 2019): BERT without token types and without a pooler."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from lmjax.configuration import Interval
from lmjax.errors import ConfigError
from lmjax.models.bert import BertConfig, MaskedLmNames
from lmjax.models.family import read_rate
from lmjax.models.heads import Headed, SequenceHead, Task, TokenHead
from lmjax.models.network import Network
from lmjax.models.published import (
    THEIR_ACTIVATIONS,
    Fields,
    Read,
    Rules,
    check_trunk,
    check_trunk_fields,
    dense,
    norm,
    table,
)
from lmjax.nn.trunk import TransformerConfig

_EPSILON = 1e-12  # a constant in `transformers`
_HEAD_DROPOUT = {
    "sequence_classification": ("seq_classif_dropout", 0.2),
    "multiple_choice": ("seq_classif_dropout", 0.2),
    "question_answering": ("qa_dropout", 0.1),
}


@dataclasses.dataclass(frozen=True)
class DistilBertConfig(BertConfig):
    """DistilBERT's settings.

    Attributes:
      segment_types: 0: texts of a pair are told apart by [SEP] only.
    """

    published_type: ClassVar[str] = "distilbert"
    published_prefix: ClassVar[str] = "DistilBert"
    published_base: ClassVar[str] = "distilbert."
    published_unused: ClassVar[str] = r"(distilbert\.)?embeddings\.position_ids"
    published_refused: ClassVar[Mapping[str, str]] = {}
    published_heads: ClassVar[Mapping[str, tuple[str, str]]] = {
        "sequence_classification": ("pre_classifier", "classifier"),
        "multiple_choice": ("pre_classifier", "classifier"),
    }
    published_dropouts: ClassVar[tuple[str, ...]] = ("seq_classif_dropout", "qa_dropout")
    published_token_types: ClassVar[bool] = False
    published_lm_layers: ClassVar[MaskedLmNames] = MaskedLmNames(
        dense="vocab_transform", norm="vocab_layer_norm", decoder="vocab_projector", bias=""
    )

    segment_types: Annotated[int, Interval("[0, 1000]")] = 0

    def headed(self, task: Task, classes: int, dropout: float) -> Network:
        if task == "question_answering":  # which has dropout in this family
            return Headed(self.encoder(), TokenHead(self.trunk, 2, dropout), task)
        return super().headed(task, classes, dropout)

    def sequence_head(self, task: Task, classes: int, dropout: float) -> SequenceHead:
        return SequenceHead(self.trunk, classes, self.text_token, "relu", dropout)

    def pretrained_head(self, params: Mapping[str, Any]) -> Any:
        """Returns None: DistilBERT has no pooler."""
        return None

    @classmethod
    def read_published(cls, fields: Fields) -> Read:
        fields.ignore("sinusoidal_pos_embds")  # the initial values of the position table
        for name, _ in _HEAD_DROPOUT.values():
            fields.ignore(name)  # `published_head_dropout` reads it
        trunk = TransformerConfig(
            layers=fields.get("n_layers", int),
            hidden_size=fields.get("dim", int),
            heads=fields.get("n_heads", int),
            intermediate_size=fields.get("hidden_dim", int),
            activation=fields.activation("activation"),  # type: ignore[arg-type]
            norm="post",
            layer_norm_epsilon=_EPSILON,
            dropout=fields.get("dropout", float, 0.1),
            attention_dropout=fields.get("attention_dropout", float, 0.1),
            initial_distribution="normal",
            initial_std=fields.get("initializer_range", float, 0.02),
        )
        return Read(
            cls(
                trunk,
                max_length=fields.get("max_position_embeddings", int),
                tie_embeddings=fields.get("tie_word_embeddings", bool, True),
                vocab_size=fields.get("vocab_size", int),
            )
        )

    def published_values(self) -> dict[str, Any]:
        trunk = self.trunk
        check_trunk(trunk, "post", "DistilBERT")
        check_trunk_fields(trunk, {"layer_norm_epsilon": _EPSILON}, "DistilBERT")
        if self.segment_types:
            raise ConfigError(
                f"segment_types: {self.segment_types}, but DistilBERT has no token types in"
                " transformers"
            )
        return {
            "model_type": "distilbert",
            "vocab_size": self.vocab_size,
            "dim": trunk.hidden_size,
            "n_layers": trunk.layers,
            "n_heads": trunk.heads,
            "hidden_dim": trunk.intermediate_size,
            "activation": THEIR_ACTIVATIONS[trunk.activation],
            "dropout": trunk.dropout,
            "attention_dropout": trunk.attention_dropout,
            "max_position_embeddings": self.max_length,
            "initializer_range": trunk.initial_std,
            "sinusoidal_pos_embds": False,
            "tie_word_embeddings": self.tie_embeddings,
        }

    def published_head_dropout(self, task: Task, values: Mapping[str, Any], where: str) -> float:
        if task not in _HEAD_DROPOUT:
            return self.trunk.dropout
        return read_rate(*_HEAD_DROPOUT[task], values, where)

    def encoder_rules(self, ours: str, tied: tuple[str, ...] = ()) -> Rules:
        embeddings, layers = "distilbert.embeddings", "distilbert.transformer.layer"
        yield table(f"{embeddings}.word_embeddings", f"{ours}embeddings/token", tied)
        yield table(f"{embeddings}.position_embeddings", f"{ours}embeddings/position")
        yield from norm(f"{embeddings}.LayerNorm", f"{ours}embeddings/embedding_norm")
        for i in range(self.trunk.layers):
            t, o = f"{layers}.{i}", f"{ours}stack/blocks/layer_{i}"
            for name, part in (("q", "query"), ("k", "key"), ("v", "value"), ("out", "output")):
                yield from dense(f"{t}.attention.{name}_lin", f"{o}/attention/{part}")
            yield from norm(f"{t}.sa_layer_norm", f"{o}/attention_norm")
            yield from dense(f"{t}.ffn.lin1", f"{o}/feed_forward/inner")
            yield from dense(f"{t}.ffn.lin2", f"{o}/feed_forward/outer")
            yield from norm(f"{t}.output_layer_norm", f"{o}/feed_forward_norm")
