"""How far GPT should see, for the same number of tokens.

  python -m experiments.ablate --config=configs/ablations/gpt_context.py:tiny \\
      --workdir=runs/gpt_context

Rows are shorter and there are more of them: each variant reads as many tokens in an update. The
held-out loss of short rows is of tokens with less before them, which is the point; positions beyond
a variant's length meet fine-tuning untrained.
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
