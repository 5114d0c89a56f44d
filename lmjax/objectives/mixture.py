"""Mixtures of objectives that train one network."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Annotated, Any

import jax

from lmjax.configuration import Block, PositiveInt, build_typed
from lmjax.errors import ConfigError
from lmjax.models.family import ModelConfig
from lmjax.models.gpt import GptConfig
from lmjax.models.network import Network
from lmjax.nn.dropout import Seeds
from lmjax.nn.partition import split_rows
from lmjax.objectives.base import Batch, Objective, Scored, Sum


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Mixture(Objective):
    """Divides the rows of each batch among objectives; the loss is the weighted sum of theirs.

      config.objective = {
          "type": "lmjax.objectives.mixture.Mixture",
          "parts": {
              "causal": {"type": "lmjax.objectives.causal.CausalLM"},
              "masked": {"type": ..., **its fields},
          },
          "shares": {"causal": 1, "masked": 15},
      }

    Every update has the same number of rows of each part, so that a step costs what the parts
    cost on their rows, and the loss has no variance of the mixture. Metrics are named
    `part/metric`.

    Attributes:
      parts: by name, `type` and the fields of an objective. They must train the same parameters.
      shares: by name, integers in proportion to the rows, and to the weight of the loss, of each
        part; 1 if left out. A micro-batch must be a multiple of their sum.
    """

    default_model = GptConfig
    headline = "loss"

    model: ModelConfig
    parts: Mapping[
        str, Annotated[Mapping[str, Any], Block(Objective, given=("model", "vocabulary"))]
    ]
    shares: Mapping[str, PositiveInt] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.parts:
            raise ConfigError("parts: empty; give at least one objective")
        if odd := [name for name in self.shares if name not in self.parts]:
            raise ConfigError(f"shares.{odd[0]}: not one of the parts {', '.join(self.parts)}")
        for name, part in self.objectives.items():
            if "/" in name:
                raise ConfigError(f"parts.{name}: a name cannot contain '/'")
            if part.init_mems(1) is not None:
                raise ConfigError(
                    f"parts.{name}: {type(part).__name__} has a memory of earlier text, which a"
                    " mixture does not carry; set config.model.memory_length to 0"
                )

    @functools.cached_property
    def objectives(self) -> dict[str, Objective]:
        """The parts by name."""
        given = {"model": self.model, "vocabulary": self.vocabulary}
        return {
            name: build_typed(block, f"parts.{name}", Objective, **given)
            for name, block in self.parts.items()
        }

    def share(self, name: str) -> float:
        """The fraction of the rows, and the weight in the loss, of a part."""
        total = sum(self.shares.get(part, 1) for part in self.parts)
        return self.shares.get(name, 1) / total

    def weight(self, term: str) -> float:
        name, _, own = term.partition("/")
        return self.share(name) * self.objectives[name].weight(own)

    @property
    def network(self) -> Network:
        return next(iter(self.objectives.values())).network

    def corrupt(self, key: jax.Array, example: Batch) -> Batch:
        """Adds the arrays of each part, `part/name`; `loss` selects the part of each row."""
        return example | {
            f"{name}/{array}": value
            for name, part in self.objectives.items()
            for array, value in part.corrupt(key, example).items()
        }

    def inputs(self, batch: Batch, mems: Any = None) -> tuple[Any, ...]:
        """The inputs of the first part, which reads all rows; for initialization."""
        name, part = next(iter(self.objectives.items()))
        return part.inputs(_of_part(batch, name), mems)

    def init(self, key: jax.Array, batch: Batch) -> Any:
        made = {}
        for name, part in self.objectives.items():
            made[name] = jax.eval_shape(functools.partial(part.init, key), _of_part(batch, name))
        first = next(iter(made))
        for name, shapes in made.items():
            if shapes != made[first]:
                raise ConfigError(
                    f"config.objective.parts.{name}: does not train the parameters of '{first}';"
                    " use objectives of one network"
                )
        return self.objectives[first].init(key, _of_part(batch, first))

    def loss(self, params: Any, batch: Batch, mems: Any, seeds: Seeds | None) -> Scored:
        terms: dict[str, Sum] = {}
        metrics: dict[str, Sum] = {}
        (rows, *_), first = batch["tokens"].shape, 0
        for name, part in self.objectives.items():
            # The step deals rows to micro-batches in turn, so that a block of rows is the same
            # fraction of each micro-batch, and holds the same rows for any number of them.
            last = first + round(rows * self.share(name))
            block = slice(first, last)
            own = split_rows({key: x[block] for key, x in _of_part(batch, name).items()})
            own_seeds = seeds and Seeds(examples=seeds.examples[block], step=seeds.step)
            scored = part.loss(params, own, None, own_seeds)
            terms |= {f"{name}/{term}": found for term, found in scored.terms.items()}
            metrics |= {f"{name}/{metric}": found for metric, found in scored.metrics.items()}
            first = last
        return Scored(terms, metrics)

    def forward_flops(self, length: int) -> float | None:
        total = 0.0
        for name, part in self.objectives.items():
            flops = part.forward_flops(length)
            if flops is None:
                return None
            total += self.share(name) * flops
        return total

    def check_length(self, length: int) -> None:
        for part in self.objectives.values():
            part.check_length(length)

    def check_rows(self, rows: int, devices: int) -> None:
        total = sum(self.shares.get(part, 1) for part in self.parts)
        if rows % (total * devices):
            raise ConfigError(
                f"config.training.batch_size: a micro-batch of {rows} rows cannot be divided by"
                f" the shares of the mixture, whose sum is {total}, on {devices} devices along data"
                f" and fsdp; use a multiple of {total * devices}"
            )


def _of_part(batch: Batch, name: str) -> Batch:
    prefix = f"{name}/"
    return {key.removeprefix(prefix): x for key, x in batch.items() if key.startswith(prefix)}
