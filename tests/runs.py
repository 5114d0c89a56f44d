"""A whole run small enough to be killed often, here and as processes of its own."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import time
from typing import Any

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
STEPS = 150


def write_text(path: pathlib.Path) -> pathlib.Path:
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


def begin(
    config: dict[str, Any], place: pathlib.Path, *flags: str, devices: int = 8, **variables: str
) -> "subprocess.Popen[str]":
    """The run as a process of its own, in place / "run".

    Args:
      flags: of the program, besides --config and --workdir.
      devices: of the process; as many as here give the same numbers to the last bit.
      variables: of the environment.
    """
    place.mkdir(parents=True, exist_ok=True)
    file = place / "config.py"
    file.write_text(
        "from ml_collections import ConfigDict\n"
        f"def get_config():\n    return ConfigDict({config!r})\n"
    )
    program = [sys.executable, "-m", "experiments.pretrain"]
    cpu = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    return subprocess.Popen(
        [*program, f"--config={file}", f"--workdir={place / 'run'}", *flags],
        cwd=ROOT,
        env=os.environ | cpu | variables,
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


def changed(
    place: pathlib.Path, target: pathlib.Path, file: str, field: str, value: Any
) -> pathlib.Path:
    """A copy of a run, target / "copy", in which a dotted field of a JSON file has this value.

    Args:
      field: '' for all that the file holds.
    """
    copy = pathlib.Path(shutil.copytree(place, target / "copy"))
    whole = {"": json.loads((copy / file).read_text())}
    block = whole
    *blocks, name = ["", *field.split(".")] if field else [""]
    for part in blocks:
        block = block[part]
    block[name] = value
    (copy / file).write_text(json.dumps(whole[""]))
    return copy
