"""The context length of GPT, for the same number of tokens.

  python -m experiments.ablate --config=configs/ablations/gpt_context.py:tiny \\
      --workdir=runs/gpt_context

Shorter contexts use more rows, so that each variant has the same number of tokens per update. In
short rows, the held-out loss covers tokens with less context, which is the effect to measure.
Positions beyond a variant's length are still untrained when fine-tuning starts.
"""

from ml_collections import ConfigDict

from configs.ablations.recipe import SIZES, ablation, held_out
from configs.quickstart import LENGTH
from lmjax.configuration import size_of


def get_config(size: str = "tiny") -> ConfigDict:
    batch = SIZES[size_of(SIZES, size)].batch_size
    variants = {}
    for length in (LENGTH, LENGTH // 2, LENGTH // 4, LENGTH // 8):
        fields = {
            "data": {"examples": {"length": length}},
            "training": {"batch_size": batch * LENGTH // length},
        }
        variants[f"length_{length}"] = f"{length} tokens", fields
    return ablation(
        size,
        name="gpt_context",
        question="How far should a causal model see?",
        base=f"length_{LENGTH}",
        objective="gpt",
        variants=variants,
        measures=held_out("held-out loss, nats a token", "lm"),
    )
