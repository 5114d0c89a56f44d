"""GPT-2 with its keys and values kept: the same logits as reading the whole text anew."""

import pathlib
from typing import Any

import jax
import numpy as np
import pytest

import lmjax
from lmjax.convert.pretrained import Pretrained
from lmjax.models.gpt import Gpt, GptConfig
from lmjax.nn.attention import Cache, Caches
from lmjax.nn.trunk import RotaryConfig, TransformerConfig
from tests import tiny

STEPS, PROMPT, VOCABULARY = 9, 5, 30
SLOTS = PROMPT + STEPS
# How many of the prompt's tokens are real; padding stands on the left.
REAL = np.array([5, 3, 1, 4])


MODERN: dict[str, Any] = {
    "positions": "rotary",
    "rotary": RotaryConfig(base=50.0, local_base=20.0),
    "key_value_heads": 2,
    "unrotated_every": 3,
    "window": 3,
    "global_every": 2,
    "query_key_norm": True,
    "normalization": "rms_norm",
    "gated": True,
    "biases": "none",
}


def network(scan_layers: bool, **settings: Any) -> Gpt:
    trunk = TransformerConfig(
        layers=3,
        hidden_size=16,
        heads=4,
        intermediate_size=32,
        norm="pre",
        layer_norm_epsilon=1e-5,
        initial_distribution="normal",
        initial_std=0.3,
        scan_layers=scan_layers,
        **settings,
    )
    return Gpt(GptConfig(trunk, max_length=SLOTS, vocab_size=VOCABULARY))


def prompts() -> tuple[np.ndarray, np.ndarray]:
    real = np.arange(PROMPT)[None] >= PROMPT - REAL[:, None]
    tokens = np.random.default_rng(0).integers(2, VOCABULARY, real.shape).astype(np.int32)
    return np.where(real, tokens, 0), real


def initial(model: Gpt) -> Any:
    tokens, _ = prompts()
    inputs = tiny.text_inputs(tokens, np.ones((1, PROMPT, PROMPT), bool))
    return model.init(jax.random.key(0), inputs)["params"]


def decode(model: Gpt, params: Any) -> tuple[np.ndarray, np.ndarray]:
    """Greedy: tokens [batch, SLOTS] and the logits that chose the new ones."""

    @jax.jit
    def read(cache: Caches, tokens: Any, real: Any, start: Any) -> Any:
        hidden, cache = model.apply(
            {"params": params}, tokens, real, start, cache, method="read_slots"
        )
        return model.apply({"params": params}, hidden, method="decode"), cache

    tokens, real = prompts()
    real = np.concatenate([real, np.ones((len(tokens), STEPS), bool)], axis=1)
    cache = Cache.empty(model.config.trunk, len(tokens), SLOTS)
    logits, cache = read(cache, tokens, real, 0)
    chosen = []
    for i in range(STEPS):
        chosen.append(np.asarray(logits[:, -1]))
        new = chosen[-1].argmax(-1).astype(np.int32)[:, None]
        tokens = np.concatenate([tokens, new], axis=1)
        at = PROMPT + i
        logits, cache = read(cache, new, real, at)
    return tokens, np.stack(chosen, axis=1)


@pytest.mark.parametrize("settings", [{}, MODERN], ids=["gpt-2", "modern"])
@pytest.mark.parametrize("scan_layers", [False, True])
def test_cached_logits_are_the_uncached_ones_at_every_step(
    scan_layers: bool, settings: dict[str, Any]
) -> None:
    model = network(scan_layers, **settings)
    params = initial(model)
    tokens, cached = decode(model, params)
    real = np.concatenate([prompts()[1], np.ones((len(tokens), STEPS), bool)], axis=1)
    whole = np.asarray(Pretrained(model, params)(tokens, real=real))
    np.testing.assert_allclose(cached, whole[:, PROMPT - 1 : -1], atol=1e-4)
    assert len(np.unique(tokens[:, PROMPT:])) > 3  # a decode that moves


@pytest.mark.parametrize("settings", [{}, MODERN], ids=["gpt-2", "modern"])
def test_a_padded_row_is_continued_as_it_is_alone(settings: dict[str, Any]) -> None:
    model = network(False, **settings)
    pretrained = Pretrained(model, initial(model))
    tokens, cached = decode(model, pretrained.params)
    for row, count in enumerate(REAL):
        alone = np.asarray(pretrained(tokens[row : row + 1, PROMPT - count :]))[0]
        np.testing.assert_allclose(cached[row], alone[count - 1 : -1], atol=1e-4)


def test_transformers_decodes_the_same_tokens(tmp_path: pathlib.Path) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    model = network(False)
    pretrained = Pretrained(
        model, initial(model), token_ids={"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 1}
    )
    lmjax.save_huggingface(pretrained, tmp_path / "m")
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "m").eval()
    theirs.generation_config.eos_token_id = None
    tokens, cached = decode(model, pretrained.params)
    given, real = prompts()
    found = theirs.generate(
        torch.tensor(given).long(),
        attention_mask=torch.tensor(real).long(),
        max_new_tokens=STEPS,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    np.testing.assert_array_equal(found.sequences.numpy(), tokens)
    logits = np.stack([step.numpy() for step in found.logits], axis=1)
    np.testing.assert_allclose(cached, logits, atol=1e-4)
