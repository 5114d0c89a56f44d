"""Continued pretraining of another model on other text.

  python -m experiments.pretrain --config=configs/adapt.py:bert --config.init=runs/bert \\
      --config.data.corpus='medicine/*.txt' --workdir=runs/bert-medicine

Domain-adaptive pretraining (Gururangan et al. 2020: 12.5k steps of RoBERTa's recipe, 256 rows;
here a recipe for small models and short texts). `init` is a run or a Hugging Face directory of
the objective's family. The run uses its model config and tokenizer; fields of `model` override the
config (`--config.model.trunk.dropout=0.1`). The cost depends on the model.
"""

from ml_collections import ConfigDict

from configs.quickstart import OBJECTIVES
from lmjax.configuration import size_of


def get_config(name: str = "bert") -> ConfigDict:
    """Returns the config of an objective: bert, gpt, xlnet or electra."""
    own = OBJECTIVES[size_of(OBJECTIVES, name)]
    return ConfigDict(
        {
            "objective": own["objective"],
            # These fields override those of the checkpoint's model.
            "model": {"trunk": {"dropout": 0.1, "attention_dropout": 0.1, "dtype": "float32"}},
            "data": {"examples": own["examples"]},
            "optimizer": {
                "learning_rate": 5e-4,
                "schedule": "linear_product",
                "warmup_steps": 20,
            },
            "training": {
                "steps": 300,
                "batch_size": 32,
                "log_every": 20,
                "eval_every": 100,
                "eval_batches": 10,
                "checkpoint_every": 100,
            },
        }
    )
