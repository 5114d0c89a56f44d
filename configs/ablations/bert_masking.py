"""BERT's masking: 80% [MASK], 10% random, 10% unchanged, and five alternatives (Table 8).

  python -m experiments.ablate --config=configs/ablations/bert_masking.py:tiny \
      --workdir=runs/bert_masking
"""

from ml_collections import ConfigDict

from configs.ablations.recipe import ablation

# Shares of the chosen tokens: [MASK], unchanged, random; and MNLI dev accuracy.
TABLE_8 = {
    "80/10/10": (0.8, 0.1, 84.2),
    "100/0/0": (1.0, 0.0, 84.3),
    "80/0/20": (0.8, 0.2, 84.1),
    "80/20/0": (0.8, 0.0, 84.4),
    "0/20/80": (0.0, 0.8, 83.7),
    "0/0/100": (0.0, 1.0, 83.6),
}


def _name(rule: str) -> str:
    return "mask_" + rule.replace("/", "_")


def get_config(size: str = "tiny") -> ConfigDict:
    variants = {}
    for rule, (masked, random, _) in TABLE_8.items():
        fields = {"mask_fraction": masked, "random_fraction": random}
        variants[_name(rule)] = f"{rule} masked/same/random", {"objective": fields}
    return ablation(
        size,
        name="bert_masking",
        question="What should become of the tokens that are to be predicted?",
        base="mask_80_10_10",
        objective="bert",
        variants=variants,
        comparable_losses=False,  # each variant has its own corruption
        published={
            "source": "Devlin et al. 2019, Table 8",
            "measure": "MNLI dev accuracy after fine-tuning",
            "direction": "higher",
            "compare_to": "classification",
            "values": {_name(rule): score for rule, (*_, score) in TABLE_8.items()},
        },
    )
