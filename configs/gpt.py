"""GPT (Radford et al. 2018), GPT-2 (2019) and GPT-3 (Brown et al. 2020): causal LM.

gpt1: paper §4.1: post-norm, 512 tokens, 64 sequences, Adam 2.5e-4, warmup 2000, cosine to 0,
100 epochs of BooksCorpus (3.36M steps if it has 1.1B tokens, an estimate of
this file, not of the paper).
gpt2 sizes: architecture of the released code (pre-norm, 1024 tokens). The paper gives the
batch (512 sequences) and no optimizer; learning rate, decay and betas are nanoGPT's
reproduction of the 124M model (AdamW 6e-4 to 6e-5, betas 0.9 and 0.95, decay 0.1 of
matrices, warmup 2000, 600k steps of 480 x 1024 tokens), for larger sizes GPT-3's rates.
gpt3 sizes: Table 2.1 and App. B: 2048 tokens, 300B tokens in all, warmup 375M tokens, cosine
to a tenth. Dense attention throughout (the paper alternates with banded sparse), the batch
is not ramped up, and the cosine ends with the run (the paper's ends at 260B). Two rows of
the printed table do not fit together: XL takes 16 heads of 128, 13B takes d = 5120.
Documents are joined without a mask between them, as GPT-3 did; `SIZE,separate` keeps
attention and positions inside documents.

What it costs (python -m experiments.cost --config=configs/gpt.py:SIZE; tokens with padding):
  gpt1         117M parameters, 110B tokens, 8.3e+19 FLOPs
  tiny         1.46M parameters, 81.9M tokens, 7.4e+14 FLOPs
  mini         5.29M parameters, 81.9M tokens, 2.7e+15 FLOPs
  small        124M parameters, 295B tokens, 2.5e+20 FLOPs
  medium       355M parameters, 315B tokens, 7.6e+20 FLOPs
  large        774M parameters, 315B tokens, 1.6e+21 FLOPs
  xl           1.56B parameters, 315B tokens, 3.2e+21 FLOPs
  gpt3-small   125M parameters, 300B tokens, 2.9e+20 FLOPs
  gpt3-medium  356M parameters, 300B tokens, 8.2e+20 FLOPs
  gpt3-large   760M parameters, 300B tokens, 1.6e+21 FLOPs
  gpt3-xl      1.32B parameters, 300B tokens, 2.7e+21 FLOPs
  gpt3-2.7b    2.65B parameters, 300B tokens, 5.4e+21 FLOPs
  gpt3-6.7b    6.66B parameters, 300B tokens, 1.3e+22 FLOPs
  gpt3-13b     12.9B parameters, 300B tokens, 2.5e+22 FLOPs
  gpt3-175b    175B parameters, 300B tokens, 3.2e+23 FLOPs
"""

from typing import NamedTuple

from ml_collections import ConfigDict

from experiments.command_line import size_of

# layers, hidden size, heads, sequences a batch, learning rate
GPT1 = {"gpt1": (12, 768, 12, 64, 2.5e-4)}
GPT2 = {
    "small": (12, 768, 12, 480, 6e-4),
    "medium": (24, 1024, 16, 512, 3e-4),
    "large": (36, 1280, 20, 512, 2.5e-4),
    "xl": (48, 1600, 25, 512, 2e-4),
}
GPT3 = {
    "gpt3-small": (12, 768, 12, 256, 6e-4),
    "gpt3-medium": (24, 1024, 16, 256, 3e-4),
    "gpt3-large": (24, 1536, 16, 256, 2.5e-4),
    "gpt3-xl": (24, 2048, 16, 512, 2e-4),
    "gpt3-2.7b": (32, 2560, 32, 512, 1.6e-4),
    "gpt3-6.7b": (32, 4096, 32, 1024, 1.2e-4),
    "gpt3-13b": (40, 5120, 40, 1024, 1e-4),
    "gpt3-175b": (96, 12_288, 96, 1600, 6e-5),
}
LAPTOP = {  # no paper's
    "tiny": (2, 128, 2, 32, 1e-3),
    "mini": (4, 256, 4, 32, 1e-3),
}
SIZES = GPT1 | LAPTOP | GPT2 | GPT3


class Recipe(NamedTuple):
    """What the sizes of one family share."""

    length: int
    vocab_size: int
    steps: int
    warmup_steps: int
    norm: str
    dropout: float
    position_std: float
    final_ratio: float
    b2: float
    weight_decay: float


def recipe_of(size: str, batch: int) -> Recipe:
    """The recipe of the family that `size` belongs to."""
    if size in GPT1:
        return Recipe(
            length=512,
            vocab_size=40_478,
            steps=3_360_000,
            warmup_steps=2_000,
            norm="post",
            dropout=0.1,
            position_std=0.0,
            final_ratio=0.0,
            b2=0.999,
            weight_decay=0.01,
        )
    gpt2 = Recipe(
        length=1024,
        vocab_size=50_257,
        steps=600_000,
        warmup_steps=2_000,
        norm="pre",
        dropout=0.0,
        position_std=0.01,
        final_ratio=0.1,
        b2=0.95,
        weight_decay=0.1,
    )
    if size in LAPTOP:
        return gpt2._replace(length=128, vocab_size=8_192, steps=20_000, warmup_steps=200)
    if size in GPT3:
        tokens = batch * 2048
        return gpt2._replace(
            length=2048, steps=300 * 10**9 // tokens, warmup_steps=375 * 10**6 // tokens
        )
    return gpt2


def get_config(argument: str = "small") -> ConfigDict:
    """The config of one size; see SIZES. `SIZE,separate` masks between documents."""
    size, _, option = argument.partition(",")
    size_of(("", "separate"), option)
    layers, hidden, heads, batch, rate = SIZES[size_of(tuple(SIZES), size)]
    recipe = recipe_of(size, batch)
    return ConfigDict(
        {
            "seed": 0,
            "objective": {
                "type": "lmjax.objectives.causal.CausalLM",
                "z_loss": 0.0,
                "loss_chunk": 256 if size in GPT3 else 0,
            },
            "model": {
                "trunk": {
                    "layers": layers,
                    "hidden_size": hidden,
                    "heads": heads,
                    "intermediate_size": 4 * hidden,
                    "activation": "gelu_tanh",
                    "norm": recipe.norm,
                    "layer_norm_epsilon": 1e-5,
                    "dropout": recipe.dropout,
                    "attention_dropout": recipe.dropout,
                    "initial_distribution": "normal",
                    "initial_std": 0.02,
                    "scale_residual_init": recipe.norm == "pre",
                    "base_width": 0,
                    "dtype": "float32",
                    "scan_layers": layers >= 24,
                    "remat": "",
                    "attention": "auto",
                    "query_chunk": 0,
                },
                "max_length": recipe.length,
                "position_std": recipe.position_std,
                "vocab_size": 0,
            },
            "data": {
                "corpus": "pydocs",
                "validation_corpus": "",
                "text_feature": "text",
                "tokenizer": {
                    "path": "",
                    "kind": "bpe",
                    "vocab_size": recipe.vocab_size,
                    "lowercase": False,
                },
                "examples": {
                    "type": "lmjax.data.examples.Packed",
                    "length": recipe.length,
                    "across_documents": option != "separate",
                },
                "cache_dir": "",
            },
            "optimizer": {
                "name": "adamw",
                "learning_rate": rate,
                "schedule": "cosine",
                "warmup_steps": recipe.warmup_steps,
                "final_ratio": recipe.final_ratio,
                "b1": 0.9,
                "b2": recipe.b2,
                "epsilon": 1e-8,
                "bias_correction": True,
                "weight_decay": recipe.weight_decay,
                "decay": "matrices",
                "clip_norm": 1.0,
            },
            "training": {
                "steps": recipe.steps,
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
