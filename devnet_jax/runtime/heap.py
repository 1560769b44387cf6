"""The memory that malloc gives a process: kept when it is freed, without what compiling leaves.

glibc's malloc only; with another nothing is done.

XLA frees a step's memory after each step. To get it anew from the system, page by page, takes a
tenth of a step on a CPU, so the process keeps it (`keep_freed_memory`). For that all threads share
one arena, in which compiling leaves thousands of free pieces. Among those malloc would search in
each step, for longer than the pages take: they are taken out of use (`retire_free_pieces`).
"""

from __future__ import annotations

import ctypes
import platform

# JAX's name for a program that was compiled, or found in the compilation cache.
COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"
LONG_COMPILATION = 1.0  # seconds; what shorter ones leave behind is not worth looking for
# Sizes of pieces in bytes. malloc finds smaller ones at once.
LARGEST_PIECE, SMALLEST_PIECE = 16 << 20, 16 << 10

# Settings of mallopt by their numbers in malloc.h; a threshold of -1 is none.
_M_MMAP_MAX, _M_TRIM_THRESHOLD, _M_ARENA_MAX = -4, -1, -8
_KEEP_FREED_MEMORY = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: -1, _M_ARENA_MAX: 1}


def tune_for_jax() -> None:
    """Keeps freed memory from now on, and retires what each long compilation leaves behind.

    To be called before there are threads, so before JAX starts; imports JAX.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    keep_freed_memory()
    import jax.monitoring

    def when_something_took_a_while(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == COMPILE_EVENT and duration_secs > LONG_COMPILATION:
            retire_free_pieces()

    jax.monitoring.register_event_duration_secs_listener(when_something_took_a_while)


def keep_freed_memory() -> None:
    """Has all threads share one arena that never shrinks."""
    for setting, value in _KEEP_FREED_MEMORY.items():
        ctypes.CDLL(None).mallopt(setting, value)


def retire_free_pieces() -> None:
    """Takes the free pieces of the arena out of use for good, and gives their pages back.

    What the process needs from then on lies after them, in one piece. The memory is the system's
    again; only addresses are lost.
    """
    libc = ctypes.CDLL(None)
    libc.malloc.argtypes, libc.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
    libc.free.argtypes = [ctypes.c_void_p]
    libc.sbrk.argtypes, libc.sbrk.restype = [ctypes.c_ssize_t], ctypes.c_void_p
    libc.malloc_trim(0)
    end = libc.sbrk(0)
    size = LARGEST_PIECE
    while size >= SMALLEST_PIECE:
        piece = libc.malloc(size)
        if piece is None or piece + size > end:  # no free piece of that size is left
            libc.free(piece)
            size = size * 3 // 4
