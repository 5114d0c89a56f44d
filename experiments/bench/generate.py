"""Greedy search beside `transformers`, on the same random GPT-2 weights."""

import atexit
import concurrent.futures
import multiprocessing
import pathlib
import tempfile
from typing import Any

import numpy as np

from experiments.bench import peers
from experiments.bench.rounds import Comparison, Made, Subject
from lmjax.host import tune_host, tune_host_memory

PROMPT, NEW = 32, 64
VOCAB_SIZE = 50_257


def comparisons(sizes: list[str], batches: list[int]) -> list[Comparison]:
    """One table per size of configs/gpt.py and batch size."""
    found = []
    for size in sizes:
        for batch in batches:
            settings = {"size": size, "batch": batch}
            theirs = [
                peers.subject("experiments.bench.generate:transformers_search", v, **settings)
                for v in peers.variants("float32")
            ]
            ours = Subject("lmjax", "experiments.bench.generate:greedy_search", settings)
            title = f"greedy search, gpt {size}, {batch} prompts of {PROMPT}, {NEW} new tokens"
            found.append(Comparison(title, [*theirs, ours], "new tokens"))
    return found


def _prompts(batch: int) -> np.ndarray:
    return np.random.default_rng(0).integers(10, VOCAB_SIZE, (batch, PROMPT)).astype(np.int32)


def _weights(size: str) -> pathlib.Path:
    """Makes a Hugging Face directory with random weights, the same in every process."""
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    place = pathlib.Path(folder.name) / "gpt2"
    # In a process of its own, so that this one has only what it measures.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, context) as executor:
        executor.submit(_save_weights, size, place).result()
    return place


def _save_weights(size: str, place: pathlib.Path) -> None:
    import jax

    import lmjax
    from configs.gpt import get_config
    from lmjax.convert.pretrained import Pretrained
    from lmjax.training.plan import make_objective

    config = get_config(size)
    objective = make_objective(config.objective, config.model, VOCAB_SIZE)
    network: Any = objective.network
    names = ("tokens", "token_types", "segment_ids", "positions")
    example = dict.fromkeys(names, np.zeros((1, 8), np.int32))
    params = jax.jit(objective.init)(jax.random.key(0), example)
    ids = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    lmjax.save_huggingface(Pretrained(network, params, None, (), ids), place)


def greedy_search(size: str, batch: int) -> Made:
    """lmjax's greedy search; the fact 'tokens' is what it found."""
    tune_host()
    import lmjax

    model = lmjax.load(_weights(size))
    prompts = list(_prompts(batch))

    def search() -> np.ndarray:
        texts = lmjax.generate(model, prompts, max_new_tokens=NEW, ignore_eos=True)
        return np.stack([text.token_ids for text in texts])

    return search, {"work": batch * NEW, "tokens": search().tolist()}


def transformers_search(size: str, batch: int, variant: peers.Variant) -> Made:
    """The greedy search of `transformers` with its cache; the fact 'tokens' is what it found."""
    if variant != "as shipped":
        tune_host_memory()
    import torch
    import transformers

    model = transformers.GPT2LMHeadModel.from_pretrained(_weights(size)).eval()
    model.generation_config.eos_token_id = None
    given = torch.tensor(_prompts(batch)).long()
    settings = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}

    def search() -> np.ndarray:
        with torch.no_grad():
            output = model.generate(given, attention_mask=torch.ones_like(given), **settings)
        return output[:, PROMPT:].numpy()

    return search, {"work": batch * NEW, "tokens": search().tolist()}
