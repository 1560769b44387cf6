"""Tests of balanced batches: equal frequency of all images, and purity."""

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from devnet_jax.data.sampler import balanced_batch


@given(
    n_normal=st.integers(1, 40),
    n_anomaly=st.integers(1, 12),
    batch_size=st.integers(2, 48),
    seed=st.integers(0, 2**31 - 1),
)
def test_images_of_a_kind_are_drawn_equally_often(
    n_normal: int, n_anomaly: int, batch_size: int, seed: int
) -> None:
    batches = [
        balanced_batch(
            step, n_normal=n_normal, n_anomaly=n_anomaly, batch_size=batch_size, seed=seed
        )
        for step in range(20)
    ]
    half = batch_size // 2
    drawn = Counter(np.concatenate(batches).tolist())
    for batch in batches:
        assert batch.dtype == np.int32
        assert batch.shape == (batch_size,)
        assert (batch[:half] < n_normal).all()
        assert (batch[half:] >= n_normal).all()
    for images in (range(n_normal), range(n_normal, n_normal + n_anomaly)):
        counts = [drawn[i] for i in images]
        assert max(counts) - min(counts) <= 1  # concatenated shuffles


def test_a_step_does_not_depend_on_earlier_steps() -> None:
    kwargs = {"n_normal": 30, "n_anomaly": 7, "batch_size": 16, "seed": 3}
    batch = balanced_batch(11, **kwargs)
    for step in range(11):
        balanced_batch(step, **kwargs)
    np.testing.assert_array_equal(balanced_batch(11, **kwargs), batch)
    assert not np.array_equal(balanced_batch(12, **kwargs), batch)
    assert not np.array_equal(balanced_batch(11, **{**kwargs, "seed": 4}), batch)
