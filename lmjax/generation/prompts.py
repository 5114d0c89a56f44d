"""Encoding of prompts, and left-padded batches with few distinct shapes."""

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from lmjax.convert.pretrained import Pretrained
from lmjax.data import batching
from lmjax.errors import ConfigError
from lmjax.generation.settings import GenerationConfig

Prompts = str | Sequence[str | Sequence[int] | np.ndarray]

SMALLEST = 16  # the fewest slots of prompts and of new tokens; others are its doubles


@dataclasses.dataclass(frozen=True, eq=False)
class Prompt:
    """A prompt as the network reads it.

    Attributes:
      ids: [length] int32, including the token that begins the document, if any.
      hidden: number of leading ids that are not part of the text.
      key: random key of the samples.
    """

    ids: np.ndarray
    hidden: int
    key: jax.Array


@dataclasses.dataclass(frozen=True, eq=False)
class LeftPadded:
    """A batch of prompts that end in the same slot, with slots for new tokens.

    Attributes:
      tokens: [rows, slots] int32; new slots are 0.
      real: [rows, slots] bool, False at padding on the left.
      keys: [rows] random keys.
      width: the slot of the first new token.
      count: number of prompts; further rows are padding that repeats the first prompt.
    """

    tokens: np.ndarray
    real: np.ndarray
    keys: jax.Array
    width: int
    count: int


def end_of_text(model: Pretrained, config: GenerationConfig) -> int:
    """Returns the id that ends a document, or -1 if there is none."""
    if config.ignore_eos:
        return -1
    end = model.token_ids.get("eos_token_id", -1)
    if "eos_token_id" not in model.token_ids and model.tokenizer is not None:
        end = model.tokenizer.roles["eod"]
    # An id without a row in the token table is never generated.
    return end if end < model.config.vocab_size else -1


def read_prompts(model: Pretrained, prompts: Prompts, config: GenerationConfig) -> list[Prompt]:
    """Encodes each prompt, once for each of its `num_return_sequences` samples.

    Raises:
      ConfigError: there are no prompts, a prompt is empty or has unknown ids, or prompts are
        strings and the model has no tokenizer.
    """
    listed: list[Any] = [prompts] if isinstance(prompts, str) else list(prompts)
    if not listed:
        raise ConfigError("prompts: empty; give at least one")
    if model.tokenizer is None and any(isinstance(prompt, str) for prompt in listed):
        raise ConfigError("prompts: the model has no tokenizer; pass lists of token ids")
    copies = 1 if config.num_beams > 1 else config.num_return_sequences
    base, met = jax.random.key(config.seed), Counter[bytes]()
    made = []
    for place, prompt in enumerate(listed):
        ids, hidden = _ids(model, prompt, config)
        if not ids.size:
            raise ConfigError(f"prompts: number {place} is empty; give it at least one token")
        model.check_ids(ids, f"prompts: number {place}")
        name = hashlib.blake2b(ids.tobytes(), digest_size=4).digest()
        mine = jax.random.fold_in(base, int.from_bytes(name, "little"))
        for _ in range(copies):
            made.append(Prompt(ids, hidden, jax.random.fold_in(mine, met[name])))
            met[name] += 1
    return made


def _ids(model: Pretrained, prompt: Any, config: GenerationConfig) -> tuple[np.ndarray, int]:
    if not isinstance(prompt, str):
        ids = np.asarray(prompt)
        if ids.ndim != 1 or (ids.size and not np.issubdtype(ids.dtype, np.integer)):
            raise ConfigError("prompts: pass a string, strings, or lists of token ids")
        return ids.astype(np.int32), 0
    assert model.tokenizer is not None
    ids = model.tokenizer.encode_batch([prompt], special_tokens=True)[0]
    if not (config.add_bos and model.network.begins_documents):
        return ids, 0
    return np.concatenate([[model.begin_id], ids]).astype(np.int32), 1


def check_room(model: Pretrained, prompts: Sequence[Prompt], config: GenerationConfig) -> None:
    """Checks that prompts and new tokens fit the position table.

    Raises:
      ConfigError: the longest prompt plus `max_new_tokens` exceeds `max_length`.
    """
    room = getattr(model.config, "max_length", None)
    longest = max(len(prompt.ids) for prompt in prompts)
    if room is not None and longest + config.max_new_tokens > room:
        raise ConfigError(
            f"max_new_tokens: {config.max_new_tokens} after a prompt of {longest} tokens exceed"
            f" the {room} rows of the position table; reduce it, or shorten the prompt"
        )


def left_padded(prompts: Sequence[Prompt], new_tokens: int) -> LeftPadded:
    """Stacks prompts; rows, prompt length and new tokens are rounded up to powers of two.

    Args:
      new_tokens: the most new tokens.
    """
    lengths = [len(prompt.ids) for prompt in prompts]
    width = batching.power_of_two(max(lengths), SMALLEST)
    slots = width + batching.power_of_two(new_tokens, SMALLEST)
    rows = batching.power_of_two(len(prompts))
    tokens = batching.stack([prompt.ids for prompt in prompts], width, rows=rows, left=True)
    real = batching.real(lengths, width, rows=rows, left=True)
    keys = [prompt.key for prompt in prompts]
    keys += [keys[0]] * (rows - len(keys))
    return LeftPadded(
        tokens=batching.pad(tokens, slots, 0),
        real=batching.pad(real, slots, True),
        keys=jax.numpy.stack(keys),
        width=width,
        count=len(prompts),
    )
