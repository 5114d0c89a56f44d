"""XLNet (Yang et al. 2019): permutation LM, two streams, Transformer-XL memory.

large: Table 7 and the authors' command: 512 tokens in two parts of 256, 85 targets (K = 6),
memory 384, batch 8192, 500k steps, learning rate 4e-4, warmup 40k, decay of the learning rate to
0.1%, Adam without bias correction (eps 1e-6, weight decay 0.01).
base: "XLNet-Base, wikibooks" of Table 6: BERT's hyperparameters at 512 tokens (batch 256, 1M
steps, learning rate 1e-4, warmup 10k). This is not the released base model, whose recipe is
unpublished.
tiny and mini are for laptops and not from the paper: the same recipe at a quarter of the length.
Half of each batch reads its text backward (bidirectional data).

Cost (python -m experiments.cost --config=configs/xlnet.py:SIZE; tokens include padding):
  tiny   1.49M parameters, 81.9M tokens, 4.5e+14 FLOPs
  mini   5.53M parameters, 81.9M tokens, 2.6e+15 FLOPs
  base   117M parameters, 131B tokens, 1.1e+20 FLOPs
  large  360M parameters, 2.1T tokens, 6.0e+21 FLOPs
"""

import dataclasses

from ml_collections import ConfigDict

from lmjax.configuration import size_of


@dataclasses.dataclass(frozen=True)
class Size:
    """The size and training recipe of a model."""

    layers: int
    hidden_size: int
    heads: int
    length: int
    memory_length: int
    batch_size: int
    steps: int
    learning_rate: float
    warmup_steps: int
    vocab_size: int = 32_000


SIZES = {
    "tiny": Size(
        layers=2,
        hidden_size=128,
        heads=2,
        length=128,
        memory_length=96,
        batch_size=32,
        steps=20_000,
        learning_rate=1e-3,
        warmup_steps=200,
        vocab_size=8_192,
    ),
    "mini": Size(
        layers=4,
        hidden_size=256,
        heads=4,
        length=128,
        memory_length=96,
        batch_size=32,
        steps=20_000,
        learning_rate=1e-3,
        warmup_steps=200,
        vocab_size=8_192,
    ),
    "base": Size(
        layers=12,
        hidden_size=768,
        heads=12,
        length=512,
        memory_length=384,
        batch_size=256,
        steps=1_000_000,
        learning_rate=1e-4,
        warmup_steps=10_000,
    ),
    "large": Size(
        layers=24,
        hidden_size=1024,
        heads=16,
        length=512,
        memory_length=384,
        batch_size=8192,
        steps=500_000,
        learning_rate=4e-4,
        warmup_steps=40_000,
    ),
}


def get_config(size: str = "base") -> ConfigDict:
    """Returns the config of a size; see SIZES."""
    s = SIZES[size_of(SIZES, size)]
    return ConfigDict(
        {
            "objective": {
                "type": "lmjax.objectives.permuted.PermutedLM",
                "num_predict": s.length // 6,
                "reuse_length": s.length // 2,
                "perm_size": s.length // 2,
            },
            "model": {
                "trunk": {
                    "layers": s.layers,
                    "hidden_size": s.hidden_size,
                    "heads": s.heads,
                    "intermediate_size": 4 * s.hidden_size,
                    "activation_dropout": 0.1,
                    "initial_distribution": "normal",
                    "scan_layers": s.layers >= 24,
                },
                "memory_length": s.memory_length,
            },
            "data": {
                "tokenizer": {
                    "kind": "unigram",
                    "vocab_size": s.vocab_size,
                    "lowercase": False,
                },
                "examples": {
                    "type": "lmjax.data.examples.SegmentStream",
                    "length": s.length,
                    "reuse_length": s.length // 2,
                    "bidirectional": True,
                },
            },
            "optimizer": {
                "learning_rate": s.learning_rate,
                "schedule": "linear_after_warmup",
                "warmup_steps": s.warmup_steps,
                "final_ratio": 0.001,
            },
            "training": {
                "steps": s.steps,
                "batch_size": s.batch_size,
                "eval_every": 1_000,
                "checkpoint_every": 1_000,
                "keep_checkpoint_every": 50_000,
                "best_checkpoints_to_keep": 1,
                "max_rewinds": 3,
            },
        }
    )
