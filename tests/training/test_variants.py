"""Whole runs of the trunk's parts, the mixed objectives and rows that examples share."""

import pathlib
from typing import Any

import numpy as np
import pytest

import lmjax
from tests.runs import config, write_text

LLAMA: dict[str, Any] = {
    "positions": "rotary",
    "key_value_heads": 1,
    "norm": "pre",
    "normalization": "rms_norm",
    "gated": True,
    "activation": "silu",
    "biases": "none",
    "layer_norm_epsilon": 1e-6,
}
MODERN: dict[str, Any] = {
    **LLAMA,
    "normalization": "layer_norm",
    "key_value_heads": 0,
    "window": 4,
    "global_every": 2,
    "layers": 2,
}
PAIRS: dict[str, Any] = {"type": "lmjax.data.examples.SegmentPairs", "pairs_per_row": 4}
PACKED = {"type": "lmjax.data.examples.Packed"}
RUNS: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "pairs share rows": ("masked.MaskedLM", "bert.BertConfig", PAIRS, {}),
    "pairs share rows, ELECTRA": (
        "rtd.ReplacedTokenDetection",
        "electra.ElectraConfig",
        {"type": "lmjax.data.examples.ElectraPairs", "pairs_per_row": 4},
        MODERN,
    ),
    "Llama": ("causal.CausalLM", "llama.LlamaConfig", PACKED, LLAMA),
    "ModernBERT": (
        "masked.MaskedLM",
        "modernbert.ModernBertConfig",
        PACKED,
        {**MODERN, "first_norm": False, "norm_bias": False},
    ),
    "RoBERTa": (
        "masked.MaskedLM",
        "roberta.RobertaConfig",
        {"type": "lmjax.data.examples.FullSentences"},
        {"activation": "gelu"},
    ),
    "DistilBERT": ("masked.MaskedLM", "distilbert.DistilBertConfig", PAIRS, {}),
    "Ettin's decoder": (
        "causal.CausalLM",
        "modernbert_decoder.ModernBertDecoderConfig",
        PACKED,
        {**MODERN, "first_norm": False, "norm_bias": False},
    ),
    "SmolLM3": (
        "causal.CausalLM",
        "smollm3.SmolLM3Config",
        PACKED,
        {**LLAMA, "layers": 2, "unrotated_every": 2},
    ),
    "diffusion": ("diffusion.MaskedDiffusion", "bert.BertConfig", PACKED, MODERN),
    "causal and masked": ("causal_masked.CausalMaskedLM", "gpt.GptConfig", PACKED, LLAMA),
    "prefix": ("prefix.PrefixLM", "llama.LlamaConfig", PACKED, LLAMA),
    "several tokens": ("multi_token.MultiTokenLM", "llama.LlamaConfig", PACKED, LLAMA),
}


# The others cover most of them.
SLOW = (
    *("pairs share rows", "pairs share rows, ELECTRA", "causal and masked", "prefix"),
    *("DistilBERT", "SmolLM3", "Ettin's decoder", "several tokens"),
)
SAVED = (
    *("Llama", "ModernBERT", "RoBERTa", "DistilBERT", "Ettin's decoder", "SmolLM3"),
    *("several tokens", "prefix"),
)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in RUNS]
)
def test_a_run_learns_and_its_model_opens(name: str, tmp_path: pathlib.Path) -> None:
    objective, model, examples, trunk = RUNS[name]
    made = config(write_text(tmp_path / "text.txt"))
    made["objective"] = {"type": f"lmjax.objectives.{objective}"}
    if name.endswith("BERT") or name == "RoBERTa":
        made["objective"]["sentence_prediction"] = False
    made["model"] = {
        "type": f"lmjax.models.{model}",
        "trunk": {**made["model"]["trunk"], "heads": 2, **trunk},
        "max_length": 64,
    }
    made["data"]["examples"] = {**examples, "length": 32}
    made["training"] |= {
        "batch_size": 4,
        "steps": 60,
        "eval_every": 60,
        "checkpoint_every": 60,
        "ema_decay": 0.0,
    }
    lines: list[tuple[int, dict[str, float]]] = []
    opened = lmjax.pretrain(
        made, workdir=tmp_path / "run", on_metrics=lambda step, found: lines.append((step, found))
    )
    losses = [found["train/loss"] for _, found in lines if "train/loss" in found]
    assert np.isfinite(losses).all() and losses[-1] < losses[0]
    if name.startswith("pairs"):
        assert lines[0][1].keys()  # at step 0
        tokens = [found["train/tokens"] for _, found in lines if "train/tokens" in found]
        assert min(tokens) > 0.85 * 5 * 4 * 32  # of the five steps of a line
    if objective in ("causal.CausalLM", "multi_token.MultiTokenLM", "prefix.PrefixLM"):
        (continued,) = opened.generate("abc", max_new_tokens=4)
        assert len(continued.token_ids) <= 4
    if name in SAVED:
        lmjax.save_huggingface(opened, tmp_path / "saved")
        again = lmjax.load(tmp_path / "saved")
        (first,), (second,) = (lmjax.token_scores(m, ["abc abd."]) for m in (opened, again))
        np.testing.assert_allclose(first, second, atol=1e-5)
    if name == "diffusion":
        (filled,) = opened.generate(
            "abc [MASK] [MASK] abd", infill="ancestral", temperature=1.0, iterations=5
        )
        assert len(filled.token_ids) == 2


@pytest.mark.slow
def test_a_run_by_groups_learns_and_fills_in_any_order(tmp_path: pathlib.Path) -> None:
    made = config(write_text(tmp_path / "text.txt"))
    made["objective"] |= {
        "type": "lmjax.objectives.permuted_groups.PermutedGroupsLM",
        "group_size": 2,
    }
    made["training"] |= {"steps": 60, "eval_every": 60, "checkpoint_every": 60}
    lines: list[dict[str, float]] = []
    opened = lmjax.pretrain(
        made, workdir=tmp_path / "run", on_metrics=lambda _, found: lines.append(found)
    )
    losses = [found["train/loss"] for found in lines if "train/loss" in found]
    assert losses[-1] < 0.9 * losses[0]
    (filled,) = opened.generate("abc [MASK] [MASK] abd", infill="any_order", group_size=2)
    assert len(filled.token_ids) == 2
