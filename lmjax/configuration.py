"""Conversion of configs, which are plain data, to the frozen dataclasses that the code uses.

A config states only what differs from the defaults: omitted fields have the dataclass default.
"""

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
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Annotated, Any, TypeVar

import ml_collections
import numpy as np

from lmjax.errors import ConfigError

T = TypeVar("T")

# Whether the import paths come from a run that is being opened, and the modules that such a run
# may import.
_OPENING = contextvars.ContextVar("opening", default=False)
_ALLOWED = contextvars.ContextVar[tuple[str, ...]]("allowed", default=("lmjax",))


# Renamed modules, to which runs and configs of earlier versions refer: old -> new.
_RENAMED = {
    "lmjax.objectives.identified": "lmjax.objectives.electra_mlm",
    "lmjax.objectives.replaced": "lmjax.objectives.rtd",
}
# Classes of earlier versions, and their replacements.
_REPLACED = {
    "lmjax.tasks.intents.Intents": "lmjax.tasks.classification.Classification, pydocs 'intents'",
    "lmjax.tasks.mood.Mood": "lmjax.tasks.classification.Classification, pydocs 'moods'",
}


@dataclasses.dataclass(frozen=True)
class Interval:
    """The interval of valid numbers: `dropout: Annotated[float, Interval("[0, 1)")]`.

    Numbers are checked as int32 and float32, the types used in computations: NaN, 1e50 and 2**31
    are in no interval, 1e-50 is 0, and 0.99999999 is 1. An end may be a power such as 2**20.
    """

    text: str

    def check(self, value: int | float, where: str) -> None:
        """Raises a ConfigError that names the field `where` unless `value` is in the interval."""
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
        message = f"must lie in {text}"
        if not above and (isinstance(value, int) or high == math.inf):
            least = "positive" if text[0] == "(" else f"at least {low:g}"
            message = "must not be negative" if text.startswith("[0") else f"must be {least}"
        raise ConfigError(f"{where}: {message}, got {quoted(value)}")


def _ends(text: str) -> tuple[float, float]:
    """Parses the ends of an interval such as '[0, 2**20)'."""
    low, high = (end.partition("**") for end in text[1:-1].split(", "))
    return float(low[0]) ** int(low[2] or 1), float(high[0]) ** int(high[2] or 1)


def _float32(value: float) -> float:
    """Rounds to float32; flushes subnormal numbers to 0."""
    with np.errstate(over="ignore"):
        rounded = float(np.float32(value))
    return 0.0 if abs(rounded) < np.finfo(np.float32).tiny else rounded


_ANY_NUMBER = Interval("(-inf, inf)")

# Common types of numbers.
PositiveInt = Annotated[int, Interval("[1, inf)")]
NonNegativeInt = Annotated[int, Interval("[0, inf)")]
Size = Annotated[int, Interval("[1, 2**20]")]  # size of an axis, such as tokens or features
OptionalSize = Annotated[int, Interval("[0, 2**20]")]  # 0 = none
VocabSize = Annotated[int, Interval("[0, 2**24]")]
Seed = Annotated[int, Interval("[0, 2**32)")]
Probability = Annotated[float, Interval("[0, 1]")]
Rate = Annotated[float, Interval("[0, 1)")]  # dropout rate
Finite = Annotated[float, Interval("(-inf, inf)")]
Weight = Annotated[float, Interval("[0, 2**20]")]  # weight of a loss term


@dataclasses.dataclass(frozen=True)
class Block:
    """Marks a field whose value is a block of fields of a class that the config selects.

    `build` converts `Annotated[Examples, Block()]` to an instance of the class.
    `Annotated[Mapping[str, Any], Block(...)]` remains a mapping of plain values, because building
    it needs more than the config.

    Attributes:
      kind: required base class, or union of base classes, of the class named by the block's `type`.
      given: fields of the class that do not come from the config.
      find: (block, enclosing fields, path of the block) -> class, if the block need not have a
        `type`; it cannot have one if `kind` is object.
      views: (block, enclosing fields) -> the complete blocks that the block represents, by name.
        Such a block states their common fields and is not filled with defaults itself.
    """

    kind: Any = object
    given: tuple[str, ...] = ()
    find: Callable[[Mapping[str, Any], Mapping[str, Any], str], type] | None = None
    views: Callable[[Mapping[str, Any], Mapping[str, Any]], Mapping[str, Any]] | None = None

    @property
    def has_type(self) -> bool:
        """Whether the block may name its class as `type`."""
        return self.find is None or self.kind is not object

    def class_of(self, block: Any, around: Mapping[str, Any], where: str) -> Any:
        """Returns the dataclass of `block`. Raises ConfigError."""
        if self.find is None:
            return resolve_type(block, where, self.kind)
        _check_block(block, where)
        return self.find(block, around, where)


def check_ranges(config: Any) -> None:
    """Checks that the fields of a dataclass are in their annotated intervals.

    The dataclass calls it in `__post_init__`, so that all instances are checked.

    Raises:
      ConfigError: a number is outside its interval; the message names the field.
    """
    cls: Any = type(config)
    for name, hint in _intervals(cls).items():
        convert(getattr(config, name), hint, name)


@functools.cache
def _intervals(cls: type) -> dict[str, Any]:
    """Returns fields annotated with an interval, including tuples and optionals."""

    def states(hint: Any) -> bool:
        annotated = typing.get_origin(hint) is Annotated
        of_others = typing.get_origin(hint) in (tuple, typing.Union, types.UnionType)
        return annotated or (of_others and any(map(states, typing.get_args(hint))))

    return {name: hint for name, hint in field_types(cls).items() if states(hint)}


@contextlib.contextmanager
def allowing(modules: Collection[str]) -> Iterator[None]:
    """A context in which opened runs may also refer to classes of these modules.

    A run's config names classes by import path, and importing a module executes it. Therefore only
    modules of lmjax, and those that the user trusts, are imported.

    Args:
      modules: names of modules; a package includes all of its modules.
    """
    named = [modules] if isinstance(modules, str) else modules
    token = _ALLOWED.set((*_ALLOWED.get(), *named))
    try:
        yield
    finally:
        _ALLOWED.reset(token)


@contextlib.contextmanager
def opening() -> Iterator[None]:
    """A context in which import paths come from a run, so only allowed modules are imported."""
    token = _OPENING.set(True)
    try:
        yield
    finally:
        _OPENING.reset(token)


def resolve(path: str, where: str, kind: Any = object) -> type:
    """Returns the class that `package.module.Name` names.

    Args:
      path: dotted import path.
      where: the config field of `path`, for error messages.
      kind: required base class, or union of base classes.

    Raises:
      ConfigError: the module cannot be imported or has no such class, or a run that is being
        opened refers to a module that is not allowed.
    """
    if not isinstance(path, str) or not re.fullmatch(r"\w+(\.\w+)+", path):
        raise ConfigError(
            f"{where}: {quoted(path)} is not an import path; use 'package.module.Name'"
        )
    if path in _REPLACED:
        raise ConfigError(f"{where}: '{path}' has been replaced; use {_REPLACED[path]}")
    module_name, _, name = current_path(path).rpartition(".")
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
        raise ConfigError(f"{where}: '{path}' is not a {'class' if kind is object else names}")
    _check_allowed(found.__module__, path, where)
    return found


def current_path(path: Any) -> Any:
    """Returns the current import path of a class whose module may have been renamed."""
    if not isinstance(path, str):
        return path
    module, dot, name = path.rpartition(".")
    return f"{_RENAMED.get(module, module)}{dot}{name}"


def _type_of(block: Mapping[str, Any]) -> Any:
    return current_path(block.get("type"))


def _check_allowed(module: str, path: str, where: str) -> None:
    if not _OPENING.get():
        return
    if not any(f"{module}.".startswith(f"{allowed}.") for allowed in _ALLOWED.get()):
        package = module.split(".")[0]
        raise ConfigError(
            f"{where}: '{path}' is not of lmjax, and importing it would run its code; if you trust"
            f" it, use lmjax.load(..., allow_modules=['{package}']) or --allow_modules={package}"
        )


def build(cls: type[T], mapping: Mapping[str, Any], where: str, **given: Any) -> T:
    """Builds the dataclass `cls` from plain values.

    Args:
      cls: a dataclass; fields whose type is a dataclass are built from nested mappings.
      mapping: field name -> value. A `type` entry, which selected `cls`, is ignored.
      where: path of the mapping in the config, such as `config.model`.
      **given: fields that do not come from the config.

    Raises:
      ConfigError: a field is unknown, missing or of the wrong type, a number is not finite or
        outside its interval, or `cls` rejects a value.
    """
    _check_block(mapping, where)
    hints, fields = field_types(cls), fields_of(cls, given)
    values: dict[str, Any] = dict(given)
    for name, value in mapping.items():
        if name == "type":
            continue
        check_known(name, cls, fields, where)
        value = _over_default(fields[name], value)
        values[name] = convert(value, hints[name], f"{where}.{name}")
    for name, field in fields.items():
        if name not in values and _default(field) is dataclasses.MISSING:
            raise ConfigError(f"{where}.{name}: missing; {cls.__name__} needs it")
    try:
        return cls(**values)
    except ConfigError as error:
        raise ConfigError(f"{where}.{error}") from error


def resolve_type(mapping: Mapping[str, Any], where: str, kind: Any = object) -> Any:
    """Returns the dataclass named by `mapping['type']`, a subclass of `kind`."""
    _check_block(mapping, where)
    if "type" not in mapping:
        raise ConfigError(f"{where}.type: missing; set it to the import path of a class")
    cls = resolve(mapping["type"], f"{where}.type", kind)
    if not dataclasses.is_dataclass(cls):
        raise ConfigError(f"{where}.type: '{mapping['type']}' is not a dataclass")
    return cls


def build_typed(mapping: Mapping[str, Any], where: str, kind: Any = object, **given: Any) -> Any:
    """Builds the dataclass named by `mapping['type']`, a subclass of `kind`."""
    return build(resolve_type(mapping, where, kind), mapping, where, **given)


def _check_block(value: Any, where: str) -> None:
    if not isinstance(value, Mapping | ml_collections.ConfigDict):
        raise ConfigError(f"{where}: expected a block of fields, got {quoted(value)}")


def convert(value: Any, hint: Any, where: str) -> Any:
    """Converts a plain value to the type of a field.

    Args:
      hint: the type: a dataclass, a number with or without an Interval, str, bool, a Literal, a
        tuple or mapping of these types, or a union of them.
      where: path of the field, for error messages.

    Raises:
      ConfigError: the value has the wrong type, or is a number outside its interval.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    interval = _ANY_NUMBER
    if origin is Annotated:
        note = block_note(hint)
        hint, *notes = arguments
        interval = next((note for note in notes if isinstance(note, Interval)), interval)
        origin, arguments = typing.get_origin(hint), typing.get_args(hint)
        if note is not None and origin is not Mapping:
            return build(note.class_of(value, {}, where), value, where)
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


def filled(
    cls: type,
    config: Mapping[str, Any] | ml_collections.ConfigDict,
    where: str = "config",
    *,
    given: Collection[str] = (),
    missing: Any = None,
    owners: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Returns all fields of the dataclass `cls` as plain values, in order of declaration.

    Args:
      config: the fields that are set; the others get their defaults.
      given: fields of `cls` that do not come from the config.
      missing: value of unset fields without a default; None omits them.
      owners: dict that is filled with the name of the dataclass of each field, by path.

    Raises:
      ConfigError: a field is unknown, or the class of a block cannot be found. Values are not
        checked; `build` does that.
    """
    values = plain(config)
    filling = _Filling(missing, {} if owners is None else owners)
    return filling.block(cls, given, values, values, where)


def comparable(cls: type, config: Any, like: Mapping[str, Any]) -> Any:
    """Normalizes a config, which may come from another version, for comparison with `like`.

    Omitted fields get their defaults, so a config that states a default equals one that omits it.
    Only classes named by `like` are imported, never classes named only by `config`. Fields that
    are unknown to `like` are kept unchanged. A block that represents several (see `Block.views`)
    becomes a mapping of dotted names to the common value, or to {view: value} if values differ.

    Args:
      cls: the dataclass of the whole config.
      config: plain values.
      like: plain values of the current config; `comparable(cls, like, like)` normalizes it.
    """
    config = plain(config)
    if not isinstance(config, Mapping):
        return config
    return _Filling(lenient=True).block(cls, (), config, plain(like), "config")


@dataclasses.dataclass(frozen=True)
class _Filling:
    """Fills in defaults; see `filled` and `comparable`."""

    missing: Any = None
    owners: dict[str, str] = dataclasses.field(default_factory=dict)
    lenient: bool = False

    def block(
        self, cls: Any, given: Collection[str], values: Any, like: Mapping[str, Any], where: str
    ) -> dict[str, Any]:
        """Fills a block of `cls`. like: the block that selects the classes of nested blocks."""
        _check_block(values, where)
        hints, fields = field_types(cls), fields_of(cls, given)
        made = {"type": current_path(values["type"])} if "type" in values else {}
        for name, field in fields.items():
            default = _default(field)
            if name in values:
                value = _over_default(field, values[name])
            elif default is not dataclasses.MISSING:
                value = default
            elif self.missing is None:
                continue
            else:
                value = {} if dataclasses.is_dataclass(hints[name]) else self.missing
            self.owners[f"{where}.{name}"] = cls.__name__
            inside = like.get(name, value)
            made[name] = self.value(hints[name], value, values, inside, like, f"{where}.{name}")
        for name, value in values.items():
            if name not in made:
                if not self.lenient:
                    check_known(name, cls, fields, where)
                made[name] = value
        return made

    def value(
        self, hint: Any, value: Any, around: Any, like: Any, around_like: Any, where: str
    ) -> Any:
        """Fills the defaults of the blocks in the value of a field."""
        if not (isinstance(value, Mapping) and isinstance(like, Mapping)):
            return value
        note = block_note(hint)
        if note is not None and note.views is not None:
            if not self.lenient:
                return value
            views, likes = note.views(value, around), note.views(like, around_like)
            whole = Annotated[Mapping[str, Any], dataclasses.replace(note, views=None)]
            return _merged(
                {
                    name: self.value(whole, view, around, likes.get(name), around_like, where)
                    for name, view in views.items()
                }
            )
        if note is None and (item := item_hint(hint)) is not None:
            return {
                name: self.value(item, inner, value, like.get(name), like, f"{where}.{name}")
                for name, inner in value.items()
            }
        cls, given = class_inside(hint, like, around_like, where)
        if cls is None or (self.lenient and _type_of(value) != _type_of(like)):
            return value
        return self.block(cls, given, value, like, where)


def _merged(views: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Maps dotted names to the value common to all views, or to {view: value}."""
    flat = {name: flattened(view) for name, view in views.items()}
    merged: dict[str, Any] = {}
    for path in dict.fromkeys(path for view in flat.values() for path in view):
        values = {name: view[path] for name, view in flat.items() if path in view}
        first = next(iter(values.values()))
        same = len(values) == len(flat) and all(value == first for value in values.values())
        merged[path] = first if same else values
    return merged


def flattened(block: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Maps dotted names to values; an empty block counts as a value."""
    flat: dict[str, Any] = {}
    for name, value in block.items():
        inside = isinstance(value, Mapping) and value
        flat |= flattened(value, f"{prefix}{name}.") if inside else {f"{prefix}{name}": value}
    return flat


def overlaid(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Merges `changes` into `base` recursively; a block with another `type` replaces the old one.

    Fields of one type do not carry over to another.
    """
    made = dict(base)
    for name, value in changes.items():
        old = base.get(name)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            same = "type" not in value or _type_of(value) == _type_of(old)
            value = overlaid(old, value) if same else value
        made[name] = value
    return made


def size_of(sizes: Collection[str], wanted: str) -> str:
    """Checks the size requested after the colon of --config, and returns it."""
    if wanted not in sizes:
        raise ConfigError(f"--config: unknown size '{wanted}'; choose from {', '.join(sizes)}")
    return wanted


def plain(config: Any) -> Any:
    """Converts a ConfigDict to plain values; returns other values unchanged."""
    return config.to_dict() if isinstance(config, ml_collections.ConfigDict) else config


def fields_of(cls: Any, given: Collection[str] = ()) -> dict[str, Any]:
    """Returns the fields of a dataclass that come from a config, by name."""
    return {f.name: f for f in dataclasses.fields(cls) if f.init and f.name not in given}


def check_known(name: str, cls: Any, fields: Collection[str], where: str) -> None:
    if name not in fields:
        hint = _did_you_mean(name, sorted(fields))
        raise ConfigError(f"{where}.{name}: unknown field of {cls.__name__}{hint}")


def _default(field: Any) -> Any:
    """Returns the default of a field as plain values, or MISSING if it has none."""
    value = field.default
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    made = dataclasses.is_dataclass(value) and not isinstance(value, type)
    return dataclasses.asdict(value) if made else value


def _over_default(field: Any, value: Any) -> Any:
    """Merges a block into the default of its field, if that is a block too."""
    default, value = _default(field), plain(value)
    both = isinstance(value, Mapping) and isinstance(default, Mapping)
    return overlaid(default, value) if both else value


def block_note(hint: Any) -> Block | None:
    """Returns the Block with which a type is annotated, or None."""
    notes = typing.get_args(hint)[1:] if typing.get_origin(hint) is Annotated else ()
    return next((note for note in notes if isinstance(note, Block)), None)


def item_hint(hint: Any) -> Any:
    """Returns the value type of a mapping type; None for other types."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Mapping:
        return arguments[1]
    if origin in (typing.Union, types.UnionType, Annotated):
        options = arguments[:1] if origin is Annotated else arguments
        return next((found for o in options if (found := item_hint(o)) is not None), None)
    return None


def class_inside(
    hint: Any, block: Any, around: Mapping[str, Any], where: str
) -> tuple[Any, tuple[str, ...]]:
    """Returns the dataclass of a block, and its fields that do not come from the config.

    Returns None as the dataclass if the type is not a block.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if (note := block_note(hint)) is not None:
        return note.class_of(block, around, where), note.given
    if origin is Annotated:
        return class_inside(arguments[0], block, around, where)
    if origin in (typing.Union, types.UnionType):
        options = [class_inside(option, block, around, where) for option in arguments]
        return next((found for found in options if found[0] is not None), (None, ()))
    return (hint if dataclasses.is_dataclass(hint) else None), ()


def quoted(value: Any) -> str:
    """Formats a value for a one-line message."""
    try:
        text = repr(value)
    except ValueError:  # Python refuses to format integers with many digits
        return "a number with thousands of digits"
    return text if len(text) <= 100 else f"{text[:100]}..."


def field_types(cls: Any) -> dict[str, Any]:
    """Returns the types of the fields of a dataclass, including annotations."""
    return typing.get_type_hints(cls, include_extras=True)


def _did_you_mean(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean '{close[0]}'?" if close else f"; known: {', '.join(known)}"
