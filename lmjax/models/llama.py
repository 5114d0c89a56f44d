"""Llama-shaped decoders: Llama (Touvron et al. 2023; also SmolLM and SmolLM2), Qwen2, Qwen3.

They are GPT on a trunk with rotary positions, RMSNorm, a gated feed-forward layer, few or no
biases, and optionally grouped queries. Qwen2 (Yang et al. 2024) has biases of queries, keys and
values, Qwen3 (Yang et al. 2025) normalizes queries and keys.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from lmjax.errors import ConfigError
from lmjax.models.gpt import GptConfig
from lmjax.models.published import (
    THEIR_ACTIVATIONS,
    Fields,
    Read,
    Rules,
    check_trunk_fields,
    dense,
    scale,
    table,
)
from lmjax.nn.trunk import RotaryConfig, TransformerConfig

Biases = Literal["all", "query_key_value", "none"]


@dataclasses.dataclass(frozen=True)
class LlamaConfig(GptConfig):
    """Settings of a Llama-shaped decoder, those of GPT.

    `max_length` is the longest text; there is no position table.
    """

    published_type: ClassVar[str] = "llama"
    published_prefix: ClassVar[str] = "Llama"
    published_base: ClassVar[str] = "model."
    published_lm: ClassVar[str] = "LlamaForCausalLM"
    published_unused: ClassVar[str] = r"(model\.)?(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq"
    published_refused: ClassVar[Mapping[str, str]] = {}
    # What `transformers` computes in this family, and its defaults.
    _normalizes_queries: ClassVar[bool] = False
    _unrotates: ClassVar[bool] = False
    _base: ClassVar[float] = 10_000.0
    _ties: ClassVar[bool] = False

    @classmethod
    def read_published(cls, fields: Fields) -> Read:
        for name in ("pretraining_tp", "is_llama_config", "rope_interleaved"):
            fields.ignore(name)
        trunk = TransformerConfig(
            layers=(layers := fields.get("num_hidden_layers", int)),
            hidden_size=fields.get("hidden_size", int),
            heads=(heads := fields.get("num_attention_heads", int)),
            intermediate_size=fields.get("intermediate_size", int),
            head_dim=fields.optional("head_dim") or 0,
            key_value_heads=fields.get("num_key_value_heads", int, heads),
            positions="rotary",
            rotary=_read_rotary(fields, cls._base),
            unrotated_every=cls._read_unrotated(fields, layers),
            query_key_norm=cls._normalizes_queries,
            activation=fields.activation("hidden_act"),  # type: ignore[arg-type]
            gated=True,
            norm="pre",
            normalization="rms_norm",
            biases=cls._read_biases(fields),
            layer_norm_epsilon=fields.get("rms_norm_eps", float, 1e-6),
            dropout=0.0,
            attention_dropout=fields.get("attention_dropout", float, 0.0),
            initial_distribution="normal",
            initial_std=fields.get("initializer_range", float, 0.02),
        )
        return Read(
            cls(
                trunk,
                max_length=fields.get("max_position_embeddings", int),
                tie_embeddings=fields.get("tie_word_embeddings", bool, cls._ties),
                vocab_size=fields.get("vocab_size", int),
            )
        )

    @classmethod
    def _read_unrotated(cls, fields: Fields, layers: int) -> int:
        """Reads which layers are not rotated; see `TransformerConfig.unrotated_every`."""
        return 0

    @classmethod
    def _read_biases(cls, fields: Fields) -> Biases:
        attention = fields.get("attention_bias", bool, False)
        if fields.get("mlp_bias", bool, False) != attention:
            raise ConfigError(
                "'attention_bias' and 'mlp_bias' differ; all layers of a block have biases, or none"
            )
        return "all" if attention else "none"

    def published_values(self) -> dict[str, Any]:
        trunk = self.trunk
        wanted: dict[str, Any] = {
            "positions": "rotary",
            "norm": "pre",
            "first_norm": True,
            "normalization": "rms_norm",
            "gated": True,
            "query_key_norm": self._normalizes_queries,
            "window": 0,
            "base_width": 0,
            **({} if self._unrotates else {"unrotated_every": 0}),
        }
        check_trunk_fields(trunk, wanted, self.published_prefix)
        return {
            "model_type": self.published_type,
            "vocab_size": self.vocab_size,
            "hidden_size": trunk.hidden_size,
            "intermediate_size": trunk.intermediate_size,
            "num_hidden_layers": trunk.layers,
            "num_attention_heads": trunk.heads,
            "num_key_value_heads": trunk.kv_heads,
            "head_dim": trunk.head_size,
            "hidden_act": THEIR_ACTIVATIONS[trunk.activation],
            "max_position_embeddings": self.max_length,
            "initializer_range": trunk.initial_std,
            "rms_norm_eps": trunk.layer_norm_epsilon,
            "rope_parameters": _rotary_values(trunk.rotary),
            "attention_dropout": trunk.attention_dropout,
            "tie_word_embeddings": self.tie_embeddings,
            **self._bias_values(),
        }

    def _bias_values(self) -> dict[str, Any]:
        self._check_biases("all", "none")
        biases = self.trunk.biases == "all"
        return {"attention_bias": biases, "mlp_bias": biases}

    def _check_biases(self, *known: Biases) -> None:
        if self.trunk.biases not in known:
            raise ConfigError(
                f"trunk.biases: transformers supports only {' or '.join(map(repr, known))} in"
                f" {self.published_prefix}, but this trunk has '{self.trunk.biases}'"
            )

    def published_has(self, class_end: str) -> bool:
        return class_end in ("ForCausalLM", "ForSequenceClassification")

    def encoder_rules(self, ours: str, tied: tuple[str, ...] = ()) -> Rules:
        biases = self.trunk.biases
        yield table("model.embed_tokens", f"{ours}embeddings/token", tied)
        for i in range(self.trunk.layers):
            t, o = f"model.layers.{i}", f"{ours}stack/blocks/layer_{i}"
            for name, part in (("q", "query"), ("k", "key"), ("v", "value")):
                yield from dense(
                    f"{t}.self_attn.{name}_proj", f"{o}/attention/{part}", biases != "none"
                )
            yield from dense(f"{t}.self_attn.o_proj", f"{o}/attention/output", biases == "all")
            if self.trunk.query_key_norm:
                yield scale(f"{t}.self_attn.q_norm", f"{o}/attention/query_norm")
                yield scale(f"{t}.self_attn.k_norm", f"{o}/attention/key_norm")
            yield scale(f"{t}.input_layernorm", f"{o}/attention_norm")
            # `transformers` applies the activation to its "gate".
            for theirs, part in (("gate", "inner"), ("up", "gate"), ("down", "outer")):
                yield from dense(
                    f"{t}.mlp.{theirs}_proj", f"{o}/feed_forward/{part}", biases == "all"
                )
            yield scale(f"{t}.post_attention_layernorm", f"{o}/feed_forward_norm")
        yield scale("model.norm", f"{ours}stack/final_norm")


@dataclasses.dataclass(frozen=True)
class Qwen2Config(LlamaConfig):
    """Settings of Qwen2 and Qwen2.5."""

    published_type: ClassVar[str] = "qwen2"
    published_prefix: ClassVar[str] = "Qwen2"
    published_lm: ClassVar[str] = "Qwen2ForCausalLM"

    @classmethod
    def _read_biases(cls, fields: Fields) -> Biases:
        require_global(fields)
        return "query_key_value"

    def _bias_values(self) -> dict[str, Any]:
        self._check_biases("query_key_value")
        return {"use_sliding_window": False}


@dataclasses.dataclass(frozen=True)
class Qwen3Config(LlamaConfig):
    """Settings of Qwen3."""

    published_type: ClassVar[str] = "qwen3"
    published_prefix: ClassVar[str] = "Qwen3"
    published_lm: ClassVar[str] = "Qwen3ForCausalLM"
    _normalizes_queries: ClassVar[bool] = True

    @classmethod
    def _read_biases(cls, fields: Fields) -> Biases:
        require_global(fields)
        fields.require("attention_bias", (False,), "biases of attention alone are not supported")
        return "none"

    def _bias_values(self) -> dict[str, Any]:
        self._check_biases("none")
        return {"use_sliding_window": False, "attention_bias": False}


def require_global(fields: Fields) -> None:
    fields.require("use_sliding_window", (False,), "sliding windows are not supported")
    for name in ("sliding_window", "max_window_layers", "layer_types"):
        fields.ignore(name)


# Of config.json: rope_parameters or, before version 5 of `transformers`, rope_scaling.
_YARN: Mapping[str, Any] = {"beta_fast": 32, "beta_slow": 1, "mscale": None, "mscale_all_dim": None}
_LLAMA3: Mapping[str, Any] = {"low_freq_factor": 1, "high_freq_factor": 4}


def _read_rotary(fields: Fields, base: float) -> RotaryConfig:
    theta = fields.get("rope_theta", float, base)
    values = fields.block("rope_parameters") or fields.block("rope_scaling")
    kind = values.get("rope_type", values.get("type", "default"))
    known: Mapping[str, Mapping[str, Any]] = {
        "default": {},
        "linear": {},
        "yarn": {**_YARN, "attention_factor": None, "truncate": True},
        "llama3": _LLAMA3,
    }
    if kind not in known:
        raise ConfigError(f"'rope_type' is {kind!r}; supported are {', '.join(known)}")
    for name, value in values.items():
        wanted = known[kind].get(name, value)
        if value not in (None, wanted):
            raise ConfigError(f"'{name}' is {value!r}; only {wanted!r} is supported")
    return RotaryConfig(
        base=float(values.get("rope_theta", theta)),
        extension="" if kind == "default" else kind,
        factor=float(values.get("factor", 1.0)),
        original_length=int(values.get("original_max_position_embeddings") or 0),
    )


def _rotary_values(rotary: RotaryConfig) -> dict[str, Any]:
    values: dict[str, Any] = {"rope_type": rotary.extension or "default", "rope_theta": rotary.base}
    if rotary.extension:
        values["factor"] = rotary.factor
    if rotary.extension in ("yarn", "llama3"):
        values["original_max_position_embeddings"] = rotary.original_length
    if rotary.extension == "llama3":
        values |= _LLAMA3
    return values
