"""Compares a training step with the limits of the machine, and profiles it by operation.

python benchmarks/roofline.py --dtype=bfloat16

Operations and bytes per second of a step are compared with those of a large matrix product and of a
copy in the same process. The step is the package's, on images in device memory, with as many steps
per call as in training. Operations and bytes are XLA's cost estimates of the compiled program; they
assume that no data stay in a cache between operations. The last line of the output is JSON.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import re
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from devnet_jax.config import Config, with_settings
from devnet_jax.data.preprocessing import Preprocessing
from devnet_jax.runtime.host_devices import describe_devices
from devnet_jax.runtime.startup import prepare

# JAX is imported only in functions, after `prepare` has set its environment variables.

N_IMAGES, N_ANOMALY = 100, 10
N_REPEATS = 10  # timed calls, after one that compiles
N_KINDS = 12  # kinds of operations reported separately; the others are summed


@dataclasses.dataclass(frozen=True)
class Ceilings:
    """The measured limits of all devices together.

    Attributes:
      flops: floating-point operations per second of a product of square matrices.
      bytes: bytes read and written per second by adding 1 to an array.
    """

    flops: float
    bytes: float


@dataclasses.dataclass(frozen=True)
class RandomImages:
    """An `ImageReader` of random pixels."""

    preprocessing: Preprocessing
    is_cached: bool = True

    def __len__(self) -> int:
        return N_IMAGES

    def read(self, indices: np.ndarray, description: str | None = None) -> np.ndarray:
        shape = (len(indices), *self.preprocessing.shape)
        return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def seconds_of(work: Callable[[], Any]) -> list[float]:
    """Returns the seconds of each of `N_REPEATS` calls, after one that compiles."""
    import jax

    jax.block_until_ready(work())
    seconds = []
    for _ in range(N_REPEATS):
        started = time.perf_counter()
        jax.block_until_ready(work())
        seconds.append(time.perf_counter() - started)
    return seconds


def measure_ceilings(dtype: str, n_rows: int, copied: int) -> Ceilings:
    """Measures the limits of the devices.

    Args:
      dtype: dtype of the matrices.
      n_rows: number of rows of the square matrix on each device.
      copied: size in bytes of the array on each device.
    """
    import jax
    import jax.numpy as jnp

    n = jax.local_device_count()
    matrices = jax.random.normal(jax.random.key(0), (n, n_rows, n_rows), dtype)
    product = jax.pmap(lambda a: a @ a)
    arrays = jnp.zeros((n, copied // 4))
    copy = jax.pmap(lambda a: a + 1)
    return Ceilings(
        flops=n * 2 * n_rows**3 / min(seconds_of(lambda: product(matrices))),
        bytes=n * 2 * copied / min(seconds_of(lambda: copy(arrays))),
    )


def measure(config: Config) -> dict[str, Any]:
    """Measures a training step: seconds, operations, bytes, and time by kind of operation."""
    import jax

    from devnet_jax.data.store import DeviceStore
    from devnet_jax.distributed.sharding import n_devices, replicated
    from devnet_jax.models.build import make_variables
    from devnet_jax.training.loop import call_inputs, unrolls_steps
    from devnet_jax.training.step import initial_state, make_train_call

    state = jax.device_put(initial_state(config, make_variables(config)), replicated())
    store = DeviceStore(RandomImages(Preprocessing.from_settings(config.dataset)), replicated())
    batches, labels = next(call_inputs(config, store, N_IMAGES - N_ANOMALY, done=0))
    n_steps = len(labels)

    # Counted for a single step, because XLA counts the body of a loop once.
    one_step = make_train_call(config, store, scan=False)
    lowered = one_step.lower(state, store.resident, batches[:1], labels[:1])
    cost = lowered.compile().cost_analysis()

    train_call = make_train_call(config, store, scan=not unrolls_steps())

    def work() -> Any:
        nonlocal state
        state, metrics = train_call(state, store.resident, batches, labels)
        return metrics

    seconds = statistics.median(seconds_of(work)) / n_steps
    kind = jax.devices()[0].device_kind
    return {
        "devices": describe_devices(jax.default_backend(), n_devices(), kind),
        "images_per_second": config.train.batch_size / seconds,
        "seconds_per_step": seconds,
        "flops_per_second": n_devices() * cost["flops"] / seconds,
        "bytes_per_second": n_devices() * cost["bytes accessed"] / seconds,
        "milliseconds_by_operation": {
            kind: 1000 * kind_seconds / n_steps
            for kind, kind_seconds in seconds_by_kind(work).items()
        },
    }


def seconds_by_kind(work: Callable[[], Any]) -> dict[str, float]:
    """Returns the seconds of XLA's operations in one call, over all devices, by kind.

    The kind is the name of the operation without numbers.
    """
    import jax

    seconds: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(work())
        [file] = Path(folder).rglob("*.xplane.pb")
        profile = jax.profiler.ProfileData.from_file(str(file))
    for plane in profile.planes:
        for line in plane.lines:
            for event in line.events:
                operation = dict(event.stats).get("hlo_op")
                if operation is not None:
                    kind = re.sub(r"[.\d]+(\.clone)?$", "", str(operation))
                    seconds[kind] += event.duration_ns / 1e9
    largest = seconds.most_common(N_KINDS)
    rest = seconds.total() - sum(kind_seconds for _, kind_seconds in largest)
    return dict(largest) | {"others": rest}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="benchmarks/roofline.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="compute dtype"
    )
    parser.add_argument("--image-size", type=int, default=448, help="height and width in pixels")
    parser.add_argument("--batch-size", type=int, default=48, help="training batch size")
    parser.add_argument(
        "--rows", type=int, default=8192, help="number of rows of the square matrices"
    )
    parser.add_argument("--mib", type=int, default=1024, help="size of the copied array in MiB")
    arguments = parser.parse_args()
    prepare(arguments.batch_size)
    config = with_settings(
        Config(),
        {
            "dataset.image_size": arguments.image_size,
            "model.dtype": arguments.dtype,
            "model.pretrained": "none",
            "train.batch_size": arguments.batch_size,
        },
    )
    ceilings = measure_ceilings(arguments.dtype, arguments.rows, arguments.mib << 20)
    measured = measure(config)
    shares = {
        "of_ceiling_flops": measured["flops_per_second"] / ceilings.flops,
        "of_ceiling_bytes": measured["bytes_per_second"] / ceilings.bytes,
    }
    print(json.dumps({"ceilings": dataclasses.asdict(ceilings), **measured, **shares}))


if __name__ == "__main__":
    main()
