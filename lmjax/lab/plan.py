"""The config of an ablation, read and checked as a whole before anything is trained."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import ml_collections

from lmjax.configuration import Block, Finite, Interval, build, overlaid
from lmjax.errors import ConfigError
from lmjax.lab.budget import Budget
from lmjax.lab.measures import Measure
from lmjax.objectives.base import Objective
from lmjax.training.plan import PretrainConfig, make_plan


@dataclasses.dataclass(frozen=True)
class Variant:
    """One of the things compared.

    Attributes:
      description: what is different.
      config: of pretraining. The budget sets its steps, and the cell its seed.
    """

    description: str
    config: ml_collections.ConfigDict


@dataclasses.dataclass(frozen=True)
class Published:
    """The paper's numbers.

    Attributes:
      source: paper and table.
      measure: what its numbers are.
      direction: which of them are better.
      compare_to: the name of the measure here to compare with.
      values: by variant; variants without one are left out.
    """

    source: str
    measure: str
    direction: Literal["higher", "lower"]
    compare_to: str
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


# Fields of earlier versions.
_RENAMED = {"says": "description", "better": "direction", "beside": "compare_to"}


def updated_names(fields: Any) -> Any:
    """A block with the names that its fields have now."""
    if not isinstance(fields, Mapping):
        return fields
    return {_RENAMED.get(name, name): value for name, value in fields.items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComparisonConfig:
    """What the configs of an ablation and of a search have in common.

    Attributes:
      name: of the comparison, for its report.
      question: that it answers.
      seeds: how many each variant is trained with.
      comparable_losses: whether the variants' held-out losses are of the same targets.
      budget: of each variant and seed.
      measures: by name; see `lmjax.lab.measures`.
    """

    @classmethod
    def updated(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """A stored config with the fields that earlier versions called otherwise."""
        blocks = {"published": updated_names(values.get("published") or {})}
        for name in ("variants", "measures"):
            inner = values.get(name, {})
            blocks[name] = {key: updated_names(block) for key, block in inner.items()}
        return {**values, **{name: block for name, block in blocks.items() if name in values}}

    name: str
    question: str
    seeds: Annotated[int, Interval("[1, 1000]")] = 3
    comparable_losses: bool = True
    budget: Budget
    measures: Mapping[str, Annotated[Measure, Block(Measure)]]


@dataclasses.dataclass(frozen=True)
class VariantConfig:
    """A variant in a config.

    Attributes:
      description: what is different, in words.
      changes: what is laid over the config of pretraining.
    """

    description: str
    changes: Mapping[str, Any]


def _runs(pretraining: Mapping[str, Any], around: Mapping[str, Any]) -> dict[str, Any]:
    """The config of pretraining of each variant."""
    blocks = {
        name: variant["changes"]
        for name, variant in around.get("variants", {}).items()
        if isinstance(variant, Mapping) and isinstance(variant.get("changes"), Mapping)
    }
    return {name: overlaid(pretraining, changes) for name, changes in blocks.items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class AblationConfig(ComparisonConfig):
    """The config of an ablation.

    Attributes:
      base: the variant that the others are compared with.
      pretraining: what the variants share of a config of pretraining.
      variants: by name.
      published, scaling: what the results are compared with.
    """

    # What a resumed ablation may change: more seeds are more cells. Earlier versions had the field
    # `seeds_together`.
    MAY_CHANGE: ClassVar[tuple[str, ...]] = ("seeds", "seeds_together")

    base: str
    pretraining: Annotated[Mapping[str, Any], Block(find=lambda *_: PretrainConfig, views=_runs)]
    variants: Mapping[str, VariantConfig]
    published: Published | None = None
    scaling: Scaling | None = None


@dataclasses.dataclass(frozen=True)
class Ablation:
    """A config as typed parts; its cells are the variants times the seeds.

    Attributes:
      base: the variant that the others are compared with.
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
            "variants": {
                name: {"description": variant.description}
                for name, variant in self.variants.items()
            },
            "measures": [
                {
                    "name": name,
                    "description": measure.description,
                    "direction": measure.direction,
                    "percent": measure.percent,
                }
                for name, measure in self.measures.items()
            ],
            "published": self.published and dataclasses.asdict(self.published),
            "scaling": self.scaling and dataclasses.asdict(self.scaling),
        }


def read_ablation(config: ml_collections.ConfigDict) -> Ablation:
    """Checks every variant's config, and every measure; trains and writes nothing.

    Raises:
      ConfigError: names the field.
    """
    refuse_retired_fields(config)
    own = build(AblationConfig, config, "config")
    for field in ("name", "question", "base"):
        if not getattr(own, field):
            raise ConfigError(f"config.{field}: empty; give a text")
    variants = {
        name: _variant(name, variant, own.pretraining) for name, variant in own.variants.items()
    }
    if own.base not in variants:
        raise ConfigError(
            f"config.base: '{own.base}' is none of the variants ({', '.join(variants)})"
        )
    measures = {}
    for name, measure in own.measures.items():
        try:
            measure.check()
        except ConfigError as error:
            raise ConfigError(f"config.measures.{name}: {error}") from error
        if measure.wanted:
            _check_models(name, measure, variants)
            measures[name] = measure
    if not measures:
        raise ConfigError("config.measures: none; a table has at least one column")
    if own.published:
        for given, known, field in (
            ([own.published.compare_to], measures, "compare_to"),
            (own.published.values, variants, "values"),
        ):
            if odd := [name for name in given if name not in known]:
                raise ConfigError(
                    f"config.published.{field}: '{odd[0]}' is none of {', '.join(known)}"
                )
    if own.scaling and own.scaling.measure not in measures:
        raise ConfigError(
            f"config.scaling.measure: '{own.scaling.measure}' is none of {', '.join(measures)}"
        )
    return Ablation(
        name=own.name,
        question=own.question,
        base=own.base,
        seeds=tuple(range(own.seeds)),
        comparable_losses=own.comparable_losses,
        budget=own.budget,
        variants=variants,
        measures=measures,
        published=own.published,
        scaling=own.scaling,
    )


def refuse_retired_fields(config: Any) -> None:
    """Refuses fields of earlier versions.

    Raises:
      ConfigError: names the field.
    """
    if "seeds_together" in config:
        raise ConfigError(
            "config.seeds_together: no longer supported; delete the field, seeds train one after"
            " the other"
        )


def _variant(name: str, own: VariantConfig, pretraining: Mapping[str, Any]) -> Variant:
    config = ml_collections.ConfigDict(overlaid(pretraining, own.changes))
    try:
        make_plan(config)
    except ConfigError as error:
        raise ConfigError(f"config.variants.{name}, with its changes: {error}") from error
    return Variant(own.description, config)


def _check_models(name: str, measure: Measure, variants: Mapping[str, Variant]) -> None:
    """Refuses objectives whose models a measure could not open, before they are trained."""
    for which, variant in variants.items():
        objective = make_plan(variant.config).objective
        if measure.opens_model and type(objective).network is Objective.network:
            raise ConfigError(
                f"config.variants.{which}: {type(objective).__name__} has no property `network`,"
                f" which the measure '{name}' takes the model from; give it one"
            )
