"""BERT (Devlin et al. 2018): masked LM + next-sentence prediction.

Reproduces the pretraining of BERT base and large (paper §3.1, App. A.2) and of the compact
models (Turc et al. 2019, same recipe): 1M steps of 256 sequences, AdamW without bias
correction, learning rate 1e-4, warmup 10k, linear decay. The paper trains the last 10% of the
steps with 512 tokens; here all steps use 128. The paper's exact text, BooksCorpus and Wikipedia,
is no longer available. The default corpus is the embedded docstrings; set --config.data.corpus
to a path, a glob or a TFDS name such as wiki40b/en.

Cost (python -m experiments.cost --config=configs/bert.py:SIZE; tokens include padding):
  tiny    4.43M parameters, 32.8B tokens, 2.1e+17 FLOPs
  mini    11.3M parameters, 32.8B tokens, 9.1e+17 FLOPs
  small   29.1M parameters, 32.8B tokens, 3.1e+18 FLOPs
  medium  41.7M parameters, 32.8B tokens, 5.6e+18 FLOPs
  base    110M parameters, 32.8B tokens, 1.8e+19 FLOPs
  large   336M parameters, 32.8B tokens, 6.2e+19 FLOPs
"""

import dataclasses

from ml_collections import ConfigDict

from lmjax.configuration import size_of


@dataclasses.dataclass(frozen=True)
class Size:
    """The size of a trunk; the feed-forward size is 4 * hidden_size."""

    layers: int
    hidden_size: int
    heads: int


SIZES = {
    "tiny": Size(layers=2, hidden_size=128, heads=2),
    "mini": Size(layers=4, hidden_size=256, heads=4),
    "small": Size(layers=4, hidden_size=512, heads=8),
    "medium": Size(layers=8, hidden_size=512, heads=8),
    "base": Size(layers=12, hidden_size=768, heads=12),
    "large": Size(layers=24, hidden_size=1024, heads=16),
}


def get_config(size: str = "base") -> ConfigDict:
    """Returns the config of a size; see SIZES."""
    s = SIZES[size_of(SIZES, size)]
    return ConfigDict(
        {
            "objective": {"type": "lmjax.objectives.masked.MaskedLM"},
            "model": {
                "trunk": {
                    "layers": s.layers,
                    "hidden_size": s.hidden_size,
                    "heads": s.heads,
                    "intermediate_size": 4 * s.hidden_size,
                    "activation": "gelu",  # exact, with the error function, as in the first release
                    "scan_layers": s.layers >= 24,
                },
            },
            "data": {
                "tokenizer": {"vocab_size": 30_522},
                "examples": {"type": "lmjax.data.examples.SegmentPairs", "length": 128},
            },
            "optimizer": {"learning_rate": 1e-4, "warmup_steps": 10_000},
            "training": {
                "steps": 1_000_000,
                "batch_size": 256,
                "eval_every": 5_000,
                "checkpoint_every": 1_000,
                "keep_checkpoint_every": 100_000,
                "max_rewinds": 3,
            },
        }
    )
