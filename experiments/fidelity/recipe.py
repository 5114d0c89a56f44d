"""Fine-tuning as users of `transformers` do it: its models and schedule, torch's AdamW."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
import transformers

from lmjax.errors import ConfigError
from lmjax.training.optimizers import OptimizerConfig

# What torch has for these fields of an OptimizerConfig.
_KNOWN = {
    "name": "adamw",
    "schedule": "linear_after_warmup",
    "final_ratio": 0.0,
    "bias_correction": True,
    "layer_decay": 1.0,
}


def check(config: OptimizerConfig) -> None:
    """Raises ConfigError for an optimizer that is not built here."""
    for field, known in _KNOWN.items():
        if (value := getattr(config, field)) != known:
            raise ConfigError(f"config.optimizer.{field}: {value!r}; torch's side has {known!r}")


def train(
    model: Any, batches: Iterable[dict[str, np.ndarray]], config: OptimizerConfig, steps: int
) -> list[float]:
    """Updates a BERT with a head, and gives the loss before each update.

    Args:
      batches: `steps` of them, as `lmjax.tasks.collate.Collator` makes them.

    Raises:
      ConfigError: as `check`.
    """
    check(config)
    model.train()
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(
        decay_groups(parameters, config),
        lr=config.learning_rate,
        betas=(config.b1, config.b2),
        eps=config.epsilon,
    )
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, config.warmup_steps, steps)
    losses = []
    for batch in batches:
        loss = model(**arguments(batch)).loss
        optimizer.zero_grad()
        loss.backward()
        if config.clip_norm:
            torch.nn.utils.clip_grad_norm_(parameters, config.clip_norm)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
    return losses


def decay_groups(parameters: list[torch.Tensor], config: OptimizerConfig) -> list[dict[str, Any]]:
    """The parameters that decay, and those that do not.

    Of a BERT's parameters exactly the norms and the biases have one axis, so that the rules
    'papers' and 'matrices' are one.
    """

    def decays(parameter: torch.Tensor) -> bool:
        return config.decay == "all" or (config.decay != "none" and parameter.ndim > 1)

    return [
        {"params": [p for p in parameters if decays(p)], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if not decays(p)], "weight_decay": 0.0},
    ]


def arguments(batch: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """What a BERT with a head is called with, without the rows that fill a batch up."""
    kept = {name: torch.tensor(x[batch["weight"] > 0]) for name, x in batch.items()}
    given = {
        "input_ids": kept["tokens"].long(),
        "token_type_ids": kept["token_types"].long(),
        "attention_mask": kept["segment_ids"].long(),
    }
    if "starts" in kept:
        given["start_positions"] = kept["starts"].argmax(-1)
        given["end_positions"] = kept["ends"].argmax(-1)
    elif "tags" in kept:
        given["labels"] = torch.where(kept["tags"] < 0, -100, kept["tags"]).long()
    else:
        given["labels"] = kept["gold"].long()
    return given
