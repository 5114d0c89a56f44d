"""Whole runs: what they leave, how they continue, and how they stop."""

import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from orbax.checkpoint import v1 as ocp

from lmjax.errors import ConfigError
from lmjax.training import loop
from lmjax.training.checkpoints import Checkpoints
from lmjax.training.loop import DivergedError, pretrain
from lmjax.training.reporting import read_metrics
from lmjax.training.state import TrainState

ROOT = pathlib.Path(__file__).resolve().parents[2]
STEPS = 150
STEP = {"step": jax.ShapeDtypeStruct((), jnp.int32)}

# `saved` reads checkpoints without saying where the arrays go.
pytestmark = pytest.mark.filterwarnings("ignore:Sharding info not provided")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """300 documents in which each word mostly decides the next."""
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefgh"), 3)) for _ in range(40)]
    documents = []
    for _ in range(300):
        at, document = int(rng.integers(40)), []
        for _ in range(int(rng.integers(20, 60))):
            document.append(words[at] + (". " if rng.random() < 0.1 else " "))
            at = (at * 7 + 3) % 40 if rng.random() < 0.9 else int(rng.integers(40))
        documents.append("".join(document).strip() + ".")
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n\n".join(documents))
    return path


def config(text: pathlib.Path) -> dict[str, Any]:
    """XLNet, for its memory, with dropout, for its masks, and a moving average."""
    return {
        "seed": 3,
        "objective": {
            "type": "lmjax.objectives.permuted.PermutedLM",
            "num_predict": 5,
            "reuse_length": 8,
            "perm_size": 8,
            "max_ngram": 2,
            "alpha": 2,
        },
        "model": {
            "trunk": {
                "layers": 1,
                "hidden_size": 16,
                "heads": 2,
                "intermediate_size": 32,
                "initial_std": 0.1,
            },
            "memory_length": 8,
        },
        "data": {
            "corpus": str(text),
            "tokenizer": {"kind": "wordpiece", "vocab_size": 100},
            "examples": {
                "type": "lmjax.data.examples.SegmentStream",
                "length": 16,
                "reuse_length": 8,
            },
        },
        "optimizer": {
            "name": "adamw",
            "learning_rate": 1e-2,
            "schedule": "linear",
            "warmup_steps": 2,
        },
        "training": {
            "steps": STEPS,
            "batch_size": 8,
            "ema_decay": 0.5,
            "log_every": 5,
            "eval_every": 50,
            "eval_batches": 2,
            "checkpoint_every": 10,
            "checkpoints_to_keep": 99,
        },
        "mesh": {"data": 1},
    }


@pytest.fixture(scope="module")
def whole(
    text: pathlib.Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[pathlib.Path, loop.Result]:
    """A run that nothing interrupted, and its directory."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    return workdir, pretrain(ConfigDict(config(text)), workdir, "xlnet")


def saved(workdir: pathlib.Path, step: int) -> dict[str, Any]:
    """The arrays of a checkpoint under their names."""
    directory = workdir / "checkpoints" / str(step)
    state: dict[str, Any] = ocp.load_checkpointables(directory)["state"]
    keys = jax.dtypes.prng_key
    return {
        name: np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, keys) else x)
        for name, x in state.items()
    }


def assert_same_run(workdir: pathlib.Path, whole: pathlib.Path) -> None:
    """Every number of the last checkpoint, its place in the data, and what was logged."""
    ours, theirs = saved(workdir, STEPS), saved(whole, STEPS)
    assert ours.keys() == theirs.keys()
    assert {name.split(".")[0] for name in ours} == {
        "step", "key", "params", "opt_state", "mems", "ema",
    }  # fmt: skip
    for name, array in ours.items():
        np.testing.assert_array_equal(array, theirs[name], err_msg=name)
    places = []
    for directory in (workdir, whole):
        with Checkpoints(directory / "checkpoints", keep=99) as checkpoints:
            places.append(checkpoints.restore(None, STEP, partial=True)[1])
    assert places[0] == places[1]
    clock = ("time", "tokens_per_second", "flops_per_second")
    logs = [
        [{k: v for k, v in record.items() if k not in clock} for record in read_metrics(directory)]
        for directory in (workdir, whole)
    ]
    assert logs[0] == logs[1]


def contents(directory: pathlib.Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in directory.rglob("*")
        if path.is_file()
    }


def test_a_run_learns_and_leaves_what_it_was(whole: tuple[pathlib.Path, loop.Result]) -> None:
    workdir, result = whole
    held_out = [r for r in result.records if r["split"] == "validation"]
    assert [r["step"] for r in held_out] == list(range(0, STEPS + 1, 50))
    assert held_out[-1]["plm"] < held_out[-1]["unigram"] - 0.3 < held_out[0]["plm"]
    train = [r for r in result.records if r["split"] == "train"]
    assert [r["step"] for r in train] == list(range(5, STEPS + 1, 5))
    assert train[0].keys() >= {"loss", "learning_rate", "gradient_norm", "tokens_per_second"}
    for name in ("config.json", "tokenizer.json", "versions.json", "metrics.jsonl"):
        assert (workdir / name).is_file()
    assert result.parameters == sum(leaf.size for leaf in jax.tree.leaves(result.params))


def test_a_finished_run_is_only_read(
    whole: tuple[pathlib.Path, loop.Result], text: pathlib.Path
) -> None:
    workdir, result = whole
    before = saved(workdir, STEPS)
    again = pretrain(ConfigDict(config(text)), workdir, "xlnet")
    jax.tree.map(np.testing.assert_array_equal, again.params, result.params)
    assert again.records == result.records
    jax.tree.map(np.testing.assert_array_equal, saved(workdir, STEPS), before)


@pytest.mark.parametrize("stops", [23, 31])
def test_an_interrupted_run_is_the_same_run_bit_for_bit(
    stops: int,
    whole: tuple[pathlib.Path, loop.Result],
    text: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    add = loop._Watch.add

    def interrupted(self: Any, step: int, metrics: Any) -> None:
        add(self, step, metrics)
        if step == stops:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop._Watch, "add", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pretrain(ConfigDict(config(text)), tmp_path, "xlnet")
    pretrain(ConfigDict(config(text)), tmp_path, "xlnet")
    assert_same_run(tmp_path, whole[0])


def begin(text: pathlib.Path, place: pathlib.Path) -> "subprocess.Popen[str]":
    """The run as a process of its own, in place / "run"."""
    file = place / "killed.py"
    file.write_text(
        "from ml_collections import ConfigDict\n"
        f"def get_config():\n    return ConfigDict({config(text)!r})\n"
    )
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "experiments.pretrain",
            f"--config={file}",
            f"--workdir={place / 'run'}",
        ],
        cwd=ROOT,
        # As many devices as here, for the same arithmetic to the last bit.
        env=os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "8"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def signal_after(child: "subprocess.Popen[str]", checkpoint: pathlib.Path, number: int) -> str:
    """Sends a signal once a checkpoint is there; returns what the process said."""
    while not checkpoint.exists():
        assert child.poll() is None, child.stderr and child.stderr.read()
        time.sleep(0.01)
    child.send_signal(number)
    return child.communicate()[1]


def latest_step(workdir: pathlib.Path) -> int:
    with Checkpoints(workdir / "checkpoints", keep=99) as checkpoints:
        return checkpoints.latest_step() or 0


def test_a_run_killed_twice_is_the_same_run_bit_for_bit(
    whole: tuple[pathlib.Path, loop.Result], text: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    workdir = tmp_path / "run"
    for step in (10, 60):
        child = begin(text, tmp_path)
        signal_after(child, workdir / "checkpoints" / str(step), signal.SIGKILL)
        assert step <= latest_step(workdir) < STEPS
    pretrain(ConfigDict(config(text)), workdir, "xlnet")
    assert_same_run(workdir, whole[0])


def test_a_run_told_to_stop_saves_where_it_is(
    whole: tuple[pathlib.Path, loop.Result], text: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    workdir = tmp_path / "run"
    child = begin(text, tmp_path)
    said = signal_after(child, workdir / "checkpoints" / "10", signal.SIGTERM)
    assert child.returncode == 75, said
    step = latest_step(workdir)
    assert f"error: step {step}: told to stop (SIGTERM); saved in {workdir}" in said
    assert 10 <= step < STEPS
    pretrain(ConfigDict(config(text)), workdir, "xlnet")
    ours, theirs = saved(workdir, STEPS), saved(whole[0], STEPS)
    for name, array in theirs.items():
        np.testing.assert_array_equal(ours[name], array, err_msg=name)


def test_a_directory_of_another_config_is_refused_untouched(
    whole: tuple[pathlib.Path, loop.Result], text: pathlib.Path
) -> None:
    workdir, _ = whole
    before = contents(workdir)
    other = ConfigDict(config(text))
    other.optimizer.learning_rate = 1e-3
    with pytest.raises(ConfigError, match=r"config\.optimizer\.learning_rate"):
        pretrain(other, workdir, "xlnet")
    assert contents(workdir) == before


def test_a_number_that_is_none_stops_the_run_at_its_step(
    text: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = loop.make_train_step

    def poisoned(*arguments: Any) -> Callable[[TrainState, Any], Any]:
        step = make(*arguments)

        def run(state: TrainState, batch: Any) -> Any:
            kernel = state.params["encoder"]["token"]["embedding"]
            bad = kernel.at[7].set(jnp.where(state.step == 26, jnp.nan, kernel[7]))
            encoder = {**state.params["encoder"], "token": {"embedding": bad}}
            params = {**state.params, "encoder": encoder}
            return step(state.replace(params=params), batch)

        return run

    monkeypatch.setattr(loop, "make_train_step", poisoned)
    with pytest.raises(DivergedError) as caught:
        pretrain(ConfigDict(config(text)), tmp_path, "xlnet")
    message = str(caught.value)
    assert message.startswith("step 27: the loss term 'plm' is nan; the gradient is not finite in")
    assert "The last good checkpoint is that of step 20" in message
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["10", "20"]
    for array in saved(tmp_path, 20).values():
        assert np.isfinite(array).all()
    # Without the fault the same directory goes on from there.
    monkeypatch.undo()
    pretrain(ConfigDict(config(text)), tmp_path, "xlnet")
    assert np.isfinite(saved(tmp_path, STEPS)["step"])


def test_a_rising_loss_stops_the_run(text: pathlib.Path, tmp_path: pathlib.Path) -> None:
    wild = ConfigDict(config(text))
    wild.optimizer.learning_rate = 300.0
    with wild.unlocked():
        wild.training.max_loss_rise = 1.5
    with pytest.raises(DivergedError, match=r"rose to .* config\.training\.max_loss_rise=1\.5"):
        pretrain(wild, tmp_path, "xlnet")
