"""Results of an ablation's cells."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from lmjax.lab.plan import updated_names
from lmjax.lab.statistics import Difference, Interval, interval, paired


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

    def difference(self, variant: str, measure: str) -> Difference | None:
        """Returns the variant's difference to the base, over the seeds that both have."""
        own, base = self.values(variant, measure), self.values(self.base, measure)
        both = [seed for seed in own if seed in base]
        if not both or variant == self.base:
            return None
        return paired([own[seed] for seed in both], [base[seed] for seed in both])


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
