"""What ELECTRA's generator and discriminator share (§3.2).

  python -m experiments.ablate --config=configs/ablations/electra_tying.py:tiny \
      --workdir=runs/electra_tying

The generator has the size of the discriminator, as in the paper's comparison. The gradient-
disentangled embeddings are those of DeBERTaV3 (He et al. 2021 §3.3).
"""

from typing import Any

from ml_collections import ConfigDict

from configs.ablations.recipe import ablation

# Description, model.share_embeddings, and GLUE dev score.
SECTION_3_2: dict[str, tuple[str, Any, float | None]] = {
    "shared": ("token, position and segment tables shared", True, 84.3),
    "apart": ("each its own", False, 83.6),
    "all_weights": ("all weights of the encoder shared", "all_weights", 84.4),
    "disentangled": ("tables shared, without the discriminator's gradient", "disentangled", None),
}


def get_config(size: str = "tiny") -> ConfigDict:
    variants = {}
    for name, (description, share, _) in SECTION_3_2.items():
        fields = {"model": {"generator_size": 1.0, "share_embeddings": share}}
        variants[name] = description, fields
    return ablation(
        size,
        name="electra_tying",
        question="What should generator and discriminator share?",
        base="shared",
        objective="electra",
        variants=variants,
        comparable_losses=False,
        published={
            "source": "Clark et al. 2020, §3.2",
            "measure": "GLUE dev score after 500 thousand steps",
            "direction": "higher",
            "compare_to": "classification",
            "values": {name: score for name, (*_, score) in SECTION_3_2.items() if score},
        },
    )
