"""The shared recipe of the fine-tuning configs, for models of a few million parameters.

The papers' learning rates (BERT 2e-5 to 5e-5 for 12 layers of 768) are for larger models; a model
with 2 layers of 128 needs ten times as much, as do the compact BERTs (Turc et al. 2019: up to
3e-4). For a published base model: --config.optimizer.learning_rate=3e-5 --config.training.epochs=3.
For LoRA (Hu et al. 2021): --config.task.adapter.rank=8 and ten times the learning rate.
"""

from typing import Any

from ml_collections import ConfigDict


def finetuning(
    task: dict[str, Any], data: dict[str, Any], learning_rate: float, epochs: int
) -> ConfigDict:
    """Returns the config of a task; without `init`, `model` and `tokenizer` are used."""
    return ConfigDict(
        {
            "compare_scratch": True,
            "task": task,
            "data": {"train": "pydocs", **data},
            "optimizer": {
                "learning_rate": learning_rate,
                "schedule": "linear_after_warmup",
                # Short runs need bias correction (Mosbach et al. 2021).
                "bias_correction": True,
            },
            "training": {"epochs": epochs, "batch_size": 32},
            "model": {
                "type": "lmjax.models.bert.BertConfig",
                "trunk": {
                    "layers": 2,
                    "hidden_size": 128,
                    "heads": 2,
                    "intermediate_size": 512,
                    "initial_std": 0.05,
                },
                "max_length": 128,
            },
            "tokenizer": {"vocab_size": 4096},
        }
    )
