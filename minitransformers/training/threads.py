"""Work side by side, a thread for each part.

Element-wise NumPy works on one core, and so does a batched matrix product of small blocks; a large product takes all
cores by itself. In a small model the former are half of the work, and two halves of a batch in two threads are faster
than the whole in one. In a wide model the products are nearly all of it, and nothing is gained.
NumPy lets other threads run while it computes, and a concept shares no state with another call: nothing needs a lock.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from minitransformers.foundation import invalid


def in_threads(*parts: Sequence[Any], function: Callable) -> list[Any]:
    """``list(map(function, *parts))``, with one thread for each part. The order of the results is that of the parts."""
    if len(parts[0]) == 1:
        return list(map(function, *parts))
    return list(_pool(len(parts[0])).map(function, *parts))


def side_by_side(*parts: Sequence[Any], function: Callable) -> list[Any]:
    """The same for functions that multiply matrices, each product held to one thread meanwhile.

    Raises ValueError for several parts where threadpoolctl, which holds BLAS back, is not installed.
    """
    if len(parts[0]) == 1:
        return list(map(function, *parts))
    with _blas().limit(limits=1, user_api="blas"):
        return in_threads(*parts, function=function)


def hold_blas() -> None:
    """Hold BLAS to one thread in this process and in those that it starts, unless the user has said how many.

    Where arrays are tiny its threads only wait for one another, and on a busy machine for long. Where threadpoolctl is not
    installed, this process is left as it is.
    """
    if "OPENBLAS_NUM_THREADS" not in os.environ:
        os.environ["OPENBLAS_NUM_THREADS"] = "1"
        with contextlib.suppress(ImportError):
            from threadpoolctl import threadpool_limits

            threadpool_limits(1, "blas")


@functools.cache  # finding the libraries costs a third of a millisecond
def _blas() -> Any:
    try:
        from threadpoolctl import ThreadpoolController
    except ImportError:
        raise invalid("threads", got="more than 1 without threadpoolctl", wants="pip install threadpoolctl") from None
    return ThreadpoolController()


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="minitransformers")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)    # a copy of this process has the pool's queue, and none of its threads
