"""RoBERTa (Liu et al. 2019): masked LM without sentence prediction, on byte-level BPE.

base and large follow the paper (section 3, Table 9): rows of 512 tokens that are full of sentences
(FULL-SENTENCES, section 4.2), 500k steps of 8k rows, Adam with beta 2 of 0.98, linear decay, no
clipping. In the authors' code (fairseq), moments are corrected and all parameters decay. tiny is
for laptops and not from the paper. The paper's text, 160 GB of five corpora, is not available. The
default corpus is the embedded docstrings; set --config.data.corpus to use other text.

Cost (python -m experiments.cost --config=configs/roberta.py:SIZE; tokens include padding):
  tiny   1.49M parameters, 81.9M tokens, 3.0e+14 FLOPs
  base   125M parameters, 2.1T tokens, 1.3e+21 FLOPs
  large  355M parameters, 2.1T tokens, 4.2e+21 FLOPs
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
    learning_rate: float
    warmup_steps: int
    vocab_size: int = 50_265
    length: int = 512
    batch_size: int = 8_192
    steps: int = 500_000


SIZES = {
    "tiny": Size(
        layers=2,
        hidden_size=128,
        heads=2,
        learning_rate=1e-3,
        warmup_steps=200,
        vocab_size=8_192,
        length=128,
        batch_size=32,
        steps=20_000,
    ),
    "base": Size(layers=12, hidden_size=768, heads=12, learning_rate=6e-4, warmup_steps=24_000),
    "large": Size(layers=24, hidden_size=1024, heads=16, learning_rate=4e-4, warmup_steps=30_000),
}


def get_config(size: str = "base") -> ConfigDict:
    """Returns the config of a size; see SIZES."""
    s = SIZES[size_of(SIZES, size)]
    return ConfigDict(
        {
            "objective": {
                "type": "lmjax.objectives.masked.MaskedLM",
                "sentence_prediction": False,
                "max_predictions": round(0.15 * s.length),
            },
            "model": {
                "type": "lmjax.models.roberta.RobertaConfig",
                "trunk": {
                    "layers": s.layers,
                    "hidden_size": s.hidden_size,
                    "heads": s.heads,
                    "intermediate_size": 4 * s.hidden_size,
                    "activation": "gelu",
                    "layer_norm_epsilon": 1e-5,
                    "initial_distribution": "normal",
                    "scan_layers": s.layers >= 24,
                },
                "max_length": s.length,
            },
            "data": {
                "tokenizer": {"kind": "bpe", "vocab_size": s.vocab_size, "lowercase": False},
                "examples": {"type": "lmjax.data.examples.FullSentences", "length": s.length},
            },
            "optimizer": {
                "learning_rate": s.learning_rate,
                "warmup_steps": s.warmup_steps,
                "b2": 0.98,
                "bias_correction": True,
                "decay": "all",
                "clip_norm": 0.0,
            },
            "training": {
                "steps": s.steps,
                "batch_size": s.batch_size,
                "eval_every": 1_000,
                "checkpoint_every": 1_000,
                "keep_checkpoint_every": 100_000,
                "max_rewinds": 3,
            },
        }
    )
