"""The source of ELECTRA's gain: steps from masked LM to replaced-token detection (Table 5).

  python -m experiments.ablate --config=configs/ablations/electra_efficiency.py:tiny \
      --workdir=runs/electra_efficiency

§3.4: ELECTRA 15% has a loss only at masked positions; Replace MLM replaces [MASK] by samples of a
generator; All-Tokens MLM predicts every token, with a copy mechanism. The measure is fine-tuning,
as in the paper: the last two never see [MASK], so they cannot score texts by masking.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import quickstart
from configs.ablations.recipe import ablation

REPLACED = "lmjax.objectives.rtd.ReplacedTokenDetection"
# Description, objective, and GLUE dev score.
TABLE_5: dict[str, tuple[str, dict[str, Any], float]] = {
    "electra": ("ELECTRA", {"type": REPLACED}, 85.0),
    "all_tokens_mlm": (
        "All-Tokens MLM",
        {"type": "lmjax.objectives.electra_mlm.AllTokensMLM"},
        84.3,
    ),
    "replace_mlm": ("Replace MLM", {"type": "lmjax.objectives.electra_mlm.ReplaceMLM"}, 82.4),
    "electra_15": ("ELECTRA 15%", {"type": REPLACED, "detects": "chosen"}, 82.4),
    "bert": (
        "masked LM",
        {"type": "lmjax.objectives.masked.MaskedLM", "sentence_prediction": False},
        82.2,
    ),
}


def get_config(size: str = "tiny") -> ConfigDict:
    electra = quickstart.OBJECTIVES["electra"]
    most = electra["objective"]["max_predictions"]
    variants: dict[str, tuple[str, dict[str, Any]]] = {}
    for name, (description, objective, _) in TABLE_5.items():
        model = dict(electra["model"])
        if name == "bert":
            del model["generator_size"]
        changes: dict[str, Any] = {
            "objective": {**objective, "max_predictions": most},
            "model": model,
            "data": {"examples": electra["examples"]},
        }
        if name == "electra_15":
            # At first every chosen token is replaced: the loss falls to 0, and rises again as the
            # generator learns.
            changes["training"] = {"max_loss_rise": 0.0}
        variants[name] = description, changes
    return ablation(
        size,
        name="electra_efficiency",
        question="What makes replaced-token detection efficient: the task, or all positions?",
        base="electra",
        variants=variants,
        comparable_losses=False,
        published={
            "source": "Clark et al. 2020, Table 5",
            "measure": "GLUE dev score",
            "direction": "higher",
            "compare_to": "classification",
            "values": {name: score for name, (*_, score) in TABLE_5.items()},
        },
    )
