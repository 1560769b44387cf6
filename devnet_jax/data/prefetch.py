"""Prefetching: a thread makes the next item while the caller uses this one."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar, cast

T = TypeVar("T")


def prefetch(items: Iterator[T]) -> Generator[T, None, None]:
    """Yields the items in order; a thread makes the next one while the caller uses this one.

    Two items are in memory at once. An exception raised while an item is made is raised again
    when that item is due.
    """
    end = object()
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(next, items, end)
        while (item := following.result()) is not end:
            following = pool.submit(next, items, end)
            yield cast(T, item)
