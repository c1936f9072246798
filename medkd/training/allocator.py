"""Keeping memory between the steps of a training on a CPU."""

from __future__ import annotations

import ctypes
import platform

# Of <malloc.h>.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_LARGEST_INT = 2**31 - 1


def keep_freed_memory() -> bool:
    """Have the C library keep what this process frees, for its next step.

    A joint step frees hundreds of megabytes at its end. glibc gives them back to the system, which
    has to clear every page again in the next step: a tenth of a step of detectors
    (docs/benchmarks.md). The peak grows a little, since blocks of any size share the heap.

    Returns:
        Whether it will: glibc does, other C libraries are left alone.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, _LARGEST_INT))
