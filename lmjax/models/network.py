"""The interface of networks, the same for all model families.

`TextInputs` is the input of every network. `Network` is the base class of all networks: its
attributes declare capabilities and its methods implement them. Callers check the attribute, never
the class. Methods run inside `network.apply({"params": params}, ..., method="name")`.
"""

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from lmjax.models.published import Published
from lmjax.nn.dropout import Seeds
from lmjax.nn.layers import score_targets
from lmjax.nn.masks import Mask

ScoringMethod = Literal[
    "causal", "pseudo", "pseudo_within_word", "left_to_right", "discriminator", "stupid_backoff"
]
Scores = tuple[jax.Array, jax.Array]  # log-probabilities, and whether no token is likelier


@flax.struct.dataclass
class TextInputs:
    """A batch of texts as input of a network.

    Attributes:
      tokens: [batch, length] int, token ids.
      token_types: [batch, length] int, the text of a pair to which a token belongs (BERT's A and
        B). XLNet only compares them for equality; GPT ignores them.
      positions: [batch, length] int, rows of the position table. XLNet ignores them.
      mask: attention mask, broadcasts to [batch, length, length]; True = may attend.
      real: [batch, length] bool, False at padding. Only heads and pooling use it; `mask` must
        hide padding from attention.
      starts: [batch, texts] int, where the texts of a row start; None = each row is one text.
    """

    tokens: jax.Array
    token_types: jax.Array
    positions: jax.Array
    mask: Mask | jax.Array
    real: jax.Array
    starts: jax.Array | None = None


class Network(nn.Module):
    """Base class of networks; a subclass has a field or property `config`, its `ModelConfig`.

    Attributes:
      score_methods: supported methods of scoring a text (`lmjax.evaluation.scoring`), the default
        first.
      frame: roles of the special tokens before and after a text that is scored or filled; 'begin'
        is the token that begins a document.
      continues_texts: predicts the next token; implements `read_prompt` and `read_token`.
      keeps_cache: has a key-value cache; implements `empty_cache` and `read_slots`.
      fills_masks: predicts the token at [MASK]; implements `fill`.
    """

    score_methods: ClassVar[tuple[ScoringMethod, ...]] = ()
    frame: ClassVar[tuple[tuple[str, ...], tuple[str, ...]]] = ((), ())
    continues_texts: ClassVar[bool] = False
    keeps_cache: ClassVar[bool] = False
    fills_masks: ClassVar[bool] = False

    @property
    def begins_documents(self) -> bool:
        """Whether texts are preceded by the token that begins a document."""
        return "begin" in self.frame[0]

    @nn.nowrap
    def part(self, params: Any, name: str) -> tuple["Network", Any]:
        """Returns one of several subnetworks with its parameters.

        Args:
          name: 'generator' or 'discriminator'; a single network returns itself for both.
        """
        del name
        return self, params

    @nn.nowrap
    def start_from(self, network: "Network", params: Any) -> Any:
        """Returns the parameters of another network, named as in this one, to start training.

        Parameters of a head may be missing.

        Raises:
          ConfigError: training cannot start from that network.
        """
        del network
        return params

    @nn.nowrap
    def published(self) -> Published | None:
        """Returns the corresponding format in `transformers`, or None if there is none."""
        return None

    def whole(self, inputs: TextInputs) -> Any:
        """Returns outputs at all positions: a head's logits, token logits or hidden states."""
        call: Any = self
        return call(inputs)

    def score(
        self,
        method: ScoringMethod,
        inputs: TextInputs,
        mask_id: int,
        begin: jax.Array,
        end: jax.Array,
    ) -> Scores:
        """Returns log-probabilities in nats, float32, and whether no token is likelier.

        Args:
          method: one of `score_methods`.
          mask_id: id of [MASK], if the network `fills_masks`.
          begin, end: [batch] int. The methods 'pseudo' and 'pseudo_within_word' score the token at
            `begin` with tokens begin..end - 1 masked; other methods ignore both.

        Returns:
          [batch, length] each, arbitrary at padding; [batch, 1] for the 'pseudo' methods.
        """
        raise NotImplementedError

    def fill(self, inputs: TextInputs, mask_id: jax.Array) -> jax.Array:
        """Returns logits [batch, length, vocab_size] of the token at each position.

        mask_id: [] int, the id of [MASK].
        """
        raise NotImplementedError

    def decode(self, hidden: jax.Array) -> jax.Array:
        """Hidden states [..., hidden_size] -> token logits [..., vocab_size]."""
        raise NotImplementedError

    def read_prompt(self, tokens: jax.Array, real: jax.Array, width: int) -> tuple[jax.Array, Any]:
        """Reads the first `width` slots.

        Args:
          tokens: [rows, slots] int.
          real: [rows, slots] bool, False at padding on the left.

        Returns:
          Float32 logits [rows, vocab_size] of the next token, and the state to keep: arrays whose
          first axis is the rows, or None.
        """
        raise NotImplementedError

    def read_token(
        self, tokens: jax.Array, real: jax.Array, slot: jax.Array, kept: Any, width: int
    ) -> tuple[jax.Array, Any]:
        """Reads the token in `slot`, [] int, after a prompt of `width`; see `read_prompt`."""
        raise NotImplementedError

    def empty_cache(self, rows: int, slots: int) -> Any:
        """Returns an empty cache: arrays whose first axis is the rows."""
        raise NotImplementedError

    def read_slots(
        self, new: jax.Array, real: jax.Array, start: Any, cache: Any
    ) -> tuple[jax.Array, Any]:
        """Reads tokens into the cache.

        Args:
          new: [rows, count] int, tokens for the slots from `start` on.
          real: [rows, slots] bool, False at padding.
          start: [] int.

        Returns:
          Hidden states [rows, count, hidden_size] for `decode`, and the updated cache.
        """
        raise NotImplementedError


class CausalNetwork(Network):
    """Base class of left-to-right language models.

    A subclass implements `hidden` and `decode`. Without a cache, generation reads the whole text
    again for each token.
    """

    score_methods: ClassVar[tuple[ScoringMethod, ...]] = ("causal",)
    frame: ClassVar[tuple[tuple[str, ...], tuple[str, ...]]] = (("begin",), ())
    continues_texts: ClassVar[bool] = True

    if TYPE_CHECKING:
        config: Any

    def hidden(self, inputs: TextInputs, seeds: Seeds | None = None) -> jax.Array:
        """Returns the last hidden states [batch, length, hidden_size]."""
        raise NotImplementedError

    def __call__(self, inputs: TextInputs, seeds: Seeds | None = None) -> jax.Array:
        """Returns logits of the next token, [batch, length, vocab_size]."""
        return self.decode(self.hidden(inputs, seeds))

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
        """Returns logits [rows, vocab_size] of the token after `slot`; later slots are ignored."""
        inputs = self.config.inputs(tokens, jnp.zeros_like(tokens), real)
        at = jax.lax.dynamic_index_in_dim(self.hidden(inputs), slot, axis=1, keepdims=False)
        return self.decode(at).astype(jnp.float32)


class MaskedNetwork(Network):
    """Base class of masked language models; a subclass implements `masked_logits`."""

    score_methods: ClassVar[tuple[ScoringMethod, ...]] = ("pseudo", "pseudo_within_word")
    frame: ClassVar[tuple[tuple[str, ...], tuple[str, ...]]] = (("cls",), ("sep",))
    fills_masks: ClassVar[bool] = True

    def masked_logits(self, inputs: TextInputs, target_positions: jax.Array) -> jax.Array:
        """Returns logits [batch, n, vocab_size] at `target_positions` [batch, n]."""
        raise NotImplementedError

    def fill(self, inputs: TextInputs, mask_id: jax.Array) -> jax.Array:
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
    """Returns the positions 0, 1, 2, ... of each row: [batch, length]."""
    return jnp.broadcast_to(jnp.arange(inputs.tokens.shape[1]), inputs.tokens.shape)


def scores_of(logits: jax.Array, targets: jax.Array, shift: int = 0) -> Scores:
    """Returns log softmax(logits)[targets], and whether no token is likelier.

    Args:
      logits: [batch, n, vocab_size]; targets: [batch, n].
      shift: number of positions to prepend, with score 0, before the first target.
    """
    losses, greedy = score_targets(logits, targets)
    return jnp.pad(-losses, ((0, 0), (shift, 0))), jnp.pad(greedy, ((0, 0), (shift, 0)))
