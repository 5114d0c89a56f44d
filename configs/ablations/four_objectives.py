"""The four objectives, and a hybrid, on one trunk, one tokenizer, one corpus, one budget.

  python -m experiments.ablate --config=configs/ablations/four_objectives.py:tiny \
      --workdir=runs/four_objectives

What differs is what each paper says must: the corruption, the score, how examples are cut, and
positions (relative in XLNet). The hybrid is masked LM of which half of the examples is read from
left to right (UniLM, Dong et al. 2019). ELECTRA's generator, half as wide, comes on top of its
trunk: its tokens cost more, which the report's table of costs says. `--config.budget.unit=flops
--config.budget.amount=2e13` makes the cost equal instead.
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
