"""Whole runs: what they leave, how they continue, and how they stop."""

import json
import pathlib
import re
import shutil
import signal
import socket
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from orbax.checkpoint import v1 as ocp

from experiments.pretrain import profiled_steps
from lmjax.data.loader import Loader
from lmjax.data.store import prepare
from lmjax.errors import ConfigError
from lmjax.training import loop
from lmjax.training.checkpoints import Checkpoints, Retention
from lmjax.training.loop import pretrain
from lmjax.training.monitor import DivergedError, operation_seconds, operation_table
from lmjax.training.plan import make_plan
from lmjax.training.run_directory import read_metrics
from tests.runs import STEPS, begin, config, signal_after, write_text
from tests.training import outside

KEYS = ("step", "split", "time")
STEP = {"step": jax.ShapeDtypeStruct((), jnp.int32)}

# `saved` reads checkpoints without saying where the arrays go.
pytestmark = pytest.mark.filterwarnings("ignore:Sharding info not provided")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return write_text(tmp_path_factory.mktemp("text") / "text.txt")


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
        with Checkpoints(directory / "checkpoints", keep=Retention(99)) as checkpoints:
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


def test_a_callback_sees_every_line_of_the_metrics(
    text: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    seen: list[tuple[int, dict[str, float]]] = []
    short = ConfigDict(config(text))
    short.training.steps = 10
    result = pretrain(
        short, tmp_path, "xlnet", on_metrics=lambda step, metrics: seen.append((step, metrics))
    )
    lines = [
        (line["step"], {f"{line['split']}/{k}": x for k, x in line.items() if k not in KEYS})
        for line in result.records
    ]
    assert seen == lines
    assert [step for step, metrics in seen if "train/loss" in metrics] == [5, 10]


def test_a_finished_run_is_only_read(
    whole: tuple[pathlib.Path, loop.Result], text: pathlib.Path
) -> None:
    workdir, result = whole
    before = saved(workdir, STEPS)
    again = pretrain(ConfigDict(config(text)), workdir, "xlnet")
    jax.tree.map(np.testing.assert_array_equal, again.params, result.params)
    assert again.records == result.records
    jax.tree.map(np.testing.assert_array_equal, saved(workdir, STEPS), before)


@pytest.mark.parametrize("stops", [25, pytest.param(30, marks=pytest.mark.slow)])
def test_an_interrupted_run_is_the_same_run_bit_for_bit(
    stops: int,
    whole: tuple[pathlib.Path, loop.Result],
    text: pathlib.Path,
    tmp_path: pathlib.Path,
) -> None:
    def interrupt(step: int, metrics: dict[str, float]) -> None:
        if step == stops and "train/loss" in metrics:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain(ConfigDict(config(text)), tmp_path, "xlnet", on_metrics=interrupt)
    assert latest_step(tmp_path) == 20
    pretrain(ConfigDict(config(text)), tmp_path, "xlnet")
    assert_same_run(tmp_path, whole[0])


def latest_step(workdir: pathlib.Path) -> int:
    with Checkpoints(workdir / "checkpoints", keep=Retention(99)) as checkpoints:
        return checkpoints.latest_step() or 0


def test_a_directory_belongs_to_one_process_until_it_is_killed(
    whole: tuple[pathlib.Path, loop.Result], text: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    workdir = tmp_path / "run"
    first = begin(config(text), tmp_path)
    while not (workdir / "checkpoints" / "30").exists():
        assert first.poll() is None, first.stderr and first.stderr.read()
        time.sleep(0.01)
    first.send_signal(signal.SIGSTOP)
    before = contents(workdir)
    second = begin(config(text), tmp_path)
    said = second.communicate()[1]
    assert second.returncode == 2, said
    (line,) = said.splitlines()
    holder = f"process {first.pid} on {socket.gethostname()}"
    assert line.startswith(f"error: --workdir: '{workdir}' is in use by {holder}; ")
    assert contents(workdir) == before
    first.kill()
    first.communicate()
    # What it was killed at goes on to the same end, bit for bit.
    assert 30 <= latest_step(workdir) < STEPS
    pretrain(ConfigDict(config(text)), workdir, "xlnet")
    assert_same_run(workdir, whole[0])


def test_a_run_that_cannot_begin_leaves_its_directory_to_the_next(
    text: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    held_out = tmp_path / "held_out.txt"
    held_out.write_text(" ".join(["abc"] * 80))
    made = config(text)
    made["objective"] = {"type": "lmjax.objectives.causal.CausalLM"}
    made["model"] = {"trunk": made["model"]["trunk"], "max_length": 16}
    made["data"]["validation_corpus"] = str(held_out)
    made["data"]["examples"] = {"type": "lmjax.data.examples.Packed", "length": 16}
    made["training"] = {"steps": 2, "batch_size": 64}
    workdir = tmp_path / "made" / "run"
    with pytest.raises(ConfigError) as caught:
        pretrain(ConfigDict(made), workdir, "")
    found = re.fullmatch(
        r"config\.training\.batch_size: the validation split has (\d+) examples of"
        r" config\.data\.examples\.length, fewer than a batch of 64; give a batch_size of at most"
        r" (\d+), or more text as config\.data\.validation_corpus",
        str(caught.value),
    )
    assert found and found[1] == found[2]
    assert not (tmp_path / "made").exists()
    made["training"]["batch_size"] = int(found[1])  # as advised
    pretrain(ConfigDict(made), workdir, "")
    made["training"]["batch_size"] = 10**6
    with pytest.raises(ConfigError, match=r"the train split has .* as config\.data\.corpus"):
        pretrain(ConfigDict(made), tmp_path / "other", "")
    assert not (tmp_path / "other").exists()


def test_a_model_that_no_device_can_hold_is_refused_before_it_is_traced(
    text: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    made = config(text)
    made["model"]["trunk"] |= {"hidden_size": 2**20, "heads": 2**10, "layers": 1000}
    began = time.monotonic()
    with pytest.raises(ConfigError, match=r"config\.model: needs at least .* TiB"):
        pretrain(ConfigDict(made), tmp_path / "run", "")
    assert time.monotonic() - began < 10
    assert not (tmp_path / "run").exists()


def test_a_run_that_receives_sigterm_saves_its_step(
    whole: tuple[pathlib.Path, loop.Result], text: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    workdir = tmp_path / "run"
    child = begin(config(text), tmp_path)
    said = signal_after(child, workdir / "checkpoints" / "10", signal.SIGTERM)
    assert child.returncode == 75, said
    step = latest_step(workdir)
    assert f"error: step {step}: received SIGTERM; saved a checkpoint in {workdir}, rerun" in said
    assert 10 <= step < STEPS
    pretrain(ConfigDict(config(text)), workdir, "xlnet")
    ours, theirs = saved(workdir, STEPS), saved(whole[0], STEPS)
    for name, array in theirs.items():
        np.testing.assert_array_equal(ours[name], array, err_msg=name)


@pytest.mark.slow
def test_a_checkpoint_of_one_mesh_continues_on_another(
    text: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    settings = ConfigDict(config(text))
    settings.training.update({"steps": 20, "log_every": 1})
    settings.mesh = {"data": 1, "fsdp": 8}
    pretrain(settings, tmp_path / "run", "xlnet")
    for name, mesh in (
        ("the same", {"data": 1, "fsdp": 8}),
        ("one", {"data": 1}),
        ("2 x 4", {"data": 2, "fsdp": 4}),
        ("tensor", {"data": 2, "sequence": 2, "tensor": 2}),
    ):
        shutil.copytree(tmp_path / "run", tmp_path / name)
        settings.mesh = mesh
        settings.training.steps = 40
        pretrain(settings, tmp_path / name, "xlnet")
    whole = [record["loss"] for record in read_metrics(tmp_path / "the same")]
    assert len(whole) == 43
    for name in ("one", "2 x 4", "tensor"):
        losses = [record["loss"] for record in read_metrics(tmp_path / name)]
        np.testing.assert_allclose(losses, whole, rtol=1e-5, err_msg=name)


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


def diverging(text: pathlib.Path, **training: Any) -> ConfigDict:
    """The config with an objective that diverges on `outside.DIVERGING_BATCHES`."""
    made = ConfigDict(config(text))
    made.objective.type = "tests.training.outside.Diverging"
    made.training.update(training)
    return made


def checksums(config: ConfigDict, *batches: int) -> list[int]:
    """Of these training batches, by their indices."""
    plan = make_plan(config)
    tokenizer, stores = prepare(plan.data, ("train",))
    loader = Loader(
        plan.examples,
        stores["train"],
        tokenizer.vocabulary(stores["train"].counts),
        batch_size=plan.training.batch_size,
        seed=plan.seed,
        split="train",
        process_index=0,
        process_count=1,
        shuffle=True,
    )
    try:
        sums = [outside.checksum(loader.batch_at(i)["tokens"]) for i in batches]
    finally:
        loader.close()
    return [int(each.sum(dtype=np.uint32)) for each in sums]


def events(workdir: pathlib.Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (workdir / "events.jsonl").read_text().splitlines()]


def test_a_run_goes_back_and_on_without_the_batches_that_broke_it(
    text: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forgiving = diverging(text, max_rewinds=2, steps=80)
    bad = checksums(forgiving, 26, 63, 85, 90, 95)
    monkeypatch.setattr(outside, "DIVERGING_BATCHES", bad)
    pretrain(forgiving, tmp_path, "xlnet")
    first, second = events(tmp_path)
    assert (first["batches"], first["step"]) == ([26], 27)
    assert first["reason"].startswith("the loss term 'plm' is nan")
    assert first["action"] == "back to step 20 without them"
    assert second["batches"] == [63]
    assert [r["step"] for r in read_metrics(tmp_path) if r["split"] == "train"] == [
        *range(5, 81, 5)
    ]
    with Checkpoints(tmp_path / "checkpoints", keep=Retention(99)) as checkpoints:
        data = checkpoints.restore(None, STEP, partial=True)[1]
    assert data == {"next_batch": 82, "skipped": [26, 63]}
    # A third time would be one too many.
    forgiving.training.steps = 100
    with pytest.raises(DivergedError, match=r"the loss term 'plm' is nan"):
        pretrain(forgiving, tmp_path, "xlnet")
    assert [event["batches"] for event in events(tmp_path)] == [[26], [63], [85], [90]]


def test_an_update_that_is_no_number_can_be_left_out(
    text: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forgiving = diverging(text, skip_nonfinite=True, steps=40)
    monkeypatch.setattr(outside, "DIVERGING_BATCHES", checksums(forgiving, 6, 26))
    pretrain(forgiving, tmp_path, "xlnet")
    assert [(event["step"], event["batches"]) for event in events(tmp_path)] == [
        (7, [6]),
        (27, [26]),
    ]
    for name, array in saved(tmp_path, 40).items():
        assert np.isfinite(array).all(), name
    assert all(np.isfinite(r["loss"]) for r in read_metrics(tmp_path))


def test_a_number_that_is_none_stops_the_run_at_its_step(
    text: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = diverging(text)
    monkeypatch.setattr(outside, "DIVERGING_BATCHES", checksums(made, 26))
    with pytest.raises(DivergedError) as caught:
        pretrain(made, tmp_path, "xlnet")
    message = str(caught.value)
    assert message.startswith("step 27: the loss term 'plm' is nan; the gradient is not finite in")
    assert "The last good checkpoint is that of step 20" in message
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["10", "20"]
    for array in saved(tmp_path, 20).values():
        assert np.isfinite(array).all()
    # Without the fault the same directory goes on from there.
    monkeypatch.undo()
    pretrain(made, tmp_path, "xlnet")
    assert np.isfinite(saved(tmp_path, STEPS)["step"])


def test_held_out_data_without_a_finite_loss_stops_the_run(
    text: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    def damaged(params: Any) -> Any:
        return {**params, "output_bias": params["output_bias"].at[-1].set(jnp.nan)}

    with pytest.raises(DivergedError, match="step 0: on held-out data 'loss' is nan"):
        pretrain(ConfigDict(config(text)), tmp_path / "run", "xlnet", warm_start=damaged)
    assert not any((tmp_path / "run" / "checkpoints").glob("[0-9]*"))


def test_a_rising_loss_stops_the_run(text: pathlib.Path, tmp_path: pathlib.Path) -> None:
    wild = ConfigDict(config(text))
    wild.optimizer.learning_rate = 300.0
    with wild.unlocked():
        wild.training.max_loss_rise = 1.5
    with pytest.raises(DivergedError, match=r"rose to .* config\.training\.max_loss_rise=1\.5"):
        pretrain(wild, tmp_path, "xlnet")


@pytest.mark.slow
def test_some_steps_are_profiled(text: pathlib.Path, tmp_path: pathlib.Path) -> None:
    short = config(text)
    short["training"]["steps"] = 10
    child = begin(short, tmp_path, "--profile=4-6", devices=1)
    said = child.communicate()[1]
    assert child.returncode == 0, said
    (trace,) = (tmp_path / "run" / "profile").rglob("*.xplane.pb")
    assert b"train" in trace.read_bytes()  # the annotation of a step
    assert re.search(r"[\d.]+ ms of operations a step, \d+% outside of matrix products", said)
    rows = re.findall(r"^\| (\S+) \| (forward|backward|) \| ([\d.]+) \|", said, re.MULTILINE)
    assert len(rows) == 10
    assert any("layer_*" in scope for scope, _, _ in rows)
    assert sorted(rows, key=lambda row: -float(row[2])) == rows
    for steps in ((4, 6), (9, 12), (12, 11)):
        with pytest.raises(ConfigError, match=f"--profile: cannot profile steps {steps[0]} to"):
            pretrain(ConfigDict(short), tmp_path / "run", "xlnet", profile=steps)


def test_operations_are_grouped_by_scope(tmp_path: pathlib.Path) -> None:
    @jax.jit
    def step(x: jax.Array) -> jax.Array:
        def loss(x: jax.Array) -> jax.Array:
            with jax.named_scope("loss"), jax.named_scope("layer_7"):
                return jnp.tanh(x @ x).sum()

        with jax.named_scope("order"):
            order = jnp.sort(x, axis=0)
        return jax.grad(loss)(x) + order

    x = jnp.ones((512, 512))
    hlo = step.lower(x).compile().as_text()
    step(x).block_until_ready()
    with jax.profiler.trace(tmp_path):
        for _ in range(2):
            step(x).block_until_ready()
    seconds = operation_seconds(tmp_path, "jit_step")
    assert not operation_seconds(tmp_path, "jit_other")
    summary, _, _, *rows = operation_table(seconds, hlo or "", steps=2)
    total = 1e3 * sum(seconds.values()) / 2
    assert summary.startswith(f"{total:.1f} ms of operations a step")
    cells = {tuple(row.strip("| ").split(" | ")[:2]): row.strip("| ").split(" | ") for row in rows}
    assert cells["loss/layer_*", "forward"][4] == "100%"
    assert cells["order", ""][4] == "0%"
    assert sum(float(row[2]) for row in cells.values()) == pytest.approx(total, abs=0.3)
    short = operation_table(seconds, hlo or "", steps=2, top=1)
    assert "others" in short[-1] and len(short) == 5


def test_a_profile_must_be_a_range() -> None:
    with pytest.raises(ConfigError, match="--profile: 'ten' is not FIRST-LAST; write steps such"):
        profiled_steps("ten")
    assert profiled_steps("10-12") == (10, 12)
    assert profiled_steps("") is None
