"""Fine-tuning runs that compile in seconds, and rows that can be learnt in few steps."""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from configs.finetune.recipe import finetuning
from lmjax.data.tokenizer_training import train_tokenizer
from lmjax.data.tokenizers import Tokenizer, TokenizerConfig
from lmjax.data.vocabulary import Vocabulary
from lmjax.models.bert import BertConfig
from lmjax.models.distilbert import DistilBertConfig
from lmjax.models.electra import ElectraConfig
from lmjax.models.gpt import GptConfig
from lmjax.models.roberta import RobertaConfig
from lmjax.models.xlnet import XlnetConfig
from lmjax.nn.trunk import TransformerConfig

FAMILIES = ("bert", "gpt", "xlnet", "electra")
WORDS = [a + b + c for a in "bdfg" for b in "aeiou" for c in "klmn"]
LENGTH = 32

TRUNK = TransformerConfig(
    layers=1, hidden_size=16, heads=2, intermediate_size=32, dropout=0.0, attention_dropout=0.0
)


def sentences(count: int, seed: int = 0, words: tuple[int, int] = (3, 12)) -> list[str]:
    """Words at random."""
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, int(rng.integers(*words)))) for _ in range(count)]


def tokenizer(kind: Any = "wordpiece") -> Tokenizer:
    """One that knows the WORDS, and any other word of their letters by its letters."""
    letters = "".join(sorted({*"".join(WORDS), *"rvtd"}))
    spelt = [letters[i:] + letters[:i] for i in range(len(letters))] + [". , ! ?"]
    size = 300 if kind == "bpe" else 160
    return train_tokenizer(sentences(200) + 3 * spelt, TokenizerConfig(kind=kind, vocab_size=size))


def vocabulary(made: Tokenizer) -> Vocabulary:
    return made.vocabulary(np.zeros(made.size))


def model(family: str, vocab_size: int = 0, **trunk: Any) -> Any:
    """A family's config on the small trunk."""
    own = dataclasses.replace(TRUNK, norm="pre" if family == "gpt" else "post", **trunk)
    berts = {"bert": BertConfig, "roberta": RobertaConfig, "distilbert": DistilBertConfig}
    if family in berts:
        return berts[family](own, max_length=64, vocab_size=vocab_size)
    if family == "gpt":
        return GptConfig(own, max_length=64, vocab_size=vocab_size)
    if family == "xlnet":
        return XlnetConfig(own, vocab_size=vocab_size)
    return ElectraConfig(own, embedding_size=8, max_length=64, vocab_size=vocab_size)


def config(task: dict[str, Any], data: dict[str, Any], family: str = "bert") -> ConfigDict:
    """A run from scratch on one device."""
    made = finetuning({"length": LENGTH, **task}, data, learning_rate=1e-2, epochs=2)
    names = {"distilbert": "DistilBert"}
    blocks: dict[str, Any] = {
        "type": f"lmjax.models.{family}.{names.get(family, family.capitalize())}Config",
        "trunk": {
            "layers": 1,
            "hidden_size": 16,
            "heads": 2,
            "intermediate_size": 32,
            "initial_std": 0.1,
            "norm": "pre" if family == "gpt" else "post",
        },
    }
    if family != "xlnet":
        blocks["max_length"] = 64
    if family == "electra":
        blocks["embedding_size"] = 8
    made.model = ConfigDict(blocks)
    made.tokenizer.vocab_size = 120
    made.training.batch_size = 8
    made.mesh = {"data": 1}
    return made


def write_rows(path: pathlib.Path, rows: Sequence[Any]) -> str:
    """JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def labelled(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Texts whose first word tells their label."""
    rng = np.random.default_rng(seed)
    told = [("bak", "no"), ("dol", "yes")]
    chosen = [told[i] for i in rng.integers(0, 2, count)]
    return [
        {"text": f"{word} {text}", "label": label}
        for text, (word, label) in zip(sentences(count, seed), chosen, strict=True)
    ]
