"""Norm placement and activation of the trunk, and the optimizer, for GPT's objective.

  python -m experiments.ablate --config=configs/ablations/trunk.py:tiny --workdir=runs/trunk

All variants use the base's learning rate, which may suit some better than others.
"""

from ml_collections import ConfigDict

from configs.ablations.recipe import SIZES, ablation, held_out
from lmjax.configuration import size_of


def get_config(size: str = "tiny") -> ConfigDict:
    # Equal numbers of parameters: three kernels of 2/3 of the width (Shazeer 2020 §3).
    inner = 8 * SIZES[size_of(SIZES, size)].hidden_size // 3
    swiglu = {"activation": "silu", "gated": True, "intermediate_size": inner}
    return ablation(
        size,
        name="trunk",
        question="What do the trunk's norm and activation, and the optimizer, matter?",
        base="post_norm",
        objective="gpt",
        variants={
            "post_norm": ("post-norm, GELU, AdamW", {}),
            "pre_norm": ("pre-norm", {"model": {"trunk": {"norm": "pre"}}}),
            "relu": ("ReLU", {"model": {"trunk": {"activation": "relu"}}}),
            "swiglu": ("SwiGLU", {"model": {"trunk": swiglu}}),
            "lamb": ("LAMB", {"optimizer": {"name": "lamb"}}),
            "lion": ("Lion", {"optimizer": {"name": "lion", "learning_rate": 2e-4}}),
        },
        measures=held_out("held-out loss, nats a token", "lm"),
    )
