"""The rate of matrix products, the yardstick of all others."""

from experiments.bench.rounds import Made, Subject

SIZE = 2048


def subject(dtype: str) -> Subject:
    """The subject that multiplies matrices with jax."""
    return Subject("matrix products", "experiments.bench.peak:matrix_products", {"dtype": dtype})


def matrix_products(dtype: str) -> Made:
    """Square products of `SIZE`, with float32 results."""
    from lmjax.host import tune_host

    tune_host()
    import jax
    import jax.numpy as jnp

    x = jax.random.normal(jax.random.key(0), (SIZE, SIZE)).astype(dtype)
    multiply = jax.jit(lambda x: jnp.matmul(x, x, preferred_element_type=jnp.float32))

    def run() -> None:
        multiply(x).block_until_ready()

    return run, {"flops": 2.0 * SIZE**3, "device": jax.devices()[0].device_kind}
