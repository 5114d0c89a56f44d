"""Continued pretraining: a run starts from a pretrained model, on other text.

Domain- and task-adaptive pretraining (Gururangan et al. 2020).
"""

import dataclasses
import pathlib
import sys
from collections.abc import Callable
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
from lmjax.objectives.base import Objective
from lmjax.training.plan import PretrainConfig, make_objective


@dataclasses.dataclass(frozen=True)
class Given:
    """Initial parameters.

    Attributes:
      params: nested dict of arrays, of a network like the run's.
      source: their origin, for messages.
    """

    params: Any
    source: str


def adapted(config: ml_collections.ConfigDict) -> tuple[ml_collections.ConfigDict, Given]:
    """Completes a config with the model and tokenizer of `config.init`.

    Fields set in `config.model` take precedence over those of the checkpoint.

    Returns:
      The completed config, and the checkpoint's parameters.

    Raises:
      ConfigError: the checkpoint cannot be opened or has no tokenizer, or the config asks for
        another tokenizer, or training cannot start from the checkpoint's network.
    """
    own = build(PretrainConfig, config, "config")
    pretrained = open_init(own.init)
    assert pretrained.tokenizer is not None
    network: Any = pretrained.network
    if isinstance(network, Headed) or not hasattr(network, "config"):
        raise ConfigError(
            f"config.init: '{own.init}' is a fine-tuned {type(network).__name__}; give a"
            " pretrained model"
        )
    model = dataclasses.asdict(network.config)
    filled = ml_collections.ConfigDict(config.to_dict())
    path = own.data.tokenizer.path
    if path not in ("", own.init):
        raise ConfigError(
            f"config.data.tokenizer.path: '{path}' is not the tokenizer of config.init; set it to"
            " ''"
        )
    with filled.unlocked():
        filled.model = overlaid(model, own.model)
        tell_new_rows(pretrained.tokenizer, filled.model.vocab_size)
        filled.model.vocab_size = max(filled.model.vocab_size, pretrained.tokenizer.size)
        filled.data.tokenizer = {
            **filled.data.get("tokenizer", {}),
            "path": str(pathlib.Path(own.init)),
        }
    objective = make_objective(own.objective, filled.model.to_dict(), filled.model.vocab_size)
    params = pretrained.params
    try:
        if type(objective).network is not Objective.network:
            params = objective.network.start_from(network, params)
    except ConfigError as error:
        raise ConfigError(f"config.init: '{own.init}': {error}") from error
    return filled, Given(params, own.init)


def initialization(
    config: ml_collections.ConfigDict,
) -> tuple[ml_collections.ConfigDict, Callable[[Any], Any]]:
    """Returns the config completed from its `init`, and the `warm_start` of `pretrain`.

    The latter prints which parameters stay random.

    Raises:
      ConfigError: as `adapted`.
    """
    config, given = adapted(config)

    def warm_start(fresh: Any) -> Any:
        params, random = put_in(fresh, given)
        if random:
            print(f"not in {given.source}, initialized randomly: {', '.join(random)}")
        return params

    return config, warm_start


def open_init(path: str) -> Pretrained:
    """Opens the model that `config.init` names, with its tokenizer.

    Raises:
      ConfigError: as `lmjax.load`, or the model has no tokenizer.
    """
    convert(path, str, "config.init")
    try:
        pretrained = load(path)
    except ConfigError as error:
        raise ConfigError(f"config.init: {error}") from error
    if "order_1" in pretrained.params:
        raise ConfigError(f"config.init: '{path}' is an n-gram model; give a neural network")
    if pretrained.tokenizer is None:
        raise ConfigError(f"config.init: '{path}' has no tokenizer.json; add the model's own")
    return pretrained


def tell_new_rows(tokenizer: Tokenizer, rows: int) -> None:
    """Reports on stderr which tokens are beyond the table's rows and get random new ones."""
    new = [tokenizer.token(index) for index in range(rows, tokenizer.size)]
    if new:
        more = ", ..." if len(new) > 8 else ""
        print(
            f"config.init: {len(new)} tokens get new, random rows in the token table:"
            f" {', '.join(new[:8])}{more}",
            file=sys.stderr,
            flush=True,
        )


def put_in(fresh: Any, given: Given) -> tuple[Any, list[str]]:
    """Replaces random parameters with the given ones.

    A token table with fewer rows than the random one fills the first rows.

    Args:
      fresh: nested dict of arrays, whose shardings are kept.
      given: the initial parameters.

    Returns:
      The parameters, and the names of those that stay random, all of them in heads.

    Raises:
      ConfigError: part of the encoder is missing or has another shape.
    """
    ours = flax.traverse_util.flatten_dict(fresh, sep="/")
    theirs = flax.traverse_util.flatten_dict(given.params, sep="/")
    missing = sorted(ours.keys() - theirs.keys())
    of_encoder = [name for name in missing if "encoder/" in name or "embeddings/" in name]
    if of_encoder:
        raise ConfigError(
            f"config.init: '{given.source}' has no '{of_encoder[0]}'; use a model of the kind that"
            " config.objective trains, with the same config.model.trunk.scan_layers"
        )
    for name in ours.keys() & theirs.keys():
        ours[name] = in_place_of(ours[name], theirs[name], f"'{name}' of '{given.source}'")
    return flax.traverse_util.unflatten_dict(ours, sep="/"), missing


def in_place_of(fresh: jax.Array, given: Any, name: str) -> jax.Array:
    """Copies a given parameter to the devices of the random one.

    A given parameter with fewer token rows fills the first rows.

    Args:
      fresh: the random parameter.
      given: the parameter that replaces it.
      name: the name of the given parameter, in quotes, for a message.

    Raises:
      ConfigError: the shapes differ.
    """
    # A copy, because the step donates its memory and another seed starts from the same parameters.
    # On the host, because the given parameter may be on other devices than the run's.
    array = np.array(given, fresh.dtype, copy=True)
    of_tokens = name.split("'")[1].endswith(("token/embedding", "output_bias"))
    if of_tokens and array.shape[0] < fresh.shape[0]:
        array = np.concatenate([array, np.asarray(fresh)[array.shape[0] :]])
    if array.shape != fresh.shape:
        raise ConfigError(
            f"config.init: {name} has shape {list(array.shape)}, but config.model implies"
            f" {list(fresh.shape)}; use the checkpoint's sizes"
        )
    return jax.device_put(array, fresh.sharding)
