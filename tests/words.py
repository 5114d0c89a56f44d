"""Small random models with a tokenizer whose tokens are words."""

from typing import Any

import flax.traverse_util
import jax.numpy as jnp
import numpy as np
import tokenizers
from tokenizers import models, pre_tokenizers

from lmjax.convert.huggingface import abstract_params
from lmjax.convert.pretrained import Pretrained
from lmjax.data.tokenizers import Tokenizer
from lmjax.nn.trunk import TransformerConfig

ROLES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[EOD]"]
SIZE = 24  # six roles and 18 words


def tokenizer() -> Tokenizer:
    """Ids 0..5 are the roles, the others w6, w7, ..."""
    names = ROLES + [f"w{i}" for i in range(len(ROLES), SIZE)]
    vocabulary = {name: i for i, name in enumerate(names)}
    inner = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return Tokenizer(inner)


def random_model(network: Any, seed: int = 0, spread: float = 0.4) -> Pretrained:
    rng = np.random.default_rng(seed)
    flat = {
        path: jnp.asarray(rng.normal(size=leaf.shape) * spread, jnp.float32)
        for path, leaf in abstract_params(network).items()
    }
    return Pretrained(network, flax.traverse_util.unflatten_dict(flat, sep="/"), tokenizer())


def trunk(**fields: Any) -> TransformerConfig:
    sizes = {"layers": 2, "hidden_size": 16, "heads": 2, "intermediate_size": 24}
    return TransformerConfig(**(sizes | {"layer_norm_epsilon": 1e-5} | fields))
