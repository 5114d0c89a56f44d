"""`lmjax.load`: a run of lmjax or a Hugging Face directory, opened alike."""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import flax.linen as nn

from lmjax.configuration import build_typed
from lmjax.convert.huggingface import load_huggingface, read_json, tokenizer_of
from lmjax.convert.networks import in_unit, with_head
from lmjax.convert.pretrained import Pretrained
from lmjax.data.tokenizers import Tokenizer
from lmjax.errors import ConfigError
from lmjax.models.heads import Headed
from lmjax.nn.lora import merge
from lmjax.training.checkpoints import read_part
from lmjax.training.plan import make_objective

_NETWORK = "network.json"


def load(path: str | pathlib.Path) -> Pretrained:
    """Opens a pretrained or fine-tuned model.

    Args:
      path: the --workdir of a run of lmjax, whose latest checkpoint is taken (the moving
        average of the parameters, where the run keeps one); that of a finished fine-tuning run;
        or a directory with config.json
        and model.safetensors (or shards and their index), and a tokenizer.json beside it:
        BERT, GPT-2, XLNet, ELECTRA's generator or discriminator, with or without heads.

    Returns:
      The network with its parameters, on the first device. Memory holds them once and one
      tensor more.

    Raises:
      ConfigError: nothing there that can be opened; damaged, mismatched or missing tensors;
        a config that asks for a function not built here.
    """
    directory = pathlib.Path(path)
    values = read_json(directory / "config.json")
    if "task" in values:
        return _load_finetuned(directory)
    return _load_run(directory, values) if "objective" in values else load_huggingface(directory)


def write_network(
    network: nn.Module, labels: Sequence[str], directory: pathlib.Path, adapter_scale: float = 0.0
) -> None:
    """Writes network.json, from which `load` builds the network of a fine-tuning run.

    Args:
      network: as `lmjax.convert.networks.with_head` makes it.
      labels: names of its classes; () where they have none.
      adapter_scale: of the adapters beside the parameters, where there are some.
    """
    bare: Any = network  # without a head
    own = isinstance(network, Headed)
    model: Any = network.encoder.config if own else bare.config
    head: Any = network.head if own else None
    values = {
        "model": {
            "type": f"{type(model).__module__}.{type(model).__qualname__}",
            **dataclasses.asdict(model),
        },
        "task": network.task if own else "language_model",
        "classes": getattr(head, "classes", 0),
        "dropout": getattr(head, "dropout", 0.0),
        "unit": getattr(head, "unit", (0.0, 1.0)),
        "adapter_scale": adapter_scale,
        "labels": list(labels),
    }
    (directory / _NETWORK).write_text(json.dumps(values, indent=2) + "\n")


def read_network(directory: pathlib.Path) -> tuple[nn.Module, tuple[str, ...], float]:
    """The network of `write_network`, the names of its classes, and the scale of its adapters.

    Raises:
      ConfigError: there is none.
    """
    if not (directory / _NETWORK).exists():
        raise ConfigError(f"{directory}: no {_NETWORK}; the same command ends the run")
    values, where = read_json(directory / _NETWORK), f"{directory}/{_NETWORK}"
    try:
        model = build_typed(values["model"], f"{where}: model")
        network = with_head(model, values["task"], values["classes"], values["dropout"])
        mean, unit = map(float, values.get("unit", (0.0, 1.0)))
        network = in_unit(network, (mean, unit))
        return network, tuple(values["labels"]), float(values["adapter_scale"])
    except (KeyError, TypeError) as error:
        raise ConfigError(f"{where}: no network of a run ({error!r})") from error


def _load_finetuned(directory: pathlib.Path) -> Pretrained:
    network, labels, scale = read_network(directory)
    tokenizer = tokenizer_of(directory)
    if tokenizer is None:
        raise ConfigError(f"{directory}: no tokenizer.json; is this the whole directory of a run?")
    params = merge(read_part(directory / "checkpoints", "params"), scale)
    return Pretrained(network, params, tokenizer, labels, _token_ids(tokenizer))


def _token_ids(tokenizer: Tokenizer) -> dict[str, int]:
    roles = {"pad_token_id": "pad", "bos_token_id": "eod", "eos_token_id": "eod"}
    return {name: tokenizer.roles[role] for name, role in roles.items()}


def _load_run(directory: pathlib.Path, values: dict[str, Any]) -> Pretrained:
    tokenizer = tokenizer_of(directory)
    if tokenizer is None:
        raise ConfigError(f"{directory}: no tokenizer.json; is this the whole directory of a run?")
    try:
        objective, model = values["objective"], values["model"]
        averaged = values["training"].get("ema_decay", 0.0) > 0
    except (KeyError, AttributeError, TypeError) as error:
        raise ConfigError(f"{directory}/config.json: no config of a run ({error!r})") from error
    built = make_objective(objective, model, model.get("vocab_size") or tokenizer.size)
    network = getattr(built, "network", None)
    if network is None:
        raise ConfigError(
            f"{directory}: {type(built).__name__} has no property `network`, which lmjax.load"
            " takes the model from; give it one"
        )
    params = read_part(directory / "checkpoints", "ema" if averaged else "params")
    return Pretrained(network, params, tokenizer, (), _token_ids(tokenizer))
