"""Tests that settings of JAX in the caller's program change no score."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from devnet_jax import Detector
from devnet_jax.export.write import export_detector
from devnet_jax.rng import key
from devnet_jax.runtime.numerics import standard_numerics
from devnet_jax.runtime.workdir import Workdir


@contextlib.contextmanager
def other_numerics() -> Iterator[None]:
    """Settings with which the network itself would compute something else, or fail."""
    with (
        jax.enable_x64(True),
        jax.numpy_dtype_promotion("strict"),
        jax.numpy_rank_promotion("raise"),
        jax.default_prng_impl("rbg"),
        jax.threefry_partitionable(False),
        jax.transfer_guard("disallow"),
    ):
        yield


def test_the_defaults_hold_inside_and_the_settings_outside() -> None:
    drawn = jax.random.normal(key(0, "test"), 3)
    with other_numerics():
        with standard_numerics():
            assert (jnp.ones(3) * np.float64(2)).dtype == np.float32
            assert (jnp.ones((2, 3)) + jnp.ones(3)).shape == (2, 3)
            np.testing.assert_array_equal(jax.random.normal(key(0, "test"), 3), drawn)
        with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed"):
            jnp.ones(3) * np.arange(3)


@pytest.mark.parametrize("trained_by", ["trained", "trained_core"])
def test_a_detector_gives_the_same_scores_and_maps(
    trained_by: str, parts: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    workdir = request.getfixturevalue(trained_by)
    images = sorted((parts / "test").rglob("*.png"))
    detector = Detector.load(workdir)
    scores, maps = detector.score(images), detector.explain(images[:4]).maps
    with other_numerics():
        again = Detector.restore(workdir)
        scored = again.score(images)
        assert scored.scores.dtype == scored.maps.dtype == np.float32
        np.testing.assert_array_equal(scored.scores, scores.scores)
        np.testing.assert_array_equal(scored.maps, scores.maps)
        explained = again.explain(images[:4])
        assert len(explained.overlays) == 4
        np.testing.assert_array_equal(explained.maps, maps)
        export_detector(again, Workdir(workdir), tmp_path / "model.devnet")
        exported = Detector.load(tmp_path / "model.devnet")
        inside = exported.score(images).scores
    np.testing.assert_array_equal(inside, exported.score(images).scores)
    np.testing.assert_allclose(inside, scores.scores, rtol=1e-4)
