"""ModernBERT (Warner et al. 2024): BERT's masked LM on a modern trunk.

Rotary positions, alternating local and global attention, a gated feed-forward layer, and
normalization before each sublayer, all without biases.
"""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Annotated, Any, ClassVar

import flax.linen as nn
import numpy as np

from lmjax.configuration import Interval, Size
from lmjax.errors import ConfigError
from lmjax.models.bert import BertConfig, BertEncoder, BertForPreTraining
from lmjax.models.heads import Task
from lmjax.models.network import Network
from lmjax.models.published import (
    THEIR_ACTIVATIONS,
    Fields,
    Published,
    Read,
    Rule,
    Rules,
    check_trunk_fields,
    dense,
    same,
    scale,
    table,
)
from lmjax.nn.trunk import RotaryConfig, TransformerConfig

# Fields about training, other heads and earlier versions of `transformers`.
_UNUSED = (
    "initializer_cutoff_factor",
    "deterministic_flash_attn",
    "sparse_prediction",
    "sparse_pred_ignore_index",
    "classifier_pooling",
    "reference_compile",
    "repad_logits_with_grad",
    "global_rope_theta",
    "local_rope_theta",
)


@dataclasses.dataclass(frozen=True)
class ModernBertConfig(BertConfig):
    """ModernBERT's settings.

    Attributes:
      max_length: longest text; there is no position table.
      segment_types: 0: texts of a pair are told apart by [SEP] only.
    """

    published_type: ClassVar[str] = "modernbert"
    published_prefix: ClassVar[str] = "ModernBert"
    published_base: ClassVar[str] = "model."
    published_unused: ClassVar[str] = r"(?!)"
    published_refused: ClassVar[Mapping[str, str]] = {}
    published_heads: ClassVar[Mapping[str, tuple[str, str]]] = {}
    published_token_types: ClassVar[bool] = False

    max_length: Size = 8192
    segment_types: Annotated[int, Interval("[0, 1000]")] = 0

    def encoder(self) -> "ModernBertEncoder":
        return ModernBertEncoder(self)

    def masked_lm(self, sentence_head: bool = False) -> "ModernBertForMaskedLM":
        return ModernBertForMaskedLM(self, sentence_head)

    @classmethod
    def read_published(cls, fields: Fields) -> Read:
        for name in _UNUSED:
            fields.ignore(name)
        activation = fields.activation("hidden_activation")
        for name in ("attention_bias", "mlp_bias", "classifier_bias"):
            fields.require(name, (False,), "biases of dense layers are not supported")
        fields.require("decoder_bias", (True,), "an output layer without bias is not supported")
        if fields.activation("classifier_activation") != activation:
            raise ConfigError("'classifier_activation' and 'hidden_activation' differ")
        layers = fields.get("num_hidden_layers", int)
        trunk = TransformerConfig(
            layers=layers,
            hidden_size=fields.get("hidden_size", int),
            heads=fields.get("num_attention_heads", int),
            intermediate_size=fields.get("intermediate_size", int),
            positions="rotary",
            rotary=_read_rotary(fields),
            window=fields.get("local_attention", int) // 2,
            global_every=_read_pattern(fields, layers),
            activation=activation,  # type: ignore[arg-type]
            gated=True,
            norm="pre",
            first_norm=False,
            norm_bias=fields.get("norm_bias", bool, False),
            biases="none",
            layer_norm_epsilon=fields.get("norm_eps", float, 1e-5),
            dropout=fields.get("embedding_dropout", float, 0.0),
            attention_dropout=fields.get("attention_dropout", float, 0.0),
            activation_dropout=fields.get("mlp_dropout", float, 0.0),
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
        wanted: dict[str, Any] = {
            "positions": "rotary",
            "norm": "pre",
            "first_norm": False,
            "normalization": "layer_norm",
            "gated": True,
            "biases": "none",
            "query_key_norm": False,
            "base_width": 0,
            "kv_heads": trunk.heads,
            "head_size": trunk.hidden_size // trunk.heads,
        }
        check_trunk_fields(trunk, wanted, "ModernBERT")
        if self.segment_types or trunk.rotary.extension or not trunk.window:
            raise ConfigError(
                "model: transformers supports ModernBERT only with a window, and without token"
                " types and extended positions"
            )
        every = trunk.global_every
        kinds = [
            "full_attention" if every and i % every == 0 else "sliding_attention"
            for i in range(trunk.layers)
        ]
        bases = {
            "full_attention": trunk.rotary.base,
            "sliding_attention": trunk.rotary.local_base or trunk.rotary.base,
        }
        return {
            "model_type": "modernbert",
            "vocab_size": self.vocab_size,
            "hidden_size": trunk.hidden_size,
            "intermediate_size": trunk.intermediate_size,
            "num_hidden_layers": trunk.layers,
            "num_attention_heads": trunk.heads,
            "hidden_activation": THEIR_ACTIVATIONS[trunk.activation],
            "classifier_activation": THEIR_ACTIVATIONS[trunk.activation],
            "max_position_embeddings": self.max_length,
            "initializer_range": trunk.initial_std,
            "norm_eps": trunk.layer_norm_epsilon,
            "norm_bias": trunk.norm_bias,
            "layer_types": kinds,
            "local_attention": 2 * trunk.window,
            "rope_parameters": {
                kind: {"rope_type": "default", "rope_theta": base} for kind, base in bases.items()
            },
            "embedding_dropout": trunk.dropout,
            "attention_dropout": trunk.attention_dropout,
            "mlp_dropout": trunk.activation_dropout,
            "attention_bias": False,
            "mlp_bias": False,
            "classifier_bias": False,
            "decoder_bias": True,
            "tie_word_embeddings": self.tie_embeddings,
            # Otherwise they have defaults of a vocabulary of 50,368 tokens.
            **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id")),
            **dict.fromkeys(("cls_token_id", "sep_token_id")),
        }

    def published_network(
        self, architecture: str, names: Collection[str], values: Mapping[str, Any], where: str
    ) -> Network:
        if any(name.startswith("head.") for name in names):
            return ModernBertForMaskedLM(self, sentence_head=False)
        return ModernBertEncoder(self)

    def published_head_dropout(self, task: Task, values: Mapping[str, Any], where: str) -> float:
        raise ConfigError(f"{where}: ModernBERT with a head for '{task}' is not supported")

    def published_has(self, class_end: str) -> bool:
        return class_end == "ForMaskedLM"

    def encoder_rules(self, ours: str, tied: tuple[str, ...] = ()) -> Rules:
        yield table("model.embeddings.tok_embeddings", f"{ours}embeddings/token", tied)
        yield from self._norm("model.embeddings.norm", f"{ours}embeddings/embedding_norm")
        for i in range(self.trunk.layers):
            t, o = f"model.layers.{i}", f"{ours}stack/blocks/layer_{i}"
            if i:
                yield from self._norm(f"{t}.attn_norm", f"{o}/attention_norm")
            yield from self._norm(f"{t}.mlp_norm", f"{o}/feed_forward_norm")
            parts = ("query", "key", "value")
            yield _joined(f"{t}.attn.Wqkv", [f"{o}/attention/{part}" for part in parts])
            yield from dense(f"{t}.attn.Wo", f"{o}/attention/output", bias=False)
            yield _joined(f"{t}.mlp.Wi", [f"{o}/feed_forward/{part}" for part in ("inner", "gate")])
            yield from dense(f"{t}.mlp.Wo", f"{o}/feed_forward/outer", bias=False)
        yield from self._norm("model.final_norm", f"{ours}stack/final_norm")

    def lm_rules(self) -> Rules:
        """Rules of the masked language model."""
        tied = self.tie_embeddings
        yield from self.encoder_rules("encoder/", ("decoder.weight",) if tied else ())
        yield from dense("head.dense", "transform/dense", bias=False)
        yield from self._norm("head.norm", "transform/norm")
        yield same("decoder.bias", "output_bias")
        if not tied:
            yield table("decoder", "decoder")

    def _norm(self, theirs: str, ours: str) -> Rules:
        yield scale(theirs, ours)
        if self.trunk.norm_bias:
            yield same(f"{theirs}.bias", f"{ours}/bias")


def _joined(theirs: str, ours: list[str]) -> Rule:
    """One Linear without bias that computes several of our dense layers."""
    return Rule(
        f"{theirs}.weight",
        tuple(f"{path}/kernel" for path in ours),
        lambda x: np.split(x.T, len(ours), axis=-1),
        lambda parts: np.concatenate(parts, axis=-1).T,
    )


def _read_rotary(fields: Fields) -> RotaryConfig:
    values = fields.block("rope_parameters")
    if not values:
        raise ConfigError(
            "'rope_parameters' is missing; open and save the model with transformers 5 first"
        )
    bases = {}
    for kind in ("full_attention", "sliding_attention"):
        own = values.get(kind) or {}
        if own.get("rope_type", "default") != "default":
            raise ConfigError(f"'rope_parameters': {kind}: extended positions are not supported")
        bases[kind] = float(own.get("rope_theta", 10_000.0))
    return RotaryConfig(base=bases["full_attention"], local_base=bases["sliding_attention"])


def _read_pattern(fields: Fields, layers: int) -> int:
    """Reads which layers are global: layers 0, n, 2 n, ...; returns n, or 0 if there are none."""
    fields.ignore("global_attn_every_n_layers")
    kinds = list(fields.sequence("layer_types"))
    whole = [i for i, kind in enumerate(kinds) if kind == "full_attention"]
    every = 0 if not whole else whole[1] if len(whole) > 1 else layers
    if len(kinds) != layers or whole != (list(range(0, layers, every)) if every else []):
        raise ConfigError(
            f"'layer_types' is {kinds}; global layers must stand at equal distances from layer 0 on"
        )
    return every


class ModernBertEncoder(BertEncoder):
    """Embeddings and trunk: token ids [batch, length] -> [batch, length, hidden_size]."""

    @nn.nowrap
    def published(self) -> Published:
        return Published("ModernBertModel", self.config.encoder_rules(""), bare=True)


class ModernBertForMaskedLM(BertForPreTraining):
    """The encoder with its masked-LM head."""

    config: ModernBertConfig

    @nn.nowrap
    def published(self) -> Published | None:
        if self.sentence_head:
            return None
        return Published("ModernBertForMaskedLM", self.config.lm_rules())
