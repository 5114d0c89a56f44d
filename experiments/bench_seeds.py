"""A step of several seeds in one program, against the same seeds one after the other.

  python -m experiments.bench_seeds --config=configs/quickstart.py:gpt

Both make the same updates of the same states from the same batches. Rounds take turns, and medians
of their ratios are printed; what is compiled is compiled before, and its time told apart.
"""

import contextlib
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

from absl import flags

from experiments import command_line

flags.DEFINE_list("seeds", ["1", "2", "4", "8"], "How many at a time.")
flags.DEFINE_integer("steps", 10, "Of a round.", 1)
flags.DEFINE_integer("rounds", 7, "Of each way.", 1)


def main() -> None:
    config = command_line.config()
    import jax

    from lmjax.data.store import check_data, prepare
    from lmjax.training.loop import opened
    from lmjax.training.plan import PretrainConfig, make_plan
    from lmjax.training.reporting import RunDirectory

    plan = make_plan(config)
    check_data(plan.data)
    tokenizer, stores = prepare(plan.data, ("train", "validation"))
    objective = plan.objective_for(tokenizer.vocabulary(stores["train"].counts))
    print(f"{plan.training.batch_size} rows a batch on {jax.devices()[0].device_kind}")
    print("| seeds | apart, ms a step of all | together, ms | apart / together | compiled in, s |")
    print("| ---: | ---: | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        stack.enter_context(jax.set_mesh(plan.mesh))
        directory = RunDirectory(pathlib.Path(folder) / "run", config, PretrainConfig)
        run = stack.enter_context(opened(plan, objective, stores, directory))
        for count in map(int, flags.FLAGS.seeds):
            print(measured(run, count), flush=True)


def measured(run: Any, count: int) -> str:
    """A line of the table."""
    import jax
    import numpy as np

    from lmjax.training.mesh import replicated
    from lmjax.training.together import Programs

    steps, place = flags.FLAGS.steps, replicated(run.mesh)
    program, programs = run.program, Programs(run.program, count)
    rows = [next(run.train_data) for _ in range(count)]
    batches = [jax.device_put(batch, place) for batch in rows]
    stacked = jax.device_put(jax.tree.map(lambda *x: np.stack(x), *rows), place)

    def one_by_one(states: Any) -> Any:
        for _ in range(steps):
            states = [program.step(s, b)[0] for s, b in zip(states, batches, strict=True)]
        return states

    def all_at_once(state: Any) -> Any:
        for _ in range(steps):
            state, _ = programs.step(state, stacked)
        return state

    states = [program.initial(np.uint32(seed)) for seed in range(count)]
    together = programs.stack(states)
    _, compiling = timed(lambda _: programs.step.lower(together, stacked).compile(), None)
    states, together = one_by_one(states), all_at_once(together)
    pairs = []
    for _ in range(flags.FLAGS.rounds):
        states, apart = timed(one_by_one, states)
        together, whole = timed(all_at_once, together)
        pairs.append((apart, whole))
    apart, whole = (1000 * statistics.median(side) / steps for side in zip(*pairs, strict=True))
    ratio = statistics.median(a / b for a, b in pairs)
    return f"| {count} | {apart:.1f} | {whole:.1f} | {ratio:.2f} | {compiling:.1f} |"


def timed(work: Callable[[Any], Any], given: Any) -> tuple[Any, float]:
    """What it gives, when it is there, and the seconds it took."""
    import jax

    start = time.perf_counter()
    made = work(given)
    jax.block_until_ready([x for x in jax.tree.leaves(made) if isinstance(x, jax.Array)])
    return made, time.perf_counter() - start


if __name__ == "__main__":
    command_line.start(main)
