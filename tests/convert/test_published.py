"""The same numbers as `transformers` in float32: outputs, gradients, files, training."""

import pathlib

import pytest

pytest.importorskip("torch", reason="torch is not installed: pip install -e '.[huggingface]'")
pytest.importorskip("transformers", reason="transformers is not installed, as torch")

from experiments.fidelity.cases import CASES, FAMILIES, Case
from experiments.fidelity.outputs import compare
from experiments.fidelity.training import train

# What the others cover too. Qwen2 and Qwen3 are Llama but for the parts named here.
SLOW = {
    "bert": ("no segments", "untied pretraining", "one head", "four segment types", "choices"),
    "roberta": ("no padding", "no spare rows", "one head", "deep", "large epsilon", "tokens"),
    "distilbert": ("no padding", "gelu_new", "sinusoids", "one head", "deep", "tokens"),
    "gpt2": ("no padding", "relu", "one head", "large epsilon"),
    "xlnet": (
        "left padding",
        "no segments",
        "memory of 17",
        "shorter memory to come",
        "uni, padding",
        "relu",
        "deep",
        "large epsilon",
        "tokens",
        "choices",
    ),
    "electra": ("no segments", "relu", "one head", "large epsilon"),
    "modernbert": ("no padding", "silu", "one head", "wide feed-forward", "large epsilon"),
    "llama": ("no padding", "tied", "gelu", "deep", "large epsilon", "large base"),
}
SLOW["modernbertdecoder"] = (*SLOW["modernbert"], "gelu_new", "deep", "wide window")
SLOW["qwen2"] = SLOW["qwen3"] = SLOW["smollm3"] = (
    *SLOW["llama"],
    "left padding",
    "one key-value head",
    "wide heads",
    "linear extension",
    "yarn",
    "llama3 extension",
)
OFTEN = [case for case in CASES if case.name.split(" ", 1)[1] not in SLOW[case.family]]


@pytest.mark.parametrize(
    "case",
    [pytest.param(c, marks=[] if c in OFTEN else [pytest.mark.slow], id=c.name) for c in CASES],
)
def test_a_published_model_is_the_same_function_here(case: Case, tmp_path: pathlib.Path) -> None:
    found = compare(case, tmp_path)
    assert found.outputs < 2e-5
    assert found.hidden < 2e-5
    assert found.gradients < 1e-4
    assert found.exported < 2e-5
    assert found.missing == ()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_a_dozen_models(family: str) -> None:
    assert sum(case.family == family for case in CASES) >= 12
    assert sum(case.family == family for case in OFTEN) >= 4


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(name, marks=[] if name in ("bert", "gpt2", "llama") else [pytest.mark.slow])
        for name in FAMILIES
    ],
)
def test_fifty_steps_of_training_agree(family: str) -> None:
    curves = train(family)
    assert len(curves.ours) == 50
    assert curves.ours[-5:].mean() < curves.ours[:5].mean()
    assert curves.difference < 1e-3
