"""ModernBERT (Warner et al. 2024): BERT's masked LM on a modern trunk.

Rotary positions, alternating local and global attention, a gated feed-forward layer, and
normalization before each sublayer, all without biases. Ettin's decoder has the same trunk
(`lmjax.models.modernbert_decoder`).
"""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Annotated, Any, ClassVar

import numpy as np

from lmjax.configuration import Interval, Size
from lmjax.errors import ConfigError
from lmjax.models.bert import BertConfig, BertEncoder, BertForPreTraining
from lmjax.models.heads import Task
from lmjax.models.network import Network
from lmjax.models.published import (
    THEIR_ACTIVATIONS,
    Fields,
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
    "position_embedding_type",
    "layer_norm_eps",
    "causal_mask",
)
_GLOBAL, _LOCAL = "full_attention", "sliding_attention"


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

    @classmethod
    def read_published(cls, fields: Fields) -> Read:
        return Read(read_model(cls, fields, fields.get("local_attention", int) // 2))

    def published_values(self) -> dict[str, Any]:
        if self.segment_types:
            raise ConfigError("segment_types: ModernBERT has no token types in transformers")
        return {
            "model_type": "modernbert",
            "local_attention": 2 * self.trunk.window,
            **model_values(self, "ModernBERT"),
        }

    def published_network(
        self, architecture: str, names: Collection[str], values: Mapping[str, Any], where: str
    ) -> Network:
        if any(name.startswith("head.") for name in names):
            return BertForPreTraining(self, sentence_head=False)
        return BertEncoder(self)

    def published_head_dropout(self, task: Task, values: Mapping[str, Any], where: str) -> float:
        raise ConfigError(f"{where}: ModernBERT with a head for '{task}' is not supported")

    def published_has(self, class_end: str) -> bool:
        return class_end == "ForMaskedLM"

    def encoder_rules(self, ours: str, tied: tuple[str, ...] = ()) -> Rules:
        return trunk_rules(self.trunk, ours, tied)

    def lm_rules(self) -> Rules:
        return model_rules(self, "head")


def read_model(cls: Any, fields: Fields, window: int) -> Any:
    """Reads the config of a ModernBERT encoder or decoder.

    Args:
      cls: class of the config.
      window: farthest position that a local layer attends to.
    """
    for name in _UNUSED:
        fields.ignore(name)
    activation = fields.activation("hidden_activation")
    for name in ("attention_bias", "mlp_bias", "classifier_bias"):
        fields.require(name, (False,), "biases of dense layers are not supported")
    fields.require("decoder_bias", (True,), "an output layer without bias is not supported")
    if fields.activation("classifier_activation") != activation:
        raise ConfigError("'classifier_activation' and 'hidden_activation' differ")
    layers = fields.get("num_hidden_layers", int)
    every = _read_pattern(fields, layers)
    if window < 1 and every != 1:
        raise ConfigError("'local_attention' is too small: a local layer must see its neighbors")
    trunk = TransformerConfig(
        layers=layers,
        hidden_size=fields.get("hidden_size", int),
        heads=fields.get("num_attention_heads", int),
        intermediate_size=fields.get("intermediate_size", int),
        positions="rotary",
        rotary=_read_rotary(fields),
        window=max(window, 1),
        global_every=every,
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
    return cls(
        trunk,
        max_length=fields.get("max_position_embeddings", int),
        tie_embeddings=fields.get("tie_word_embeddings", bool, True),
        vocab_size=fields.get("vocab_size", int),
    )


def model_values(model: Any, family: str) -> dict[str, Any]:
    """Writes config.json of a ModernBERT encoder or decoder, without type and window."""
    trunk: TransformerConfig = model.trunk
    wanted: dict[str, Any] = {
        "positions": "rotary",
        "norm": "pre",
        "first_norm": False,
        "normalization": "layer_norm",
        "gated": True,
        "biases": "none",
        "query_key_norm": False,
        "unrotated_every": 0,
        "base_width": 0,
        "kv_heads": trunk.heads,
        "head_size": trunk.hidden_size // trunk.heads,
    }
    check_trunk_fields(trunk, wanted, family)
    if trunk.rotary.extension or not trunk.window:
        raise ConfigError(
            f"trunk: transformers supports {family} only with a window and without extended"
            " positions"
        )
    bases = {_GLOBAL: trunk.rotary.base, _LOCAL: trunk.rotary.local_base or trunk.rotary.base}
    return {
        "vocab_size": model.vocab_size,
        "hidden_size": trunk.hidden_size,
        "intermediate_size": trunk.intermediate_size,
        "num_hidden_layers": trunk.layers,
        "num_attention_heads": trunk.heads,
        "hidden_activation": THEIR_ACTIVATIONS[trunk.activation],
        "classifier_activation": THEIR_ACTIVATIONS[trunk.activation],
        "max_position_embeddings": model.max_length,
        "initializer_range": trunk.initial_std,
        "norm_eps": trunk.layer_norm_epsilon,
        "norm_bias": trunk.norm_bias,
        "layer_types": _kinds(trunk.global_every, trunk.layers),
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
        "tie_word_embeddings": model.tie_embeddings,
        # Otherwise they have defaults of a vocabulary of 50,368 tokens.
        **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id")),
        **dict.fromkeys(("cls_token_id", "sep_token_id")),
    }


def trunk_rules(
    trunk: TransformerConfig, ours: str, tied: tuple[str, ...], joined: bool = True
) -> Rules:
    """Rules of embeddings and blocks; `joined`: whether one tensor has queries, keys and values."""
    yield table("model.embeddings.tok_embeddings", f"{ours}embeddings/token", tied)
    yield from _norm("model.embeddings.norm", f"{ours}embeddings/embedding_norm", trunk)
    for i in range(trunk.layers):
        t, o = f"model.layers.{i}", f"{ours}stack/blocks/layer_{i}"
        if i:
            yield from _norm(f"{t}.attn_norm", f"{o}/attention_norm", trunk)
        yield from _norm(f"{t}.mlp_norm", f"{o}/feed_forward_norm", trunk)
        parts = {name: f"{o}/attention/{name}" for name in ("query", "key", "value")}
        if joined:
            yield _joined(f"{t}.attn.Wqkv", list(parts.values()))
        else:
            for name, path in parts.items():
                yield from dense(f"{t}.attn.{name[0]}_proj", path, bias=False)
        yield from dense(f"{t}.attn.Wo", f"{o}/attention/output", bias=False)
        yield _joined(f"{t}.mlp.Wi", [f"{o}/feed_forward/{part}" for part in ("inner", "gate")])
        yield from dense(f"{t}.mlp.Wo", f"{o}/feed_forward/outer", bias=False)
    yield from _norm("model.final_norm", f"{ours}stack/final_norm", trunk)


def model_rules(model: Any, head: str) -> Rules:
    """Rules of a language model; `head`: name of the layers between trunk and decoder."""
    tied = model.tie_embeddings
    yield from model.encoder_rules("encoder/", ("decoder.weight",) if tied else ())
    yield from dense(f"{head}.dense", "transform/dense", bias=False)
    yield from _norm(f"{head}.norm", "transform/norm", model.trunk)
    yield same("decoder.bias", "output_bias")
    if not tied:
        yield table("decoder", "decoder")


def _norm(theirs: str, ours: str, trunk: TransformerConfig) -> Rules:
    yield scale(theirs, ours)
    if trunk.norm_bias:
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
    # Before version 5 of `transformers`, the bases were fields of their own.
    bases = {
        _GLOBAL: fields.get("global_rope_theta", float, 160_000.0),
        _LOCAL: fields.get("local_rope_theta", float, 10_000.0),
    }
    fields.require("rope_scaling", (), "extended positions are not supported")
    for kind, own in fields.block("rope_parameters").items():
        if kind not in bases or not isinstance(own, Mapping):
            raise ConfigError(f"'rope_parameters' has {kind!r}; expected {_GLOBAL} and {_LOCAL}")
        if own.get("rope_type", "default") != "default":
            raise ConfigError(f"'rope_parameters': {kind}: extended positions are not supported")
        bases[kind] = Fields(own, f"'rope_parameters': {kind}").get(
            "rope_theta", float, bases[kind]
        )
    return RotaryConfig(base=bases[_GLOBAL], local_base=bases[_LOCAL])


def _kinds(every: int, layers: int) -> list[str]:
    return [_GLOBAL if every and i % every == 0 else _LOCAL for i in range(layers)]


def _read_pattern(fields: Fields, layers: int) -> int:
    """Reads which layers are global: layers 0, n, 2 n, ...; returns n, or 0 if there are none."""
    # Before version 5 of `transformers`, there was only n.
    every = fields.get("global_attn_every_n_layers", int, 3)
    kinds = fields.sequence("layer_types", _kinds(every, layers))
    whole = [i for i, kind in enumerate(kinds) if kind == _GLOBAL]
    every = 0 if not whole else whole[1] if len(whole) > 1 else layers
    if kinds != _kinds(every, layers):
        raise ConfigError(
            f"'layer_types' is {kinds}; global layers must stand at equal distances from layer 0 on"
        )
    return every
