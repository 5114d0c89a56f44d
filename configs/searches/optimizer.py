"""Search for learning rate, warmup and weight decay of an objective of configs/quickstart.py.

  python -m experiments.search --config=configs/searches/optimizer.py:gpt --workdir=runs/search

Uses 1/20 of the budget of a tiny ablation; the best values may differ for longer training.
"""

from typing import Any

from ml_collections import ConfigDict

from configs.ablations.recipe import ablation, held_out

HEADLINES = {"bert": "mlm", "gpt": "lm", "xlnet": "plm", "electra": "mlm"}


def get_config(objective: str = "gpt") -> ConfigDict:
    made: dict[str, Any] = ablation(
        "tiny",
        name=f"optimizer_{objective}",
        question="Which learning rate, warmup and weight decay?",
        base="",
        objective=objective,
        variants={},
    ).to_dict()
    del made["base"], made["variants"]
    made["budget"]["amount"] /= 20
    made["measures"] = held_out("held-out loss, nats", HEADLINES[objective])
    return ConfigDict(
        {
            **made,
            "seeds": 1,
            "measure": "loss",
            "space": {
                "optimizer": {
                    "learning_rate": {"low": 2e-4, "high": 2e-2, "log": True},
                    "warmup_steps": {"low": 2, "high": 10},
                    "weight_decay": {"choices": [0.0, 0.01, 0.1]},
                }
            },
        }
    )
