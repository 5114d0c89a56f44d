"""Ettin's decoder (Weller et al. 2025): a causal language model on ModernBERT's trunk.

It makes a pair with an encoder that is trained on the same text. Between trunk and logits it has
the layers of the masked-LM head.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax

from lmjax.configuration import Size
from lmjax.errors import ConfigError
from lmjax.models.gpt import Gpt, GptConfig
from lmjax.models.heads import Task
from lmjax.models.modernbert import model_rules, model_values, read_model, trunk_rules
from lmjax.models.published import Fields, Read, Rules
from lmjax.nn.transformer import PredictionTransform


@dataclasses.dataclass(frozen=True)
class ModernBertDecoderConfig(GptConfig):
    """Settings of a ModernBERT decoder, those of GPT.

    `max_length` is the longest text; there is no position table.
    """

    published_type: ClassVar[str] = "modernbert-decoder"
    published_prefix: ClassVar[str] = "ModernBertDecoder"
    published_base: ClassVar[str] = "model."
    published_lm: ClassVar[str] = "ModernBertDecoderForCausalLM"
    published_unused: ClassVar[str] = r"(?!)"
    published_refused: ClassVar[Mapping[str, str]] = {}
    published_heads: ClassVar[Mapping[str, tuple[str, str]]] = {}
    normalizes_embeddings: ClassVar[bool] = True

    max_length: Size = 8192

    def causal_lm(self) -> "ModernBertDecoder":
        return ModernBertDecoder(self)

    @classmethod
    def read_published(cls, fields: Fields) -> Read:
        # In `transformers`, the window of a decoder includes the token itself.
        window = fields.get("local_attention", int) // 2
        fields.require("sliding_window", (window,), "it must be half of 'local_attention'")
        return Read(read_model(cls, fields, window - 1))

    def published_values(self) -> dict[str, Any]:
        return {
            "model_type": "modernbert-decoder",
            "local_attention": 2 * (self.trunk.window + 1),
            **model_values(self, "Ettin's decoder"),
            # transformers requires numbers, which change no state.
            **dict.fromkeys(("pad_token_id", "bos_token_id"), 0),
            **dict.fromkeys(("cls_token_id", "sep_token_id"), 0),
        }

    def published_head_dropout(self, task: Task, values: Mapping[str, Any], where: str) -> float:
        raise ConfigError(f"{where}: Ettin's decoder with a head for '{task}' is not supported")

    def published_has(self, class_end: str) -> bool:
        return class_end == "ForCausalLM"

    def encoder_rules(self, ours: str, tied: tuple[str, ...] = ()) -> Rules:
        return trunk_rules(self.trunk, ours, tied, joined=False)

    def lm_rules(self) -> Rules:
        return model_rules(self, "lm_head")


class ModernBertDecoder(Gpt):
    """The decoder with its output layers; the mask of its inputs must be causal."""

    config: ModernBertDecoderConfig

    def setup(self) -> None:
        super().setup()
        c = self.config
        self.transform = PredictionTransform(c.trunk, c.trunk.hidden_size)
        self.output_bias = self.param("output_bias", nn.initializers.zeros, (c.vocab_size,))

    def decode(self, hidden: jax.Array) -> jax.Array:
        return super().decode(self.transform(hidden)) + self.output_bias
