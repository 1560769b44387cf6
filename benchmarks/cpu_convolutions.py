"""Measures ResNet's 3×3 convolutions on a CPU by map size, for XLA and for this package.

python benchmarks/cpu_convolutions.py

It uses one core, as in training, where each core is a device with its share of the batch.
"""

import functools
import os
import time
from collections.abc import Callable

from devnet_jax.runtime.startup import prepare

os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # before JAX counts the cores
prepare(batch_size=1)

import jax  # noqa: E402
from jax import Array  # noqa: E402

from devnet_jax.models.layers.convolution import convolve  # noqa: E402

BATCH = 8
SIZES = {
    64: (28, 56),
    128: (14, 28, 56),
    256: (1, 2, 3, 4, 7, 14, 28),
    512: (1, 2, 3, 4, 7, 14),
}
WINDOW = {
    "window_strides": (1, 1),
    "padding": [(1, 1), (1, 1)],
    "dimension_numbers": ("NHWC", "HWIO", "NHWC"),
}


def weight_gradient(f: Callable[..., Array], x: Array, kernel: Array, y: Array) -> Array:
    return jax.vjp(functools.partial(f, x), kernel)[1](y)[0]


def input_gradient(f: Callable[..., Array], x: Array, kernel: Array, y: Array) -> Array:
    return jax.vjp(lambda x: f(x, kernel), x)[1](y)[0]


def milliseconds(function: Callable[..., Array], *arguments: Array) -> float:
    """Returns the time of the fastest of five calls, after compilation."""
    compiled = jax.jit(function)
    compiled(*arguments).block_until_ready()
    times = []
    for _ in range(5):
        start = time.perf_counter()
        compiled(*arguments).block_until_ready()
        times.append(time.perf_counter() - start)
    return 1000 * min(times)


def main() -> None:
    print("| channels | map | of | forward | weight gradient | input gradient |  (ms, batch 8)")
    print("|---|---|---|---|---|---|")
    for channels, sizes in SIZES.items():
        for size in sizes:
            keys = jax.random.split(jax.random.key(0), 3)
            x = jax.random.normal(keys[0], (BATCH, size, size, channels))
            kernel = jax.random.normal(keys[1], (3, 3, channels, channels))
            y = jax.random.normal(keys[2], x.shape)
            for name, convolution in (("XLA", jax.lax.conv_general_dilated), ("ours", convolve)):
                f = functools.partial(convolution, **WINDOW)
                times = (
                    milliseconds(f, x, kernel),
                    milliseconds(functools.partial(weight_gradient, f), x, kernel, y),
                    milliseconds(functools.partial(input_gradient, f), x, kernel, y),
                )
                shown = " | ".join(f"{time:.1f}" for time in times)
                print(f"| {channels} | {size}×{size} | {name} | {shown} |")


if __name__ == "__main__":
    main()
