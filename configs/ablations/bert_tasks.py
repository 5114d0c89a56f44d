"""BERT without next-sentence prediction, and also with left-to-right training (Table 5).

  python -m experiments.ablate --config=configs/ablations/bert_tasks.py:tiny \\
      --workdir=runs/bert_tasks

The left-to-right variant is a causal LM on the same trunk, which keeps its mask during fine-tuning,
as in the paper. Its classifier reads the last token, BERT's the first.
"""

from ml_collections import ConfigDict

from configs.ablations.recipe import ablation

# The changes, and MNLI-m dev accuracy.
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
