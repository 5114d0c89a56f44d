"""LoRA: nothing at first, merged as it was computed, and alone in what is trained."""

import pathlib
from typing import Any

import flax.traverse_util
import jax
import numpy as np
import pytest

import lmjax
from lmjax.errors import ConfigError
from lmjax.nn.lora import LoraConfig, init_adapters, merge
from lmjax.tasks import finetuning
from lmjax.tasks.plan import prepare
from lmjax.training.checkpoints import read_part
from lmjax.training.run_directory import read_metrics
from tests.tasks import small

ADAPTER = {"rank": 3, "alpha": 6.0, "targets": ("query", "value", "outer")}


def encoder(stacked: bool) -> Any:
    rng = np.random.default_rng(0)
    layers = {
        "attention": {
            "query": {"kernel": rng.normal(size=(8, 6)).astype(np.float32), "bias": np.zeros(6)}
        },
        "norm": {"scale": np.ones(8)},
    }
    if stacked:
        return {"blocks": {"layers": jax.tree.map(lambda x: np.stack([x, 2 * x]), layers)}}
    return {"blocks": {"layer_0": layers}}


@pytest.mark.parametrize("stacked", [False, True])
def test_adapters_begin_at_nothing_and_are_added(stacked: bool) -> None:
    config = LoraConfig(rank=2, alpha=8.0, targets=("query",))
    base = encoder(stacked)
    params = {"encoder": base, "head": {"x": np.ones(2)}}
    adapters = init_adapters(jax.random.key(0), base, config)
    same = merge({**params, "adapters": adapters}, config.scale)
    jax.tree.map(np.testing.assert_array_equal, same, params)
    flat = flax.traverse_util.flatten_dict(adapters)
    (a,) = (np.asarray(x) for path, x in flat.items() if path[-1] == "a")
    (b,) = (path for path in flat if path[-1] == "b")
    assert a.std() > 0.1 and np.abs(a).max() <= 8**-0.5
    flat[b] = np.random.default_rng(1).normal(size=flat[b].shape)
    found = merge({**params, "adapters": flax.traverse_util.unflatten_dict(flat)}, config.scale)
    path = ("encoder", *b[:-1], "kernel")
    kernel = flax.traverse_util.flatten_dict(found)[path]
    old = flax.traverse_util.flatten_dict(params)[path]
    np.testing.assert_allclose(kernel, old + 4.0 * (a @ flat[b]), rtol=1e-5, atol=1e-6)
    assert set(found) == {"encoder", "head"}
    with pytest.raises(ConfigError, match="no layer 'qery'; choose from query"):
        init_adapters(jax.random.key(0), base, LoraConfig(rank=2, targets=("qery",)))


def test_a_run_trains_adapters_and_head_alone_and_saves_them_merged(
    tmp_path: pathlib.Path,
) -> None:
    train = small.write_rows(tmp_path / "train.jsonl", small.labelled(96))
    test = small.write_rows(tmp_path / "test.jsonl", small.labelled(24, 1))
    config = small.config(
        {"type": "lmjax.tasks.classification.Classification", "adapter": ADAPTER},
        {"train": train, "validation": test},
    )
    config.dropout, config.training.epochs = 0.0, 16
    prepared = prepare(config)
    result = finetuning.finetune(prepared, config, tmp_path / "run", "", seed=0)
    last = read_part(tmp_path / "run" / "checkpoints", "params")
    config.optimizer.learning_rate, config.training.epochs = 1e-30, 1  # which changes nothing
    finetuning.finetune(prepare(config), config, tmp_path / "first", "", seed=0)
    first = read_part(tmp_path / "first" / "checkpoints", "params")
    jax.tree.map(np.testing.assert_array_equal, first["encoder"], last["encoder"])
    adapters = flax.traverse_util.flatten_dict(last["adapters"])
    assert len(adapters) == 6 and all(np.abs(x).max() > 0 for x in adapters.values())
    count = sum(x.size for x in jax.tree.leaves([last["adapters"], last["head"]]))
    assert result.trained == count == 3 * (16 + 16) * 2 + 3 * (32 + 16) + 16 * 16 + 16 + 2 * 16 + 2
    # Moments are of nothing else: as many numbers twice, and a few counters.
    moments = jax.tree.leaves(read_part(tmp_path / "run" / "checkpoints", "opt_state"))
    assert 2 * count <= sum(np.size(x) for x in moments) <= 2 * count + 8
    losses = [m["loss"] for m in read_metrics(tmp_path / "run") if m["split"] == "train"]
    assert losses[-1] < losses[0] - 0.1
    # Both of what is saved are plain models that say the same.
    for place in (tmp_path / "run", tmp_path / "run" / "model"):
        model = lmjax.load(place)
        assert set(model.params) == {"encoder", "head"}
        assert model.tokenizer is not None
        roles = model.tokenizer.roles
        for row in result.predictions[:1]:
            ids = model.tokenizer.encode_batch([row["text"]])[0]
            shares = jax.nn.softmax(model(np.array([[roles["cls"], *ids, roles["sep"]]]))[0])
            assert model.labels[int(shares.argmax())] == row["prediction"]
            assert float(shares.max()) == pytest.approx(row["confidence"], abs=1e-4)


def test_what_cannot_be_adapted_is_refused(tmp_path: pathlib.Path) -> None:
    train = small.write_rows(tmp_path / "train.jsonl", small.labelled(24))
    config = small.config(
        {"type": "lmjax.tasks.classification.Classification", "adapter": ADAPTER},
        {"train": train, "validation": train},
    )
    config.task.freeze = "trunk"
    with pytest.raises(ConfigError, match=r"config.task.freeze: an adapter"):
        prepare(config)
    config.task.freeze, config.task.adapter.rank = "", -1
    with pytest.raises(ConfigError, match=r"config.task.adapter.rank"):
        prepare(config)
