"""XLNet with other numbers of targets, and without some of its parts (Table 6).

  python -m experiments.ablate --config=configs/ablations/xlnet.py:tiny --workdir=runs/xlnet

Two rows of the table are omitted: BERT's data with Transformer-XL's memory, and next-sentence
prediction, for which text streams have no labels here.
"""

from typing import Any

from ml_collections import ConfigDict

from configs.ablations.recipe import ablation
from configs.quickstart import LENGTH

BOTH: dict[str, Any] = {"data": {"examples": {"bidirectional": True}}}
# Row 4, the base; the changes of the others; MNLI-m dev accuracy.
TABLE_6 = {
    "k6": ("one token in 6 is a target", BOTH, 85.63),
    "k7": ("one in 7", {**BOTH, "objective": {"num_predict": round(LENGTH / 7)}}, 85.84),
    "no_memory": ("no memory", {**BOTH, "model": {"memory_length": 0}}, 85.32),
    "no_spans": ("single tokens, not spans", {**BOTH, "objective": {"spans": False}}, 85.49),
    "one_direction": ("no reversed text", {}, 85.31),
}


def get_config(size: str = "tiny") -> ConfigDict:
    return ablation(
        size,
        name="xlnet",
        question="Which of XLNet's parts help?",
        base="k6",
        objective="xlnet",
        variants={
            name: (description, fields) for name, (description, fields, _) in TABLE_6.items()
        },
        comparable_losses=False,  # variants have different targets
        published={
            "source": "Yang et al. 2019, Table 6",
            "measure": "MNLI-m dev accuracy after fine-tuning, median of 5",
            "direction": "higher",
            "compare_to": "classification",
            "values": {name: score for name, (*_, score) in TABLE_6.items()},
        },
    )
