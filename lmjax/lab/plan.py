"""Configs of ablations, which are validated completely before training starts."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import ml_collections

from lmjax.configuration import Block, Finite, Interval, build, overlaid
from lmjax.errors import ConfigError
from lmjax.lab.budget import Budget
from lmjax.lab.measures import Measure
from lmjax.lab.sequential import Sequential
from lmjax.objectives.base import Objective
from lmjax.training.plan import PretrainConfig, make_plan


@dataclasses.dataclass(frozen=True)
class Variant:
    """A variant of an ablation.

    Attributes:
      description: the difference to other variants, in words.
      config: the pretraining config. The budget sets its steps, and the cell its seed.
    """

    description: str
    config: ml_collections.ConfigDict


@dataclasses.dataclass(frozen=True)
class Published:
    """Published results to compare with.

    Attributes:
      source: paper and table.
      measure: description of the paper's measure.
      direction: whether higher or lower values are better.
      compare_to: the name of the ablation's measure to compare with.
      values: the paper's values by variant; may omit variants.
    """

    source: str
    measure: str
    direction: Literal["higher", "lower"]
    compare_to: str
    values: Mapping[str, Finite]


@dataclasses.dataclass(frozen=True)
class Scaling:
    """A power law of a measure over the sizes of the variants.

    Attributes:
      measure: the name of the measure; its values must be positive, e.g. losses.
      over: the base of the power law, a field of `cost` in result.json.
      source, exponent: the paper and its exponent.
    """

    measure: str
    over: Literal["parameters", "trunk_parameters", "flops"]
    source: str
    exponent: Finite


# Fields of earlier versions.
_RENAMED = {"says": "description", "better": "direction", "beside": "compare_to"}


def updated_names(fields: Any) -> Any:
    """Renames the fields of a block that earlier versions called differently."""
    if not isinstance(fields, Mapping):
        return fields
    return {_RENAMED.get(name, name): value for name, value in fields.items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComparisonConfig:
    """Common fields of the configs of ablations and searches.

    Attributes:
      name: the name of the comparison, for its report.
      question: the question that it answers.
      seeds: number of seeds per variant.
      comparable_losses: whether the held-out losses of all variants have the same targets.
      budget: the budget of each variant and seed.
      measures: measures by name; see `lmjax.lab.measures`.
    """

    @classmethod
    def updated(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Renames the fields of a stored config that earlier versions called differently."""
        blocks = {"published": updated_names(values.get("published"))}
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
    """The config of a variant.

    Attributes:
      description: the difference to other variants, in words.
      changes: fields that override those of `pretraining`.
    """

    description: str
    changes: Mapping[str, Any]


def _runs(pretraining: Mapping[str, Any], around: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the pretraining config of each variant."""
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
      pretraining: the pretraining config that the variants share.
      variants: variants by name.
      published, scaling: published results to compare with.
      sequential: a rule by which variants get more seeds until they differ from the base; it
        replaces `seeds`.
    """

    # Fields that may change when an ablation is resumed: more seeds add cells. Earlier versions had
    # the field `seeds_together`.
    MAY_CHANGE: ClassVar[tuple[str, ...]] = ("seeds", "seeds_together")

    base: str
    pretraining: Annotated[Mapping[str, Any], Block(find=lambda *_: PretrainConfig, views=_runs)]
    variants: Mapping[str, VariantConfig]
    published: Published | None = None
    scaling: Scaling | None = None
    sequential: Sequential | None = None


@dataclasses.dataclass(frozen=True)
class Ablation:
    """The typed parts of a config; each pair of a variant and a seed is a cell.

    Attributes:
      base: the variant that the others are compared with.
      seeds: those of each variant, at most if there is a sequential rule.
      comparable_losses: whether the held-out losses of all variants have the same targets.
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
    sequential: Sequential | None = None

    def described(self, command: str) -> dict[str, Any]:
        """Returns the contents of ablation.json, which the report reads.

        Args:
          command: the command that runs the ablation.
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
                    "note": measure.note,
                }
                for name, measure in self.measures.items()
            ],
            "published": self.published and dataclasses.asdict(self.published),
            "scaling": self.scaling and dataclasses.asdict(self.scaling),
            "sequential": self.sequential and dataclasses.asdict(self.sequential),
        }


def read_ablation(config: ml_collections.ConfigDict) -> Ablation:
    """Checks the config of every variant and every measure, without training or writing files.

    Raises:
      ConfigError: a field is invalid.
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
            f"config.base: '{own.base}' is not one of the variants {', '.join(variants)}"
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
        raise ConfigError("config.measures: empty; give at least one")
    if own.published:
        for given, known, field in (
            ([own.published.compare_to], measures, "compare_to"),
            (own.published.values, variants, "values"),
        ):
            if odd := [name for name in given if name not in known]:
                raise ConfigError(
                    f"config.published.{field}: '{odd[0]}' is not one of {', '.join(known)}"
                )
    if own.scaling and own.scaling.measure not in measures:
        raise ConfigError(
            f"config.scaling.measure: '{own.scaling.measure}' is not one of {', '.join(measures)}"
        )
    seeds = own.seeds
    if own.sequential:
        if own.sequential.measure not in measures:
            raise ConfigError(
                f"config.sequential.measure: '{own.sequential.measure}' is not one of"
                f" {', '.join(measures)}"
            )
        if "seeds" in config:
            raise ConfigError(
                "config.seeds: the looks of config.sequential set the seeds; delete one of the two"
            )
        seeds = own.sequential.looks[-1]
    return Ablation(
        name=own.name,
        question=own.question,
        base=own.base,
        seeds=tuple(range(seeds)),
        comparable_losses=own.comparable_losses,
        budget=own.budget,
        variants=variants,
        measures=measures,
        published=own.published,
        scaling=own.scaling,
        sequential=own.sequential,
    )


def refuse_retired_fields(config: Any) -> None:
    """Rejects fields of earlier versions.

    Raises:
      ConfigError: the config has such a field.
    """
    if "seeds_together" in config:
        raise ConfigError(
            "config.seeds_together: no longer supported; delete the field, seeds train sequentially"
        )


def _variant(name: str, own: VariantConfig, pretraining: Mapping[str, Any]) -> Variant:
    config = ml_collections.ConfigDict(overlaid(pretraining, own.changes))
    try:
        make_plan(config)
    except ConfigError as error:
        raise ConfigError(f"config.variants.{name}, with its changes: {error}") from error
    return Variant(own.description, config)


def _check_models(name: str, measure: Measure, variants: Mapping[str, Variant]) -> None:
    """Rejects objectives whose models a measure could not open after training."""
    for which, variant in variants.items():
        objective = make_plan(variant.config).objective
        if measure.opens_model and type(objective).network is Objective.network:
            raise ConfigError(
                f"config.variants.{which}: {type(objective).__name__} has no property `network`,"
                f" which the measure '{name}' needs; add it"
            )
