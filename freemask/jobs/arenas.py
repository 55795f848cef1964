"""The memory that a server's many threads allocate from."""

from __future__ import annotations

import contextlib
import ctypes

__all__ = ["share_arenas"]

M_ARENA_MAX, ARENAS = -8, 2  # glibc's name of the option, malloc.h


def share_arenas() -> None:
    """All threads allocate from few arenas, where the C library is glibc: else each of the many that Gradio answers in
    keeps the most that it ever held."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").mallopt(M_ARENA_MAX, ARENAS)
