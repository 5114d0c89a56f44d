"""BERT's depth and width (Table 6), as fractions of the trunk's.

  python -m experiments.ablate --config=configs/ablations/bert_size.py:tiny --workdir=runs/bert_size

The paper's rows have 3 to 24 layers of 768 or 1,024. Here each variant has the same fraction of the
base's size as the paper's row of 12 layers of 768. All use the base's learning rate and tokens.
"""

from ml_collections import ConfigDict

from configs.ablations.recipe import SIZES, ablation, held_out
from lmjax.configuration import size_of

# Layers and width that correspond to the paper's 12 and 768.
TRUNKS = {"tiny": (4, 96), "small": (12, 384), "base": (12, 768)}
HEAD_SIZES = {"tiny": 32, "small": 64, "base": 64}
# Fractions of them, and MNLI-m dev accuracy.
TABLE_6 = {
    "base": (1.0, 1.0, 84.4),
    "quarter_depth": (0.25, 1.0, 77.9),
    "half_depth": (0.5, 1.0, 81.9),
    "wider": (1.0, 4 / 3, 85.7),
    "wider_and_deeper": (2.0, 4 / 3, 86.6),
}


def get_config(size: str = "tiny") -> ConfigDict:
    depth, width = TRUNKS[size_of(SIZES, size)]
    variants = {}
    for name, (of_depth, of_width, _) in TABLE_6.items():
        layers, hidden = round(of_depth * depth), round(of_width * width)
        trunk = {
            "layers": layers,
            "hidden_size": hidden,
            "heads": hidden // HEAD_SIZES[size],
            "intermediate_size": 4 * hidden,
        }
        variants[name] = f"{layers} layers of {hidden}", {"model": {"trunk": trunk}}
    return ablation(
        size,
        name="bert_size",
        question="What does a deeper or wider encoder bring?",
        base="base",
        objective="bert",
        variants=variants,
        measures=held_out("held-out masked-LM loss, nats", "mlm"),
        published={
            "source": "Devlin et al. 2019, Table 6",
            "measure": "MNLI-m dev accuracy after fine-tuning",
            "direction": "higher",
            "compare_to": "classification",
            "values": {name: score for name, (*_, score) in TABLE_6.items()},
        },
    )
