"""Time of ResNet's 3×3 convolutions on a CPU by the size of their map: where XLA is slow.

python benchmarks/cpu_convolutions.py
"""

import time
from collections.abc import Callable

import jax
from jax import Array

BATCH = 16


def convolve(x: Array, kernel: Array) -> Array:
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), [(1, 1), (1, 1)], dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def milliseconds(function: Callable[..., Array], *arguments: Array) -> float:
    """The fastest of five calls."""
    compiled = jax.jit(function)
    compiled(*arguments).block_until_ready()
    times = []
    for _ in range(5):
        start = time.perf_counter()
        compiled(*arguments).block_until_ready()
        times.append(time.perf_counter() - start)
    return 1000 * min(times)


def main() -> None:
    print("| channels | map | forward | weight gradient | input gradient |  (ms, batch 16)")
    print("|---|---|---|---|---|")
    for channels in (256, 512):
        for size in (1, 2, 3, 4, 7, 14):
            keys = jax.random.split(jax.random.key(0), 3)
            x = jax.random.normal(keys[0], (BATCH, size, size, channels))
            kernel = jax.random.normal(keys[1], (3, 3, channels, channels))
            y = jax.random.normal(keys[2], x.shape)
            forward = milliseconds(convolve, x, kernel)
            weight = milliseconds(
                lambda x, k, y: jax.vjp(lambda k: convolve(x, k), k)[1](y)[0], x, kernel, y
            )
            image = milliseconds(
                lambda x, k, y: jax.vjp(lambda x: convolve(x, k), x)[1](y)[0], x, kernel, y
            )
            print(f"| {channels} | {size}×{size} | {forward:.1f} | {weight:.1f} | {image:.1f} |")


if __name__ == "__main__":
    main()
