"""Small random models whose texts move, and a tokenizer of bytes."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import tokenizers
from tokenizers import decoders, pre_tokenizers

from lmjax.convert.pretrained import Pretrained
from lmjax.data.tokenizers import Tokenizer
from lmjax.models.bert import BertConfig, BertForPreTraining
from lmjax.models.electra import Electra, ElectraConfig
from lmjax.models.gpt import Gpt, GptConfig
from lmjax.models.xlnet import Xlnet, XlnetConfig
from lmjax.nn.trunk import TransformerConfig

TRUNK = TransformerConfig(
    layers=2,
    hidden_size=16,
    heads=2,
    intermediate_size=32,
    layer_norm_epsilon=1e-5,
    initial_distribution="normal",
    initial_std=0.4,
)


def byte_tokenizer() -> Tokenizer:
    """A token a byte, and the six roles."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    model = tokenizers.models.BPE({letter: i for i, letter in enumerate(alphabet)}, [])
    inner = tokenizers.Tokenizer(model)
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    return Tokenizer(inner)


def pretrained(network: Any, tokenizer: Tokenizer | None = None, seed: int = 0) -> Pretrained:
    """Random parameters; ids 0 begins and 1 ends a document where there is no tokenizer."""
    tokens = np.zeros((1, 4), np.int32)
    inputs = network.config.inputs(tokens, tokens, np.ones_like(tokens, bool))
    init = functools.partial(network.init, method="whole")
    params = jax.jit(init)(jax.random.key(seed), inputs)["params"]
    ids = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 1}
    if tokenizer is not None:
        ids = dict.fromkeys(("bos_token_id", "eos_token_id"), tokenizer.roles["eod"])
    return Pretrained(network, params, tokenizer, (), ids)


def gpt(vocab_size: int = 30, seed: int = 0, text: bool = False, **trunk: Any) -> Pretrained:
    tokenizer = byte_tokenizer() if text else None
    config = GptConfig(
        dataclasses.replace(TRUNK, norm="pre", **trunk),
        max_length=128 if text else 64,
        vocab_size=tokenizer.size if tokenizer else vocab_size,
    )
    return pretrained(Gpt(config), tokenizer, seed)


def xlnet(vocab_size: int = 30) -> Pretrained:
    return pretrained(
        Xlnet(XlnetConfig(dataclasses.replace(TRUNK, layers=1), vocab_size=vocab_size))
    )


def bert() -> Pretrained:
    tokenizer = byte_tokenizer()
    config = BertConfig(TRUNK, max_length=64, vocab_size=tokenizer.size)
    return pretrained(BertForPreTraining(config), tokenizer)


def electra() -> Pretrained:
    tokenizer = byte_tokenizer()
    config = ElectraConfig(TRUNK, generator_size=0.5, max_length=64, vocab_size=tokenizer.size)
    return pretrained(Electra(config), tokenizer)
