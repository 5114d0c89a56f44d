"""Memory and time of attention against length, and of the trunk against depth.

  python -m experiments.lengths --plot=docs/lengths.png

Memory is that of the compiled forward and backward pass without its arguments. Time is the median
of three runs on the first device, or a single run if it takes long. Cases that need more memory
than --gigabytes are not run.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags

from experiments import command_line
from lmjax.nn import masks
from lmjax.nn.positions import relative_distances, sinusoid
from lmjax.nn.relative import RelativeContext, TwoStreamBlock
from lmjax.nn.transformer import Block, Stack
from lmjax.nn.trunk import TransformerConfig
from lmjax.tables import markdown_row, markdown_table

PLOT = flags.DEFINE_string("plot", "", "Plot of memory over length; '' = none.")
GIGABYTES = flags.DEFINE_float("gigabytes", 4.0, "Skip cases that need more memory.")
LENGTHS = (128, 256, 512, 1024, 2048, 4096, 8192)
CHUNK = 256
TRUNK = TransformerConfig(
    layers=1, hidden_size=256, heads=4, intermediate_size=1024, dropout=0.0, attention_dropout=0.0
)

Measured = tuple[float, float | None]  # MiB, seconds
Case = tuple[Callable[..., Any], tuple[Any, ...]]  # a loss and its arguments


def main() -> None:
    forms = {
        "plain": (one_stream, 0),
        f"chunks of {CHUNK}": (one_stream, CHUNK),
        "two streams, plain": (two_streams, 0),
        f"two streams, chunks of {CHUNK}": (two_streams, CHUNK),
    }
    print(*markdown_table(["length", *forms], [], "r"), sep="\n")
    found: dict[str, list[float]] = {name: [] for name in forms}
    for length in LENGTHS:
        cells = []
        for name, (form, chunk) in forms.items():
            measured = measure(*form(dataclasses.replace(TRUNK, query_chunk=chunk), length))
            found[name].append(measured[0])
            cells.append(show(measured))
        print(markdown_row([str(length), *cells]), flush=True)
    kinds: dict[str, dict[str, Any]] = {
        "unrolled": {},
        "unrolled, remat": {"remat": "nothing_saveable"},
        "scanned": {"scan_layers": True},
        "scanned, remat": {"scan_layers": True, "remat": "nothing_saveable"},
    }
    print("", *markdown_table(["layers", *kinds], [], "r"), sep="\n")
    for layers in (2, 4, 8, 16, 32):
        row = []
        for change in kinds.values():
            config = dataclasses.replace(TRUNK, norm="pre", layers=layers, **change)
            loss, arguments = stack(config, 128)
            started = time.perf_counter()
            jax.jit(jax.grad(loss)).lower(*arguments).compile()
            compiled = time.perf_counter() - started
            row.append(f"{show(measure(loss, arguments))}, compiled in {compiled:.1f} s")
        print(markdown_row([str(layers), *row]), flush=True)
    if PLOT.value:
        draw(found)


def one_stream(
    config: TransformerConfig, length: int
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Returns the loss of a causal block on one text, and its arguments."""
    x = jnp.ones((1, length, config.hidden_size))
    block, layer = Block(config), jnp.uint32(0)
    mask = masks.causal(length)
    params = block.init(jax.random.key(0), x[:, :8], layer, None, masks.causal(8), None, None)

    def loss(params: Any, x: jax.Array) -> jax.Array:
        return jnp.square(block.apply(params, x, layer, None, mask, None, None)[0]).sum()

    return loss, (params, x)


def two_streams(config: TransformerConfig, length: int) -> Case:
    """As `one_stream`, for XLNet's block with a memory of the text's length and 1/6 targets."""
    width, layer = config.hidden_size, jnp.uint32(0)
    block = TwoStreamBlock(config)

    def inputs(length: int) -> tuple[Any, ...]:
        targets = jnp.arange(0, length, 6)[None]
        place = jnp.arange(length)[None]
        mask = masks.with_memory(masks.permutation(place, place), length)
        same = masks.Pairs(jnp.zeros_like(place), jnp.zeros((1, 2 * length), jnp.int32), "equal")
        context = RelativeContext(
            encoding=sinusoid(relative_distances(length, 2 * length), width),
            direction=None,
            content_mask=masks.content(mask, length, 2 * length),
            content_same_segment=same,
            query_mask=mask.take(targets),
            query_same_segment=same.take(targets),
            target_mapping=targets,
        )
        streams = jnp.ones((1, length, width)), jnp.ones((1, targets.shape[1], width))
        return streams, jnp.ones((1, length, width)), context

    (h, g), mems, context = inputs(8)
    params = block.init(jax.random.key(0), (h, g), layer, mems, context, None)

    def loss(params: Any, streams: Any, mems: Any, context: Any) -> jax.Array:
        (h, g), _ = block.apply(params, streams, layer, mems, context, None)
        return jnp.square(h).sum() + jnp.square(g).sum()

    return loss, (params, *inputs(length))


def stack(config: TransformerConfig, length: int) -> Case:
    """As `one_stream`, for a trunk on eight texts."""
    model, x = Stack(config), jnp.ones((8, length, config.hidden_size))
    mask = masks.causal(length)
    params = jax.jit(lambda: model.init(jax.random.key(0), x[:1], mask, None))()

    def loss(params: Any, x: jax.Array) -> jax.Array:
        return jnp.square(model.apply(params, x, mask, None)[0]).sum()

    return loss, (params, x)


def measure(loss: Callable[..., Any], arguments: tuple[Any, ...]) -> Measured:
    """Measures the gradient with respect to the parameters: MiB and, if they fit, seconds."""
    run = jax.jit(jax.grad(loss)).lower(*arguments).compile()
    memory = run.memory_analysis()
    assert memory is not None
    mebibytes = memory.temp_size_in_bytes / 2**20
    if mebibytes > 1024 * GIGABYTES.value:
        return mebibytes, None
    seconds: list[float] = []
    while len(seconds) < 4 and sum(seconds) < 5:
        started = time.perf_counter()
        jax.block_until_ready(run(*arguments))
        seconds.append(time.perf_counter() - started)
    return mebibytes, statistics.median(seconds[1:] or seconds)


def show(measured: Measured) -> str:
    mebibytes, seconds = measured
    return f"{mebibytes:,.0f} MiB, " + ("not run" if seconds is None else f"{seconds:.3f} s")


def draw(found: dict[str, list[float]]) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for name, mebibytes in found.items():
        axes.loglog(LENGTHS, mebibytes, marker="o", label=name, base=2)
    axes.set(xlabel="length (tokens)", ylabel="memory of forward and backward pass (MiB)")
    axes.legend()
    figure.savefig(PLOT.value, dpi=80)


if __name__ == "__main__":
    command_line.start(main)
