"""Results of an ablation's cells."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from lmjax.errors import ConfigError, NonFiniteError
from lmjax.lab.plan import updated_names
from lmjax.lab.sequential import Sequential, at_look
from lmjax.lab.statistics import Difference, Interval, holm, interval, paired, significant


@dataclasses.dataclass(frozen=True)
class Results:
    """An ablation's description, and the results of its finished cells.

    Attributes:
      described: see `lmjax.lab.plan.Ablation.described`.
      cells: variant -> seed -> result.json, in the order of the description.
    """

    described: Mapping[str, Any]
    cells: Mapping[str, Mapping[int, Mapping[str, Any]]]

    @property
    def base(self) -> str:
        return self.described["base"]

    @property
    def measures(self) -> Sequence[Mapping[str, Any]]:
        return self.described["measures"]

    def measure(self, name: str) -> Mapping[str, Any]:
        return next(m for m in self.measures if m["name"] == name)

    @property
    def rule(self) -> Sequential | None:
        """The rule of a sequential ablation."""
        fields = self.described.get("sequential")
        return Sequential(**{**fields, "looks": tuple(fields["looks"])}) if fields else None

    def up_to(self, seeds: int) -> "Results":
        """Returns the results of the first seeds only."""
        first = {v: {s: c for s, c in own.items() if s < seeds} for v, own in self.cells.items()}
        return dataclasses.replace(self, cells=first)

    @property
    def done(self) -> int:
        return sum(map(len, self.cells.values()))

    @property
    def wanted(self) -> int:
        return len(self.described["variants"]) * len(self.described["seeds"])

    def values(self, variant: str, measure: str) -> dict[int, float]:
        """Returns seed -> value, without seeds that have none."""
        found = {seed: cell["measures"][measure] for seed, cell in self.cells[variant].items()}
        return {seed: value for seed, value in found.items() if value is not None}

    def interval(self, variant: str, measure: str) -> Interval | None:
        values = list(self.values(variant, measure).values())
        return interval(values) if values else None

    def pairs(self, variant: str, measure: str) -> dict[int, tuple[float, float]]:
        """Returns seed -> the values of the variant and of the base, of seeds that both have."""
        own, base = self.values(variant, measure), self.values(self.base, measure)
        return {seed: (own[seed], base[seed]) for seed in own if seed in base}

    def difference(self, variant: str, measure: str) -> Difference | None:
        """Returns the variant's difference to the base, over the seeds that both have.

        A sequential rule adjusts it for the looks, and it is that of the last look whose seeds
        both have; None before the first look.
        """
        pairs = self.pairs(variant, measure)
        if not pairs or variant == self.base:
            return None
        if self.rule is None:
            return paired(*zip(*pairs.values(), strict=True))
        reached = [n for n in self.rule.looks if set(range(n)) <= set(pairs)]
        if not reached:
            return None
        first = [pairs[seed] for seed in range(reached[-1])]
        return at_look(self.rule, len(reached) - 1, *zip(*first, strict=True))

    def tested(self, measure: str) -> dict[str, tuple[Difference, float]]:
        """Returns variant -> its difference and the p value corrected by Holm's method.

        With a sequential rule, Holm's method keeps its error rate when it corrects adjusted p
        values of different looks (Maurer & Bretz 2013, Statistics in Biopharmaceutical Research 5,
        311-320): variants stop at their own looks.
        """
        found = {
            name: difference
            for name in self.cells
            if (difference := self.difference(name, measure)) is not None
        }
        corrected = holm([difference.p for difference in found.values()])
        return {name: (d, p) for (name, d), p in zip(found.items(), corrected, strict=True)}

    def undecided(self) -> list[str]:
        """Returns the variants whose difference in the rule's measure is not significant.

        Raises:
          ConfigError: the measure does not apply to the base, or to some seeds only.
          NonFiniteError: a value is not finite.
        """
        assert self.rule is not None
        measure = self.rule.measure
        for name, cells in self.cells.items():
            values = self.values(name, measure)
            if len(values) < len(cells) and (values or name == self.base):
                raise ConfigError(
                    f"config.sequential.measure: '{measure}' has no value for some seeds of"
                    f" '{name}', so the rule cannot test it; choose another measure"
                )
            for seed, value in values.items():
                if not math.isfinite(value):
                    raise NonFiniteError(
                        f"{measure} of {name}, seed {seed}, is {value}: the rule cannot test it"
                    )
        return [name for name, (_, p) in self.tested(measure).items() if not significant(p)]


def read_results(directory: str | pathlib.Path) -> Results:
    """Reads ablation.json and every result.json of its variants and seeds."""
    place = pathlib.Path(directory)
    described = _renamed(json.loads((place / "ablation.json").read_text()))
    cells: dict[str, dict[int, Any]] = {}
    for name in described["variants"]:
        paths = {s: place / "cells" / name / f"seed{s}" / "result.json" for s in described["seeds"]}
        cells[name] = {s: json.loads(p.read_text()) for s, p in paths.items() if p.exists()}
    return Results(described, cells)


def _renamed(described: dict[str, Any]) -> dict[str, Any]:
    """Renames fields of earlier versions."""
    variants = {name: updated_names(block) for name, block in described["variants"].items()}
    return described | {
        "variants": variants,
        "measures": [updated_names(measure) for measure in described["measures"]],
        "published": described["published"] and updated_names(described["published"]),
    }
