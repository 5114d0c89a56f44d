"""What a run would need, told before it is compiled and after."""

import copy
import re
from typing import Any

import jax
import pytest
from ml_collections import ConfigDict

from lmjax.data.examples.stand_in import stand_in_row
from lmjax.errors import ConfigError
from lmjax.training.memory_estimate import Footprint, dry_run, estimate_memory, parse_topology
from lmjax.training.plan import make_plan
from lmjax.training.step import Program
from tests.training.test_plan import GOOD

pytestmark = pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 devices")


def config(**fields: Any) -> ConfigDict:
    values = copy.deepcopy(GOOD)
    values["mesh"] = {"data": 1}
    values["training"]["accumulation"] = 1
    made = ConfigDict(values)
    made.update_from_flattened_dict(fields)
    return made


def footprint(**fields: Any) -> Footprint:
    plan = make_plan(config(**fields))
    with jax.set_mesh(plan.mesh):
        row = stand_in_row(plan.examples, plan.objective.vocabulary)
        program = Program(plan.objective, row, plan.training, plan.optimizer, plan.mesh)
        return estimate_memory(program)


def test_a_dry_run_tells_what_was_expected_and_what_was_compiled(
    capsys: pytest.CaptureFixture[str],
) -> None:
    made = config()
    made.mesh = {"data": 2, "fsdp": 2, "tensor": 2}
    dry_run(made, "cpu:8")
    shown = capsys.readouterr().out
    assert "8 devices: data 2 x fsdp 2 x sequence 1 x tensor 2" in shown
    assert re.search(r"8 x cpu: expected, about .+ MiB a device: state .+ gradients", shown)
    assert re.search(r"8 x cpu: compiled in \d+ s, .+ MiB a device: state and batch .+", shown)
    flops, each = re.search(r"(\S+) FLOPs a step .*, (\S+) a device", shown).groups()  # type: ignore[union-attr]
    assert float(flops) == pytest.approx(8 * float(each), rel=1e-2)


def test_what_is_expected_is_near_what_the_compiler_says() -> None:
    """Activations must outweigh the rest, which the compiler may share with them."""
    made = config(**{"training.batch_size": 64, "data.tokenizer.vocab_size": 512})
    plan = make_plan(made)
    with jax.set_mesh(plan.mesh):
        row = stand_in_row(plan.examples, plan.objective.vocabulary)
        program = Program(plan.objective, row, plan.training, plan.optimizer, plan.mesh)
        expected = estimate_memory(program)
        found = (
            program.step.lower(program.abstract_state, program.abstract_batch)
            .compile()
            .memory_analysis()
        )
    compiled = found.argument_size_in_bytes + found.temp_size_in_bytes
    assert expected.activations > 0.8 * expected.total
    assert 0.8 < expected.total / compiled < 1.5


def test_what_the_settings_change_is_seen_before_compiling() -> None:
    plain = footprint()
    halved = footprint(**{"training.accumulation": 2})
    assert halved.activations == pytest.approx(plain.activations / 2, rel=0.1)
    assert halved.gradients == 2 * plain.gradients
    scanned = {"model.trunk.scan_layers": True, "model.trunk.layers": 8}
    by_policy = [
        footprint(**scanned, **{"model.trunk.remat": policy}).activations
        for policy in ("nothing_saveable", "dots_with_no_batch_dims_saveable", "")
    ]
    assert sorted(by_policy) == by_policy and by_policy[0] < by_policy[1] / 2 < by_policy[2] / 3
    split = footprint(**{"mesh.fsdp": 8})
    assert split.activations == plain.activations // 8
    assert split.state < plain.state / 6


@pytest.mark.parametrize(
    ("topology", "message"),
    [
        ("cpu", r"--dry_run: 'cpu' is not a number of devices; write cpu:8"),
        ("cpu:0", r"--dry_run: 'cpu:0' is not a number of devices"),
        ("cpu:4096", r"--dry_run: jax was initialized with 8 devices of the host before"),
        ("v0:1x1", r"--dry_run: no topology 'v0:1x1' here .*'v5e:4x4' with the extra"),
    ],
)
def test_topologies_that_are_not_there(topology: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_topology(topology)


def test_devices_that_are_here() -> None:
    assert parse_topology("here") == jax.devices()
    assert parse_topology("cpu:2") == jax.devices()[:2]
