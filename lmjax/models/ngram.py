"""N-gram language models in back-off form, as a network.

log p(w | c) is stored for the n-grams c w that the model lists. For others it is
b(c) + log p(w | c'), where c' is the context c without its first token, and b(c) is the back-off
weight of c (Katz 1987). Interpolated smoothing has this form too, if the stored probabilities are
the interpolated ones (Chen & Goodman 1998 §2.8). It is also the content of an ARPA file.

`lmjax.models.ngram_estimation` estimates the parameters, and `lmjax.convert.ngrams` reads and
writes them.
"""

import dataclasses
import math
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.configuration import Interval, VocabSize, check_ranges
from lmjax.models.network import CausalNetwork, Scores, ScoringMethod, TextInputs
from lmjax.nn.dropout import Seeds
from lmjax.nn.masks import padding

Smoothing = Literal["modified_kneser_ney", "kneser_ney", "jelinek_mercer", "katz", "stupid_backoff"]
STUPID = 0.4  # the back-off weight of Brants et al. (2007 §4)
_UNSEEN, _BEFORE = -1, -2  # contexts that are not listed, and those that the text is too short for


@dataclasses.dataclass(frozen=True)
class NgramConfig:
    """The config of a network of n-grams.

    Attributes:
      vocab_size: number of token ids.
      order: n of the longest n-grams.
      smoothing: 'arpa' if the model comes from an ARPA file.
      begin_id, end_id: the tokens before and after a text; they may be the same.
    """

    vocab_size: VocabSize
    order: Annotated[int, Interval("[1, 10]")]
    begin_id: Annotated[int, Interval("[0, 2**24]")]
    end_id: Annotated[int, Interval("[0, 2**24]")]
    smoothing: Smoothing | Literal["arpa"] = "arpa"

    def __post_init__(self) -> None:
        check_ranges(self)

    def inputs(self, tokens: jax.Array, token_types: jax.Array, real: jax.Array) -> TextInputs:
        """Builds inputs from whole texts [batch, length]; only tokens and `real` are read."""
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        return TextInputs(tokens, token_types, positions, padding(real), real)


class Ngram(CausalNetwork):
    """A network whose parameters are the n-grams of each order.

    An n-gram is identified by its index in its order. The parameters `order_1` to `order_N` are:
      log_probs: float32 [n-grams], log p of the last token given the ones before it, in nats.
      tokens: int32 [n-grams], the last token; absent in order 1, whose index is the token.
      log_backoffs: float32 [n-grams], log b of the n-gram as a context.
      starts: int32 [n-grams + 1]: the n-grams of the next order that begin with n-gram i are
        those from starts[i] to starts[i + 1], sorted by their last token.
      best: int32 [n-grams], index of the most probable of them, or -1 if there are none.
    The highest order lacks the last three.
    """

    config: NgramConfig

    @property
    def score_methods(self) -> tuple[ScoringMethod, ...]:  # type: ignore[override]
        """Scores of stupid back-off do not sum to one, so they are not called causal."""
        stupid = self.config.smoothing == "stupid_backoff"
        return ("stupid_backoff",) if stupid else ("causal",)

    def hidden(self, inputs: TextInputs, seeds: Seeds | None = None) -> jax.Array:
        """Returns the contexts of the next token: int32 [batch, length, max(1, order - 1)].

        Entry n - 1 is the index of the last n tokens, or negative.
        """
        del seeds
        context = jnp.where(inputs.real, inputs.tokens, _BEFORE)
        contexts = [context]
        for n in range(2, self.config.order):
            before = jnp.pad(context, ((0, 0), (1, 0)), constant_values=_BEFORE)[:, :-1]
            found = self._find(n, before, inputs.tokens)
            context = jnp.where(inputs.real, jnp.where(before < 0, before, found), _BEFORE)
            contexts.append(context)
        return jnp.stack(contexts, axis=-1)

    def decode(self, hidden: jax.Array) -> jax.Array:
        """Contexts [..., max(1, order - 1)] -> log p of every token [..., vocab_size]."""
        return self.log_probs(hidden, jnp.arange(self.config.vocab_size))

    def log_probs(self, contexts: jax.Array, tokens: jax.Array) -> jax.Array:
        """Returns log p in nats of `tokens` [..., k] after `contexts`: float32 [..., k]."""
        found = self._order(1)["log_probs"][tokens]
        for n in range(2, self.config.order + 1):
            context = contexts[..., n - 2, None]
            place = self._find(n, context, tokens)
            listed = self._order(n)["log_probs"][jnp.maximum(place, 0)]
            found = jnp.where(place >= 0, listed, self._backoff(n - 1, context) + found)
        return found

    def score(
        self,
        method: ScoringMethod,
        inputs: TextInputs,
        mask_id: int,
        begin: jax.Array,
        end: jax.Array,
    ) -> Scores:
        contexts, targets = self.hidden(inputs)[:, :-1], inputs.tokens[:, 1:]
        logs, greedy = self._compared(contexts, targets)
        return jnp.pad(logs, ((0, 0), (1, 0))), jnp.pad(greedy, ((0, 0), (1, 0)))

    def _order(self, n: int) -> Any:
        return self.variables["params"][f"order_{n}"]

    def _find(self, n: int, context: jax.Array, token: jax.Array) -> jax.Array:
        """Returns the index of the n-gram (context, token), or _UNSEEN, by binary search."""
        tokens, starts = self._order(n)["tokens"], self._order(n - 1)["starts"]
        context, token = jnp.broadcast_arrays(context, token)
        known = jnp.maximum(context, 0)
        last = starts[known + 1]

        def halve(bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            low, high = bounds
            middle = (low + high) // 2
            right = (low < high) & (tokens[jnp.minimum(middle, len(tokens) - 1)] < token)
            return jnp.where(right, middle + 1, low), jnp.where(right, high, middle)

        bounds = (starts[known], last)
        place, _ = jax.lax.while_loop(lambda b: (b[0] < b[1]).any(), halve, bounds)
        same = tokens[jnp.minimum(place, len(tokens) - 1)] == token
        return jnp.where((context >= 0) & (place < last) & same, place, _UNSEEN)

    def _backoff(self, n: int, context: jax.Array) -> jax.Array:
        """Returns the log back-off weight of contexts of n tokens."""
        listed = self._order(n)["log_backoffs"][jnp.maximum(context, 0)]
        stupid = self.config.smoothing == "stupid_backoff"
        unseen = jnp.where(context == _UNSEEN, math.log(STUPID) if stupid else 0.0, 0.0)
        return jnp.where(context >= 0, listed, unseen)

    def _compared(self, contexts: jax.Array, targets: jax.Array) -> Scores:
        """Returns log p of `targets` [batch, length], and whether no token is likelier.

        The most probable continuation is, in each order, the best listed one, or that of the
        shorter context. This gives candidates, and a bound of the largest probability. The two
        agree unless a model without interpolation lists a token with less than its back-off
        probability. Only then are all tokens compared.
        """
        unigrams = self._order(1)["log_probs"]
        first = jnp.argmax(unigrams)
        bound = jnp.broadcast_to(unigrams[first], targets.shape)
        candidates = [jnp.broadcast_to(first, targets.shape)]
        for n in range(2, self.config.order + 1):
            context = contexts[..., n - 2]
            best = jnp.where(context >= 0, self._order(n - 1)["best"][jnp.maximum(context, 0)], -1)
            place = jnp.maximum(best, 0)
            listed = self._order(n)["log_probs"][place]
            bound = self._backoff(n - 1, context) + bound
            bound = jnp.where(best >= 0, jnp.maximum(bound, listed), bound)
            candidates.append(jnp.where(best >= 0, self._order(n)["tokens"][place], first))
        found = self.log_probs(contexts, jnp.stack([targets, *candidates], axis=-1))
        logs, largest = found[..., 0], found[..., 1:].max(-1)
        flat, each = contexts.reshape(-1, contexts.shape[-1]), logs.reshape(-1)
        greedy = (largest <= logs).reshape(-1)
        unsettled = greedy & (bound > logs).reshape(-1)

        def settle(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            greedy, unsettled = state
            at = jnp.argmax(unsettled)
            most = self.decode(flat[at]).max()
            return greedy.at[at].set(most <= each[at]), unsettled.at[at].set(False)

        state = (greedy, unsettled)
        greedy, _ = jax.lax.while_loop(lambda state: state[1].any(), settle, state)
        return logs, greedy.reshape(logs.shape)


def order_parameters(
    log_probs: np.ndarray,
    tokens: np.ndarray | None = None,
    log_backoffs: np.ndarray | None = None,
    following: tuple[np.ndarray, np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """Returns the parameters of one order, as `Ngram` documents them.

    Args:
      log_probs, log_backoffs: [n-grams] in nats; no back-off weights in the highest order.
      tokens: [n-grams]; None in order 1.
      following: `starts` [n-grams + 1], and the log-probabilities of the next order.
    """
    found = {"log_probs": log_probs.astype(np.float32)}
    if tokens is not None:
        found["tokens"] = tokens.astype(np.int32)
    if log_backoffs is not None and following is not None:
        starts, after = following
        found["log_backoffs"] = log_backoffs.astype(np.float32)
        found["starts"] = starts.astype(np.int32)
        found["best"] = _largest(starts, after.astype(np.float32))
    return found


def _largest(starts: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Returns the index of the largest of values[starts[i]:starts[i + 1]], or -1: int32."""
    best = np.full(len(starts) - 1, -1, np.int32)
    sizes = np.diff(starts)
    filled = np.flatnonzero(sizes)
    if len(filled):
        largest = np.maximum.reduceat(values, starts[filled])
        places = np.flatnonzero(values == np.repeat(largest, sizes[filled]))
        groups = np.searchsorted(starts, places, side="right") - 1
        best[groups[::-1]] = places[::-1]  # the first of equal ones
    return best
