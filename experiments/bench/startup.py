"""From the command to the first step of the four base configs, with and without kept programs."""

import atexit
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

from experiments.bench.rounds import Comparison, Made, Subject
from experiments.bench.train import CONFIGS, cut_to


def comparisons(objectives: list[str], size: str = "") -> list[Comparison]:
    """One table per objective: nothing kept, and everything kept.

    Args:
      size: of the config; '' is the base size.
    """
    make = "experiments.bench.startup:start"
    found = []
    for objective in objectives:
        config = f"configs/{objective}.py:{size or CONFIGS[objective]}"
        subjects = [
            Subject(name, make, {"config": config, "objective": objective, "keep": keep})
            for name, keep in (("first start", False), ("later start", True))
        ]
        found.append(Comparison(f"from the command to a step, {config}", subjects, ""))
    return found


def start(config: str, objective: str, keep: bool) -> Made:
    """A run on the embedded corpus, killed after its first step of 4 rows of 128 tokens.

    The tokens are prepared already. Before the first step, the run evaluates one batch.

    Args:
      config: as --config takes it.
      objective: of the config.
      keep: whether compiled programs of earlier runs are kept.
    """
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    cache = pathlib.Path(folder.name) / "cache"
    workdir = pathlib.Path(folder.name) / "run"
    settings = {
        "training.steps": 1,
        "training.batch_size": 4,
        "training.eval_batches": 1,
        "optimizer.warmup_steps": 1,
        "data.tokenizer.vocab_size": 4096,
        **cut_to(objective, 128),
    }
    command = [sys.executable, "-m", "experiments.pretrain", f"--config={config}"]
    command += [f"--config.{name}={value}" for name, value in settings.items()]

    def run() -> None:
        shutil.rmtree(workdir, ignore_errors=True)
        if not keep:
            shutil.rmtree(cache / "compiled", ignore_errors=True)
        environment = {**os.environ, "LMJAX_CACHE": str(cache)}
        line = ""
        with subprocess.Popen(
            [*command, f"--workdir={workdir}"], env=environment, stderr=subprocess.PIPE, text=True
        ) as child:
            assert child.stderr is not None
            for line in child.stderr:
                if ": step 1/1 " in line:
                    child.kill()
                    return
        raise RuntimeError(line.strip())

    return run, {}
