"""Settings of the Transformer trunk, shared by all models and objectives."""

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
class RotaryConfig:
    """Config of rotary positions (Su et al. 2021, "RoFormer", section 3.2).

    Attributes:
      base: the wavelengths grow geometrically from 2 pi to nearly 2 pi * base tokens.
      local_base: base of the layers that attend locally (`TransformerConfig.window`); 0 = base.
      extension: how the wavelengths change for texts that are `factor` times as long as those of
        the pretraining: 'linear' divides all positions by the factor (Chen et al. 2023), 'yarn'
        and 'llama3' only those of long wavelengths (Peng et al. 2023, section 3.2, with its scale
        of the scores; Dubey et al. 2024); '' does not extend.
      factor: see `extension`.
      original_length: longest text of the pretraining in tokens, for 'yarn' and 'llama3'.
    """

    base: Annotated[float, Interval("(1, 1e15]")] = 10_000.0
    local_base: Annotated[float, Interval("[0, 1e15]")] = 0.0
    extension: Literal["", "linear", "yarn", "llama3"] = ""
    factor: Annotated[float, Interval("[1, 1e6]")] = 1.0
    original_length: OptionalSize = 0

    def __post_init__(self) -> None:
        check_ranges(self)
        if 0 < self.local_base <= 1:
            raise ConfigError(f"local_base: must be 0 or above 1, got {self.local_base}")
        if self.extension in ("yarn", "llama3") and not self.original_length:
            raise ConfigError(
                f"original_length: extension='{self.extension}' depends on the longest text of"
                " the pretraining; set it"
            )


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Config of a stack of Transformer blocks.

    Attributes:
      layers, hidden_size, heads, intermediate_size: L, H, A and the feed-forward size.
      head_dim: size of a head; 0 = hidden_size / heads.
      key_value_heads: number of heads of keys and values, each shared by a group of query heads
        (Ainslie et al. 2023); 0 = heads.
      positions: 'learned' adds a table of positions to the embeddings, 'sinusoidal' fixed
        sinusoids (Vaswani et al. section 3.5), and 'rotary' rotates queries and keys.
      rotary: settings of rotary positions.
      unrotated_every: layers unrotated_every - 1, 2 unrotated_every - 1, ... do not rotate, so that
        they read no positions (Yang et al. 2025, "Rope to Nope and Back Again"; SmolLM3); 0 = all
        layers rotate.
      window: in local layers, queries attend to keys at most this many positions away; 0 = all
        layers are global.
      global_every: layers 0, global_every, 2 global_every, ... stay global; 0 = none does.
      query_key_norm: normalize each head's queries and keys, before they are rotated.
      activation: activation of the feed-forward layer; 'gelu' is the error-function form.
      gated: use a gated feed-forward layer with three kernels (Shazeer 2020).
      norm: 'post' normalizes after the residual sum (Vaswani et al., BERT, XLNet), 'pre'
        before each sublayer and once at the end (GPT-2).
      first_norm: whether the first block of a 'pre' trunk normalizes the input of its attention;
        ModernBERT normalizes the embeddings instead.
      normalization: 'layer_norm' or 'rms_norm', which neither centers nor has a bias (Zhang and
        Sennrich 2019).
      norm_bias: whether layer normalization has a bias.
      biases: whether the dense layers of the blocks have biases: 'all', none, or only those of
        queries, keys and values.
      layer_norm_epsilon: 1e-12 in BERT, XLNet and ELECTRA, 1e-5 in GPT-2.
      dropout: rate on embeddings and on each sublayer's output.
      attention_dropout: rate on the attention weights.
      activation_dropout: rate after the activation (XLNet).
      initial_distribution, initial_std: initialization of all kernels and embeddings.
      scale_residual_init: divides the initial std of each sublayer's last kernel by
        sqrt(2 layers) (GPT-2 §2.3).
      base_width: hidden size at which the learning rate was tuned. The maximal update
        parametrization transfers that rate to this size (Yang et al. 2022, Table 8, with a fixed
        head size): with r = hidden_size / base_width, the initial std of kernels is divided by
        sqrt(r), and their learning rate and the logits are divided by r. 0 = the standard
        parametrization.
      dtype: dtype of the operands of matrix products; parameters, softmax, normalization and
        loss are always float32.
      scan_layers: compile one block for all layers, with parameters stacked on a leading axis,
        so that compile time does not grow with depth. Unrolled layers are faster on CPU.
      remat: name of a policy in `jax.checkpoint_policies` that selects what a block saves for
        the backward pass: nothing, the products with parameters, or also those of attention.
        The rest is recomputed. '' = save everything.
      attention: implementation of softmax(query key^T) value: `plain` products, flash attention
        of cuDNN (`cudnn`) or of TPUs (`splash`). `auto` uses the device's kernel where possible
        and plain products otherwise (`lmjax.nn.kernels`).
      query_chunk: number of queries whose attention scores are in memory at once. Scores are
        recomputed in the backward pass, so memory grows linearly with the length. 0 = all at
        once, which is faster as long as the scores fit.
    """

    layers: Annotated[int, Interval("[1, 1000]")]
    hidden_size: Size
    heads: Size
    intermediate_size: Size
    head_dim: OptionalSize = 0
    key_value_heads: OptionalSize = 0
    positions: Literal["learned", "sinusoidal", "rotary"] = "learned"
    rotary: RotaryConfig = dataclasses.field(default_factory=RotaryConfig)
    unrotated_every: NonNegativeInt = 0
    window: OptionalSize = 0
    global_every: NonNegativeInt = 0
    query_key_norm: bool = False
    activation: Activation = "gelu_tanh"
    gated: bool = False
    norm: Literal["post", "pre"] = "post"
    first_norm: bool = True
    normalization: Literal["layer_norm", "rms_norm"] = "layer_norm"
    norm_bias: bool = True
    biases: Literal["all", "query_key_value", "none"] = "all"
    # With smaller values, the gradient at equal features overflows.
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
                f"heads: {self.heads} does not divide hidden_size={self.hidden_size};"
                " choose a divisor or set head_dim"
            )
        if not self.first_norm and (self.norm != "pre" or self.scan_layers):
            raise ConfigError(
                "first_norm: only the first of unrolled 'pre' blocks can lack its norm; set"
                " norm='pre' and scan_layers=False, or first_norm=True"
            )
        if self.heads % self.kv_heads:
            raise ConfigError(
                f"key_value_heads: {self.key_value_heads} does not divide heads={self.heads}"
            )
        if self.positions == "rotary" and self.head_size % 2:
            raise ConfigError(
                f"positions: rotary positions rotate pairs of features, but a head has"
                f" {self.head_size}; set an even head_dim"
            )
        if self.unrotated_every and (self.positions != "rotary" or self.rotary.extension == "yarn"):
            raise ConfigError(
                "unrotated_every: only layers of positions='rotary' rotate, and 'yarn' would scale"
                " the scores of all of them; set it to 0"
            )
        if self.positions == "sinusoidal" and self.hidden_size % 2:
            raise ConfigError("positions: sinusoids need an even hidden_size")

    @property
    def kv_heads(self) -> int:
        return self.key_value_heads or self.heads

    @property
    def head_size(self) -> int:
        return self.head_dim or self.hidden_size // self.heads

    @property
    def compute_dtype(self) -> Any:
        return jnp.dtype(self.dtype)

    @property
    def width_ratio(self) -> float:
        """hidden_size / base_width; 1 in the standard parametrization."""
        return self.hidden_size / self.base_width if self.base_width else 1.0

    def initializer(self) -> Initializer:
        """Initializer of embedding tables and other parameters that do not sum over features."""
        return self._of_std(self.initial_std)

    def kernel_initializer(self) -> Initializer:
        """Initializer of kernels, which sum over features."""
        return self._of_std(self.initial_std * self.width_ratio**-0.5)

    def residual_initializer(self) -> Initializer:
        """Initializer of a sublayer's last kernel."""
        depth = (2 * self.layers) ** -0.5 if self.scale_residual_init else 1.0
        return self._of_std(self.initial_std * depth * self.width_ratio**-0.5)

    def _of_std(self, std: float) -> Initializer:
        if self.initial_distribution == "truncated_normal":
            return truncated_normal(std)
        return nn.initializers.normal(std)

    @property
    def kernel_size(self) -> int:
        """Number of elements in the kernels of all blocks."""
        inner = (3 if self.gated else 2) * self.intermediate_size
        attention = 2 * (self.heads + self.kv_heads) * self.head_size
        return self.layers * self.hidden_size * (attention + inner)

    def forward_flops(self, queries: float, keys: float) -> float:
        """FLOPs of the matrix products of one forward pass for one example.

        A product of [m, k] and [k, n] counts as 2 m k n.

        Args:
          queries: number of rows that go through the blocks.
          keys: number of keys per query, including masked ones, which are computed too.
        """
        width = self.heads * self.head_size
        return queries * (2 * self.kernel_size + self.layers * 4 * keys * width)
