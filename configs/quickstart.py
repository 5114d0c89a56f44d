"""Four objectives with the same trunk, tokenizer, corpus and token budget.

A small comparison, not from a paper, in which all four objectives learn within about 8 minutes on
two CPU cores. `python -m experiments.quickstart` runs all of them; to run a single one:
`python -m experiments.pretrain --config=configs/quickstart.py:bert --workdir=runs/bert`.

The trunk, the tokenizer and the embedded docstrings are shared. The rest follows each paper:
corruption and loss, how examples are formed, and positions (learned in BERT, GPT and ELECTRA,
relative in XLNet).
"""

from typing import Any

from ml_collections import ConfigDict

from lmjax.configuration import size_of

LENGTH = 128
BATCH = 32
TOKENS = 1_300_000  # budget per objective, without padding

# Fraction of a row that is text: docstrings are short, and pairs are not filled up.
FILL = {"bert": 0.65, "gpt": 1.0, "xlnet": 1.0, "electra": 0.71}

OBJECTIVES: dict[str, dict[str, Any]] = {
    "bert": {
        "objective": {
            "type": "lmjax.objectives.masked.MaskedLM",
            "max_predictions": 20,
        },
        "model": {"max_length": LENGTH},
        "examples": {
            "type": "lmjax.data.examples.SegmentPairs",
            "length": LENGTH,
            "duplicates": 2,
        },
    },
    "gpt": {
        "objective": {"type": "lmjax.objectives.causal.CausalLM"},
        "model": {"max_length": LENGTH},
        "examples": {"type": "lmjax.data.examples.Packed", "length": LENGTH},
    },
    "xlnet": {
        "objective": {
            "type": "lmjax.objectives.permuted.PermutedLM",
            "num_predict": 21,
            "reuse_length": LENGTH // 2,
            "perm_size": LENGTH // 2,
        },
        "model": {"memory_length": LENGTH // 2},
        "examples": {
            "type": "lmjax.data.examples.SegmentStream",
            "length": LENGTH,
            "reuse_length": LENGTH // 2,
        },
    },
    "electra": {
        "objective": {
            "type": "lmjax.objectives.rtd.ReplacedTokenDetection",
            "max_predictions": 19,
        },
        "model": {"max_length": LENGTH, "generator_size": 0.5},
        "examples": {"type": "lmjax.data.examples.ElectraPairs", "length": LENGTH},
    },
}


def get_config(name: str = "bert") -> ConfigDict:
    """Returns the config of an objective; see OBJECTIVES."""
    own = OBJECTIVES[size_of(OBJECTIVES, name)]
    return ConfigDict(
        {
            "objective": own["objective"],
            "model": {
                "trunk": {
                    "layers": 2,
                    "hidden_size": 128,
                    "heads": 2,
                    "intermediate_size": 512,
                    # Equivalent to 0.02 at the papers' width of 768: 0.02 * sqrt(768 / 128).
                    # With less, the loss stays at the unigram score for a hundred steps.
                    "initial_std": 0.05,
                    # Training takes less than an epoch, so there is nothing to regularize.
                    "dropout": 0.0,
                    "attention_dropout": 0.0,
                },
                **own["model"],
            },
            "data": {"tokenizer": {"vocab_size": 4096}, "examples": own["examples"]},
            "optimizer": {
                "learning_rate": 2e-3,
                "schedule": "linear_product",
                "warmup_steps": 50,
                "b2": 0.98,
            },
            "training": {
                "steps": round(TOKENS / (BATCH * LENGTH * FILL[name])),
                "batch_size": BATCH,
                "log_every": 20,
                "eval_every": 50,
                "eval_batches": 10,
                "checkpoint_every": 200,
            },
        }
    )
