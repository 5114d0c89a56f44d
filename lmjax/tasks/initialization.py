"""Where fine-tuning begins: a pretrained encoder, or a random one of the same kind."""

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
    """What fine-tuning begins with.

    Attributes:
      model: the model's config, without memory.
      tokenizer: that the encoder was pretrained with.
      encoder: its parameters; None = random ones.
      transform: of a head on a whole text, which pretraining has trained (BERT's pooler), or None.
    """

    model: ModelConfig
    tokenizer: Tokenizer
    encoder: Any = None
    transform: Any = None

    @property
    def vocabulary(self) -> Vocabulary:
        return self.tokenizer.vocabulary(np.zeros(self.tokenizer.size))

    def with_tokens(self, tokens: Sequence[str]) -> "Start":
        """The same with special tokens that a task adds, and rows for them.

        Where the token table has rows to spare, those of the next ids are taken.
        """
        if not tokens:
            return self
        tokenizer = self.tokenizer.with_tokens(tokens)
        rows = max(self.model.vocab_size, tokenizer.size)
        model = dataclasses.replace(self.model, vocab_size=rows)
        return dataclasses.replace(self, tokenizer=tokenizer, model=model)

    def from_scratch(self) -> "Start":
        """The same without anything learnt but the tokenizer."""
        return dataclasses.replace(self, encoder=None, transform=None)


def start_from(path: str, dropout: float) -> Start:
    """Opens a run or a Hugging Face directory; of ELECTRA's two networks the discriminator.

    A head that it has already is left behind, except BERT's pooler.

    Args:
      path: as `lmjax.load` takes it.
      dropout: of the trunk from now on.

    Raises:
      ConfigError: as `lmjax.load`; or no tokenizer is beside it.
    """
    pretrained = open_init(path)
    assert pretrained.tokenizer is not None
    network, params = pretrained.network.part(pretrained.params, "discriminator")
    model: ModelConfig = network.config
    encoder = params.get("encoder", params)  # of a bare encoder, they are all there is
    tokenizer = pretrained.tokenizer
    if tokenizer.size > model.vocab_size:
        # Tokens were added for roles that it lacks (GPT-2 has no delimiter). They get rows of
        # their own (GPT-1 §3.3), and belong to the tokenizer that is saved.
        tell_new_rows(tokenizer, model.vocab_size)
        model = dataclasses.replace(model, vocab_size=tokenizer.size)
        tokenizer = tokenizer.with_tokens(())
    transform = model.pretrained_head(params)
    return Start(model.for_finetuning(dropout), tokenizer, encoder, transform)


def start_random(model: ModelConfig, tokenizer: TokenizerConfig, texts: Iterable[str]) -> Start:
    """A random encoder and a tokenizer trained on `texts`, or loaded.

    Raises:
      ConfigError: the model has fewer rows than the tokenizer has tokens.
    """
    made = (
        load_tokenizer(tokenizer.path, tokenizer.lowercase, "config.tokenizer.path")
        if tokenizer.path
        else train_tokenizer(texts, tokenizer)
    )
    if 0 < model.vocab_size < made.size:
        raise ConfigError(
            f"config.model.vocab_size: {model.vocab_size} rows are too few for the tokenizer's"
            f" {made.size} tokens; raise it, or 0 takes the tokenizer's"
        )
    return Start(dataclasses.replace(model, vocab_size=model.vocab_size or made.size), made)


def put_in(fresh: Any, start: Start) -> Any:
    """Parameters with the pretrained encoder in the place of the random one.

    Args:
      fresh: random parameters of a `Headed` network on `start.model`. Rows of its token table
        that the pretrained one has not stay as they are.

    Raises:
      ConfigError: the encoders are not of one shape.
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
