"""Loading of models from runs and Hugging Face directories; `lmjax.load` adds the task."""

import dataclasses
import pathlib
import typing
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any

import flax.linen as nn
import jax

from lmjax.atomic import write_json
from lmjax.configuration import (
    Finite,
    Interval,
    Rate,
    VocabSize,
    allowing,
    build,
    build_typed,
    convert,
    opening,
    resolve_type,
)
from lmjax.convert.arpa import read_arpa
from lmjax.convert.huggingface import abstract_params, load_huggingface, read_json, tokenizer_of
from lmjax.convert.ngrams import load_ngrams
from lmjax.convert.pretrained import Pretrained
from lmjax.data.tokenizers import Tokenizer
from lmjax.errors import ConfigError
from lmjax.models.family import ModelConfig
from lmjax.models.heads import Headed, Task, in_unit
from lmjax.models.network import Network
from lmjax.nn.lora import ADAPTERS, check_adapters, merge
from lmjax.training.checkpoints import read_part
from lmjax.training.memory_estimate import check_fits
from lmjax.training.plan import make_objective

_NETWORK = "network.json"
_NO_HEAD: Task = "language_model"


@dataclasses.dataclass(frozen=True)
class _Network:
    """The contents of network.json.

    Attributes:
      model: type and fields of the model's config.
      task: 'language_model' if there is no head.
      head: type and fields of the head; None without a head, and in older runs.
      adapter_scale: scale of the adapters among the parameters, if any.
      labels: names of the classes; () if they have none.
      classes, dropout, unit: fields of the family's head in older runs; see
        `lmjax.models.heads.SequenceHead`.
    """

    model: Mapping[str, Any]
    task: str
    head: Mapping[str, Any] | None = None
    adapter_scale: Annotated[float, Interval("[0, 2**20]")] = 0.0
    labels: tuple[str, ...] = ()
    classes: Annotated[int, Interval("[0, 2**20]")] = 0
    dropout: Rate = 0.0
    unit: tuple[Finite, ...] = (0.0, 1.0)


def load(path: str | pathlib.Path, allow_modules: Collection[str] = ()) -> Pretrained:
    """Opens a pretrained or fine-tuned model.

    See `lmjax.tasks.opened.load` for the directories that can be opened, which adds the task.

    Args:
      path: the directory of a run or of a Hugging Face model, or an ARPA file.
      allow_modules: modules outside of lmjax that a run may import classes from. Importing a
        module executes code, so others are an error.

    Returns:
      The network with its parameters on the first device. Peak memory is the parameters plus one
      tensor.

    Raises:
      ConfigError: `path` contains no model; tensors are damaged, mismatched or missing; the
        config needs an unsupported function or a module that is not allowed.
    """
    directory = pathlib.Path(path)
    if directory.is_file():
        return read_arpa(directory)
    with allowing(allow_modules), opening():
        if (directory / _NETWORK).exists() and not (directory / "config.json").exists():
            return _load_finetuned(directory, directory.parent)
        values = read_json(directory / "config.json")
        if isinstance(values.get("tasks"), Mapping):
            name = next(iter(values["tasks"]), "NAME")
            raise ConfigError(
                f"{path}: a run of several tasks; open one of them, e.g. {directory / name}"
            )
        if "task" in values:
            return _load_finetuned(directory, None)
        if "objective" in values:
            return _load_run(directory, values)
        if isinstance(values.get("ngram"), Mapping):
            return load_ngrams(directory, values)
    return load_huggingface(directory)


def write_network(
    network: nn.Module, labels: Sequence[str], directory: pathlib.Path, adapter_scale: float = 0.0
) -> None:
    """Writes network.json, from which `load` restores the network of a fine-tuning run.

    Args:
      network: `Task.saved_network`; see `check_saved`.
      labels: names of the classes; () if they have none.
      directory: the run's directory.
      adapter_scale: scale of the adapters among the parameters, if any.
    """
    check_saved(network)
    headed = isinstance(network, Headed)
    own: Any = network
    values: dict[str, Any] = {
        "model": {"type": _path_of(own.config), **dataclasses.asdict(own.config)},
        "task": own.task if headed else _NO_HEAD,
        "adapter_scale": adapter_scale,
        "labels": labels,
    }
    if headed:
        fields = {name: getattr(own.head, name) for name in _head_fields(type(own.head))}
        fields.pop("config", None)  # the model's trunk
        values["head"] = {"type": _path_of(own.head), **fields}
    write_json(directory / _NETWORK, values)


def check_saved(network: nn.Module) -> None:
    """Checks that `load` can restore a network.

    Raises:
      ConfigError: the network is neither a `Headed` nor a family's language model.
    """
    if isinstance(network, Headed):
        return
    model = getattr(network, "config", None)
    if not (isinstance(model, ModelConfig) and model.causal and network == model.causal_lm()):
        raise ConfigError(
            f"config.task: its network, a {type(network).__name__}, cannot be restored from a run;"
            " return lmjax.models.heads.Headed(self.model.encoder(), MyHead(...), 'my_task')"
        )


def _path_of(instance: Any) -> str:
    return f"{type(instance).__module__}.{type(instance).__qualname__}"


def _head_fields(cls: type) -> list[str]:
    """Returns the fields of a head, without the two that Flax adds."""
    named: Any = cls
    return [f.name for f in dataclasses.fields(named) if f.name not in ("parent", "name")]


def _head(values: Mapping[str, Any], model: ModelConfig, where: str) -> nn.Module:
    cls = resolve_type(values, where, nn.Module)
    known = _head_fields(cls)
    given = {"config": model.trunk} if "config" in known else {}
    if unknown := sorted(set(values) - set(known) - {"type"}):
        raise ConfigError(f"{where}.{unknown[0]}: unknown field of {cls.__name__}")
    head: nn.Module = build(cls, values, where, **given)
    unit = getattr(head, "unit", (0.0, 1.0))
    if len(unit) != 2 or not unit[1] > 0:
        raise ConfigError(f"{where}.unit: expected mean and scale, got {list(unit)}")
    return head


def _check_head(head: nn.Module, task: str, model: ModelConfig, where: str) -> None:
    """Checks that a head is the family's if the task is one of lmjax."""
    if task not in typing.get_args(Task):
        return
    try:
        wanted = model.headed(typing.cast(Task, task), 1, 0.0)
    except ConfigError as error:
        raise ConfigError(f"{where}.{error}") from error
    kind = type(wanted.head) if isinstance(wanted, Headed) else None
    if kind is not type(head):
        name = kind.__name__ if kind else "no head"
        raise ConfigError(f"{where}.task: '{task}' needs {name}, not {type(head).__name__}")


def own_parameters(params: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Selects a task's parameters from those of several: {'encoder', 'heads': {name: its head}}."""
    head = {"head": params["heads"][name]} if name in params["heads"] else {}
    return {"encoder": params["encoder"], **head}


def _load_finetuned(directory: pathlib.Path, several: pathlib.Path | None) -> Pretrained:
    """Loads a fine-tuned model; `several` is the multi-task run that it belongs to, if any."""
    if not (directory / _NETWORK).exists():
        raise ConfigError(f"{directory}: no {_NETWORK}; rerun the command to finish the run")
    where = f"{directory}/{_NETWORK}"
    stated = read_json(directory / _NETWORK)
    values = build(_Network, stated, where)
    if stray := [name for name in ("classes", "dropout", "unit") if name in stated and values.head]:
        raise ConfigError(f"{where}.{stray[0]}: is a field of the block `head`; remove it here")
    model: ModelConfig = build_typed(values.model, f"{where}.model", ModelConfig)
    network: Network
    if values.head is not None:
        head = _head(values.head, model, f"{where}.head")
        _check_head(head, values.task, model, where)
        network = Headed(model.encoder(), head, values.task)
    else:
        task: Task = convert(values.task, Task, f"{where}.task")
        try:
            network = model.headed(task, values.classes, values.dropout)
            if len(values.unit) != 2 or not values.unit[1] > 0:
                raise ConfigError(f"unit: expected mean and scale, got {list(values.unit)}")
            network = in_unit(network, (values.unit[0], values.unit[1]))
        except ConfigError as error:
            raise ConfigError(f"{where}.{error}") from error
    classes = network.classes if isinstance(network, Headed) else 0
    if values.labels and len(values.labels) != classes:
        raise ConfigError(f"{where}.labels: {len(values.labels)} for {classes} classes")
    tokenizer = _tokenizer(several or directory)

    def check(shapes: Mapping[str, jax.ShapeDtypeStruct]) -> None:
        own = {path: x for path, x in shapes.items() if not path.startswith(f"{ADAPTERS}/")}
        if several:
            head = f"heads/{directory.name}/"
            own = {
                path.replace(head, "head/"): x
                for path, x in own.items()
                if not path.startswith("heads/") or path.startswith(head)
            }
        _check_parameters(network, own, where)
        check_adapters(shapes, where)

    params = read_part((several or directory) / "checkpoints", "params", check)
    params = own_parameters(params, directory.name) if several else params
    params = merge(params, values.adapter_scale)
    return Pretrained(network, params, tokenizer, values.labels, _token_ids(tokenizer))


def _tokenizer(directory: pathlib.Path) -> Tokenizer:
    tokenizer = tokenizer_of(directory)
    if tokenizer is None:
        raise ConfigError(f"{directory}: no tokenizer.json; give a complete run directory")
    return tokenizer


def _token_ids(tokenizer: Tokenizer) -> dict[str, int]:
    roles = {"pad_token_id": "pad", "bos_token_id": "eod", "eos_token_id": "eod"}
    return {name: tokenizer.roles[role] for name, role in roles.items()}


def _load_run(directory: pathlib.Path, values: Mapping[str, Any]) -> Pretrained:
    tokenizer, where = _tokenizer(directory), f"{directory}/config.json"
    for name in ("model", "training"):
        if not isinstance(values.get(name), Mapping):
            raise ConfigError(f"{where}: not the config of a run ('{name}' is not a block)")
    objective, model, training = (values[name] for name in ("objective", "model", "training"))
    try:
        vocab_size = convert(model.get("vocab_size", 0), VocabSize, "config.model.vocab_size")
        averaged = convert(training.get("ema_decay", 0.0), Rate, "config.training.ema_decay")
        built = make_objective(objective, model, vocab_size or tokenizer.size)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    network: Any = built.network
    params = read_part(
        directory / "checkpoints",
        "ema" if averaged else "params",
        lambda shapes: _check_parameters(network, shapes, where),
    )
    return Pretrained(network, params, tokenizer, (), _token_ids(tokenizer))


def _check_parameters(network: Any, stored: Mapping[str, jax.ShapeDtypeStruct], where: str) -> None:
    """Checks stored parameters against a network before any of them is read.

    Args:
      stored: the shapes of the parameters, by path.
      where: the file that describes the network, for messages.
    """
    size = sum(x.size * x.dtype.itemsize for x in stored.values())
    check_fits(size, jax.devices()[:1], where)
    if not isinstance(network, Network):
        return  # its arguments are unknown
    model: Any = network.config
    remedy = "it belongs to another model"
    # Tracing a network with too many layers would take long.
    if not model.trunk.scan_layers and model.trunk.layers > len(stored):
        raise ConfigError(
            f"{where}: {model.trunk.layers} layers, but the checkpoint has only {len(stored)}"
            f" arrays; {remedy}"
        )
    wanted = abstract_params(network)
    for path in sorted(wanted.keys() | stored.keys()):
        if path not in stored:
            raise ConfigError(f"{where}: the checkpoint has no '{path}'; {remedy}")
        if path not in wanted:
            raise ConfigError(f"{where}: the checkpoint has an unexpected '{path}'; {remedy}")
        there, here = (f"{x.dtype}{list(x.shape)}" for x in (stored[path], wanted[path]))
        if there != here:
            raise ConfigError(
                f"{where}: '{path}' should be {here}, but the checkpoint has {there}; {remedy}"
            )
