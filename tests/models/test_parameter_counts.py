"""Numbers of parameters, against the published checkpoints'; nothing is allocated."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from configs import bert, electra, gpt, roberta, xlnet
from lmjax.objectives.base import Objective
from lmjax.training.plan import make_objective

IDS = jnp.zeros((1, 8), jnp.int32)


def shapes(module: Any, size: str, vocab_size: int) -> tuple[Any, Objective]:
    config = module.get_config(size)
    objective = make_objective(config.objective.to_dict(), config.model.to_dict(), vocab_size)
    batch = {
        "tokens": IDS,
        "token_types": IDS,
        "segment_ids": IDS,
        "positions": IDS,
        "label": IDS[:, 0],
        "target_positions": IDS,
        "target_mapping": IDS,
        "query_place": IDS,
        "key_place": IDS,
    }
    return jax.eval_shape(lambda: objective.init(jax.random.key(0), batch)), objective


def count(tree: Any) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("size", "encoder"),
    [
        ("tiny", 4_385_920),
        ("mini", 11_170_560),
        ("small", 28_763_648),
        ("medium", 41_373_184),
        ("base", 109_482_240),
        ("large", 335_141_888),
    ],
)
def test_bert(size: str, encoder: int) -> None:
    params, _ = shapes(bert, size, 30_522)
    assert count(params["encoder"]) + count(params["pooler"]) == encoder
    if size == "base":
        assert count(params) == 110_106_428


@pytest.mark.parametrize(("size", "parameters"), [("base", 124_697_433), ("large", 355_412_057)])
def test_roberta(size: str, parameters: int) -> None:
    params, objective = shapes(roberta, size, 50_265)
    unread = 2 * objective.model.trunk.hidden_size  # rows of padding in the published table
    assert count(params) + unread == parameters


@pytest.mark.parametrize(
    ("size", "vocab_size", "parameters"),
    [
        ("gpt1", 40_478, 116_534_784),
        ("small", 50_257, 124_439_808),
        ("medium", 50_257, 354_823_168),
        ("large", 50_257, 774_030_080),
        ("xl", 50_257, 1_557_611_200),
    ],
)
def test_gpt(size: str, vocab_size: int, parameters: int) -> None:
    assert count(shapes(gpt, size, vocab_size)[0]) == parameters


@pytest.mark.parametrize(("size", "parameters"), [("base", 116_718_336), ("large", 360_268_800)])
def test_xlnet(size: str, parameters: int) -> None:
    params, _ = shapes(xlnet, size, 32_000)
    assert count(params) == parameters + 32_000  # and the bias of the LM head


@pytest.mark.parametrize(
    ("size", "discriminator", "generator"),
    [
        ("small", 13_483_008, 4_580_928),
        ("base", 108_891_648, 33_511_168),
        ("large", 334_092_288, 50_999_552),
    ],
)
def test_electra(size: str, discriminator: int, generator: int) -> None:
    params, _ = shapes(electra, size, 30_522)
    shared = count(params["embeddings"])
    assert shared + count(params["discriminator"]["encoder"]) == discriminator
    assert shared + count(params["generator"]["encoder"]) == generator
