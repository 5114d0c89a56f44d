"""`lmjax.load`: a run of lmjax or a Hugging Face directory, opened alike."""

import pathlib
from typing import Any

from lmjax.convert.huggingface import load_huggingface, read_json, tokenizer_of
from lmjax.convert.pretrained import Pretrained
from lmjax.errors import ConfigError
from lmjax.training.checkpoints import read_part
from lmjax.training.plan import make_objective


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
    if "task" in values:  # of a fine-tuning run, which ends with a directory of its own
        return load_huggingface(directory / "model")
    return _load_run(directory, values) if "objective" in values else load_huggingface(directory)


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
    roles = {"pad_token_id": "pad", "bos_token_id": "eod", "eos_token_id": "eod"}
    return Pretrained(
        network, params, tokenizer, (), {name: tokenizer.roles[r] for name, r in roles.items()}
    )
