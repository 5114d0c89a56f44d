"""What the rest of the project asks of a network, whatever its family.

`TextInputs` is what every network reads. `Network` is the base of all networks: its attributes
say what a network can do, its methods do it, and a room that needs a capability asks for the
attribute, never for the class. Methods run inside `network.apply({"params": params}, ...,
method="name")`.
"""

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from lmjax.models.published import Published
from lmjax.nn.cross_entropy import score_targets
from lmjax.nn.dropout import Seeds
from lmjax.nn.masks import Mask

ScoringMethod = Literal["causal", "pseudo", "pseudo_within_word", "left_to_right", "discriminator"]
Scores = tuple[jax.Array, jax.Array]  # log-probabilities, and whether nothing is likelier


@flax.struct.dataclass
class TextInputs:
    """A batch of texts as a network reads it.

    Attributes:
      tokens: [batch, length] int, ids.
      token_types: [batch, length] int: which text of a pair a token belongs to (BERT's A and B).
        XLNet compares them for equality only; GPT ignores them.
      positions: [batch, length] int, rows of the position table. XLNet ignores them.
      mask: of [batch, length, length], or what broadcasts to it; True = may attend.
      real: [batch, length] bool, False at padding. Only heads and pooling read it: what attention
        sees of padding, `mask` says.
    """

    tokens: jax.Array
    token_types: jax.Array
    positions: jax.Array
    mask: Mask | jax.Array
    real: jax.Array


class Network(nn.Module):
    """Base of all networks; a subclass has a field or property `config`, its `ModelConfig`.

    Attributes:
      score_methods: how it scores a text (`lmjax.evaluation.scoring`), its own way first.
      frame: roles of the special tokens before and behind a text that is scored or filled;
        'begin' is the token that begins a document.
      continues_texts: it predicts the next token: `read_prompt` and `read_token`.
      keeps_cache: it keeps what it computed of earlier tokens: `empty_cache`, `read_slots`.
      fills_masks: it predicts what stands at [MASK]: `fill`.
    """

    score_methods: ClassVar[tuple[ScoringMethod, ...]] = ()
    frame: ClassVar[tuple[tuple[str, ...], tuple[str, ...]]] = ((), ())
    continues_texts: ClassVar[bool] = False
    keeps_cache: ClassVar[bool] = False
    fills_masks: ClassVar[bool] = False

    @property
    def begins_documents(self) -> bool:
        """Whether a text stands behind the token that begins a document."""
        return "begin" in self.frame[0]

    @nn.nowrap
    def part(self, params: Any, name: str) -> tuple["Network", Any]:
        """One of its networks with its parameters, where it is made of several.

        Args:
          name: 'generator' or 'discriminator'; a single network is both.
        """
        del name
        return self, params

    @nn.nowrap
    def published(self) -> Published | None:
        """Its class of `transformers`; None where there is none."""
        return None

    def whole(self, inputs: TextInputs) -> Any:
        """The outputs for all positions: a head's logits, logits of tokens, or hidden states."""
        raise NotImplementedError

    def score(
        self,
        method: ScoringMethod,
        inputs: TextInputs,
        mask_id: int,
        begin: jax.Array,
        end: jax.Array,
    ) -> Scores:
        """Log-probabilities in nats, float32.

        Args:
          method: one of `score_methods`.
          mask_id: of [MASK], where the network `fills_masks`.
          begin, end: [batch] int. The methods 'pseudo' and 'pseudo_within_word' score the token at
            `begin` and hide those from there up to `end`; the others ignore both.

        Returns:
          [batch, length] each, arbitrary at padding; of the 'pseudo' methods [batch, 1].
        """
        raise NotImplementedError

    def fill(self, inputs: TextInputs) -> jax.Array:
        """Logits [batch, length, vocab_size] of the token at each position."""
        raise NotImplementedError

    def decode(self, hidden: jax.Array) -> jax.Array:
        """Hidden states [..., hidden_size] -> logits [..., vocab_size] of the token there."""
        raise NotImplementedError

    def read_prompt(self, tokens: jax.Array, real: jax.Array, width: int) -> tuple[jax.Array, Any]:
        """Reads the first `width` slots.

        Args:
          tokens: [rows, slots] int.
          real: [rows, slots] bool, False at padding on the left.

        Returns:
          float32 logits [rows, vocab_size] of what comes next, and what is to be kept, arrays
          whose second axis is the rows, or None.
        """
        raise NotImplementedError

    def read_token(
        self, tokens: jax.Array, real: jax.Array, slot: jax.Array, kept: Any, width: int
    ) -> tuple[jax.Array, Any]:
        """Reads the token in `slot`, [] int, of a prompt of `width`; as `read_prompt`."""
        raise NotImplementedError

    def empty_cache(self, rows: int, slots: int) -> Any:
        """What is kept before any token: arrays whose second axis is the rows."""
        raise NotImplementedError

    def read_slots(
        self, new: jax.Array, real: jax.Array, start: Any, cache: Any
    ) -> tuple[jax.Array, Any]:
        """Reads tokens into the cache.

        Args:
          new: [rows, count] int, tokens for the slots from `start` on.
          real: [rows, slots] bool.
          start: [] int.

        Returns:
          Hidden states [rows, count, hidden_size], which `decode` reads, and the cache.
        """
        raise NotImplementedError


class CausalNetwork(Network):
    """Base of language models that read from left to right.

    A subclass implements `hidden` and `decode`. It generates by reading the text anew for each
    token, unless it keeps a cache.
    """

    score_methods: ClassVar[tuple[ScoringMethod, ...]] = ("causal",)
    frame: ClassVar[tuple[tuple[str, ...], tuple[str, ...]]] = (("begin",), ())
    continues_texts: ClassVar[bool] = True

    if TYPE_CHECKING:
        config: Any

    def hidden(self, inputs: TextInputs, seeds: Seeds | None = None) -> jax.Array:
        """The last hidden states [batch, length, hidden_size]."""
        raise NotImplementedError

    def __call__(self, inputs: TextInputs, seeds: Seeds | None = None) -> jax.Array:
        """Logits of the next token, [batch, length, vocab_size]."""
        return self.decode(self.hidden(inputs, seeds))

    def whole(self, inputs: TextInputs) -> jax.Array:
        return self(inputs)

    def score(
        self,
        method: ScoringMethod,
        inputs: TextInputs,
        mask_id: int,
        begin: jax.Array,
        end: jax.Array,
    ) -> Scores:
        return scores_of(self(inputs)[:, :-1], inputs.tokens[:, 1:], shift=1)

    def read_prompt(self, tokens: jax.Array, real: jax.Array, width: int) -> tuple[jax.Array, Any]:
        if not self.keeps_cache:
            return self.next_logits(tokens, real, width - 1), None
        cache = self.empty_cache(*tokens.shape)
        hidden, cache = self.read_slots(tokens[:, :width], real, 0, cache)
        return self.decode(hidden[:, -1]).astype(jnp.float32), cache

    def read_token(
        self, tokens: jax.Array, real: jax.Array, slot: jax.Array, kept: Any, width: int
    ) -> tuple[jax.Array, Any]:
        if not self.keeps_cache:
            return self.next_logits(tokens, real, slot), None
        new = jax.lax.dynamic_slice_in_dim(tokens, slot, 1, axis=1)
        hidden, kept = self.read_slots(new, real, slot, kept)
        return self.decode(hidden[:, -1]).astype(jnp.float32), kept

    def next_logits(self, tokens: jax.Array, real: jax.Array, slot: Any) -> jax.Array:
        """Logits [rows, vocab_size] of what follows `slot`; later slots are not read."""
        inputs = self.config.inputs(tokens, jnp.zeros_like(tokens), real)
        at = jax.lax.dynamic_index_in_dim(self.hidden(inputs), slot, axis=1, keepdims=False)
        return self.decode(at).astype(jnp.float32)


class MaskedNetwork(Network):
    """Base of masked language models; a subclass implements `masked_logits`."""

    score_methods: ClassVar[tuple[ScoringMethod, ...]] = ("pseudo", "pseudo_within_word")
    frame: ClassVar[tuple[tuple[str, ...], tuple[str, ...]]] = (("cls",), ("sep",))
    fills_masks: ClassVar[bool] = True

    def masked_logits(self, inputs: TextInputs, target_positions: jax.Array) -> jax.Array:
        """Logits [batch, n, vocab_size] of the tokens at `target_positions` [batch, n]."""
        raise NotImplementedError

    def fill(self, inputs: TextInputs) -> jax.Array:
        return self.masked_logits(inputs, every_position(inputs))

    def score(
        self,
        method: ScoringMethod,
        inputs: TextInputs,
        mask_id: int,
        begin: jax.Array,
        end: jax.Array,
    ) -> Scores:
        where = begin[:, None]
        targets = jnp.take_along_axis(inputs.tokens, where, axis=1)
        place = jnp.arange(inputs.tokens.shape[1])[None]
        hidden = (place >= where) & (place < end[:, None])
        masked = inputs.replace(tokens=jnp.where(hidden, mask_id, inputs.tokens))  # type: ignore[attr-defined]
        return scores_of(self.masked_logits(masked, where), targets)


def every_position(inputs: TextInputs) -> jax.Array:
    """[batch, length]: 0, 1, 2, ..."""
    return jnp.broadcast_to(jnp.arange(inputs.tokens.shape[1]), inputs.tokens.shape)


def scores_of(logits: jax.Array, targets: jax.Array, shift: int = 0) -> Scores:
    """log softmax(logits)[targets], and whether nothing is likelier.

    Args:
      logits: [batch, n, vocab_size]; targets: [batch, n].
      shift: how many positions come before the first target; their scores are 0.
    """
    losses, greedy = score_targets(logits, targets)
    return jnp.pad(-losses, ((0, 0), (shift, 0))), jnp.pad(greedy, ((0, 0), (shift, 0)))
