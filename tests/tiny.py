"""Objectives at a size that compiles in seconds, and random text for them."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from lmjax.data.vocabulary import Vocabulary
from lmjax.models.bert import BertConfig
from lmjax.models.electra import ElectraConfig
from lmjax.models.gpt import GptConfig
from lmjax.models.network import TextInputs
from lmjax.models.xlnet import XlnetConfig
from lmjax.nn.trunk import TransformerConfig
from lmjax.objectives.base import Objective
from lmjax.objectives.causal import CausalLM
from lmjax.objectives.causal_masked import CausalMaskedLM
from lmjax.objectives.diffusion import MaskedDiffusion
from lmjax.objectives.masked import MaskedLM
from lmjax.objectives.mixture import Mixture
from lmjax.objectives.multi_token import MultiTokenLM
from lmjax.objectives.permuted import PermutedLM
from lmjax.objectives.permuted_groups import PermutedGroupsLM
from lmjax.objectives.prefix import PrefixLM
from lmjax.objectives.rtd import ReplacedTokenDetection

SIZE, LENGTH, BATCH = 50, 16, 16
NAMES = ("bert", "gpt", "xlnet", "electra")
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # of ELECTRA: objective and model
    "adversarial": (
        {"generator_training": "adversarial"},
        {"share_embeddings": "disentangled"},
    ),
    "all weights": ({}, {"share_embeddings": "all_weights", "generator_size": 1.0}),
    "frozen": ({"generator_training": "frozen"}, {"share_embeddings": False}),
}
MORE = ("diffusion", "causal_masked", "mixture", "prefix", "multi_token", "groups", *VARIANTS)

VOCABULARY = Vocabulary(
    size=SIZE,
    pad=0,
    unk=1,
    cls=2,
    sep=3,
    mask=4,
    eod=5,
    special=np.arange(SIZE) < 6,
    starts_word=np.random.default_rng(0).random(SIZE) < 0.6,
    log_frequency=np.log(np.arange(1, SIZE + 1) / (SIZE * (SIZE + 1) / 2)).astype(np.float32),
)

TRUNK = TransformerConfig(layers=1, hidden_size=16, heads=2, intermediate_size=32)


def text_inputs(
    tokens: Any, mask: Any, token_types: Any = None, positions: Any = None
) -> TextInputs:
    """Tokens under a mask, all of them real; types are 0 and positions count from 0."""
    tokens = jnp.asarray(tokens)
    types = jnp.zeros_like(tokens) if token_types is None else token_types
    places = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    places = places if positions is None else jnp.broadcast_to(positions, tokens.shape)
    return TextInputs(tokens, types, places, mask, jnp.ones(tokens.shape, bool))


def objective(name: str, **settings: Any) -> Objective:
    """One of NAMES or MORE, with dropout; `settings` change its fields."""
    if name in VARIANTS:
        electra = objective("electra", **settings)
        fields, model = VARIANTS[name]
        return dataclasses.replace(
            electra, **fields, model=dataclasses.replace(electra.model, **model)
        )
    pre = dataclasses.replace(TRUNK, norm="pre")
    gpt = GptConfig(pre, max_length=LENGTH, vocab_size=SIZE)
    xlnet = XlnetConfig(TRUNK, memory_length=8, vocab_size=SIZE)
    permuted: dict[str, Any] = {"num_predict": 5, "reuse_length": 8, "max_ngram": 2, "alpha": 2}
    made: dict[str, Objective] = {
        "bert": MaskedLM(
            vocabulary=VOCABULARY,
            model=BertConfig(TRUNK, max_length=LENGTH, vocab_size=SIZE),
            max_predictions=4,
        ),
        "gpt": CausalLM(vocabulary=VOCABULARY, model=gpt, z_loss=1e-4),
        "xlnet": PermutedLM(vocabulary=VOCABULARY, model=xlnet, **permuted),
        "electra": ReplacedTokenDetection(
            vocabulary=VOCABULARY,
            model=ElectraConfig(
                TRUNK, embedding_size=8, generator_size=0.5, max_length=LENGTH, vocab_size=SIZE
            ),
            max_predictions=4,
        ),
        "diffusion": MaskedDiffusion(
            vocabulary=VOCABULARY, model=BertConfig(TRUNK, max_length=LENGTH, vocab_size=SIZE)
        ),
        "causal_masked": CausalMaskedLM(
            vocabulary=VOCABULARY,
            model=GptConfig(pre, max_length=LENGTH, vocab_size=SIZE),
            causal_fraction=0.5,
            max_predictions=4,
        ),
        "mixture": Mixture(
            vocabulary=VOCABULARY,
            model=GptConfig(pre, max_length=LENGTH, vocab_size=SIZE),
            parts={
                "causal": {"type": "lmjax.objectives.causal.CausalLM", "z_loss": 0.1},
                "masked": {
                    "type": "lmjax.objectives.causal_masked.CausalMaskedLM",
                    "causal_fraction": 0.0,
                    "max_predictions": 4,
                },
            },
            shares={"masked": 3},
        ),
        "prefix": PrefixLM(vocabulary=VOCABULARY, model=gpt),
        "multi_token": MultiTokenLM(vocabulary=VOCABULARY, model=gpt, future_tokens=3),
        "groups": PermutedGroupsLM(vocabulary=VOCABULARY, model=xlnet, group_size=2, **permuted),
    }
    return dataclasses.replace(made[name], **settings)


def batch(name: str, seed: int, rows: int = BATCH) -> dict[str, np.ndarray]:
    """A clean batch: two segments, some padding (none for XLNet, whose text is a stream)."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(6, SIZE, (rows, LENGTH)).astype(np.int32)
    tokens[:, 0], tokens[:, -1] = VOCABULARY.cls, VOCABULARY.sep
    documents = np.ones_like(tokens)
    made = {
        "tokens": tokens,
        "token_types": np.tile((np.arange(LENGTH) > 8).astype(np.int32), (rows, 1)),
        "segment_ids": documents,
        "positions": np.tile(np.arange(LENGTH, dtype=np.int32), (rows, 1)),
    }
    if name in ("xlnet", "groups"):
        made["direction"] = np.where(np.arange(rows) < rows // 2, 1, -1).astype(np.int32)
    else:
        documents[::3, -3:] = 0
    if name == "bert":
        made["label"] = rng.integers(0, 2, rows).astype(np.int32)
    return made
