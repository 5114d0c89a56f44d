"""An ablation's config, read and checked whole before anything is trained."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import ml_collections

from lmjax.configuration import Finite, Interval, build, build_typed, check_fields, convert, quoted
from lmjax.errors import ConfigError
from lmjax.lab.budget import Budget
from lmjax.lab.measures import Measure
from lmjax.training.plan import make_plan

FIELDS = (
    "name",
    "question",
    "base",
    "seeds",
    "comparable_losses",
    "budget",
    "pretraining",
    "variants",
    "measures",
)
_PLAIN = {
    "name": str,
    "question": str,
    "base": str,
    "seeds": Annotated[int, Interval("[1, 1000]")],
    "comparable_losses": bool,
}
# Fields that a resumed ablation may change: more seeds are more cells. `seeds_together` is a
# field of earlier versions, whose directories resume without it.
MAY_CHANGE = ("seeds", "seeds_together")


@dataclasses.dataclass(frozen=True)
class Variant:
    """One of what is compared.

    Attributes:
      says: what is different, in words.
      config: of pretraining, whose steps the budget says and whose seed the cell.
    """

    says: str
    config: ml_collections.ConfigDict


@dataclasses.dataclass(frozen=True)
class Published:
    """The paper's numbers.

    Attributes:
      source: paper and table.
      measure: what its numbers are.
      better: which end of it is.
      beside: the name of the measure here that they are held against.
      values: by variant; some may lack one.
    """

    source: str
    measure: str
    better: str
    beside: str
    values: Mapping[str, Finite]


@dataclasses.dataclass(frozen=True)
class Scaling:
    """A power law that the variants' sizes and a measure are to follow.

    Attributes:
      measure: its name; of losses, which are positive.
      over: what it is a power of, as result.json's `cost` has it.
      source, exponent: the paper's.
    """

    measure: str
    over: Literal["parameters", "trunk_parameters", "flops"]
    source: str
    exponent: Finite


@dataclasses.dataclass(frozen=True)
class Ablation:
    """A config as typed parts; its cells are the variants times the seeds.

    Attributes:
      base: the variant that the others are held against.
      comparable_losses: whether the variants' held-out losses are of the same targets.
    """

    name: str
    question: str
    base: str
    seeds: tuple[int, ...]
    comparable_losses: bool
    budget: Budget
    variants: Mapping[str, Variant]
    measures: Mapping[str, Measure]
    published: Published | None
    scaling: Scaling | None

    def described(self, command: str) -> dict[str, Any]:
        """What a report needs to know, as plain values (ablation.json).

        Args:
          command: that runs it.
        """
        return {
            "name": self.name,
            "question": self.question,
            "command": command,
            "budget": str(self.budget),
            "base": self.base,
            "seeds": list(self.seeds),
            "comparable_losses": self.comparable_losses,
            "variants": {name: {"says": v.says} for name, v in self.variants.items()},
            "measures": [
                {"name": name, "says": m.says, "better": m.better, "percent": m.percent}
                for name, m in self.measures.items()
            ],
            "published": self.published and dataclasses.asdict(self.published),
            "scaling": self.scaling and dataclasses.asdict(self.scaling),
        }


def read_ablation(config: ml_collections.ConfigDict) -> Ablation:
    """Checks every variant's config, and every measure; trains and writes nothing.

    Raises:
      ConfigError: names the field.
    """
    values = config.to_dict()
    refuse_retired_fields(values)
    check_fields(values, FIELDS, plain=_PLAIN, optional=("published", "scaling"))
    for name, hint in _PLAIN.items():
        if convert(values[name], hint, f"config.{name}") == "":
            raise ConfigError(f"config.{name}: empty; give a text")
    variants = {
        name: _variant(name, block, values["pretraining"])
        for name, block in values["variants"].items()
    }
    if values["base"] not in variants:
        raise ConfigError(
            f"config.base: '{values['base']}' is none of the variants ({', '.join(variants)})"
        )
    measures = {}
    for name, block in values["measures"].items():
        where = f"config.measures.{name}"
        measure: Measure = build_typed(block, where, Measure)
        try:
            measure.check()
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error
        if measure.wanted:
            _check_models(name, measure, variants)
            measures[name] = measure
    if not measures:
        raise ConfigError("config.measures: none; a table has at least one column")
    published = None
    if values.get("published"):
        published = build(Published, values["published"], "config.published")
        for given, known, field in (
            ([published.beside], measures, "beside"),
            (published.values, variants, "values"),
        ):
            if odd := [name for name in given if name not in known]:
                raise ConfigError(
                    f"config.published.{field}: '{odd[0]}' is none of {', '.join(known)}"
                )
    scaling = None
    if values.get("scaling"):
        scaling = build(Scaling, values["scaling"], "config.scaling")
        if scaling.measure not in measures:
            raise ConfigError(
                f"config.scaling.measure: '{scaling.measure}' is none of {', '.join(measures)}"
            )
    return Ablation(
        name=values["name"],
        question=values["question"],
        base=values["base"],
        seeds=tuple(range(values["seeds"])),
        comparable_losses=values["comparable_losses"],
        budget=build(Budget, values["budget"], "config.budget"),
        variants=variants,
        measures=measures,
        published=published,
        scaling=scaling,
    )


def refuse_retired_fields(values: Mapping[str, Any]) -> None:
    """Refuses fields of earlier versions.

    Raises:
      ConfigError: names the field.
    """
    if "seeds_together" in values:
        raise ConfigError(
            "config.seeds_together: no longer supported; delete the field, seeds train one after"
            " the other"
        )


def _variant(name: str, block: Any, pretraining: Mapping[str, Any]) -> Variant:
    where = f"config.variants.{name}"
    if not isinstance(block, Mapping) or set(block) != {"says", "changes"}:
        raise ConfigError(f"{where}: a variant has the fields says and changes")
    if not isinstance(block["changes"], Mapping):
        raise ConfigError(f"{where}.changes: expected a block, got {quoted(block['changes'])}")
    config = ml_collections.ConfigDict(overlaid(pretraining, block["changes"]))
    try:
        make_plan(config)
    except ConfigError as error:
        raise ConfigError(f"{where}, with its changes: {error}") from error
    return Variant(convert(block["says"], str, f"{where}.says"), config)


def _check_models(name: str, measure: Measure, variants: Mapping[str, Variant]) -> None:
    """Refuses objectives whose models a measure could not open, before they are trained."""
    for which, variant in variants.items():
        objective = make_plan(variant.config).objective
        if measure.opens_model and not hasattr(objective, "network"):
            raise ConfigError(
                f"config.variants.{which}: {type(objective).__name__} has no property `network`,"
                f" which the measure '{name}' takes the model from; give it one"
            )


def overlaid(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `changes` laid over it, block by block; a block with a `type` replaces its own.

    A field of one type says nothing of the fields of another.
    """
    made = dict(base)
    for name, value in changes.items():
        old = base.get(name)
        both = isinstance(value, Mapping) and isinstance(old, Mapping)
        made[name] = overlaid(old, value) if both and "type" not in value else value  # type: ignore[arg-type]
    return made
