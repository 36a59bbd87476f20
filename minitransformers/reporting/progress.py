"""Progress bars on stderr, for anything that takes more than two seconds."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")


def progress(iterable: Iterable[T], text: str = "", *, total: int | None = None) -> Iterable[T]:
    """The iterable with a progress bar on stderr, which appears where it takes more than two seconds."""
    return _bar(text, iterable, total)


@contextmanager
def counting(text: str) -> Iterator[Callable[[], Any]]:
    """A function to call after each thing that is done, where it is not known how many there will be."""
    with _bar(text, None, None) as bar:
        yield bar.update


def _bar(text: str, iterable: Iterable | None, total: int | None) -> Any:
    from tqdm import tqdm

    terminal = sys.stderr.isatty()
    return tqdm(iterable, desc=text, total=total, delay=2, file=sys.stderr, leave=False, mininterval=0.1 if terminal else 1,
                dynamic_ncols=terminal)  # fmt: skip
