"""From a config, plain data, to the frozen dataclasses that the code is built from."""

import contextlib
import contextvars
import dataclasses
import difflib
import functools
import importlib
import math
import re
import types
import typing
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Annotated, Any, TypeVar

import ml_collections
import numpy as np

from lmjax.errors import ConfigError

T = TypeVar("T")

# Whether the classes to import are named by a run that is being opened, and from which modules
# such a run may name them.
_OPENING = contextvars.ContextVar("opening", default=False)
_ALLOWED = contextvars.ContextVar[tuple[str, ...]]("allowed", default=("lmjax",))


# Classes that earlier versions had, and what a config or a run names in place of them.
_REPLACED = {
    "lmjax.tasks.intents.Intents": "lmjax.tasks.classification.Classification, pydocs 'intents'",
    "lmjax.tasks.mood.Mood": "lmjax.tasks.classification.Classification, pydocs 'moods'",
}


@dataclasses.dataclass(frozen=True)
class Interval:
    """The interval a number must lie in: `dropout: Annotated[float, Interval("[0, 1)")]`.

    Numbers are judged as int32 and float32, in which everything is computed: NaN, 1e50 and 2**31
    lie in no interval, 1e-50 is 0, and 0.99999999 is 1. An end may be a power such as 2**20.
    """

    text: str

    def check(self, value: int | float, where: str) -> None:
        """Raises a ConfigError that names the field `where` unless `value` lies inside."""
        text = self.text
        number: float = value
        if isinstance(value, int):
            text = text.replace("inf", "2**31")
            low, high = _ends(text)
        else:
            number, low, high = (_float32(x) for x in (value, *_ends(text)))
            if not math.isfinite(number):
                raise ConfigError(f"{where}: must be a finite number, got {quoted(value)}")
        above = number > low or (number == low and text[0] == "[")
        below = number < high or (number == high and text[-1] == "]")
        if above and below:
            return
        told = f"must lie in {text}"
        if not above and (isinstance(value, int) or high == math.inf):
            least = "positive" if text[0] == "(" else f"at least {low:g}"
            told = "must not be negative" if text.startswith("[0") else f"must be {least}"
        raise ConfigError(f"{where}: {told}, got {quoted(value)}")


def _ends(text: str) -> tuple[float, float]:
    """The two numbers of '[0, 2**20)'."""
    low, high = (end.partition("**") for end in text[1:-1].split(", "))
    return float(low[0]) ** int(low[2] or 1), float(high[0]) ** int(high[2] or 1)


def _float32(value: float) -> float:
    """The nearest float32; 0 for what is smaller than the smallest normal one."""
    with np.errstate(over="ignore"):
        rounded = float(np.float32(value))
    return 0.0 if abs(rounded) < np.finfo(np.float32).tiny else rounded


_ANY_NUMBER = Interval("(-inf, inf)")

# The intervals that most numbers lie in.
PositiveInt = Annotated[int, Interval("[1, inf)")]
NonNegativeInt = Annotated[int, Interval("[0, inf)")]
Size = Annotated[int, Interval("[1, 2**20]")]  # of an axis: tokens of an example, features
OptionalSize = Annotated[int, Interval("[0, 2**20]")]  # 0 where there is none
VocabSize = Annotated[int, Interval("[0, 2**24]")]
Seed = Annotated[int, Interval("[0, 2**32)")]
Probability = Annotated[float, Interval("[0, 1]")]
Rate = Annotated[float, Interval("[0, 1)")]  # of what is dropped: never all
Finite = Annotated[float, Interval("(-inf, inf)")]
Weight = Annotated[float, Interval("[0, 2**20]")]  # of a term of the loss


def check_ranges(config: Any) -> None:
    """Refuses numbers outside of the intervals that the fields of a dataclass state.

    The dataclass calls it in its `__post_init__`, so that its numbers are checked whoever makes
    it.

    Raises:
      ConfigError: names the field.
    """
    cls: Any = type(config)
    for name, hint in _intervals(cls).items():
        convert(getattr(config, name), hint, name)


@functools.cache
def _intervals(cls: type) -> dict[str, Any]:
    """The fields that state an interval, tuples of such numbers, and those that may be None."""

    def states(hint: Any) -> bool:
        annotated = typing.get_origin(hint) is Annotated
        of_others = typing.get_origin(hint) in (tuple, typing.Union, types.UnionType)
        return annotated or (of_others and any(map(states, typing.get_args(hint))))

    return {name: hint for name, hint in _hints(cls).items() if states(hint)}


@contextlib.contextmanager
def allowing(modules: Collection[str]) -> Iterator[None]:
    """Within it, runs that are opened may name classes of these modules, too.

    A run names the classes that it is made of. Importing a module executes it, so that of a run
    only lmjax's own are imported, and those that its user trusts.

    Args:
      modules: names; a package stands for all that is in it.
    """
    named = [modules] if isinstance(modules, str) else modules
    token = _ALLOWED.set((*_ALLOWED.get(), *named))
    try:
        yield
    finally:
        _ALLOWED.reset(token)


@contextlib.contextmanager
def opening() -> Iterator[None]:
    """Within it, what names classes is read from a run: they come from allowed modules alone."""
    token = _OPENING.set(True)
    try:
        yield
    finally:
        _OPENING.reset(token)


def resolve(path: str, where: str, kind: Any = object) -> type:
    """Returns the class that `package.module.Name` names.

    Args:
      path: dotted import path.
      where: the config field that holds it, for the error message.
      kind: a class, or a union of classes, of which it is to be a subclass.

    Raises:
      ConfigError: the module cannot be imported, or has no such class; or a run that is being
        opened names a module that is not allowed.
    """
    if not isinstance(path, str) or not re.fullmatch(r"\w+(\.\w+)+", path):
        raise ConfigError(f"{where}: {quoted(path)} is no import path; write 'package.module.Name'")
    if path in _REPLACED:
        raise ConfigError(f"{where}: '{path}' has been replaced; write {_REPLACED[path]}")
    module_name, _, name = path.rpartition(".")
    _check_allowed(module_name, path, where)
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(f"{where}: cannot import '{module_name}' ({error})") from error
    if not hasattr(module, name):
        hint = _did_you_mean(name, dir(module))
        raise ConfigError(f"{where}: module '{module_name}' has no '{name}'{hint}")
    found = getattr(module, name)
    if not (isinstance(found, type) and issubclass(found, kind)):
        kinds = typing.get_args(kind) or (kind,)
        names = " or ".join(f"{k.__module__}.{k.__qualname__}" for k in kinds)
        raise ConfigError(f"{where}: '{path}' is no {'class' if kind is object else names}")
    _check_allowed(found.__module__, path, where)
    return found


def _check_allowed(module: str, path: str, where: str) -> None:
    if not _OPENING.get():
        return
    if not any(f"{module}.".startswith(f"{allowed}.") for allowed in _ALLOWED.get()):
        package = module.split(".")[0]
        raise ConfigError(
            f"{where}: '{path}' is not of lmjax, and importing it would run its code; if you trust"
            f" it, lmjax.load(..., allow_modules=['{package}']), or --allow_modules={package}"
        )


def build(cls: type[T], mapping: Mapping[str, Any], where: str, **given: Any) -> T:
    """Builds the dataclass `cls` from plain values.

    Args:
      cls: a dataclass; a field whose type is itself a dataclass is built from the
        mapping found under its name.
      mapping: field name -> value. A `type` entry, which chose `cls`, is passed over.
      where: path of the mapping in the config, such as `config.model`.
      **given: fields that do not come from the config.

    Raises:
      ConfigError: unknown, missing or mistyped field, a number that is not finite or lies outside
        of the field's interval, or a value that `cls` refuses.
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
        values[name] = convert(value, hints[name], f"{where}.{name}")
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


def resolve_type(mapping: Mapping[str, Any], where: str, kind: Any = object) -> Any:
    """The dataclass, of a kind, that `mapping['type']` names by import path."""
    _check_block(mapping, where)
    if "type" not in mapping:
        raise ConfigError(f"{where}.type: missing; name a class by its import path")
    cls = resolve(mapping["type"], f"{where}.type", kind)
    if not dataclasses.is_dataclass(cls):
        raise ConfigError(f"{where}.type: '{mapping['type']}' is not a dataclass")
    return cls


def build_typed(mapping: Mapping[str, Any], where: str, kind: Any = object, **given: Any) -> Any:
    """Builds the dataclass, of a kind, that `mapping['type']` names by import path."""
    return build(resolve_type(mapping, where, kind), mapping, where, **given)


def _check_block(value: Any, where: str) -> None:
    if not isinstance(value, Mapping | ml_collections.ConfigDict):
        raise ConfigError(f"{where}: expected a block of fields, got {quoted(value)}")


def convert(value: Any, hint: Any, where: str) -> Any:
    """A plain value as a field of this type takes it.

    Args:
      hint: the type: a dataclass, a number with or without an Interval, str, bool, a Literal, a
        tuple or mapping of such, or a union of them.

    Raises:
      ConfigError: it is of another type, or a number that is not allowed; `where` names the field.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    interval = _ANY_NUMBER
    if origin is Annotated:
        hint, *notes = arguments
        interval = next((note for note in notes if isinstance(note, Interval)), interval)
        origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return build(hint, value, where)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        for option in (o for o in arguments if o is not type(None)):
            try:
                return convert(value, option, where)
            except ConfigError as error:
                failure = error
        raise failure
    if origin is typing.Literal:
        if value not in arguments:
            known = ", ".join(map(repr, arguments))
            raise ConfigError(f"{where}: {quoted(value)} is not one of {known}")
        return value
    if origin is tuple:
        if not isinstance(value, tuple | list):
            raise ConfigError(f"{where}: expected a tuple, got {quoted(value)}")
        return tuple(convert(v, arguments[0], f"{where}[{i}]") for i, v in enumerate(value))
    if origin is Mapping:
        _check_block(value, where)
        return {name: convert(v, arguments[1], f"{where}.{name}") for name, v in value.items()}
    if hint in (int, float, str, bool):
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not (whole if hint is int else isinstance(value, hint) or (hint is float and whole)):
            raise ConfigError(
                f"{where}: expected {hint.__name__}, got {quoted(value)} ({type(value).__name__})"
            )
        if hint is float and whole:
            value = float(value) if abs(value) < 2**1023 else math.inf
        if hint in (int, float):
            interval.check(value, where)
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
            raise ConfigError(
                f"config.{name}: expected a block of fields, got {quoted(values[name])}"
            )
    for name in values:
        if name not in fields and name not in optional:
            raise ConfigError(f"config.{name}: unknown; a config has {', '.join(fields)}")


def quoted(value: Any) -> str:
    """A value for a message of one line."""
    try:
        text = repr(value)
    except ValueError:  # Python refuses to write integers of many digits
        return "a number of thousands of digits"
    return text if len(text) <= 100 else f"{text[:100]}..."


def _hints(cls: Any) -> dict[str, Any]:
    return typing.get_type_hints(cls, include_extras=True)


def _did_you_mean(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean '{close[0]}'?" if close else f"; known: {', '.join(known)}"
