"""A training step at the paper's settings, as XLA compiles it: what it sends and computes.

python benchmarks/scale_step.py

Prints it as JSON; for `scale.py`. Nothing is run.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from collections.abc import Mapping
from typing import Any

IMAGE_SIZE, BATCH_SIZE = 448, 48  # the paper's
N_DEVICES = 2

# A result's type, which may hold comments with an equals sign, up to the operation's name.
_ALL_REDUCE = re.compile(r"^\s*(?:ROOT )?%?[\w.-]+ = (.*?) all-reduce(?:-start)?\((.*)$", re.M)
_ARRAY = re.compile(r"\b(?:pred|[a-z]+(\d+))\[([\d,]*)\]")


@dataclasses.dataclass(frozen=True)
class Reductions:
    """The all-reduces of one direction.

    Attributes:
      count: operations.
      bytes: that each device gives to them.
    """

    count: int
    bytes: int


@dataclasses.dataclass(frozen=True)
class Step:
    """A training step at the paper's settings.

    Attributes:
      parameters: numbers that are learnt.
      layers: applications of BatchNorm, over all scales.
      written: all-reduces in the program that JAX gives to XLA.
      forward: all-reduces that XLA makes of them, up to the loss.
      backward: the same of the gradients.
      flops: of one image, forward and backward.
      score_flops: of one image that is scored.
      explain_flops: of the gradients' map of one image.
    """

    parameters: int
    layers: int
    written: int
    forward: Reductions
    backward: Reductions
    flops: float
    score_flops: float
    explain_flops: float

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Step:
        """From what `dataclasses.asdict` gives."""
        nested = {name: Reductions(**values[name]) for name in ("forward", "backward")}
        return cls(**{**values, **nested})


def array_bytes(shape: str) -> int:
    """Of all arrays in a type as HLO writes it: f32[7,7,3,64]{3,2,1,0}, or several in brackets."""
    total = 0
    for bits, sides in _ARRAY.findall(shape):
        n = math.prod(int(side) for side in sides.split(",") if side)
        total += n * max(int(bits or 8) // 8, 1)
    return total


def reductions(hlo: str) -> tuple[Reductions, Reductions]:
    """The all-reduces of a compiled training step: forward, and those with a gradient in them."""
    found: list[tuple[bool, int]] = []
    for shape, rest in _ALL_REDUCE.findall(hlo):
        found.append(("jvp(" in rest and "transpose(" not in rest, array_bytes(shape)))
    forward = [size for is_forward, size in found if is_forward]
    backward = [size for is_forward, size in found if not is_forward]
    return Reductions(len(forward), sum(forward)), Reductions(len(backward), sum(backward))


def compile_step() -> Step:
    """Compiles a step for `N_DEVICES` devices of this process, and runs nothing."""
    from devnet_jax.startup import prepare

    prepare(BATCH_SIZE)
    import jax
    import jax.numpy as jnp
    from cost import RandomImages, Work

    from devnet_jax.data.store import StreamedStore
    from devnet_jax.explanation import gradient_maps
    from devnet_jax.initialisation import abstract_variables, make_model
    from devnet_jax.scoring import score_images
    from devnet_jax.train_step import initial_state, make_train_call

    assert jax.device_count() == N_DEVICES
    work = Work(IMAGE_SIZE, BATCH_SIZE, N_DEVICES, n_images=100, n_scales=2, store="stream")
    config, store = work.config, StreamedStore(RandomImages(work, None))
    variables = abstract_variables(config)
    state = jax.eval_shape(lambda given: initial_state(config, given), variables)
    share = (1, N_DEVICES, BATCH_SIZE // N_DEVICES)
    pixels = (IMAGE_SIZE, IMAGE_SIZE, 3)
    images = jax.ShapeDtypeStruct((*share, *pixels), jnp.uint8)
    labels = jax.ShapeDtypeStruct(share, jnp.float32)
    call: Any = make_train_call(config, store, scan=False)
    lowered = call.func.lower(*call.args, state, store.resident, images, labels)
    compiled = lowered.compile()
    forward, backward = reductions(compiled.as_text() or "")

    def flops(program: Any) -> float:
        return program.cost_analysis()["flops"]

    one = (make_model(config), variables, jax.ShapeDtypeStruct((1, *pixels), jnp.uint8))
    norms = [path for path, _ in jax.tree.leaves_with_path(variables["batch_stats"])]
    return Step(
        parameters=sum(leaf.size for leaf in jax.tree.leaves(variables["params"])),
        layers=len(norms) // 2 * config.model.n_scales,  # a mean and a variance each
        written=lowered.as_text().count("stablehlo.all_reduce"),
        forward=forward,
        backward=backward,
        flops=flops(compiled) / share[-1],  # which are one device's
        score_flops=flops(score_images.lower(*one)),
        explain_flops=flops(gradient_maps.lower(*one)),
    )


if __name__ == "__main__":
    os.environ |= {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(N_DEVICES)}
    print(json.dumps(dataclasses.asdict(compile_step())))
