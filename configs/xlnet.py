"""XLNet (Yang et al. 2019): permutation LM, two streams, Transformer-XL memory.

large: Table 7 and the authors' command: 512 tokens in two parts of 256, 85 targets (K = 6),
memory 384, batch 8192, 500k steps, learning rate 4e-4, warmup 40k, decay of the rate to a
thousandth, Adam without bias correction (eps 1e-6, weight decay 0.01).
base: "XLNet-Base, wikibooks" of Table 6: BERT's hyperparameters at 512 tokens (batch 256, 1M
steps, learning rate 1e-4, warmup 10k); it is not the released base model, whose recipe is
not published.
tiny and mini are no paper's: the same recipe at a quarter of the length, for laptops.
Half of each batch reads its text backward (bidirectional data).

What it costs (python -m experiments.cost --config=configs/xlnet.py:SIZE; tokens with padding):
  tiny   1.49M parameters, 81.9M tokens, 4.5e+14 FLOPs
  mini   5.53M parameters, 81.9M tokens, 2.6e+15 FLOPs
  base   117M parameters, 131B tokens, 1.1e+20 FLOPs
  large  360M parameters, 2.1T tokens, 6.0e+21 FLOPs
"""

from ml_collections import ConfigDict

from experiments.command_line import size_of

# layers, hidden size, heads, length, memory, batch, steps, learning rate, warmup
SIZES = {
    "tiny": (2, 128, 2, 128, 96, 32, 20_000, 1e-3, 200),
    "mini": (4, 256, 4, 128, 96, 32, 20_000, 1e-3, 200),
    "base": (12, 768, 12, 512, 384, 256, 1_000_000, 1e-4, 10_000),
    "large": (24, 1024, 16, 512, 384, 8192, 500_000, 4e-4, 40_000),
}


def get_config(size: str = "base") -> ConfigDict:
    """The config of one size; see SIZES."""
    layers, hidden, heads, length, memory, batch, steps, rate, warmup = SIZES[
        size_of(tuple(SIZES), size)
    ]
    return ConfigDict(
        {
            "seed": 0,
            "objective": {
                "type": "lmjax.objectives.permuted.PermutedLM",
                "num_predict": length // 6,
                "reuse_length": length // 2,
                "perm_size": length // 2,
                "spans": True,
                "max_ngram": 5,
                "alpha": 6,
            },
            "model": {
                "trunk": {
                    "layers": layers,
                    "hidden_size": hidden,
                    "heads": heads,
                    "intermediate_size": 4 * hidden,
                    "activation": "gelu_tanh",
                    "norm": "post",
                    "layer_norm_epsilon": 1e-12,
                    "dropout": 0.1,
                    "attention_dropout": 0.1,
                    "activation_dropout": 0.1,
                    "initial_distribution": "normal",
                    "initial_std": 0.02,
                    "base_width": 0,
                    "dtype": "float32",
                    "scan_layers": layers >= 24,
                    "remat": "",
                    "attention": "auto",
                    "query_chunk": 0,
                },
                "memory_length": memory,
                "clamp_length": 0,
                "vocab_size": 0,
            },
            "data": {
                "corpus": "pydocs",
                "validation_corpus": "",
                "text_feature": "text",
                "tokenizer": {
                    "path": "",
                    "kind": "unigram",
                    "vocab_size": 8_192 if size in ("tiny", "mini") else 32_000,
                    "lowercase": False,
                },
                "examples": {
                    "type": "lmjax.data.examples.SegmentStream",
                    "length": length,
                    "reuse_length": length // 2,
                    "bidirectional": True,
                },
                "cache_dir": "",
            },
            "optimizer": {
                "name": "adamw",
                "learning_rate": rate,
                "schedule": "linear_after_warmup",
                "warmup_steps": warmup,
                "final_ratio": 0.001,
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
                "keep_checkpoint_every": 50_000,
                "best_checkpoints_to_keep": 1,
                "ema_decay": 0.0,
                "max_loss_rise": 2.0,
                "skip_nonfinite": False,
                "max_rewinds": 3,
            },
            "mesh": {"data": -1, "fsdp": 1, "sequence": 1, "tensor": 1},
        }
    )
