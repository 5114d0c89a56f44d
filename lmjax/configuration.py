"""From a config, plain data, to the frozen dataclasses that the code is built from."""

import dataclasses
import difflib
import importlib
import re
import types
import typing
from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeVar

import ml_collections

from lmjax.errors import ConfigError

T = TypeVar("T")


def resolve(path: str, where: str) -> Any:
    """Returns the object that `package.module.Name` names.

    Args:
      path: dotted import path.
      where: the config field that holds it, for the error message.

    Raises:
      ConfigError: the module cannot be imported, or has no such name.
    """
    if not isinstance(path, str) or not re.fullmatch(r"\w+(\.\w+)+", path):
        raise ConfigError(f"{where}: {path!r} is no import path; write 'package.module.Name'")
    module_name, _, name = path.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(f"{where}: cannot import '{module_name}' ({error})") from error
    if not hasattr(module, name):
        hint = _did_you_mean(name, dir(module))
        raise ConfigError(f"{where}: module '{module_name}' has no '{name}'{hint}")
    return getattr(module, name)


def build(cls: type[T], mapping: Mapping[str, Any], where: str, **given: Any) -> T:
    """Builds the dataclass `cls` from plain values.

    Args:
      cls: a dataclass; a field whose type is itself a dataclass is built from the
        mapping found under its name.
      mapping: field name -> value. A `type` entry, which chose `cls`, is passed over.
      where: path of the mapping in the config, such as `config.model`.
      **given: fields that do not come from the config.

    Raises:
      ConfigError: unknown, missing or mistyped field, or a value that `cls` refuses.
    """
    _check_block(mapping, where)
    hints = _hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    values: dict[str, Any] = dict(given)
    for name, value in mapping.items():
        if name == "type":
            continue
        if name not in fields or name in given:
            hint = _did_you_mean(name, sorted(set(fields) - set(given)))
            raise ConfigError(f"{where}.{name}: unknown field of {cls.__name__}{hint}")
        values[name] = _convert(hints[name], value, f"{where}.{name}")
    for name, field in fields.items():
        required = (
            field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        )
        if required and name not in values:
            raise ConfigError(f"{where}.{name}: missing; {cls.__name__} needs it")
    try:
        return cls(**values)
    except ConfigError as error:
        raise ConfigError(f"{where}.{error}") from error


def resolve_type(mapping: Mapping[str, Any], where: str) -> type:
    """The dataclass that `mapping['type']` names by import path."""
    _check_block(mapping, where)
    if "type" not in mapping:
        raise ConfigError(f"{where}.type: missing; name a class by its import path")
    cls = resolve(mapping["type"], f"{where}.type")
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
        raise ConfigError(f"{where}.type: '{mapping['type']}' is not a dataclass")
    return cls


def build_typed(mapping: Mapping[str, Any], where: str, **given: Any) -> Any:
    """Builds the dataclass that `mapping['type']` names by import path."""
    return build(resolve_type(mapping, where), mapping, where, **given)


def _check_block(value: Any, where: str) -> None:
    if not isinstance(value, Mapping | ml_collections.ConfigDict):
        raise ConfigError(f"{where}: expected a block of fields, got {value!r}")


def _convert(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return build(hint, value, where)
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        options = typing.get_args(hint)
        if value is None and type(None) in options:
            return None
        for option in (o for o in options if o is not type(None)):
            try:
                return _convert(option, value, where)
            except ConfigError as error:
                failure = error
        raise failure
    if origin is typing.Literal:
        options = typing.get_args(hint)
        if value not in options:
            known = ", ".join(map(repr, options))
            raise ConfigError(f"{where}: {value!r} is not one of {known}")
        return value
    if origin is tuple:
        if not isinstance(value, tuple | list):
            raise ConfigError(f"{where}: expected a tuple, got {value!r}")
        (item, *_) = typing.get_args(hint)
        return tuple(_convert(item, v, f"{where}[{i}]") for i, v in enumerate(value))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint in (int, float, str, bool):
        if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
            raise ConfigError(
                f"{where}: expected {hint.__name__}, got {value!r} ({type(value).__name__})"
            )
        return value
    return value


def check_fields(
    values: Mapping[str, Any],
    fields: Sequence[str],
    plain: Collection[str] = (),
    optional: Collection[str] = (),
) -> None:
    """Refuses a config that has not just these fields.

    Args:
      plain: those that are no blocks of fields.
      optional: fields that may be there, too.

    Raises:
      ConfigError: names the field.
    """
    for name in fields:
        if name not in values:
            raise ConfigError(f"config.{name}: missing; a config has {', '.join(fields)}")
        if name not in plain and not isinstance(values[name], Mapping):
            raise ConfigError(f"config.{name}: expected a block of fields, got {values[name]!r}")
    for name in values:
        if name not in fields and name not in optional:
            raise ConfigError(f"config.{name}: unknown; a config has {', '.join(fields)}")


def whole_number(values: Mapping[str, Any], name: str, least: int) -> int:
    """The integer in a field of a config.

    Raises:
      ConfigError: it is none, or smaller than `least`.
    """
    value = values[name]
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(f"config.{name}: must be an integer >= {least}, got {value!r}")
    return value


def _hints(cls: Any) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _did_you_mean(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean '{close[0]}'?" if close else f"; known: {', '.join(known)}"
