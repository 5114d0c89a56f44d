"""A pretrained model as the beginning of another run: pretraining goes on, on other text.

Domain- and task-adaptive pretraining (Gururangan et al. 2020).
"""

import dataclasses
import pathlib
import sys
from typing import Any

import flax.traverse_util
import jax
import ml_collections
import numpy as np

from lmjax.configuration import build, convert, overlaid
from lmjax.convert.pretrained import Pretrained
from lmjax.convert.runs import load
from lmjax.data.tokenizers import Tokenizer
from lmjax.errors import ConfigError
from lmjax.models.heads import Headed
from lmjax.training.plan import PretrainConfig


@dataclasses.dataclass(frozen=True)
class Given:
    """Parameters to begin with.

    Attributes:
      params: nested dict of arrays, of a network like the run's.
      source: where they are from, for messages.
    """

    params: Any
    source: str


def adapted(config: ml_collections.ConfigDict) -> tuple[ml_collections.ConfigDict, Given]:
    """What `config.init` leaves to say: the config with its model and tokenizer.

    Fields that `config.model` names stay as they say, the others are the checkpoint's.

    Raises:
      ConfigError: the checkpoint cannot be opened, has no tokenizer, or the config asks for
        another one.
    """
    own = build(PretrainConfig, config, "config")
    pretrained = open_init(own.init)
    assert pretrained.tokenizer is not None
    network: Any = pretrained.network
    if isinstance(network, Headed) or not hasattr(network, "config"):
        raise ConfigError(
            f"config.init: '{own.init}' holds a fine-tuned {type(network).__name__}; give the"
            " pretrained model"
        )
    model = dataclasses.asdict(network.config)
    filled = ml_collections.ConfigDict(config.to_dict())
    path = own.data.tokenizer.path
    if path not in ("", own.init):
        raise ConfigError(
            f"config.data.tokenizer.path: '{path}' is not the tokenizer of config.init; leave it ''"
        )
    with filled.unlocked():
        filled.model = overlaid(model, own.model)
        tell_new_rows(pretrained.tokenizer, filled.model.vocab_size)
        filled.model.vocab_size = max(filled.model.vocab_size, pretrained.tokenizer.size)
        filled.data.tokenizer = {
            **filled.data.get("tokenizer", {}),
            "path": str(pathlib.Path(own.init)),
        }
    return filled, Given(pretrained.params, own.init)


def open_init(path: str) -> Pretrained:
    """What `config.init` names; it has a tokenizer.

    Raises:
      ConfigError: as `lmjax.load`; or no tokenizer is beside it.
    """
    convert(path, str, "config.init")
    try:
        pretrained = load(path)
    except ConfigError as error:
        raise ConfigError(f"config.init: {error}") from error
    if pretrained.tokenizer is None:
        raise ConfigError(f"config.init: '{path}' has no tokenizer.json; put its own beside it")
    return pretrained


def tell_new_rows(tokenizer: Tokenizer, rows: int) -> None:
    """Says on stderr which tokens a table of so many rows has none for: theirs begin random."""
    new = [tokenizer.token(index) for index in range(rows, tokenizer.size)]
    if new:
        more = ", ..." if len(new) > 8 else ""
        print(
            f"config.init: {len(new)} tokens get new rows in the token table, which begin random:"
            f" {', '.join(new[:8])}{more}",
            file=sys.stderr,
            flush=True,
        )


def put_in(fresh: Any, given: Given) -> tuple[Any, list[str]]:
    """Random parameters with the given ones in their places, where they have one.

    A table of tokens with fewer rows than the random one fills the first rows.

    Args:
      fresh: nested dict of arrays, whose shardings are kept.

    Returns:
      The parameters, and the names of those that stay random, which are heads.

    Raises:
      ConfigError: part of the encoder is not given, or has another shape.
    """
    ours = flax.traverse_util.flatten_dict(fresh, sep="/")
    theirs = flax.traverse_util.flatten_dict(given.params, sep="/")
    missing = sorted(ours.keys() - theirs.keys())
    of_encoder = [name for name in missing if "encoder/" in name or "embeddings/" in name]
    if of_encoder:
        raise ConfigError(
            f"config.init: '{given.source}' has no '{of_encoder[0]}'; it is another kind of model"
            " than config.objective trains, or one layer is written as another"
            " (config.model.trunk.scan_layers)"
        )
    for name in ours.keys() & theirs.keys():
        ours[name] = in_place_of(ours[name], theirs[name], f"'{name}' of '{given.source}'")
    return flax.traverse_util.unflatten_dict(ours, sep="/"), missing


def in_place_of(fresh: jax.Array, given: Any, name: str) -> jax.Array:
    """A copy of a given parameter where the random one lies.

    Of what has a row for each token, a given one with fewer rows fills the first ones.

    Args:
      name: of the given one, in quotes, for a message.

    Raises:
      ConfigError: they are not of one shape.
    """
    # A copy: the step takes its memory over, and another seed starts from the same. On the host: a
    # given parameter may lie on other devices than the run's.
    array = np.array(given, fresh.dtype, copy=True)
    of_tokens = name.split("'")[1].endswith(("token/embedding", "output_bias"))
    if of_tokens and array.shape[0] < fresh.shape[0]:
        array = np.concatenate([array, np.asarray(fresh)[array.shape[0] :]])
    if array.shape != fresh.shape:
        raise ConfigError(
            f"config.init: {name} is {list(array.shape)}, and config.model makes it"
            f" {list(fresh.shape)}"
        )
    return jax.device_put(array, fresh.sharding)
