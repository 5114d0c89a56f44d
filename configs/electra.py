"""ELECTRA (Clark et al. 2020): replaced-token detection.

Reproduces Table 6 of the paper: small (14M; E = 128, generator 1/4, 128 tokens, batch 128, 1M
steps, 5e-4), base (generator 1/3, 512 tokens, batch 256, 766k steps, 2e-4) and large
(generator 1/4, mask 25%, batch 2048, 400k steps, 2e-4), AdamW without bias correction,
warmup 10k multiplied with linear decay. tiny is no paper's: for laptops.
The paper's text (BERT's; XLNet's for large) is given as --config.data.corpus; the default is
the embedded docstrings.

What it costs (python -m experiments.cost --config=configs/electra.py:SIZE; tokens with padding):
  tiny   2.15M parameters, 81.9M tokens, 6.7e+14 FLOPs
  small  14.2M parameters, 16.4B tokens, 1.1e+18 FLOPs
  base   119M parameters, 100B tokens, 6.7e+19 FLOPs
  large  355M parameters, 419B tokens, 9.1e+20 FLOPs
"""

from ml_collections import ConfigDict

from experiments.command_line import size_of

# layers, hidden, feed-forward, heads, embedding size, generator size, mask rate, length,
# batch, steps, learning rate, warmup
SIZES = {
    "tiny": (4, 128, 512, 2, 128, 0.5, 0.15, 128, 32, 20_000, 1e-3, 200),
    "small": (12, 256, 1024, 4, 128, 1 / 4, 0.15, 128, 128, 1_000_000, 5e-4, 10_000),
    "base": (12, 768, 3072, 12, 768, 1 / 3, 0.15, 512, 256, 766_000, 2e-4, 10_000),
    "large": (24, 1024, 4096, 16, 1024, 1 / 4, 0.25, 512, 2048, 400_000, 2e-4, 10_000),
}


def get_config(size: str = "small") -> ConfigDict:
    """The config of one size; see SIZES."""
    (layers, hidden, inner, heads, embedding, generator, rate, length, batch, steps, lr, warmup) = (
        SIZES[size_of(tuple(SIZES), size)]
    )
    return ConfigDict(
        {
            "seed": 0,
            "objective": {
                "type": "lmjax.objectives.replaced.ReplacedTokenDetection",
                "mask_rate": rate,
                "max_predictions": int((rate + 0.005) * length),
                "masking": "token",
                "mask_fraction": 0.85,
                "generator_weight": 1.0,
                "discriminator_weight": 50.0,
            },
            "model": {
                "trunk": {
                    "layers": layers,
                    "hidden_size": hidden,
                    "heads": heads,
                    "intermediate_size": inner,
                    "activation": "gelu",
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
                "embedding_size": embedding,
                "generator_size": generator,
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
                    "vocab_size": 8_192 if size == "tiny" else 30_522,
                    "lowercase": True,
                },
                "examples": {
                    "type": "lmjax.data.examples.ElectraPairs",
                    "length": length,
                    "short_probability": 0.05,
                    "single_segment_probability": 0.1,
                },
                "cache_dir": "",
            },
            "optimizer": {
                "name": "adamw",
                "learning_rate": lr,
                "schedule": "linear_product",
                "warmup_steps": warmup,
                "b1": 0.9,
                "b2": 0.999,
                "epsilon": 1e-6,
                "bias_correction": False,
                "weight_decay": 0.01,
                "decay": "papers",
                "clip_norm": 1.0,
            },
            "training": {
                "steps": steps,
                "batch_size": batch,
                "accumulation": 1,
                "log_every": 50,
                "eval_every": 1_000,
                "eval_batches": 20,
                "checkpoint_every": 1_000,
                "checkpoints_to_keep": 2,
                "keep_checkpoint_every": 100_000,
                "best_checkpoints_to_keep": 1,
                "ema_decay": 0.0,
                "max_loss_rise": 2.0,
                "skip_nonfinite": False,
                "max_rewinds": 3,
            },
            "mesh": {"data": -1, "fsdp": 1, "sequence": 1, "tensor": 1},
        }
    )
