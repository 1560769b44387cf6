"""Tests of prefetching: order, number of items made ahead, and errors."""

import threading

import pytest

from devnet_jax.data.prefetch import prefetch


def test_one_item_is_made_ahead_in_order() -> None:
    made = []
    second = threading.Event()

    def items():
        for i in range(5):
            made.append(i)
            if i == 1:
                second.set()
            yield i

    consumed = prefetch(items())
    assert next(consumed) == 0
    assert second.wait(timeout=10)  # made while the first item is in use
    assert 2 not in made  # not more than one ahead
    assert list(consumed) == [1, 2, 3, 4]


def test_an_error_is_raised_when_its_item_is_due() -> None:
    def items():
        yield 0
        raise OSError("gone")

    consumed = prefetch(items())
    assert next(consumed) == 0
    with pytest.raises(OSError, match="gone"):
        next(consumed)


def test_no_items() -> None:
    assert list(prefetch(iter(()))) == []
