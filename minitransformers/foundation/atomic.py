"""Files that are either the old or the new one, whenever the power fails."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path


def write_atomically(path: str | Path, parts: Iterable[bytes | memoryview], *, durable: bool = True) -> None:
    """Write the parts, one after the other, to a file that appears at once or not at all.

    They go into a neighbour (``.<name>.partial``: same folder, hence same file system), which is forced to the disk and
    then renamed over ``path``; POSIX and Windows promise that a rename happens wholly or not. A neighbour that a killed
    process left behind is overwritten by the next write. durable=False does not wait for the disk: enough against a
    killed process, not against a power failure. Raises OSError as open does; ``path`` is then untouched.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with open(partial, "wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            if durable:
                os.fsync(file.fileno())                       # the bytes must be there before the name is
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    if durable and os.name == "posix":                        # and the name, before we say that it is saved
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
