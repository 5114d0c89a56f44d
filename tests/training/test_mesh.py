"""Meshes, batches on them, and the numbers that do not fit."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.errors import ConfigError
from lmjax.training.monitor import peak_flops
from lmjax.training.sharding import (
    MeshConfig,
    batch_sharding,
    check_batch,
    global_batch,
    make_mesh,
    replicated,
)

needs_eight = pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 devices")


@needs_eight
def test_all_devices_or_the_first_ones():
    assert make_mesh(MeshConfig()).devices.size == jax.device_count()
    mesh = make_mesh(MeshConfig(data=2))
    assert list(mesh.devices.flat) == jax.devices()[:2]
    assert dict(mesh.shape) == {"data": 2, "fsdp": 1, "sequence": 1, "tensor": 1}
    assert mesh.axis_types == (jax.sharding.AxisType.Auto,) * 4
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=2))
    assert dict(mesh.shape) == {
        "data": jax.device_count() // 4,
        "fsdp": 2,
        "sequence": 1,
        "tensor": 2,
    }


@needs_eight
def test_global_batch_splits_rows_in_order():
    mesh = make_mesh(MeshConfig(data=8))
    tokens = np.arange(48, dtype=np.int32).reshape(16, 3)
    batch = global_batch({"tokens": tokens, "label": np.arange(16, dtype=np.int32)}, mesh, 16)
    assert batch["tokens"].sharding == batch_sharding(mesh)
    np.testing.assert_array_equal(batch["tokens"], tokens)
    for shard in batch["tokens"].addressable_shards:
        assert shard.data.shape == (2, 3)
        np.testing.assert_array_equal(shard.data, tokens[shard.index])
    total = jax.jit(jnp.sum, out_shardings=replicated(mesh))(batch["tokens"])
    assert int(total) == tokens.sum() and total.sharding.is_fully_replicated


def test_global_batch_refuses_a_wrong_number_of_rows():
    mesh = make_mesh(MeshConfig(data=1))
    with pytest.raises(ValueError, match=r"batch\['tokens'\]: 3 rows"):
        global_batch({"tokens": np.zeros((3, 2), np.int32)}, mesh, 4)


@needs_eight
def test_check_batch():
    mesh = make_mesh(MeshConfig(data=4))
    check_batch(32, 16, 2, mesh)
    with pytest.raises(ConfigError, match=r"config\.training\.batch_size: 30 .* by 8 .* 24 or 32"):
        check_batch(30, 16, 2, mesh)
    with pytest.raises(ConfigError, match=r"use 8$"):
        check_batch(3, 16, 2, mesh)
    with pytest.raises(ConfigError, match=r"config\.training\.accumulation"):
        check_batch(32, 16, 0, mesh)
    with pytest.raises(ConfigError, match=r"config\.mesh\.sequence: 4 devices do not split .*=18"):
        check_batch(32, 18, 1, make_mesh(MeshConfig(data=1, sequence=4)))


def test_too_many_devices():
    with pytest.raises(ConfigError, match=r"config\.mesh\.data: .* = 1000 x 1 x 1 x 1 devices"):
        make_mesh(MeshConfig(data=1000))
    with pytest.raises(ConfigError, match="data: must be at least 1, or -1"):
        MeshConfig(data=0)
    with pytest.raises(ConfigError, match=r"config\.mesh\.fsdp: .* = 0 x 1000 x 1 x 1 devices"):
        make_mesh(MeshConfig(fsdp=1000))
    with pytest.raises(ConfigError, match="tensor: must be at least 1, got 0"):
        MeshConfig(tensor=0)


@pytest.mark.parametrize(
    ("kind", "half", "single"),
    [
        ("NVIDIA H200", 989e12, 494.5e12),
        ("NVIDIA H100 80GB HBM3", 989e12, 494.5e12),
        ("NVIDIA H100 PCIe", 756e12, 378e12),
        ("NVIDIA A100-SXM4-40GB", 312e12, 156e12),
        ("NVIDIA A10G", 70e12, 35e12),
        ("NVIDIA L4", 121e12, 60e12),
        ("NVIDIA L40S", 362e12, 183e12),
        ("Tesla V100-SXM2-16GB", 125e12, 15.7e12),
        ("Tesla T4", 65e12, 8.1e12),
        ("TPU v2", 22.5e12, 22.5e12),
        ("TPU v4", 275e12, 275e12),
        ("TPU v5 lite", 197e12, 197e12),
        ("TPU v5p", 459e12, 459e12),
        ("TPU v6 lite", 918e12, 918e12),
        ("NVIDIA RTX A1000", None, None),
        ("a device of 2040", None, None),
    ],
)
def test_peak_flops(kind, half, single):
    device = types.SimpleNamespace(platform="accelerator", device_kind=kind)
    assert peak_flops(device, jnp.bfloat16) == half
    assert peak_flops(device, jnp.float32) == single


def test_peak_flops_of_a_cpu_is_unknown():
    assert peak_flops(jax.devices("cpu")[0], jnp.float32) is None
