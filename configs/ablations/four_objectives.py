"""The four objectives and a hybrid with the same trunk, tokenizer, corpus and budget.

  python -m experiments.ablate --config=configs/ablations/four_objectives.py:tiny \
      --workdir=runs/four_objectives

The rest follows each paper: corruption, loss, how examples are formed, and positions (relative in
XLNet). The hybrid is a masked LM that reads half of the examples left to right (UniLM, Dong et al.
2019). ELECTRA also has a generator of half the width, so its tokens cost more, as the report shows.
`--config.budget.unit=flops --config.budget.amount=2e13` equalizes the cost instead.
"""

from ml_collections import ConfigDict

from configs.ablations.recipe import ablation
from configs.quickstart import OBJECTIVES

SAYS = {
    "bert": "BERT: masked LM, next sentence",
    "gpt": "GPT: causal LM",
    "xlnet": "XLNet: permutation LM, memory",
    "electra": "ELECTRA: replaced tokens",
}


def get_config(size: str = "tiny") -> ConfigDict:
    variants = {}
    for name, own in OBJECTIVES.items():
        fields = {"objective": own["objective"], "model": own["model"]}
        variants[name] = SAYS[name], {**fields, "data": {"examples": own["examples"]}}
    bert = OBJECTIVES["bert"]
    hybrid = {"type": "lmjax.objectives.unified.UnifiedLM", "sentence_prediction": False}
    variants["hybrid"] = (
        "masked LM, half of it from the left",
        {
            "objective": {**bert["objective"], **hybrid},
            "model": bert["model"],
            "data": {"examples": {**bert["examples"], "next_sentence": "none"}},
        },
    )
    return ablation(
        size,
        name="four_objectives",
        question="Which objective makes the most of the same trunk, text and number of tokens?",
        base="bert",
        variants=variants,
        comparable_losses=False,
    )
