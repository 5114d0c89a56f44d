"""Weights stream: opening and writing a model takes little more memory than the model."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]

PROGRAM = """
import json, resource, sys
import jax, jax.numpy as jnp, numpy as np
import flax.traverse_util
import lmjax
from lmjax.convert.huggingface import abstract_params
from lmjax.convert.pretrained import Pretrained
from lmjax.models.bert import BertConfig, BertForPreTraining
from lmjax.nn.trunk import TransformerConfig

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

network = BertForPreTraining(BertConfig(
    TransformerConfig(layers=12, hidden_size=640, heads=8, intermediate_size=2560),
    vocab_size=20_000))
shapes = abstract_params(network)
size = 4 * sum(int(np.prod(leaf.shape)) for leaf in shapes.values())
jax.block_until_ready(jnp.ones((256, 256)) @ jnp.ones((256, 256)))
before = peak()
if sys.argv[1] == "write":
    flat = {path: jnp.full(leaf.shape, 0.5) for path, leaf in shapes.items()}
    params = flax.traverse_util.unflatten_dict(flat, sep="/")
    lmjax.save_huggingface(Pretrained(network, params), sys.argv[2])
else:
    loaded = lmjax.load(sys.argv[2])
    jax.block_until_ready(loaded.params)
print(json.dumps((peak() - before) / size))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux alone")
def test_memory_stays_near_one_copy(tmp_path: pathlib.Path) -> None:
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    for what in ("write", "read"):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, what, str(tmp_path / "m")],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        copies = json.loads(done.stdout.splitlines()[-1])
        print(what, copies)
        assert copies < 1.6, what
