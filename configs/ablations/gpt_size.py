"""Scaling of a causal model's loss with its size, for the same number of tokens.

  python -m experiments.ablate --config=configs/ablations/gpt_size.py:tiny --workdir=runs/gpt_size

Kaplan et al. 2020 (eq. 1.1) find L(N) proportional to N ** -0.076 for N parameters without
embeddings, given enough text. Here text is limited, which flattens the law for larger models, and
all sizes use the base's learning rate.
"""

from ml_collections import ConfigDict

from configs.ablations.recipe import SIZES, ablation, held_out
from lmjax.configuration import size_of

# Layers and width; the base comes first.
SHAPES = {
    "tiny": [(2, 128), (1, 64), (2, 64), (4, 192)],
    "small": [(12, 384), (4, 128), (6, 256), (12, 512)],
    "base": [(12, 768), (6, 384), (12, 512), (24, 1024)],
}


def get_config(size: str = "tiny") -> ConfigDict:
    own = SIZES[size_of(SIZES, size)]
    head_size = own.hidden_size // own.heads
    variants = {}
    for layers, width in SHAPES[size]:
        trunk = {
            "layers": layers,
            "hidden_size": width,
            "heads": width // head_size,
            "intermediate_size": 4 * width,
        }
        fields = {"model": {"trunk": trunk}}
        variants[f"l{layers}_h{width}"] = f"{layers} layers of {width}", fields
    return ablation(
        size,
        name="gpt_size",
        question="How does the loss fall with the size of the model?",
        base=next(iter(variants)),
        objective="gpt",
        variants=variants,
        measures=held_out("held-out loss, nats a token", "lm"),
        scaling={
            "measure": "loss",
            "over": "trunk_parameters",
            "source": "Kaplan et al. 2020, eq. 1.1",
            "exponent": -0.076,
        },
    )
