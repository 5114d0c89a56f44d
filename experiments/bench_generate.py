"""Benchmarks greedy search against transformers, in tokens per second, on random GPT-2 weights.

  python -m experiments.bench_generate --batch=1,8

Both use the same float32 weights and prompts, a cache, and the same number of new tokens. Runs
alternate, and medians are printed. Compilation is excluded.
"""

import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from absl import flags

from experiments import command_line
from lmjax.extras import require
from lmjax.tables import markdown_row, markdown_table

flags.DEFINE_list("batch", ["1", "8"], "Batch sizes.")
flags.DEFINE_integer("prompt_length", 32, "Tokens per prompt.")
flags.DEFINE_integer("new_tokens", 64, "New tokens per prompt.")
flags.DEFINE_integer("repeats", 5, "Runs per batch size.")
flags.DEFINE_string("size", "small", "A size of configs/gpt.py.")


def main() -> None:
    torch, transformers = (
        require(name, "huggingface", "the comparison") for name in ("torch", "transformers")
    )
    import jax

    import lmjax
    from configs.gpt import get_config
    from lmjax.convert.pretrained import Pretrained
    from lmjax.training.plan import make_objective

    values = flags.FLAGS
    config = get_config(values.size)
    objective = make_objective(config.objective, config.model, 50257)
    network: Any = objective.network
    names = ("tokens", "token_types", "segment_ids", "positions")
    example = dict.fromkeys(names, np.zeros((1, 8), np.int32))
    params = jax.jit(objective.init)(jax.random.key(0), example)
    new = values.new_tokens
    ids = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    with tempfile.TemporaryDirectory() as folder:
        place = pathlib.Path(folder) / "gpt2"
        lmjax.save_huggingface(Pretrained(network, params, None, (), ids), place)
        ours = lmjax.load(place)
        theirs = transformers.GPT2LMHeadModel.from_pretrained(place).eval()
    theirs.generation_config.eos_token_id = None

    def here(prompts: np.ndarray) -> np.ndarray:
        texts = lmjax.generate(ours, list(prompts), max_new_tokens=new, ignore_eos=True)
        return np.stack([text.token_ids for text in texts])

    def there(prompts: np.ndarray) -> np.ndarray:
        given = torch.tensor(prompts).long()
        settings = {"max_new_tokens": new, "do_sample": False, "pad_token_id": 0}
        with torch.no_grad():
            output = theirs.generate(given, attention_mask=torch.ones_like(given), **settings)
        return output[:, prompts.shape[1] :].numpy()

    print(f"configs/gpt.py:{values.size}, prompts of {values.prompt_length}, {new} new tokens each")
    columns = ["batch", "lmjax tokens/s", "transformers tokens/s", "ratio", "same tokens"]
    print(*markdown_table(columns, [], "r"), sep="\n")
    rng = np.random.default_rng(0)
    for batch in map(int, values.batch):
        prompts = rng.integers(0, 50257, (batch, values.prompt_length)).astype(np.int32)
        same = (here(prompts) == there(prompts)).mean()
        pairs = [(timed(here, prompts), timed(there, prompts)) for _ in range(values.repeats)]
        mine, other = (batch * new / statistics.median(side) for side in zip(*pairs, strict=True))
        speeds = f"{mine:.1f}", f"{other:.1f}", f"{mine / other:.2f}"
        print(markdown_row([str(batch), *speeds, f"{same:.0%}"]))


def timed(run: Callable[[np.ndarray], np.ndarray], prompts: np.ndarray) -> float:
    """Returns the seconds of one run."""
    begin = time.perf_counter()
    run(prompts)
    return time.perf_counter() - begin


if __name__ == "__main__":
    command_line.start(main)
