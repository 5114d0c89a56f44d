"""What the fine-tuning configs share: a recipe for models of a few million parameters.

The papers' learning rates (BERT 2e-5 to 5e-5 for 12 layers of 768) are for larger models; one
of 2 layers of 128 wants ten times as much, as the compact BERTs do (Turc et al. 2019: up to
3e-4). For a published base model: --config.optimizer.learning_rate=3e-5 --config.training.epochs=3.
"""

from typing import Any

from ml_collections import ConfigDict


def finetuning(
    task: dict[str, Any], data: dict[str, Any], learning_rate: float, epochs: int
) -> ConfigDict:
    """A config of a task; `model` and `tokenizer` are those of a start without `init`."""
    return ConfigDict(
        {
            "seed": 0,
            "seeds": 1,
            "init": "",
            "compare_scratch": True,
            "dropout": 0.1,
            # LoRA (Hu et al. 2021): rank 8, for example, and ten times the learning rate.
            "task": {
                "adapter": {"rank": 0, "alpha": 16.0, "targets": ("query", "value")},
                **task,
            },
            "data": {
                "train": "pydocs",
                "validation": "",
                "test": "",
                "header": True,
                "on_bad_rows": "refuse",
                "train_rows": 0,
                "cache_dir": "",
                **data,
            },
            "optimizer": {
                "name": "adamw",
                "learning_rate": learning_rate,
                "schedule": "linear_after_warmup",
                "warmup_steps": 0,
                # Short runs need it (Mosbach et al. 2021).
                "bias_correction": True,
                "weight_decay": 0.01,
                "layer_decay": 1.0,
            },
            "training": {
                "epochs": epochs,
                "batch_size": 32,
                "accumulation": 1,
                "warmup_ratio": 0.1,
                "log_every": 20,
            },
            "mesh": {"data": -1, "fsdp": 1, "sequence": 1, "tensor": 1},
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
                "vocab_size": 0,
            },
            "tokenizer": {"path": "", "kind": "wordpiece", "vocab_size": 4096, "lowercase": True},
        }
    )
