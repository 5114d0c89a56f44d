"""From a config, plain data, to the frozen dataclasses that the code is built from.

A config states what is different: every field that it leaves out has the default of its dataclass.
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

# Whether the classes to import are named by a run that is being opened, and from which modules
# such a run may name them.
_OPENING = contextvars.ContextVar("opening", default=False)
_ALLOWED = contextvars.ContextVar[tuple[str, ...]]("allowed", default=("lmjax",))


# Modules that were renamed; runs and configs of earlier versions name them.
_RENAMED = {
    "lmjax.objectives.identified": "lmjax.objectives.electra_mlm",
    "lmjax.objectives.replaced": "lmjax.objectives.rtd",
}
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


@dataclasses.dataclass(frozen=True)
class Block:
    """Marks a field whose value is a block of fields of a class that the config chooses.

    `Annotated[Examples, Block()]` is built. `Annotated[Mapping[str, Any], Block(...)]` stays a
    mapping of plain values: building it takes more than the config.

    Attributes:
      kind: a class, or a union of classes, of which the class that the block's `type` names is to
        be a subclass.
      given: fields of the class that do not come from the config.
      find: (block, the fields around it, path of the block) -> the class, where it is not named by
        a `type` in the block.
      views: (block, the fields around it) -> the whole blocks that it stands for, by name. Such a
        block states what they share, and is not filled with defaults itself.
    """

    kind: Any = object
    given: tuple[str, ...] = ()
    find: Callable[[Mapping[str, Any], Mapping[str, Any], str], type] | None = None
    views: Callable[[Mapping[str, Any], Mapping[str, Any]], Mapping[str, Any]] | None = None

    def class_of(self, block: Any, around: Mapping[str, Any], where: str) -> Any:
        """The dataclass whose fields `block` has. Raises ConfigError."""
        if self.find is None:
            return resolve_type(block, where, self.kind)
        _check_block(block, where)
        return self.find(block, around, where)


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

    return {name: hint for name, hint in field_types(cls).items() if states(hint)}


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
        raise ConfigError(f"{where}: '{path}' is no {'class' if kind is object else names}")
    _check_allowed(found.__module__, path, where)
    return found


def current_path(path: Any) -> Any:
    """The import path of a class whose module may have been renamed."""
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
    """Every field of the dataclass `cls` as plain values, in the order of its declaration.

    Args:
      config: the fields that are stated; the others are at their defaults.
      given: fields of `cls` that do not come from the config.
      missing: stands for a field without a default that is not stated; None leaves it out.
      owners: gets the name of the dataclass of each field, by its path.

    Raises:
      ConfigError: a field is unknown, or the class of a block cannot be found. Values are not
        checked: `build` does that.
    """
    values = plain(config)
    filling = _Filling(missing, {} if owners is None else owners)
    return filling.block(cls, given, values, values, where)


def comparable(cls: type, config: Any, like: Mapping[str, Any]) -> Any:
    """The fields of a config that another program may have stored, to be compared with `like`.

    Fields that it leaves out are at their defaults, so that a config that states a default equals
    one that does not. Classes are those that `like` names: none that only `config` names is
    imported. What `like` has no place for stays as it is. A block that stands for several (see
    `Block.views`) has values by dotted name: those of all, or {name of the view: its value}.

    Args:
      cls: the dataclass of the whole config.
      config: plain values.
      like: plain values of the config that runs now; itself it gives what to compare with.
    """
    config = plain(config)
    if not isinstance(config, Mapping):
        return config
    return _Filling(lenient=True).block(cls, (), config, plain(like), "config")


@dataclasses.dataclass(frozen=True)
class _Filling:
    """How defaults are filled in; see `filled` and `comparable`."""

    missing: Any = None
    owners: dict[str, str] = dataclasses.field(default_factory=dict)
    lenient: bool = False

    def block(
        self, cls: Any, given: Collection[str], values: Any, like: Mapping[str, Any], where: str
    ) -> dict[str, Any]:
        """A block of `cls`. like: the block that chooses the classes of the blocks inside."""
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
        """The value of a field with this type, with the defaults of the blocks in it."""
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
    """By dotted name, the value that all views have, or else {view: its value}."""
    flat = {name: flattened(view) for name, view in views.items()}
    merged: dict[str, Any] = {}
    for path in dict.fromkeys(path for view in flat.values() for path in view):
        values = {name: view[path] for name, view in flat.items() if path in view}
        first = next(iter(values.values()))
        same = len(values) == len(flat) and all(value == first for value in values.values())
        merged[path] = first if same else values
    return merged


def flattened(block: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by their dotted names; an empty block is a value."""
    flat: dict[str, Any] = {}
    for name, value in block.items():
        inside = isinstance(value, Mapping) and value
        flat |= flattened(value, f"{prefix}{name}.") if inside else {f"{prefix}{name}": value}
    return flat


def overlaid(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `changes` laid over it, block by block; a block of another `type` replaces it.

    A field of one type says nothing of the fields of another.
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
    """The size that a config file was asked for after the colon, checked."""
    if wanted not in sizes:
        raise ConfigError(f"--config: no size '{wanted}'; sizes: {', '.join(sizes)}")
    return wanted


def plain(config: Any) -> Any:
    """The plain values of a ConfigDict."""
    return config.to_dict() if isinstance(config, ml_collections.ConfigDict) else config


def fields_of(cls: Any, given: Collection[str] = ()) -> dict[str, Any]:
    """The fields of a dataclass that come from a config."""
    return {f.name: f for f in dataclasses.fields(cls) if f.init and f.name not in given}


def check_known(name: str, cls: Any, fields: Collection[str], where: str) -> None:
    if name not in fields:
        hint = _did_you_mean(name, sorted(fields))
        raise ConfigError(f"{where}.{name}: unknown field of {cls.__name__}{hint}")


def _default(field: Any) -> Any:
    """The default of a field, plain where it is a dataclass; MISSING if it has none."""
    value = field.default
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    made = dataclasses.is_dataclass(value) and not isinstance(value, type)
    return dataclasses.asdict(value) if made else value


def _over_default(field: Any, value: Any) -> Any:
    """A block that states some fields of one whose default is a block, too."""
    default, value = _default(field), plain(value)
    both = isinstance(value, Mapping) and isinstance(default, Mapping)
    return overlaid(default, value) if both else value


def block_note(hint: Any) -> Block | None:
    """The Block that a type is annotated with."""
    notes = typing.get_args(hint)[1:] if typing.get_origin(hint) is Annotated else ()
    return next((note for note in notes if isinstance(note, Block)), None)


def item_hint(hint: Any) -> Any:
    """The type of the values of a mapping by name; None for what is no such mapping."""
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
    """The dataclass whose fields a block has, and which of them do not come from the config.

    None for a type that is no block.
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
    """A value for a message of one line."""
    try:
        text = repr(value)
    except ValueError:  # Python refuses to write integers of many digits
        return "a number of thousands of digits"
    return text if len(text) <= 100 else f"{text[:100]}..."


def field_types(cls: Any) -> dict[str, Any]:
    """The types of the fields of a dataclass, with their annotations."""
    return typing.get_type_hints(cls, include_extras=True)


def _did_you_mean(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean '{close[0]}'?" if close else f"; known: {', '.join(known)}"
