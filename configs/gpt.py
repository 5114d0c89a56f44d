"""GPT (Radford et al. 2018), GPT-2 (2019) and GPT-3 (Brown et al. 2020): causal LM.

gpt1: paper §4.1: post-norm, 512 tokens, 64 sequences, Adam 2.5e-4, warmup 2000, cosine to 0,
100 epochs of BooksCorpus (3.36M steps, assuming 1.1B tokens, which the paper does not state).
gpt2 sizes: architecture of the released code (pre-norm, 1024 tokens). The paper states the batch
(512 sequences) but no optimizer; learning rate, decay and betas are those of nanoGPT's
reproduction of the 124M model (AdamW 6e-4 to 6e-5, betas 0.9 and 0.95, decay 0.1 of matrices,
warmup 2000, 600k steps of 480 x 1024 tokens), with GPT-3's learning rates for larger sizes.
gpt3 sizes: Table 2.1 and App. B: 2048 tokens, 300B tokens in total, warmup over 375M tokens,
cosine decay to 10%. Differences to the paper: attention is dense throughout (the paper alternates
with banded sparse attention), the batch size is not ramped up, and the cosine ends with the run
(the paper's ends at 260B tokens). Two rows of the printed table are inconsistent: here XL has 16
heads of 128, and 13B has d = 5120.
Documents are joined without a mask between them, as in GPT-3; `SIZE,separate` restricts attention
and positions to documents.

Cost (python -m experiments.cost --config=configs/gpt.py:SIZE; tokens include padding):
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

import dataclasses

from ml_collections import ConfigDict

from lmjax.configuration import size_of


@dataclasses.dataclass(frozen=True)
class Size:
    """The size of a trunk, the batch size in sequences, and the peak learning rate."""

    layers: int
    hidden_size: int
    heads: int
    batch_size: int
    learning_rate: float


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Settings that the sizes of one family share."""

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


GPT1 = {"gpt1": Size(layers=12, hidden_size=768, heads=12, batch_size=64, learning_rate=2.5e-4)}
GPT2 = {
    "small": Size(layers=12, hidden_size=768, heads=12, batch_size=480, learning_rate=6e-4),
    "medium": Size(layers=24, hidden_size=1024, heads=16, batch_size=512, learning_rate=3e-4),
    "large": Size(layers=36, hidden_size=1280, heads=20, batch_size=512, learning_rate=2.5e-4),
    "xl": Size(layers=48, hidden_size=1600, heads=25, batch_size=512, learning_rate=2e-4),
}
GPT3 = {
    "gpt3-small": Size(layers=12, hidden_size=768, heads=12, batch_size=256, learning_rate=6e-4),
    "gpt3-medium": Size(layers=24, hidden_size=1024, heads=16, batch_size=256, learning_rate=3e-4),
    "gpt3-large": Size(layers=24, hidden_size=1536, heads=16, batch_size=256, learning_rate=2.5e-4),
    "gpt3-xl": Size(layers=24, hidden_size=2048, heads=16, batch_size=512, learning_rate=2e-4),
    "gpt3-2.7b": Size(layers=32, hidden_size=2560, heads=32, batch_size=512, learning_rate=1.6e-4),
    "gpt3-6.7b": Size(layers=32, hidden_size=4096, heads=32, batch_size=1024, learning_rate=1.2e-4),
    "gpt3-13b": Size(layers=40, hidden_size=5120, heads=40, batch_size=1024, learning_rate=1e-4),
    "gpt3-175b": Size(layers=96, hidden_size=12_288, heads=96, batch_size=1600, learning_rate=6e-5),
}
LAPTOP = {  # not from a paper
    "tiny": Size(layers=2, hidden_size=128, heads=2, batch_size=32, learning_rate=1e-3),
    "mini": Size(layers=4, hidden_size=256, heads=4, batch_size=32, learning_rate=1e-3),
}
SIZES = GPT1 | LAPTOP | GPT2 | GPT3


def recipe_of(name: str, batch_size: int) -> Recipe:
    """Returns the recipe of a size's family."""
    if name in GPT1:
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
    if name in LAPTOP:
        return dataclasses.replace(
            gpt2, length=128, vocab_size=8_192, steps=20_000, warmup_steps=200
        )
    if name in GPT3:
        tokens = batch_size * 2048
        return dataclasses.replace(
            gpt2, length=2048, steps=300 * 10**9 // tokens, warmup_steps=375 * 10**6 // tokens
        )
    return gpt2


def get_config(argument: str = "small") -> ConfigDict:
    """Returns the config of a size; see SIZES. `SIZE,separate` masks between documents."""
    name, _, option = argument.partition(",")
    size_of(("", "separate"), option)
    s = SIZES[size_of(SIZES, name)]
    recipe = recipe_of(name, s.batch_size)
    return ConfigDict(
        {
            "objective": {
                "type": "lmjax.objectives.causal.CausalLM",
                "loss_chunk": 256 if name in GPT3 else 0,
            },
            "model": {
                "trunk": {
                    "layers": s.layers,
                    "hidden_size": s.hidden_size,
                    "heads": s.heads,
                    "intermediate_size": 4 * s.hidden_size,
                    "norm": recipe.norm,
                    "layer_norm_epsilon": 1e-5,
                    "dropout": recipe.dropout,
                    "attention_dropout": recipe.dropout,
                    "initial_distribution": "normal",
                    "scale_residual_init": recipe.norm == "pre",
                    "scan_layers": s.layers >= 24,
                },
                "max_length": recipe.length,
                "position_std": recipe.position_std,
            },
            "data": {
                "tokenizer": {
                    "kind": "bpe",
                    "vocab_size": recipe.vocab_size,
                    "lowercase": False,
                },
                "examples": {
                    "type": "lmjax.data.examples.Packed",
                    "length": recipe.length,
                    "across_documents": option != "separate",
                },
            },
            "optimizer": {
                "learning_rate": s.learning_rate,
                "schedule": "cosine",
                "warmup_steps": recipe.warmup_steps,
                "final_ratio": recipe.final_ratio,
                "b2": recipe.b2,
                "epsilon": 1e-8,
                "bias_correction": True,
                "weight_decay": recipe.weight_decay,
                "decay": "matrices",
            },
            "training": {
                "steps": recipe.steps,
                "batch_size": s.batch_size,
                "eval_every": 1_000,
                "checkpoint_every": 1_000,
                "keep_checkpoint_every": 50_000,
                "best_checkpoints_to_keep": 1,
                "max_rewinds": 3,
            },
        }
    )
