"""Overrides of config fields from text, as given on the command line."""

import ast
import contextlib
import types
import typing
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any

import ml_collections

from lmjax.configuration import (
    block_note,
    check_known,
    class_inside,
    convert,
    field_types,
    fields_of,
    filled,
    flattened,
    item_hint,
    plain,
)
from lmjax.errors import ConfigError


def with_overrides(
    cls: type, config: Mapping[str, Any] | ml_collections.ConfigDict, overrides: Mapping[str, str]
) -> dict[str, Any]:
    """Returns a config with fields set from text, as given on the command line.

    Defaults are not filled in. A `type` is set first, since it determines the other fields.

    Args:
      cls: the dataclass of the config.
      config: the fields that are set, as plain values.
      overrides: dotted field names -> text.

    Raises:
      ConfigError: there is no such field, or the value is not valid for it.
    """
    values = plain(config)
    for name in sorted(overrides, key=lambda name: not name.endswith(".type")):
        path = name.split(".")
        try:
            hint = field_type(cls, values, path)
        except ConfigError as error:
            close = "did you mean" in str(error)
            raise (None if close else _elsewhere(cls, values, name)) or error from None
        value = _from_text(overrides[name], hint)
        block = block_note(hint) is not None or isinstance(value, Mapping)
        # A block is checked with all of its fields once it is complete.
        values = _set(values, path, value if block else convert(value, hint, f"config.{name}"))
    return values


def field_type(
    cls: type,
    values: Mapping[str, Any],
    path: Sequence[str],
    where: str = "config",
    given: Collection[str] = (),
) -> Any:
    """Returns the type of a config field.

    Args:
      cls: the dataclass of the config.
      values: plain values of the config, whose `type`s select the classes of blocks.
      path: names that lead to the field, outermost first.
      where: path of `values` in the config, for error messages.
      given: fields of `cls` that do not come from the config.

    Raises:
      ConfigError: there is no such field.
    """
    name, *rest = path
    check_known(name, cls, fields_of(cls, given), where)
    value, where = values.get(name), f"{where}.{name}"
    return _type_inside(field_types(cls)[name], value, values, rest, where)


def _type_inside(
    hint: Any, value: Any, around: Mapping[str, Any], rest: Sequence[str], where: str
) -> Any:
    if not rest:
        return hint
    block = value if isinstance(value, Mapping) else {}
    note, item = block_note(hint), item_hint(hint)
    if note is not None and note.views is not None:
        failure = None
        for view in list(note.views(block, around).values()) or [block]:
            try:
                return field_type(note.class_of(view, around, where), view, rest, where, note.given)
            except ConfigError as error:
                failure = failure or error
        assert failure is not None
        raise failure
    if note is not None and note.has_type and list(rest) == ["type"]:
        return str
    if note is None and item is not None:
        inner, where = block.get(rest[0]), f"{where}.{rest[0]}"
        return item if item is Any else _type_inside(item, inner, block, rest[1:], where)
    cls, given = class_inside(hint, block, around, where)
    if cls is None:
        raise ConfigError(
            f"{where}.{rest[0]}: {where} is a value without fields; set {where} itself"
        )
    return field_type(cls, block, rest, where, given)


def _elsewhere(cls: type, values: Mapping[str, Any], name: str) -> ConfigError | None:
    """Returns an error that suggests a field of the same name in another block, if any."""
    last = name.split(".")[-1]
    with contextlib.suppress(ConfigError):
        known = flattened(filled(cls, values, missing=""))
        found = [path for path in known if path.split(".")[-1] == last and path != name]
        if found:
            meant = min(found, key=len)
            return ConfigError(f"config.{name}: unknown field; did you mean 'config.{meant}'?")
    return None


def _set(values: Mapping[str, Any], path: Sequence[str], value: Any) -> dict[str, Any]:
    name, *rest = path
    inner = values.get(name)
    if rest:
        value = _set(inner if isinstance(inner, Mapping) else {}, rest, value)
    return {**values, name: value}


def _from_text(text: str, hint: Any) -> Any:
    """Parses text as a value of the expected type."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _from_text(text, arguments[0])
    if origin in (typing.Union, types.UnionType):
        for option in sorted(arguments, key=lambda option: option is str):  # str accepts any text
            value = _from_text(text, option)
            with contextlib.suppress(ConfigError):
                if option is type(None) and value is None:
                    return None
                if option is not type(None):
                    return convert(value, option, "")
        return text
    if hint is str:
        return text
    if origin is typing.Literal:
        return next((value for value in arguments if str(value) == text), text)
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        value = float(text) if hint is float else ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    if origin is tuple:
        if isinstance(value, str):
            value = tuple(part.strip() for part in text.split(",")) if text else ()
        return tuple(value) if isinstance(value, tuple | list) else (value,)
    return value
