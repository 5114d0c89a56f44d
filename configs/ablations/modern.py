"""The parts of a modern trunk, each added to GPT's and each taken out of the modern one.

  python -m experiments.ablate --config=configs/ablations/modern.py:tiny --workdir=runs/modern

The gated feed-forward layer has two thirds of the width, so that the number of parameters is the
same (Shazeer 2020, section 3).
"""

from typing import Any

from ml_collections import ConfigDict

from configs.ablations.recipe import SIZES, ablation, held_out
from lmjax.configuration import size_of


def get_config(size: str = "tiny") -> ConfigDict:
    inner = 8 * SIZES[size_of(SIZES, size)].hidden_size // 3
    parts: dict[str, tuple[str, dict[str, Any]]] = {
        "rotary": ("rotary positions", {"positions": "rotary"}),
        "rms_norm": ("RMSNorm", {"normalization": "rms_norm"}),
        "no_biases": ("no biases", {"biases": "none"}),
        "swiglu": (
            "SwiGLU",
            {"activation": "silu", "gated": True, "intermediate_size": inner},
        ),
        "qk_norm": ("normalized queries and keys", {"query_key_norm": True}),
        "grouped": ("one key-value head", {"key_value_heads": 1}),
    }
    modern: dict[str, Any] = {}
    for _, fields in parts.values():
        modern |= fields

    def variant(fields: dict[str, Any]) -> dict[str, Any]:
        return {"model": {"trunk": {"norm": "pre", **fields}}}

    variants = {"gpt2": ("GPT-2's trunk", variant({})), "modern": ("all parts", variant(modern))}
    for name, (description, fields) in parts.items():
        rest = {key: value for key, value in modern.items() if key not in fields}
        variants[f"with_{name}"] = f"GPT-2's with {description}", variant(fields)
        variants[f"without_{name}"] = f"all parts but {description}", variant(rest)
    return ablation(
        size,
        name="modern",
        question="Which parts of a modern trunk lower the loss of a causal language model?",
        base="gpt2",
        objective="gpt",
        variants=variants,
        measures=held_out("held-out loss, nats a token", "lm"),
    )
