"""What the CPU's memory allocator does with freed memory: a setting of the process.

glibc hands freed blocks of more than 128 KiB back to the system and asks for them again a moment
later, and each page of theirs is then found missing, zeroed and mapped anew: up to three times
what the operators themselves take (docs/speed.md). Its threshold for that cannot be raised above
32 MiB, the outputs of a layer over 16,384 tokens; but it can be told to map no block at all.
"""

from __future__ import annotations

import ctypes
import os

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # mallopt(3)
KEPT = 256 << 20  # bytes of freed memory that stay with the process, at the end of its heap


def reuse() -> None:
    """Keep freed blocks for reuse, and ask for huge pages; before torch allocates anything.

    Settings that the environment already makes (`MALLOC_...`, `THP_MEM_ALLOC_ENABLE`) stay. Where
    the C library is not glibc, freed blocks are its own affair.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is None or any(name.startswith("MALLOC_") for name in os.environ):
        return
    mallopt(_MMAP_MAX, 0)
    mallopt(_TRIM_THRESHOLD, KEPT)
