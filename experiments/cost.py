"""Estimates the cost of a config without its data: parameters, tokens, FLOPs.

  python -m experiments.cost --config=configs/bert.py:base

FLOPs are those of the matrix products of the forward and backward pass (three times the forward
pass). The vocabulary has the size that the config requests.
"""

import math

import jax
from ml_collections import ConfigDict

from experiments import command_line
from lmjax.data.examples.stand_in import stand_in_row
from lmjax.training.plan import Plan, make_plan
from lmjax.training.step import Program


def main() -> None:
    print(summary(command_line.config()))


def summary(config: ConfigDict) -> str:
    """Returns a line such as `110M parameters, 32.8B tokens, 1.9e19 FLOPs`."""
    # The cost does not depend on the devices of this machine.
    config = ConfigDict(config.to_dict())
    config.mesh = {"data": 1, "fsdp": 1, "sequence": 1, "tensor": 1}
    plan = make_plan(config)
    tokens, flops = 0, 0.0
    for phase in plan.phases:
        rows = (phase.end - phase.start) * phase.training.batch_size
        tokens += rows * phase.examples.length
        flops += 3 * rows * (phase.objective.forward_flops(phase.examples.length) or math.nan)
    parts = [f"{short(parameters(plan))} parameters", f"{short(tokens)} tokens"]
    if not math.isnan(flops):
        parts.append(f"{flops:.1e} FLOPs")
    return ", ".join(parts)


def parameters(plan: Plan) -> int:
    """Counts the parameters without allocating them."""
    row = stand_in_row(plan.examples, plan.objective.vocabulary)
    program = Program(plan.objective, row, plan.training, plan.optimizer, plan.mesh)
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(program.abstract_state.params))


def short(number: float) -> str:
    """Formats a number with three significant digits and K, M, B or T."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.3g}"


if __name__ == "__main__":
    command_line.start(main)
