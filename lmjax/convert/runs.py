"""A run of lmjax or a Hugging Face directory, opened alike; `lmjax.load` adds its task."""

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
from lmjax.convert.huggingface import abstract_params, load_huggingface, read_json, tokenizer_of
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
    """What network.json holds.

    Attributes:
      model: the type and the fields of the model's config.
      task: 'language_model' where there is no head.
      head: the type and the fields of the head; None without one, and in older runs.
      adapter_scale: of the adapters beside the parameters, where there are some.
      labels: names of the classes; () where they have none.
      classes, dropout, unit: of the head, in older runs, where it is the family's own for the
        task; see `lmjax.models.heads.SequenceHead`.
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

    A run names the classes that it is made of, and importing a module executes it: of a run only
    classes of lmjax are imported, and those of the modules that `allow_modules` names.

    Args:
      path: the --workdir of a run of lmjax, whose latest checkpoint is taken (the moving
        average of the parameters, where the run keeps one); that of a finished fine-tuning run,
        or of one of several tasks with its name behind it; or a directory with config.json
        and model.safetensors (or shards and their index), and a tokenizer.json beside it:
        BERT, GPT-2, XLNet, ELECTRA's generator or discriminator, with or without heads.
      allow_modules: modules of other people's classes that a run may name, such as
        ['my_package'] for all that is in it.

    Returns:
      The network with its parameters, on the first device. Memory holds them once and one
      tensor more.

    Raises:
      ConfigError: nothing there that can be opened; damaged, mismatched or missing tensors;
        a config that asks for a function not built here, or for a module that is not allowed.
    """
    directory = pathlib.Path(path)
    with allowing(allow_modules), opening():
        if (directory / _NETWORK).exists() and not (directory / "config.json").exists():
            return _load_finetuned(directory, directory.parent)
        values = read_json(directory / "config.json")
        if isinstance(values.get("tasks"), Mapping):
            name = next(iter(values["tasks"]), "NAME")
            raise ConfigError(
                f"{path}: a run of several tasks; open one, such as {directory / name}"
            )
        if "task" in values:
            return _load_finetuned(directory, None)
        if "objective" in values:
            return _load_run(directory, values)
    return load_huggingface(directory)


def write_network(
    network: nn.Module, labels: Sequence[str], directory: pathlib.Path, adapter_scale: float = 0.0
) -> None:
    """Writes network.json, from which `load` builds the network of a fine-tuning run.

    Args:
      network: as `Task.saved_network` gives it; see `check_saved`.
      labels: names of its classes; () where they have none.
      adapter_scale: of the adapters beside the parameters, where there are some.
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
    """Refuses a network that `load` could not build again.

    Raises:
      ConfigError: it is neither a `Headed` nor a family's language model.
    """
    if isinstance(network, Headed):
        return
    model = getattr(network, "config", None)
    if not (isinstance(model, ModelConfig) and model.causal and network == model.causal_lm()):
        raise ConfigError(
            f"config.task: its network is a {type(network).__name__}, which no run can be opened"
            " with; make it lmjax.models.heads.Headed(self.model.encoder(), MyHead(...), 'my_task')"
        )


def _path_of(instance: Any) -> str:
    return f"{type(instance).__module__}.{type(instance).__qualname__}"


def _head_fields(cls: type) -> list[str]:
    """The fields of a head's own; Flax adds two."""
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
    """Refuses a head that is not the family's, where the task is one of lmjax."""
    if task not in typing.get_args(Task):
        return
    try:
        wanted = model.headed(typing.cast(Task, task), 1, 0.0)
    except ConfigError as error:
        raise ConfigError(f"{where}.{error}") from error
    kind = type(wanted.head) if isinstance(wanted, Headed) else None
    if kind is not type(head):
        name = kind.__name__ if kind else "no head"
        raise ConfigError(f"{where}.task: '{task}' has {name}, not {type(head).__name__}")


def own_parameters(params: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The parameters of one task, of those of several: {'encoder', 'heads': {name: its head}}."""
    head = {"head": params["heads"][name]} if name in params["heads"] else {}
    return {"encoder": params["encoder"], **head}


def _load_finetuned(directory: pathlib.Path, several: pathlib.Path | None) -> Pretrained:
    """Args: several: the run of several tasks that this is one of."""
    if not (directory / _NETWORK).exists():
        raise ConfigError(f"{directory}: no {_NETWORK}; the same command ends the run")
    where = f"{directory}/{_NETWORK}"
    stated = read_json(directory / _NETWORK)
    values = build(_Network, stated, where)
    if stray := [name for name in ("classes", "dropout", "unit") if name in stated and values.head]:
        raise ConfigError(f"{where}.{stray[0]}: the block `head` has it; leave it out")
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
        raise ConfigError(f"{directory}: no tokenizer.json; is this the whole directory of a run?")
    return tokenizer


def _token_ids(tokenizer: Tokenizer) -> dict[str, int]:
    roles = {"pad_token_id": "pad", "bos_token_id": "eod", "eos_token_id": "eod"}
    return {name: tokenizer.roles[role] for name, role in roles.items()}


def _load_run(directory: pathlib.Path, values: Mapping[str, Any]) -> Pretrained:
    tokenizer, where = _tokenizer(directory), f"{directory}/config.json"
    for name in ("model", "training"):
        if not isinstance(values.get(name), Mapping):
            raise ConfigError(f"{where}: no config of a run ('{name}' is no block of fields)")
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
    """Refuses parameters that are not those of a network, before one of them is read.

    Args:
      stored: their shapes, by path.
      where: the file that describes the network, for messages.
    """
    size = sum(x.size * x.dtype.itemsize for x in stored.values())
    check_fits(size, jax.devices()[:1], where)
    if not isinstance(network, Network):
        return  # what it is called with is not known here
    model: Any = network.config
    remedy = "it belongs to another model"
    # Tracing the network takes as long as it has layers.
    if not model.trunk.scan_layers and model.trunk.layers > len(stored):
        raise ConfigError(
            f"{where}: {model.trunk.layers} layers, and the checkpoint holds only {len(stored)}"
            f" arrays; {remedy}"
        )
    wanted = abstract_params(network)
    for path in sorted(wanted.keys() | stored.keys()):
        if path not in stored:
            raise ConfigError(f"{where}: the checkpoint has no '{path}'; {remedy}")
        if path not in wanted:
            raise ConfigError(f"{where}: no place for '{path}' of the checkpoint; {remedy}")
        there, here = (f"{x.dtype}{list(x.shape)}" for x in (stored[path], wanted[path]))
        if there != here:
            raise ConfigError(
                f"{where}: makes '{path}' {here}, and the checkpoint holds {there}; {remedy}"
            )
