"""Keep freed memory instead of handing it back to the system after every array.

glibc gives an array above 128 KiB a mapping of its own and unmaps it when it is freed. The next array of that size, a
millisecond later, is a new mapping: the system takes pages, zeroes them and maps them in one by one as they are first
touched. A training step frees and takes the same arrays again and again, so it pays for these page faults every
time. Told to keep what is freed, glibc hands the same warm pages out again.

The price: memory that was needed once stays with the process until it ends. Elsewhere (musl, macOS, Windows), nothing
is done; results are the same either way.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -2, -3, -4


@functools.cache  # for the whole process, so once
def keep_freed_memory() -> bool:
    """Ask glibc to keep freed memory for the life of this process. Returns whether it does."""
    if not sys.platform.startswith("linux") or "glibc" not in _c_library():
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = [
        (_M_MMAP_THRESHOLD, 32 << 20),   # the largest value glibc takes: arrays below it come from the heap
        (_M_MMAP_MAX, 0),                # and the larger ones too: no array has a mapping of its own
        (_M_TRIM_THRESHOLD, 2**31 - 1),  # the top of the heap is not given back (the argument is an int)
        (_M_TOP_PAD, 16 << 20),          # and grows in strides, not array by array
    ]
    return all(mallopt(option, value) == 1 for option, value in settings)


def _c_library() -> str:
    try:
        return os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (AttributeError, ValueError, OSError):
        return ""
