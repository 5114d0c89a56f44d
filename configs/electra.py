"""ELECTRA (Clark et al. 2020): replaced-token detection.

Reproduces Table 6 of the paper: small (14M; E = 128, generator 1/4, 128 tokens, batch 128, 1M
steps, 5e-4), base (generator 1/3, 512 tokens, batch 256, 766k steps, 2e-4) and large
(generator 1/4, mask 25%, batch 2048, 400k steps, 2e-4), AdamW without bias correction,
warmup 10k multiplied by linear decay. tiny is for laptops and not from the paper.

The two stages of §3.3 are two runs, in which both networks have the size of the discriminator: a
masked LM, and a discriminator that starts as a copy of it and detects the samples of the original.

  python -m experiments.pretrain --config=configs/electra.py:tiny,generator --workdir=runs/generator
  python -m experiments.pretrain --config=configs/electra.py:tiny,discriminator \\
      --config.init=runs/generator --workdir=runs/electra

The default corpus is the embedded docstrings; set --config.data.corpus to use the paper's text
(BERT's; for large, XLNet's).

Cost (python -m experiments.cost --config=configs/electra.py:SIZE; tokens include padding):
  tiny   2.15M parameters, 81.9M tokens, 6.7e+14 FLOPs
  small  14.2M parameters, 16.4B tokens, 1.1e+18 FLOPs
  base   119M parameters, 100B tokens, 6.7e+19 FLOPs
  large  355M parameters, 419B tokens, 9.1e+20 FLOPs
"""

import dataclasses
from typing import Any

from ml_collections import ConfigDict

from lmjax.configuration import size_of


@dataclasses.dataclass(frozen=True)
class Size:
    """The size and training recipe of a discriminator and its generator."""

    layers: int
    hidden_size: int
    heads: int
    embedding_size: int
    generator_size: float  # a multiple of the hidden size
    mask_rate: float
    length: int
    batch_size: int
    steps: int
    learning_rate: float
    warmup_steps: int = 10_000
    vocab_size: int = 30_522


SIZES = {
    "tiny": Size(
        layers=4,
        hidden_size=128,
        heads=2,
        embedding_size=128,
        generator_size=0.5,
        mask_rate=0.15,
        length=128,
        batch_size=32,
        steps=20_000,
        learning_rate=1e-3,
        warmup_steps=200,
        vocab_size=8_192,
    ),
    "small": Size(
        layers=12,
        hidden_size=256,
        heads=4,
        embedding_size=128,
        generator_size=1 / 4,
        mask_rate=0.15,
        length=128,
        batch_size=128,
        steps=1_000_000,
        learning_rate=5e-4,
    ),
    "base": Size(
        layers=12,
        hidden_size=768,
        heads=12,
        embedding_size=768,
        generator_size=1 / 3,
        mask_rate=0.15,
        length=512,
        batch_size=256,
        steps=766_000,
        learning_rate=2e-4,
    ),
    "large": Size(
        layers=24,
        hidden_size=1024,
        heads=16,
        embedding_size=1024,
        generator_size=1 / 4,
        mask_rate=0.25,
        length=512,
        batch_size=2048,
        steps=400_000,
        learning_rate=2e-4,
    ),
}


# The two stages: objective, model, and initial parameters.
STAGES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "generator": (
        {
            "type": "lmjax.objectives.masked.MaskedLM",
            "sentence_prediction": False,
            "mask_fraction": 0.85,
            "random_fraction": 0.0,
        },
        {"type": "lmjax.models.electra.ElectraConfig", "generator_size": 1.0},
        "",
    ),
    "discriminator": (
        {"generator_training": "frozen"},
        {"generator_size": 1.0, "share_embeddings": False},
        "runs/generator",
    ),
}


def get_config(size: str = "small") -> ConfigDict:
    """Returns the config of a size, and of a stage after a comma; see SIZES and STAGES."""
    size, comma, stage = size.partition(",")
    s = SIZES[size_of(SIZES, size)]
    objective, model, init = STAGES[size_of(STAGES, stage)] if comma else ({}, {}, "")
    return ConfigDict(
        {
            "init": init,
            "objective": {
                "type": "lmjax.objectives.rtd.ReplacedTokenDetection",
                "mask_rate": s.mask_rate,
                "max_predictions": int((s.mask_rate + 0.005) * s.length),
                **objective,
            },
            "model": {
                "trunk": {
                    "layers": s.layers,
                    "hidden_size": s.hidden_size,
                    "heads": s.heads,
                    "intermediate_size": 4 * s.hidden_size,
                    "activation": "gelu",
                    "scan_layers": s.layers >= 24,
                },
                "embedding_size": s.embedding_size,
                "generator_size": s.generator_size,
                **model,
            },
            "data": {
                "tokenizer": {"vocab_size": s.vocab_size},
                "examples": {"type": "lmjax.data.examples.ElectraPairs", "length": s.length},
            },
            "optimizer": {
                "learning_rate": s.learning_rate,
                "schedule": "linear_product",
                "warmup_steps": s.warmup_steps,
            },
            "training": {
                "steps": s.steps,
                "batch_size": s.batch_size,
                "eval_every": 1_000,
                "checkpoint_every": 1_000,
                "keep_checkpoint_every": 100_000,
                "best_checkpoints_to_keep": 1,
                "max_rewinds": 3,
            },
        }
    )
