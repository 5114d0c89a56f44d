"""Sharing of embeddings between ELECTRA's generator and discriminator (§3.2).

  python -m experiments.ablate --config=configs/ablations/electra_tying.py:tiny \
      --workdir=runs/electra_tying

The generator has the size of the discriminator, as in the paper's comparison. The paper's third
variant, which shares all weights, is omitted.
"""

from ml_collections import ConfigDict

from configs.ablations.recipe import ablation

# Description, whether embeddings are shared, and GLUE dev score.
SECTION_3_2 = {
    "shared": ("token, position and segment tables shared", True, 84.3),
    "apart": ("each its own", False, 83.6),
}


def get_config(size: str = "tiny") -> ConfigDict:
    variants = {}
    for name, (description, share, _) in SECTION_3_2.items():
        fields = {"model": {"generator_size": 1.0, "share_embeddings": share}}
        variants[name] = description, fields
    return ablation(
        size,
        name="electra_tying",
        question="Should generator and discriminator share their embeddings?",
        base="shared",
        objective="electra",
        variants=variants,
        comparable_losses=False,
        published={
            "source": "Clark et al. 2020, §3.2",
            "measure": "GLUE dev score after 500 thousand steps",
            "direction": "higher",
            "compare_to": "classification",
            "values": {name: score for name, (*_, score) in SECTION_3_2.items()},
        },
    )
