"""Time to explain an image: ours in batches, against the official way, one image at a time with the
gradients of every weight as well.

pip install -e ".[benchmark]" && python benchmarks/explaining.py

All ways take their turns in one process, on the same images and weights, and give the same maps.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version

import jax
import numpy as np
import pytorch_peer

from devnet_jax.config import Config, DatasetConfig, EvaluationConfig, ModelConfig
from devnet_jax.detector import Detector
from devnet_jax.environment import describe_devices
from devnet_jax.initialisation import make_model, make_variables
from devnet_jax.models import to_torch_state_dict
from devnet_jax.preprocessing import normalise

OURS = "ours, input gradients"
Way = Callable[[np.ndarray], np.ndarray]


def official_way_in_jax(detector: Detector) -> Way:
    model = make_model(detector.config)

    @jax.jit
    def gradients(variables: dict, inputs: jax.Array) -> tuple:
        def score(params: dict, inputs: jax.Array) -> jax.Array:
            return model.apply({**variables, "params": params}, inputs)[0].sum()

        return jax.grad(score, argnums=(0, 1))(variables["params"], inputs)

    def explain(images: np.ndarray) -> np.ndarray:
        maps = []
        for image in images:
            of_weights, of_input = gradients(detector.variables, normalise(image[None]))
            jax.block_until_ready(of_weights)
            maps.append(pytorch_peer.to_map(np.asarray(of_input[0])))
        return np.stack(maps)

    return explain


def rounds(ways: dict[str, Way], images: np.ndarray, n: int) -> Iterator[dict[str, float]]:
    """Milliseconds an image of each way, in turn, n times."""
    for _ in range(n):
        times = {}
        for name, way in ways.items():
            start = time.perf_counter()
            way(images)
            times[name] = 1000 * (time.perf_counter() - start) / len(images)
        yield times


def compare(size: int, n_images: int, n_rounds: int) -> None:
    config = Config(
        dataset=DatasetConfig(image_size=size),
        model=ModelConfig(pretrained="none", n_scales=2),
        evaluation=EvaluationConfig(batch_size=n_images),
    )
    detector = Detector(config, make_variables(config), step=0)
    network = pytorch_peer.build(to_torch_state_dict(detector.variables), n_scales=2)
    ways: dict[str, Way] = {
        OURS: lambda images: detector.explain(images, "gradient").maps,
        "ours, the head's score map": lambda images: detector.explain(images, "score_map").maps,
        "official way, PyTorch": pytorch_peer.official_way(network),
        "the same without the weights' gradients": pytorch_peer.official_way(network, False),
        "official way, JAX": official_way_in_jax(detector),
    }
    images = np.random.default_rng(0).integers(0, 256, (n_images, size, size, 3), dtype=np.uint8)
    maps = {name: way(images) for name, way in ways.items()}  # and compiles
    for name, found in maps.items():
        if "score map" not in name:
            np.testing.assert_allclose(found, maps[OURS], atol=5e-3, err_msg=name)
    times = list(rounds(ways, images, n_rounds))
    print(f"\n| {size}×{size}, ResNet-18, two scales | ms an image | over ours (least – most) |")
    print("|---|---|---|")
    for name in ways:
        ratios = [of_round[name] / of_round[OURS] for of_round in times]
        middle, low, high = statistics.median(ratios), min(ratios), max(ratios)
        milliseconds = statistics.median(of_round[name] for of_round in times)
        print(f"| {name} | {milliseconds:.0f} | {middle:.2f} ({low:.2f} – {high:.2f}) |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[224, 448])
    parser.add_argument("--images", type=int, default=8, help="also the batch of ours")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    devices = jax.devices()
    print(describe_devices(jax.default_backend(), len(devices), devices[0].device_kind), end=", ")
    print(f"Python {platform.python_version()}, jax {version('jax')}, torch {version('torch')}")
    for size in arguments.sizes:
        compare(size, arguments.images, arguments.rounds)


if __name__ == "__main__":
    main()
