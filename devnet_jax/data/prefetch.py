"""The next part is read while one is worked with."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar, cast

T = TypeVar("T")


def prefetch(parts: Iterator[T]) -> Generator[T, None, None]:
    """Yields the parts in their order, each made by a thread while its predecessor is in use.

    Two parts are in memory at once. What making a part raises is raised when its turn comes.
    """
    end = object()
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(next, parts, end)
        while (part := following.result()) is not end:
            following = pool.submit(next, parts, end)
            yield cast(T, part)
