"""Initial models for fine-tuning: a pretrained encoder, or a random one of the same config."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import flax.traverse_util
import numpy as np

from lmjax.convert.warm_start import in_place_of, open_init, tell_new_rows
from lmjax.data.tokenizer_training import train_tokenizer
from lmjax.data.tokenizers import Tokenizer, TokenizerConfig, load_tokenizer
from lmjax.data.vocabulary import Vocabulary
from lmjax.errors import ConfigError
from lmjax.models.family import ModelConfig


@dataclasses.dataclass(frozen=True)
class Start:
    """The initial model of fine-tuning.

    Attributes:
      model: the model's config, without memory.
      tokenizer: the tokenizer of the encoder.
      encoder: the encoder's parameters; None = random.
      transform: pretrained parameters of a sequence head's transform (BERT's pooler), or None.
    """

    model: ModelConfig
    tokenizer: Tokenizer
    encoder: Any = None
    transform: Any = None

    @property
    def vocabulary(self) -> Vocabulary:
        return self.tokenizer.vocabulary(np.zeros(self.tokenizer.size))

    def with_tokens(self, tokens: Sequence[str]) -> "Start":
        """Adds a task's special tokens and their rows of the token table.

        Spare rows of the token table are used first.
        """
        if not tokens:
            return self
        tokenizer = self.tokenizer.with_tokens(tokens)
        rows = max(self.model.vocab_size, tokenizer.size)
        model = dataclasses.replace(self.model, vocab_size=rows)
        return dataclasses.replace(self, tokenizer=tokenizer, model=model)

    def from_scratch(self) -> "Start":
        """Drops all learned parameters and keeps the tokenizer."""
        return dataclasses.replace(self, encoder=None, transform=None)


def start_from(path: str, dropout: float) -> Start:
    """Opens the encoder of a run or a Hugging Face directory; of ELECTRA, the discriminator.

    Existing heads are dropped, except BERT's pooler.

    Args:
      path: as in `lmjax.load`.
      dropout: dropout rate of the trunk during fine-tuning.

    Raises:
      ConfigError: as `lmjax.load`, or the model has no tokenizer.
    """
    pretrained = open_init(path)
    assert pretrained.tokenizer is not None
    network, params = pretrained.network.part(pretrained.params, "discriminator")
    model: ModelConfig = network.config
    encoder = params.get("encoder", params)  # a bare encoder has no other parameters
    tokenizer = pretrained.tokenizer
    if tokenizer.size > model.vocab_size:
        # Tokens were added for missing roles (GPT-2 has no delimiter). They get new rows (GPT-1
        # §3.3) and become part of the saved tokenizer.
        tell_new_rows(tokenizer, model.vocab_size)
        model = dataclasses.replace(model, vocab_size=tokenizer.size)
        tokenizer = tokenizer.with_tokens(())
    transform = model.pretrained_head(params)
    return Start(model.for_finetuning(dropout), tokenizer, encoder, transform)


def start_random(model: ModelConfig, tokenizer: TokenizerConfig, texts: Iterable[str]) -> Start:
    """Creates a random encoder with a tokenizer that is trained on `texts` or loaded.

    Raises:
      ConfigError: the model's vocabulary is smaller than the tokenizer's.
    """
    made = (
        load_tokenizer(tokenizer.path, tokenizer.lowercase, "config.tokenizer.path")
        if tokenizer.path
        else train_tokenizer(texts, tokenizer)
    )
    if 0 < model.vocab_size < made.size:
        raise ConfigError(
            f"config.model.vocab_size: {model.vocab_size} rows are too few for the tokenizer's"
            f" {made.size} tokens; raise it, or set it to 0 to use the tokenizer's size"
        )
    model.check_padding(made.roles["pad"])
    return Start(dataclasses.replace(model, vocab_size=model.vocab_size or made.size), made)


def put_in(fresh: Any, start: Start) -> Any:
    """Replaces the random encoder with the pretrained one.

    Args:
      fresh: random parameters of a `Headed` network on `start.model`. Rows of the token table
        beyond the pretrained ones stay random.
      start: the pretrained encoder.

    Raises:
      ConfigError: the encoders have different parameters or shapes.
    """
    if start.encoder is None:
        return fresh
    ours = flax.traverse_util.flatten_dict(fresh["encoder"], sep="/")
    theirs = flax.traverse_util.flatten_dict(start.encoder, sep="/")
    if ours.keys() != theirs.keys():
        odd = sorted(ours.keys() ^ theirs.keys())
        raise ConfigError(f"config.init: the encoder has other parameters: {', '.join(odd[:3])}")
    for name, given in theirs.items():
        ours[name] = in_place_of(ours[name], given, f"'{name}'")
    merged = {**fresh, "encoder": flax.traverse_util.unflatten_dict(ours, sep="/")}
    head = fresh.get("head", {})
    transform = head.get("transform")
    if start.transform is not None and transform is not None:
        placed = {n: in_place_of(transform[n], x, f"'{n}'") for n, x in start.transform.items()}
        merged["head"] = {**head, "transform": placed}
    return merged
