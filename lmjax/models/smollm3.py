"""SmolLM3 (Bakouch et al. 2025): Llama in which every fourth layer has no positions.

Its predecessors, SmolLM and SmolLM2, are Llama (`lmjax.models.llama`).
"""

import dataclasses
from typing import Any, ClassVar

from lmjax.errors import ConfigError
from lmjax.models.llama import Biases, LlamaConfig, require_global
from lmjax.models.published import Fields


@dataclasses.dataclass(frozen=True)
class SmolLM3Config(LlamaConfig):
    """Settings of SmolLM3; `trunk.unrotated_every` says which layers have no positions."""

    published_type: ClassVar[str] = "smollm3"
    published_prefix: ClassVar[str] = "SmolLM3"
    published_lm: ClassVar[str] = "SmolLM3ForCausalLM"
    _unrotates: ClassVar[bool] = True
    _base: ClassVar[float] = 2_000_000.0
    _ties: ClassVar[bool] = True

    @classmethod
    def _read_unrotated(cls, fields: Fields, layers: int) -> int:
        every = fields.get("no_rope_layer_interval", int, 4)
        rotated = fields.sequence("no_rope_layers", _rotated(every, layers))[:layers]
        every = rotated.index(0) + 1 if 0 in rotated else 0
        if rotated != _rotated(every, layers):
            raise ConfigError(
                f"'no_rope_layers' is {rotated}; expected {layers} values, 0 for layers n - 1,"
                " 2 n - 1, ... and 1 for the others"
            )
        return every

    @classmethod
    def _read_biases(cls, fields: Fields) -> Biases:
        require_global(fields)
        return super()._read_biases(fields)

    def published_values(self) -> dict[str, Any]:
        return {
            **super().published_values(),
            "no_rope_layers": _rotated(self.trunk.unrotated_every, self.trunk.layers),
            "use_sliding_window": False,
            # Otherwise they have defaults of a vocabulary of 128,256 tokens.
            **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id")),
        }


def _rotated(every: int, layers: int) -> list[int]:
    """1 for the layers that are rotated, 0 for the others."""
    return [int(not every or (i + 1) % every > 0) for i in range(layers)]
