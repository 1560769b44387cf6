"""Parts made ahead: in order, one at a time, errors in their turn."""

import threading

import pytest

from devnet_jax.data.prefetch import prefetch


def test_one_part_ahead_and_in_order() -> None:
    made = []
    second = threading.Event()

    def parts():
        for i in range(5):
            made.append(i)
            if i == 1:
                second.set()
            yield i

    consumed = prefetch(parts())
    assert next(consumed) == 0
    assert second.wait(timeout=10)  # made while the first is in use
    assert 2 not in made  # and no more than that
    assert list(consumed) == [1, 2, 3, 4]


def test_an_error_comes_in_its_turn() -> None:
    def parts():
        yield 0
        raise OSError("gone")

    consumed = prefetch(parts())
    assert next(consumed) == 0
    with pytest.raises(OSError, match="gone"):
        next(consumed)


def test_nothing_to_make() -> None:
    assert list(prefetch(iter(()))) == []
