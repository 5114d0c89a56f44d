"""The shared recipe of the ablations: trunk, tokenizer, corpus, budget and measures at three sizes.

`tiny` runs on two CPU cores in under an hour. `small` has the size and the budget of BabyLM's
strict-small track, 10 epochs of 10 million words, for one GPU. `base` is the papers' trunk with ten
times as much text. The default corpus is the embedded docstrings; to use another:
`--config.pretraining.data.corpus=train.txt.xz --config.measures.blimp.data=blimp.jsonl`.
"""

import dataclasses
from typing import Any

from ml_collections import ConfigDict

from configs import quickstart
from configs.finetune import classification
from lmjax.configuration import size_of


@dataclasses.dataclass(frozen=True)
class Size:
    """The size and training recipe of a model; `tokens` is the budget per variant and seed."""

    layers: int
    hidden_size: int
    heads: int
    vocab_size: int
    tokens: int
    batch_size: int
    learning_rate: float
    warmup_steps: int
    initial_std: float
    dropout: float
    dtype: str


SIZES = {
    "tiny": Size(
        layers=2,
        hidden_size=128,
        heads=2,
        vocab_size=4096,
        tokens=quickstart.TOKENS,
        batch_size=32,
        learning_rate=2e-3,
        warmup_steps=50,
        initial_std=0.05,
        dropout=0.0,
        dtype="float32",
    ),
    "small": Size(
        layers=12,
        hidden_size=384,
        heads=6,
        vocab_size=16_384,
        tokens=130_000_000,
        batch_size=256,
        learning_rate=1e-3,
        warmup_steps=400,
        initial_std=0.03,
        dropout=0.1,
        dtype="bfloat16",
    ),
    "base": Size(
        layers=12,
        hidden_size=768,
        heads=12,
        vocab_size=32_768,
        tokens=1_300_000_000,
        batch_size=256,
        learning_rate=5e-4,
        warmup_steps=4_000,
        initial_std=0.02,
        dropout=0.1,
        dtype="bfloat16",
    ),
}


def held_out(description: str, metric: str) -> dict[str, Any]:
    """Returns the measure of a term of the held-out loss."""
    kind = "lmjax.lab.measures.HeldOut"
    return {"loss": {"type": kind, "description": description, "metric": metric}}


def ablation(
    size: str,
    *,
    name: str,
    question: str,
    base: str,
    variants: dict[str, tuple[str, dict[str, Any]]],
    objective: str = "",
    comparable_losses: bool = True,
    measures: dict[str, Any] | None = None,
    published: dict[str, Any] | None = None,
    scaling: dict[str, Any] | None = None,
) -> ConfigDict:
    """Returns a config of `experiments.ablate`.

    Args:
      size: see SIZES.
      base: the variant that the others are compared with.
      variants: name -> (description of the difference, changed fields of pretraining).
      objective: the objective of configs/quickstart.py that the variants change; '' if each variant
        sets its own.
      comparable_losses: whether the held-out losses have the same targets.
      measures: additional measures, after the two of every ablation.
    """
    s = SIZES[size_of(SIZES, size)]
    pretraining = quickstart.get_config(objective or "bert").to_dict()
    if not objective:
        del pretraining["objective"], pretraining["data"]["examples"]
        pretraining["model"] = {"trunk": pretraining["model"]["trunk"]}
    pretraining["model"]["trunk"] |= {
        "layers": s.layers,
        "hidden_size": s.hidden_size,
        "heads": s.heads,
        "intermediate_size": 4 * s.hidden_size,
        "initial_std": s.initial_std,
        "dropout": s.dropout,
        "attention_dropout": s.dropout,
        "dtype": s.dtype,
    }
    pretraining["data"]["tokenizer"]["vocab_size"] = s.vocab_size
    pretraining["optimizer"] |= {"learning_rate": s.learning_rate, "warmup_steps": s.warmup_steps}
    # The budget determines the steps.
    pretraining["training"] |= {"steps": s.warmup_steps, "batch_size": s.batch_size}
    judge = classification.get_config()
    judge.data.train_rows = 4000
    config = {
        "name": name,
        "question": question,
        "base": base,
        "comparable_losses": comparable_losses,
        "budget": {"unit": "tokens", "amount": float(s.tokens)},
        "pretraining": pretraining,
        "variants": {
            k: {"description": description, "changes": fields}
            for k, (description, fields) in variants.items()
        },
        "measures": {
            "blimp": {
                "type": "lmjax.lab.measures.MinimalPairs",
                "description": "BLiMP",
                "data": "",  # a file of pairs; '' disables the measure
                "per_paradigm": 100,
            },
            "classification": {
                "type": "lmjax.lab.measures.FineTuning",
                "description": "fine-tuned, accuracy",
                "percent": True,
                "score": "accuracy",
                "seeds": 3,
                "config": judge.to_dict(),
            },
            **(measures or {}),
        },
    }
    for block in ("variants", "measures"):  # in the order of the tables
        config[block] = ConfigDict(config[block], sort_keys=False)
    more = {"published": published, "scaling": scaling}
    return ConfigDict(config | {name: block for name, block in more.items() if block})
