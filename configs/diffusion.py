"""MDLM (Sahoo et al. 2024): masked diffusion with a bidirectional Transformer.

small follows the authors' config: 12 layers of 768, AdamW without weight decay, learning rate 3e-4
after 2,500 steps of warmup, batches of 512, dropout 0.1, an exponential moving average of 0.9999,
1M steps. Their network is a DiT with adaptive norms and an untied output layer; here it is BERT's
trunk with norms before the sublayers, rotary positions and a tied output layer. tiny is for
laptops and not from the paper. The default corpus is the embedded docstrings; set
--config.data.corpus to use other text.

Cost (python -m experiments.cost --config=configs/diffusion.py:SIZE; tokens include padding):
  tiny   1.87M parameters, 81.9M tokens, 9.7e+14 FLOPs
  small  109M parameters, 65.5B tokens, 4.4e+19 FLOPs
"""

import dataclasses

from ml_collections import ConfigDict

from lmjax.configuration import size_of


@dataclasses.dataclass(frozen=True)
class Size:
    """The size of a trunk and its training recipe; the feed-forward size is 4 * hidden_size."""

    layers: int
    hidden_size: int
    heads: int
    vocab_size: int
    batch_size: int
    steps: int
    learning_rate: float
    warmup_steps: int


SIZES = {
    "tiny": Size(
        layers=4,
        hidden_size=128,
        heads=2,
        vocab_size=8_192,
        batch_size=32,
        steps=20_000,
        learning_rate=1e-3,
        warmup_steps=200,
    ),
    "small": Size(
        layers=12,
        hidden_size=768,
        heads=12,
        vocab_size=30_522,
        batch_size=512,
        steps=1_000_000,
        learning_rate=3e-4,
        warmup_steps=2_500,
    ),
}


def get_config(size: str = "small") -> ConfigDict:
    """Returns the config of a size; see SIZES."""
    s = SIZES[size_of(SIZES, size)]
    return ConfigDict(
        {
            "objective": {"type": "lmjax.objectives.diffusion.MaskedDiffusion"},
            "model": {
                "trunk": {
                    "layers": s.layers,
                    "hidden_size": s.hidden_size,
                    "heads": s.heads,
                    "intermediate_size": 4 * s.hidden_size,
                    "norm": "pre",
                    "layer_norm_epsilon": 1e-5,
                    "positions": "rotary",
                    "dropout": 0.1,
                    "attention_dropout": 0.1,
                },
                "max_length": 128,
            },
            "data": {
                "tokenizer": {"vocab_size": s.vocab_size},
                "examples": {"type": "lmjax.data.examples.Packed", "length": 128},
            },
            "optimizer": {
                "learning_rate": s.learning_rate,
                "schedule": "constant",
                "warmup_steps": s.warmup_steps,
                "epsilon": 1e-8,
                "bias_correction": True,
                "weight_decay": 0.0,
            },
            "training": {
                "steps": s.steps,
                "batch_size": s.batch_size,
                "ema_decay": 0.9999 if s.steps > 100_000 else 0.0,
                "eval_every": 1_000,
                "checkpoint_every": 1_000,
                "keep_checkpoint_every": 100_000,
                "best_checkpoints_to_keep": 1,
                "max_rewinds": 3,
            },
        }
    )
