"""BERT (Devlin et al. 2018): masked LM + next-sentence prediction.

Reproduces the pretraining of BERT base and large (paper §3.1, App. A.2) and of the compact
models (Turc et al. 2019, same recipe): 1M steps of 256 sequences, AdamW without bias
correction, learning rate 1e-4, warmup 10k, linear decay. The paper trains the last tenth of
the steps at 512 tokens; here all are at 128. The paper's text, BooksCorpus and Wikipedia,
is not to be had as it was: give yours as --config.data.corpus (a path, a glob or a TFDS
name such as wiki40b/en); the default is the embedded docstrings.

What it costs (python -m experiments.cost --config=configs/bert.py:SIZE; tokens with padding):
  tiny    4.43M parameters, 32.8B tokens, 2.1e+17 FLOPs
  mini    11.3M parameters, 32.8B tokens, 9.1e+17 FLOPs
  small   29.1M parameters, 32.8B tokens, 3.1e+18 FLOPs
  medium  41.7M parameters, 32.8B tokens, 5.6e+18 FLOPs
  base    110M parameters, 32.8B tokens, 1.8e+19 FLOPs
  large   336M parameters, 32.8B tokens, 6.2e+19 FLOPs
"""

from ml_collections import ConfigDict

from experiments.command_line import size_of

# layers, hidden size, heads; the feed-forward size is 4 hidden sizes.
SIZES = {
    "tiny": (2, 128, 2),
    "mini": (4, 256, 4),
    "small": (4, 512, 8),
    "medium": (8, 512, 8),
    "base": (12, 768, 12),
    "large": (24, 1024, 16),
}


def get_config(size: str = "base") -> ConfigDict:
    """The config of one size; see SIZES."""
    layers, hidden, heads = SIZES[size_of(tuple(SIZES), size)]
    return ConfigDict(
        {
            "seed": 0,
            "objective": {
                "type": "lmjax.objectives.masked.MaskedLM",
                "mask_rate": 0.15,
                "max_predictions": 20,
                "masking": "token",
                "mask_fraction": 0.8,
                "random_fraction": 0.1,
                "sentence_prediction": True,
            },
            "model": {
                "trunk": {
                    "layers": layers,
                    "hidden_size": hidden,
                    "heads": heads,
                    "intermediate_size": 4 * hidden,
                    "activation": "gelu",  # the error function, as the first release had it
                    "norm": "post",
                    "layer_norm_epsilon": 1e-12,
                    "dropout": 0.1,
                    "attention_dropout": 0.1,
                    "initial_distribution": "truncated_normal",
                    "initial_std": 0.02,
                    "base_width": 0,
                    "dtype": "float32",
                    "scan_layers": layers >= 24,
                    "remat": "",
                    "attention": "auto",
                    "query_chunk": 0,
                },
                "max_length": 512,
                "segment_types": 2,
                "vocab_size": 0,
            },
            "data": {
                "corpus": "pydocs",
                "validation_corpus": "",
                "text_feature": "text",
                "tokenizer": {
                    "path": "",
                    "kind": "wordpiece",
                    "vocab_size": 30_522,
                    "lowercase": True,
                },
                "examples": {
                    "type": "lmjax.data.examples.SegmentPairs",
                    "length": 128,
                    "next_sentence": "nsp",
                    "duplicates": 10,
                    "short_probability": 0.1,
                },
                "cache_dir": "",
            },
            "optimizer": {
                "name": "adamw",
                "learning_rate": 1e-4,
                "schedule": "linear",
                "warmup_steps": 10_000,
                "b1": 0.9,
                "b2": 0.999,
                "epsilon": 1e-6,
                "bias_correction": False,
                "weight_decay": 0.01,
                "decay": "papers",
                "clip_norm": 1.0,
            },
            "training": {
                "steps": 1_000_000,
                "batch_size": 256,
                "accumulation": 1,
                "log_every": 50,
                "eval_every": 5_000,
                "eval_batches": 20,
                "checkpoint_every": 1_000,
                "checkpoints_to_keep": 2,
                "keep_checkpoint_every": 100_000,
                "best_checkpoints_to_keep": 0,
                "ema_decay": 0.0,
                "max_loss_rise": 2.0,
                "skip_nonfinite": False,
                "max_rewinds": 3,
            },
            "mesh": {"data": -1, "fsdp": 1, "sequence": 1, "tensor": 1},
        }
    )
