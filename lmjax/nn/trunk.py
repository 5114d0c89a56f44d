"""The settings of a Transformer trunk, the same for every model and objective."""

import dataclasses
from typing import Annotated, Any, Literal

import flax.linen as nn
import jax.numpy as jnp

from lmjax.configuration import Interval, NonNegativeInt, OptionalSize, Rate, Size, check_ranges
from lmjax.errors import ConfigError
from lmjax.nn.layers import Activation, Initializer, truncated_normal

Kernel = Literal["auto", "plain", "cudnn", "splash"]
RematPolicy = Literal["", "nothing_saveable", "dots_with_no_batch_dims_saveable", "dots_saveable"]


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """A stack of Transformer blocks.

    Attributes:
      layers, hidden_size, heads, intermediate_size: L, H, A and the feed-forward size.
      head_dim: size of a head; 0 = hidden_size / heads.
      activation: of the feed-forward layer; 'gelu' is the error-function form.
      gated: the feed-forward layer is a gated one, of three kernels (Shazeer 2020).
      norm: 'post' normalises after the residual sum (Vaswani et al., BERT, XLNet), 'pre'
        before each sublayer and once at the end (GPT-2).
      layer_norm_epsilon: 1e-12 in BERT, XLNet and ELECTRA, 1e-5 in GPT-2.
      dropout: on embeddings and on each sublayer's output.
      attention_dropout: on the attention weights.
      activation_dropout: after the activation (XLNet).
      initial_distribution, initial_std: of all kernels and embeddings.
      scale_residual_init: divides the initial std of each sublayer's last kernel by
        sqrt(2 layers) (GPT-2 §2.3).
      base_width: hidden size at which the learning rate was found, of which the maximal update
        parametrisation then makes the rate of this size (Yang et al. 2022, Table 8, heads of
        one size): kernels begin smaller by sqrt(hidden_size / base_width) and learn slower by
        that ratio, and logits are divided by it. 0 = the usual parametrisation.
      dtype: of the operands of matrix products; parameters, softmax, normalisation and
        loss are float32 always.
      scan_layers: one compiled block for all layers, parameters stacked on a leading
        axis: compile time does not grow with depth. Off is faster on CPU.
      remat: what of a block is kept for the backward pass, by the name of a policy of
        `jax.checkpoint_policies`, the rest being computed again: nothing, the products
        with parameters, or those of attention too. '' = everything, nothing again.
      attention: what computes softmax(query key^T) value: `plain` products, cuDNN's or
        TPU's flash attention (`splash`); `auto` takes the device's where it can, else plain
        ones (`lmjax.nn.kernels`).
      query_chunk: queries whose attention scores exist at one time; they are computed again
        in the backward pass, so that memory grows linearly with the length. 0 = all at
        once, which is faster while the scores fit.
    """

    layers: Annotated[int, Interval("[1, 1000]")]
    hidden_size: Size
    heads: Size
    intermediate_size: Size
    head_dim: OptionalSize = 0
    activation: Activation = "gelu_tanh"
    gated: bool = False
    norm: Literal["post", "pre"] = "post"
    # Of smaller ones the gradient at equal features overflows.
    layer_norm_epsilon: Annotated[float, Interval("[1e-24, 1]")] = 1e-12
    dropout: Rate = 0.1
    attention_dropout: Rate = 0.1
    activation_dropout: Rate = 0.0
    initial_distribution: Literal["truncated_normal", "normal"] = "truncated_normal"
    initial_std: Annotated[float, Interval("[0, 10]")] = 0.02
    scale_residual_init: bool = False
    base_width: OptionalSize = 0
    dtype: Literal["float32", "bfloat16"] = "float32"
    scan_layers: bool = False
    remat: RematPolicy = ""
    attention: Kernel = "auto"
    query_chunk: NonNegativeInt = 0

    def __post_init__(self) -> None:
        check_ranges(self)
        if not self.head_dim and self.hidden_size % self.heads:
            raise ConfigError(
                f"heads: {self.heads} heads do not divide hidden_size={self.hidden_size};"
                " choose a divisor or set head_dim"
            )

    @property
    def head_size(self) -> int:
        return self.head_dim or self.hidden_size // self.heads

    @property
    def compute_dtype(self) -> Any:
        return jnp.dtype(self.dtype)

    @property
    def width_ratio(self) -> float:
        """Of the hidden size to that of the base; 1 in the usual parametrisation."""
        return self.hidden_size / self.base_width if self.base_width else 1.0

    def initializer(self) -> Initializer:
        """Of tables, and of what has no inputs to sum."""
        return self._of_std(self.initial_std)

    def kernel_initializer(self) -> Initializer:
        """Of what sums over features."""
        return self._of_std(self.initial_std * self.width_ratio**-0.5)

    def residual_initializer(self) -> Initializer:
        """Of a sublayer's last kernel."""
        depth = (2 * self.layers) ** -0.5 if self.scale_residual_init else 1.0
        return self._of_std(self.initial_std * depth * self.width_ratio**-0.5)

    def _of_std(self, std: float) -> Initializer:
        if self.initial_distribution == "truncated_normal":
            return truncated_normal(std)
        return nn.initializers.normal(std)

    @property
    def kernel_size(self) -> int:
        """How many numbers the kernels of all blocks are."""
        inner = (3 if self.gated else 2) * self.intermediate_size
        return self.layers * self.hidden_size * (4 * self.heads * self.head_size + inner)

    def forward_flops(self, queries: float, keys: float) -> float:
        """FLOPs of the matrix products of one forward pass of one example.

        A product of [m, k] and [k, n] counts 2 m k n.

        Args:
          queries: rows that go through the blocks.
          keys: rows that a query attends to. Masked pairs are computed, so they count.
        """
        width = self.heads * self.head_size
        return queries * (2 * self.kernel_size + self.layers * 4 * keys * width)
