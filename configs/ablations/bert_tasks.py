"""BERT without next-sentence prediction, and left to right without it (Table 5).

  python -m experiments.ablate --config=configs/ablations/bert_tasks.py:tiny \\
      --workdir=runs/bert_tasks

Left to right is a causal LM on the same trunk, whose mask stays at fine-tuning, as the paper's
does. Its classifier reads the last token, where BERT's reads the first.
"""

from ml_collections import ConfigDict

from configs.ablations.recipe import ablation

# What changes, and MNLI-m dev accuracy.
TABLE_5 = {
    "bert": ("masked LM, next sentence", {}, 84.4),
    "no_nsp": (
        "masked LM",
        {
            "objective": {"sentence_prediction": False},
            "data": {"examples": {"next_sentence": "none"}},
        },
        83.9,
    ),
    "left_to_right": (
        "causal LM",
        {
            "objective": {"type": "lmjax.objectives.causal.CausalLM"},
            "data": {"examples": {"type": "lmjax.data.examples.Packed", "length": 128}},
        },
        82.1,
    ),
}


def get_config(size: str = "tiny") -> ConfigDict:
    return ablation(
        size,
        name="bert_tasks",
        question="What do next-sentence prediction and reading in both directions bring?",
        base="bert",
        objective="bert",
        variants={
            name: (description, fields) for name, (description, fields, _) in TABLE_5.items()
        },
        comparable_losses=False,
        published={
            "source": "Devlin et al. 2019, Table 5",
            "measure": "MNLI-m dev accuracy after fine-tuning",
            "direction": "higher",
            "compare_to": "classification",
            "values": {name: score for name, (*_, score) in TABLE_5.items()},
        },
    )
