"""Configs become dataclasses, or say in one line why not."""

import dataclasses
import importlib
import math
import pathlib
import re
import typing
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import ml_collections
import pytest

import lmjax
from lmjax.configuration import (
    Interval,
    Seed,
    allowing,
    build,
    build_typed,
    check_ranges,
    opening,
    resolve,
)
from lmjax.convert.ngrams import NgramTraining
from lmjax.data.examples import ElectraPairs, Packed, SegmentPairs, SegmentStream
from lmjax.data.rows import RowsConfig
from lmjax.data.store import DataConfig
from lmjax.data.tokenizers import TokenizerConfig
from lmjax.errors import ConfigError
from lmjax.evaluation.prompting import PromptingConfig, Template
from lmjax.generation.settings import GenerationConfig
from lmjax.lab.budget import Budget
from lmjax.lab.measures import Measure
from lmjax.lab.plan import AblationConfig, Published, Scaling, VariantConfig
from lmjax.lab.search import SearchConfig
from lmjax.lab.sequential import Sequential
from lmjax.models.family import ModelConfig
from lmjax.models.ngram import NgramConfig
from lmjax.nn.lora import LoraConfig
from lmjax.nn.trunk import TransformerConfig
from lmjax.objectives.base import Objective
from lmjax.tasks.plan import FinetuneConfig, FinetuningConfig, MultitaskConfig, TaskConfig
from lmjax.training.optimizers import OptimizerConfig
from lmjax.training.plan import PretrainConfig, PretrainingData, TrainingConfig
from lmjax.training.sharding import MeshConfig


@dataclasses.dataclass(frozen=True)
class Inner:
    width: int
    rate: float = 0.5

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ConfigError(f"width: must be at least 1, got {self.width}")


@dataclasses.dataclass(frozen=True)
class Outer:
    inner: Inner
    name: str = "a"
    kind: Literal["x", "y"] = "x"
    sizes: tuple[int, ...] = (1,)
    limit: int | None = None
    flag: bool = False
    given: Any = None


GOOD: dict[str, Any] = {"inner": {"width": 3}}


def test_builds_nested_dataclasses_with_defaults() -> None:
    assert build(Outer, GOOD, "config") == Outer(Inner(3))


def test_whole_numbers_are_floats_too_and_lists_are_tuples() -> None:
    built = build(Outer, {"inner": {"width": 3, "rate": 1}, "sizes": [1, 2]}, "config")
    assert built.inner.rate == 1.0
    assert isinstance(built.inner.rate, float)
    assert built.sizes == (1, 2)


def test_given_fields_do_not_come_from_the_config() -> None:
    assert build(Outer, GOOD, "config", given=7).given == 7
    with pytest.raises(ConfigError, match=r"config\.given: unknown"):
        build(Outer, {**GOOD, "given": 1}, "config", given=7)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nmae": "b"}, r"config\.nmae: unknown field of Outer; did you mean 'name'\?"),
        ({"inner": {"widht": 3}}, r"config\.inner\.widht: .*'width'"),
        ({"inner": {}}, r"config\.inner\.width: missing"),
        ({"inner": {"width": 0}}, r"config\.inner\.width: must be at least 1"),
        ({"inner": {"width": 2.0}}, r"config\.inner\.width: expected int, got 2\.0"),
        ({"inner": {"width": True}}, r"config\.inner\.width: expected int"),
        ({"inner": 3}, r"config\.inner: expected a block"),
        ({"name": 3}, r"config\.name: expected str"),
        ({"flag": 1}, r"config\.flag: expected bool"),
        ({"kind": "z"}, r"config\.kind: 'z' is not one of 'x', 'y'"),
        ({"sizes": 3}, r"config\.sizes: expected a tuple"),
        ({"sizes": (1, "b")}, r"config\.sizes\[1\]: expected int"),
        ({"limit": "b"}, r"config\.limit: expected int"),
    ],
)
def test_mistakes_are_told_in_one_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(Outer, {**GOOD, **change}, "config")
    assert re.search(message, str(caught.value))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("block", [None, 3, "a", ["a"]])
def test_what_is_no_block_of_fields_is_refused(block: Any) -> None:
    for read in (lambda: build(Outer, block, "config"), lambda: build_typed(block, "config")):
        with pytest.raises(ConfigError, match="config: expected a block of fields"):
            read()


def test_reads_config_dicts() -> None:
    assert build(Outer, ml_collections.ConfigDict(GOOD), "config") == Outer(Inner(3))


@dataclasses.dataclass(frozen=True)
class Ranged:
    share: Annotated[float, Interval("[0, 1)")] = 0.5
    tiny: Annotated[float, Interval("(0, inf)")] = 1.0
    size: Annotated[int, Interval("[1, 2**20]")] = 1
    rates: tuple[Annotated[float, Interval("[0, 1]")], ...] = ()
    bare: float = 0.0
    numbers: Mapping[str, float] = dataclasses.field(default_factory=dict)
    many: int = 0
    seed: Seed = 0

    def __post_init__(self) -> None:
        check_ranges(self)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("share", math.nan, "share: must be a finite number, got nan"),
        ("share", -0.1, r"share: must lie in \[0, 1\), got -0.1"),
        ("share", 1, r"share: must lie in \[0, 1\), got 1.0"),
        ("share", 0.99999999, r"share: must lie in \[0, 1\)"),  # 1 in float32
        ("tiny", 0.0, "tiny: must be positive, got 0.0"),
        ("tiny", 1e-50, "tiny: must be positive"),  # 0 in float32
        ("tiny", math.inf, "tiny: must be a finite number, got inf"),
        ("tiny", 1e50, "tiny: must be a finite number, got 1e\\+50"),  # no float32
        ("tiny", 10**400, "tiny: must be a finite number, got inf"),
        ("tiny", "0.1", "tiny: expected float"),
        ("tiny", True, "tiny: expected float"),
        ("size", 0, "size: must be at least 1, got 0"),
        ("size", 2**20 + 1, r"size: must lie in \[1, 2\*\*20\], got 1048577"),
        ("size", 1.0, "size: expected int"),
        ("rates", [0.5, math.nan], r"rates\[1\]: must be a finite number"),
        ("rates", (0.5, 2.0), r"rates\[1\]: must lie in \[0, 1\]"),
        ("bare", -math.inf, "bare: must be a finite number, got -inf"),
        ("numbers", {"a": math.nan}, "numbers.a: must be a finite number"),
        ("numbers", 3, "numbers: expected a block"),
        ("many", 2**31, r"many: must lie in \(-2\*\*31, 2\*\*31\), got 2147483648"),
        ("many", -(10**400), "many: must "),
        ("seed", 2**32, r"seed: must lie in \[0, 2\*\*32\)"),
    ],
)
def test_numbers_out_of_range_are_refused_whoever_makes_the_config(
    field: str, value: Any, message: str
) -> None:
    with pytest.raises(ConfigError, match=rf"^config\.{message}"):
        build(Ranged, {field: value}, "config")
    if field not in ("bare", "numbers", "many"):  # which state no interval
        with pytest.raises(ConfigError, match=rf"^{message.replace('1.0', '1')}"):
            Ranged(**{field: value})
        with pytest.raises(ConfigError):
            dataclasses.replace(Ranged(), **{field: value})


def test_numbers_at_the_ends_are_taken() -> None:
    good = {"share": 0, "tiny": 1e-30, "size": 2**20, "rates": [0, 1.0], "seed": 2**32 - 1}
    made = build(Ranged, good, "config")
    assert (made.share, made.tiny, made.size, made.rates) == (0.0, 1e-30, 2**20, (0.0, 1.0))
    assert isinstance(made.share, float) and isinstance(made.rates[0], float)


def configs() -> list[type]:
    """Every dataclass of lmjax that is built from the fields of a config."""
    found: list[type] = [
        *(TransformerConfig, DataConfig, TokenizerConfig, RowsConfig, OptimizerConfig),
        *(TrainingConfig, MeshConfig, FinetuningConfig, LoraConfig, Budget, Published, Scaling),
        *(Template, GenerationConfig, SegmentPairs, ElectraPairs, SegmentStream, Packed),
        *(PretrainConfig, PretrainingData, FinetuneConfig, TaskConfig, MultitaskConfig),
        *(AblationConfig, VariantConfig, SearchConfig, PromptingConfig, Sequential),
        *(NgramConfig, NgramTraining),
    ]
    for room in ("models", "objectives", "tasks"):
        for module in (pathlib.Path(lmjax.__path__[0]) / room).glob("*.py"):
            importlib.import_module(f"lmjax.{room}.{module.stem}".removesuffix(".__init__"))
    kinds: list[type] = [ModelConfig, Objective, Measure]
    while kinds:
        kind = kinds.pop()
        kinds += [sub for sub in kind.__subclasses__() if sub.__module__.startswith("lmjax.")]
        found.append(kind)
    return found


def bare_numbers(hint: Any) -> bool:
    """Whether a type has numbers that state no interval."""
    if typing.get_origin(hint) is Annotated:
        stated = any(isinstance(note, Interval) for note in hint.__metadata__)
        return not stated and bare_numbers(hint.__origin__)
    return hint in (int, float) or any(map(bare_numbers, typing.get_args(hint)))


@pytest.mark.parametrize("cls", configs(), ids=lambda cls: cls.__name__)
def test_every_number_of_every_config_states_its_interval(cls: type) -> None:
    for name, hint in typing.get_type_hints(cls, include_extras=True).items():
        if typing.get_origin(hint) is not ClassVar:
            assert not bare_numbers(hint), name


def test_optional_takes_none_and_its_type() -> None:
    assert build(Outer, {**GOOD, "limit": None}, "config").limit is None
    assert build(Outer, {**GOOD, "limit": 3}, "config").limit == 3


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("Name", "not an import path"),
        ("..Name", "not an import path"),
        ("lmjax.", "not an import path"),
        (3, "not an import path"),
        ("no.such.module.Name", "cannot import 'no.such.module'"),
        ("lmjax.errors.ConfigErorr", "did you mean 'ConfigError'"),
    ],
)
def test_bad_import_paths(path: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve(path, "config.objective.type")


def test_type_chooses_the_dataclass() -> None:
    mapping = {"type": f"{__name__}.Inner", "width": 2}
    assert build_typed(mapping, "config") == Inner(2)
    with pytest.raises(ConfigError, match="is not a dataclass"):
        build_typed({"type": "lmjax.errors.ConfigError"}, "config")
    with pytest.raises(ConfigError, match=r"config\.type: missing"):
        build_typed({}, "config")


def test_a_class_is_of_the_kind_that_is_asked_for() -> None:
    assert resolve("lmjax.models.gpt.GptConfig", "config.x", ModelConfig).__name__ == "GptConfig"
    for path, kind in (
        ("lmjax.models.gpt.GptConfig", Objective),
        ("lmjax.objectives.base.apply", Objective),  # a function
        ("lmjax.load", object),
        ("os.path", object),  # a module
    ):
        with pytest.raises(ConfigError, match=rf"config\.x: '{path}' is not a "):
            resolve(path, "config.x", kind)


def test_of_a_run_that_is_opened_only_allowed_modules_are_imported() -> None:
    with opening():
        assert resolve("lmjax.models.gpt.GptConfig", "x").__module__ == "lmjax.models.gpt"
        for path in ("os.path", f"{__name__}.Inner", "lmjaxes.X", "lmjax.errors.typing.Any"):
            with pytest.raises(ConfigError):
                resolve(path, "x")
        # What lmjax has imported from elsewhere is not lmjax's.
        with pytest.raises(ConfigError, match="is not of lmjax"):
            resolve("lmjax.training.loop.Protocol", "x")
        with allowing([__name__.split(".")[0]]):
            assert resolve(f"{__name__}.Inner", "x") is Inner
    assert resolve(f"{__name__}.Inner", "x") is Inner  # a user's own config


@pytest.mark.parametrize("name", ["intents.Intents", "mood.Mood"])
def test_a_class_that_was_replaced_is_refused_with_the_remedy(name: str) -> None:
    message = rf"task\.json: task\.type: 'lmjax\.tasks\.{name}' has been replaced; use .*pydocs"
    with pytest.raises(ConfigError, match=message):
        build_typed({"type": f"lmjax.tasks.{name}"}, "task.json: task")


def test_a_class_whose_module_was_renamed_is_found_by_its_earlier_path() -> None:
    found = resolve("lmjax.objectives.replaced.ReplacedTokenDetection", "config.x", Objective)
    assert found.__module__ == "lmjax.objectives.rtd"
