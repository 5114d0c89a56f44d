"""`lmjax.generate`: prompts in, text out."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.configuration import build
from lmjax.convert.pretrained import Pretrained
from lmjax.errors import ConfigError
from lmjax.generation import beam, tokens
from lmjax.generation.config import GenerationConfig
from lmjax.generation.reading import CausalReader, PermutationReader, Reader, Text
from lmjax.models.gpt import Gpt
from lmjax.models.xlnet import Xlnet

_SMALLEST = 16  # slots of a prompt, and new tokens, that a compiled program has at least
_AT_ONCE = 16  # tokens between two looks at what was written, where somebody looks


@dataclasses.dataclass(frozen=True)
class Generated:
    """What was made of a prompt.

    Attributes:
      text: the new text, without the prompt, the end of the document and stop strings.
      tokens: ids of the new tokens, all of them.
      log_probabilities: of each under the model as it is, without temperature and penalties;
        of beam search () .
      score: the sum of them; of beam search log p / tokens^length_penalty.
      ended: `end` where the document ended, `stop` at a stop string, `length` at
        max_new_tokens.
    """

    text: str
    tokens: tuple[int, ...]
    log_probabilities: tuple[float, ...]
    score: float
    ended: Literal["end", "stop", "length"]


def generate(model: Pretrained, prompts: str | Sequence[str], **settings: Any) -> list[Generated]:
    """Continues prompts, all in one batch.

    Programs are compiled for a number of prompts, a length and a number of new tokens, each
    rounded up to a power of two: prompts of the same bucket share one.

    Args:
      model: GPT, or XLNet with its LM head, with a tokenizer.
      prompts: texts to go on with.
      **settings: fields of `GenerationConfig`.

    Returns:
      One `Generated` a prompt; with returned=n, n of each prompt, one after the other.

    Raises:
      ConfigError: a setting is unknown or cannot work; the model cannot generate, or a prompt
        leaves no room in its position table.
    """
    work = _Work(model, [prompts] if isinstance(prompts, str) else list(prompts), settings)
    if not work.prompts:
        return []
    if work.settings.method == "beam":
        return work.search()
    for _ in work.written(_AT_ONCE if work.settings.stop else work.settings.max_new_tokens):
        pass
    return work.results()


def stream(model: Pretrained, prompt: str, **settings: Any) -> Iterator[str]:
    """Continues one prompt and yields new text as it comes; arguments as of `generate`.

    Raises:
      ConfigError: as `generate`; and for beam search, which knows its text at the end.
    """
    work = _Work(model, [prompt], settings)
    if work.settings.method == "beam":
        raise ConfigError("method: 'beam' knows its text at the end alone; use generate")
    shown = ""
    for _ in work.written(4):
        text = work.results()[0].text
        # The last character may be half of one, and the last words the begin of a stop string.
        safe = text.rstrip("\ufffd")
        held = max((_overlap(safe, stop) for stop in work.settings.stop), default=0)
        safe = safe[: len(safe) - held]
        if safe.startswith(shown) and len(safe) > len(shown):
            yield safe[len(shown) :]
            shown = safe
    text = work.results()[0].text
    if text.startswith(shown) and len(text) > len(shown):
        yield text[len(shown) :]


class _Work:
    """Prompts in slots, and what is written behind them."""

    def __init__(self, model: Pretrained, prompts: list[str], settings: dict[str, Any]):
        self.settings = s = build(GenerationConfig, settings, "generate")
        if model.tokenizer is None:
            raise ConfigError("generate: the model has no tokenizer")
        self.model, self.tokenizer = model, model.tokenizer
        self.reader = reader_of(model)
        roles = self.tokenizer.roles
        self.end = model.token_ids.get("eos_token_id", roles["eod"])
        begin = model.token_ids.get("bos_token_id", roles["eod"])
        encoded = self.tokenizer.encode_batch(prompts)
        self.prompts = [
            np.asarray([begin, *ids] if s.begin or not len(ids) else ids, np.int32)
            for ids in encoded
        ]
        if not self.prompts:
            return
        longest = max(len(ids) for ids in self.prompts)
        limit = getattr(self.reader.network.config, "max_length", None)
        if limit is not None and longest + s.max_new_tokens > limit:
            raise ConfigError(
                f"generate: a prompt of {longest} tokens and max_new_tokens={s.max_new_tokens} are"
                f" more than the {limit} rows of the position table; shorten one of them"
            )
        self.length = _bucket(longest, _SMALLEST)
        self.until = self.length + s.max_new_tokens
        slots = self.length + _bucket(s.max_new_tokens, _SMALLEST)
        rows = _bucket(len(self.prompts), 1)
        array = np.full((rows, slots), self.end, np.int32)
        starts = np.zeros(rows, np.int32)
        for row in range(rows):
            ids = self.prompts[min(row, len(self.prompts) - 1)]
            starts[row] = self.length - len(ids)
            array[row, starts[row] : self.length] = ids
        place = jnp.int32(self.length)
        self.text = Text(jnp.asarray(array), jnp.asarray(starts), place, place)
        self.unused = np.arange(rows) >= len(self.prompts)
        self.state: tokens.Generating | None = None
        self.stopped: dict[int, str] = {}  # row -> its text up to a stop string

    def written(self, at_once: int) -> Iterator[None]:
        """Writes until all texts have ended, and pauses after every `at_once` tokens."""
        s = self.settings
        # What a program does not depend on is the same in all of them.
        static = dataclasses.replace(s, seed=0, max_new_tokens=1, stop=(), begin=False)
        seed = jax.random.key(s.seed)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(seed, jnp.arange(len(self.unused)))
        params = self.model.params
        state = tokens.begin(self.reader, params, self.text, self.length, jnp.asarray(self.unused))
        for until in range(self.length + at_once, self.until + at_once, at_once):
            end = jnp.int32(min(until, self.until))
            state = tokens.advance(
                self.reader, static, params, state, keys, end, jnp.int32(self.end)
            )
            self.state = state
            self._stop()
            yield
            done = np.array(self.state.done)
            if done.all():
                return
            state = self.state

    def _stop(self) -> None:
        """Ends the texts that hold a stop string."""
        if not self.settings.stop:
            return
        assert self.state is not None
        done = np.array(self.state.done)
        for row in range(len(self.prompts)):
            text = self._decoded(row, self._new(row))
            found = [p for stop in self.settings.stop if (p := text.find(stop)) >= 0]
            if found and row not in self.stopped:
                self.stopped[row] = text[: min(found)]
                done[row] = True
        self.state = dataclasses.replace(self.state, done=jnp.asarray(done))

    def _new(self, row: int) -> list[int]:
        """Tokens after the prompt up to the end of the document, that token included."""
        assert self.state is not None
        ids = np.asarray(self.state.text.tokens[row, self.length : int(self.state.text.end)])
        ends = np.flatnonzero(ids == self.end)
        return ids[: ends[0] + 1 if len(ends) else len(ids)].tolist()

    def _decoded(self, row: int, new: list[int]) -> str:
        """The text that `new` adds to the prompt."""
        prompt = self.prompts[row].tolist()
        new = new[:-1] if new and new[-1] == self.end else new
        before, whole = self.tokenizer.decode(prompt), self.tokenizer.decode(prompt + new)
        return whole[len(before) :] if whole.startswith(before) else self.tokenizer.decode(new)

    def results(self) -> list[Generated]:
        """What stands there now."""
        assert self.state is not None
        logs = np.asarray(self.state.log_probabilities)
        found = []
        for row in range(len(self.prompts)):
            new = self._new(row)
            ended: Any = "end" if new and new[-1] == self.end else "length"
            text = self._decoded(row, new)
            if row in self.stopped:
                text, ended = self.stopped[row], "stop"
            here = logs[row, self.length : self.length + len(new)].tolist()
            found.append(Generated(text, tuple(new), tuple(here), float(sum(here)), ended))
        return found

    def search(self) -> list[Generated]:
        """Beam search."""
        s = self.settings
        static = dataclasses.replace(s, seed=0, max_new_tokens=1, stop=(), begin=False, returned=1)
        found, scores, ends = jax.device_get(
            beam.search(
                self.reader,
                static,
                self.model.params,
                self.text,
                self.length,
                jnp.int32(self.until),
                jnp.int32(self.end),
            )
        )
        results = []
        for row in range(len(self.prompts)):
            for rank in range(s.returned):
                new = found[row, rank, self.length : ends[row, rank]].tolist()
                ended: Any = "end" if new and new[-1] == self.end else "length"
                text = self._decoded(row, new)
                places = [p for stop in s.stop if (p := text.find(stop)) >= 0]
                if places:
                    text, ended = text[: min(places)], "stop"
                score = float(scores[row, rank])
                results.append(Generated(text, tuple(new), (), score, ended))
        return results


def reader_of(model: Pretrained) -> Reader:
    """How the model reads from left to right.

    Raises:
      ConfigError: it does not.
    """
    network = model.network
    if isinstance(network, Gpt):
        return CausalReader(network)
    if isinstance(network, Xlnet):
        return PermutationReader(network)
    raise ConfigError(
        f"generate: {type(network).__name__} does not go on with a text; GPT and XLNet with its"
        " LM head do"
    )


def _bucket(count: int, smallest: int) -> int:
    """The next power of two."""
    return max(smallest, 1 << (count - 1).bit_length())


def _overlap(text: str, stop: str) -> int:
    """How much of `stop`'s begin stands at the end of `text`."""
    return next((n for n in range(min(len(stop), len(text)), 0, -1) if text.endswith(stop[:n])), 0)
