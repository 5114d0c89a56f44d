"""Runs of several phases."""

import pathlib
import shutil
import signal
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from orbax.checkpoint import v1 as ocp

from experiments import cost
from lmjax.errors import ConfigError
from lmjax.training.loop import pretrain
from lmjax.training.optimizers import make_optimizer
from lmjax.training.plan import make_plan
from lmjax.training.run_directory import read_metrics
from tests.runs import begin, config, signal_after, write_text

STEPS, BOUNDARY = 20, 12

# `saved` reads checkpoints without saying where the arrays go.
pytestmark = pytest.mark.filterwarnings("ignore:Sharding info not provided")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return write_text(tmp_path_factory.mktemp("text") / "text.txt")


def phased(text: pathlib.Path, **changes: Any) -> dict[str, Any]:
    """XLNet, with memory, whose rows become longer and fewer after 12 of 20 steps."""
    made = config(text)
    made["training"] |= {"steps": STEPS, "checkpoint_every": 5, "eval_every": 0, "log_every": 2}
    changes = changes or {
        "data": {"examples": {"length": 24}},
        "training": {"batch_size": 4},
        "optimizer": {"schedule": "constant"},
    }
    made["phases"] = {"long": {"start": BOUNDARY / STEPS, "changes": changes}}
    return made


def saved(workdir: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays of the last checkpoint by name."""
    state: dict[str, Any] = ocp.load_checkpointables(workdir / "checkpoints" / str(STEPS))["state"]
    keys = jax.dtypes.prng_key
    return {
        name: np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, keys) else x)
        for name, x in state.items()
    }


@pytest.fixture(scope="module")
def whole(text: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A run of two phases that nothing interrupted."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    pretrain(ConfigDict(phased(text)), workdir)
    return workdir


def test_each_phase_has_its_rows_and_its_schedule(whole: pathlib.Path) -> None:
    lines = read_metrics(whole)
    tokens = {x["step"]: x["tokens"] for x in lines if x["split"] == "train"}
    assert tokens[2] == tokens[BOUNDARY] == 2 * 8 * 16
    assert tokens[BOUNDARY + 2] == tokens[STEPS] == 2 * 4 * 24
    rates = {x["step"]: x["learning_rate"] for x in lines if x["split"] == "train"}
    assert rates[10] == pytest.approx(1e-2 * (1 - 9 / STEPS))
    assert rates[14] == rates[STEPS] == pytest.approx(1e-2)
    assert [x["step"] for x in lines if x["split"] == "validation"] == [0, BOUNDARY, STEPS]
    shapes = {name: x.shape for name, x in saved(whole).items() if name.startswith("mems")}
    assert {shape[1:3] for shape in shapes.values()} == {(4, 8)}


def assert_same_run(workdir: pathlib.Path, whole: pathlib.Path) -> None:
    ours, theirs = saved(workdir), saved(whole)
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        np.testing.assert_array_equal(array, theirs[name], err_msg=name)
    clock = ("time", "tokens_per_second", "flops_per_second")
    logs = [
        [{k: v for k, v in line.items() if k not in clock} for line in read_metrics(place)]
        for place in (workdir, whole)
    ]
    assert logs[0] == logs[1]


@pytest.mark.parametrize(
    ("at", "line"),
    [
        (BOUNDARY, "validation/loss"),
        (BOUNDARY + 2, "train/loss"),
        pytest.param(STEPS - 2, "train/loss", marks=pytest.mark.slow),
    ],
    ids=["before the checkpoint of the boundary", "after it", "in the second phase"],
)
def test_an_interrupted_run_is_the_same_run_bit_for_bit(
    at: int, line: str, whole: pathlib.Path, text: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    def interrupt(step: int, metrics: dict[str, float]) -> None:
        if step == at and line in metrics:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain(ConfigDict(phased(text)), tmp_path, on_metrics=interrupt)
    pretrain(ConfigDict(phased(text)), tmp_path)
    assert_same_run(tmp_path, whole)


@pytest.mark.slow
def test_a_run_that_is_killed_at_the_boundary_is_the_same_run_bit_for_bit(
    whole: pathlib.Path, text: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    child = begin(phased(text), tmp_path)
    signal_after(child, tmp_path / "run" / "checkpoints" / str(BOUNDARY), signal.SIGKILL)
    pretrain(ConfigDict(phased(text)), tmp_path / "run")
    assert_same_run(tmp_path / "run", whole)


def masked(text: pathlib.Path) -> dict[str, Any]:
    """BERT without memory."""
    made = config(text)
    made["objective"] = {
        "type": "lmjax.objectives.masked.MaskedLM",
        "sentence_prediction": False,
        "max_predictions": 4,
    }
    made["model"] = {"trunk": made["model"]["trunk"], "max_length": 32}
    made["data"]["examples"] = {"type": "lmjax.data.examples.Packed", "length": 16}
    made["training"] |= {"steps": STEPS, "checkpoint_every": 0, "eval_every": 0}
    return made


def test_a_phase_that_changes_nothing_continues_the_run(
    text: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    made = masked(text)
    one = pretrain(ConfigDict(made), tmp_path / "one")
    made["phases"] = {"same": {"start": 0.35}}
    two = pretrain(ConfigDict(made), tmp_path / "two")
    jax.tree.map(np.testing.assert_array_equal, one.params, two.params)


def test_the_objective_may_change(text: pathlib.Path, tmp_path: pathlib.Path) -> None:
    made = masked(text)
    kind = "lmjax.objectives.causal_masked.CausalMaskedLM"
    made["objective"] = {"type": kind, "causal_fraction": 1.0, "max_predictions": 4}
    made["phases"] = {"masked": {"start": 0.5, "changes": {"objective": {"causal_fraction": 0.0}}}}
    result = pretrain(ConfigDict(made), tmp_path)
    kinds = [
        {"causal", "masked"} & line.keys() for line in result.records if line["split"] == "train"
    ]
    assert kinds == [{"causal"}] * 2 + [{"masked"}] * 2
    assert result.objective.causal_fraction == 0.0


def test_a_schedule_that_starts_late_is_the_schedule_shifted() -> None:
    plan = make_plan(ConfigDict(phased(pathlib.Path("text.txt"))))
    shapes = {"kernel": jnp.zeros((4, 4))}
    optimizer = plan.phases[0].optimizer
    _, here = make_optimizer(optimizer, 10, shapes)
    _, later = make_optimizer(optimizer, 10, shapes, start=7)
    np.testing.assert_array_equal(here(jnp.arange(10)), later(jnp.arange(10) + 7))


def test_cost_counts_every_phase(text: pathlib.Path) -> None:
    made = phased(text)
    made["model"]["vocab_size"] = 100
    tokens = BOUNDARY * 8 * 16 + (STEPS - BOUNDARY) * 4 * 24
    assert f" {cost.short(tokens)} tokens" in cost.summary(ConfigDict(made))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"changes": {"model": {"memory_length": 4}}},
            r"phases\.p\.changes\.model\.memory_length",
        ),
        (
            {"changes": {"training": {"steps": 4}}},
            r"phases\.p\.changes\.training\.steps: all",
        ),
        ({"changes": {"optimizer": {"name": "lion"}}}, r"phases\.p\.changes\.optimizer\.name: all"),
        ({"changes": {"data": {"examples": {"lenght": 4}}}}, r"phases\.p, with .*lenght: unknown"),
        (
            {"changes": {"optimizer": {"warmup_steps": 11}}},
            r"phases\.p, with .*\.optimizer\.warmup_steps: 11 exceed the steps of the phase, 10;",
        ),
        ({"start": 0.99}, r"config\.phases\.p: no step of config\.training\.steps=20"),
        ({"start": 1.0}, r"config\.phases\.p\.start: must lie in \(0, 1\)"),
        (
            {"changes": {"objective": {"type": "lmjax.objectives.causal.CausalLM"}}},
            r"phases\.p\.changes\.objective: trains a GptConfig, and the first phase a XlnetConfig",
        ),
    ],
)
def test_bad_phases_are_refused_before_anything_is_read(
    fields: dict[str, Any], message: str
) -> None:
    made = phased(pathlib.Path("missing.txt"))
    del made["model"]["memory_length"]
    made["phases"] = {"p": {"start": 0.5, **fields}}
    with pytest.raises(ConfigError, match=message):
        make_plan(ConfigDict(made))


def test_phases_of_other_parameters_are_refused(text: pathlib.Path, tmp_path: pathlib.Path) -> None:
    made = masked(text)
    pairs = {"type": "lmjax.data.examples.SegmentPairs", "length": 32, "next_sentence": "sop"}
    made["data"]["examples"] = pairs
    made["phases"] = {"p": {"start": 0.5, "changes": {"objective": {"sentence_prediction": True}}}}
    with pytest.raises(ConfigError, match=r"config\.phases\.p: does not train the same parameters"):
        pretrain(ConfigDict(made), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_changed_number_of_steps_does_not_move_a_checkpoint_to_another_phase(
    whole: pathlib.Path, text: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    copy = pathlib.Path(shutil.copytree(whole, tmp_path / "copy"))
    made = phased(text)
    made["training"]["steps"] = 10 * STEPS
    with pytest.raises(ConfigError, match=r"config\.training\.steps: with 200, step 20 belongs to"):
        pretrain(ConfigDict(made), copy)
