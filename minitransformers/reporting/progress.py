"""Progress bars on stderr, for anything that takes more than two seconds."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TypeVar

T = TypeVar("T")


def progress(iterable: Iterable[T], text: str = "", *, total: int | None = None) -> Iterable[T]:
    """The iterable with a progress bar on stderr, which appears where it takes more than two seconds."""
    from tqdm import tqdm

    terminal = sys.stderr.isatty()
    return tqdm(iterable, desc=text, total=total, delay=2, file=sys.stderr, leave=False, mininterval=0.1 if terminal else 1,
                dynamic_ncols=terminal)  # fmt: skip
