"""Files that are either the old or the new one, whenever the power fails and whoever else writes; folders with one writer."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:                                           # Windows
    fcntl = None  # type: ignore[assignment]

_DAY = 86_400  # seconds


def write_atomically(path: str | Path, parts: Iterable[bytes | memoryview], *, durable: bool = True) -> None:
    """Write the parts, one after the other, to a file that appears at once or not at all.

    They go into a neighbour (``.<name>.<random>.partial``: same folder, hence same file system, and no other writer's),
    which is forced to the disk and then renamed over ``path``; POSIX and Windows promise that a rename happens wholly or
    not. Only a process that is killed leaves its neighbour behind: see sole_writer. durable=False does not wait for the
    disk: enough against a killed process, not against a power failure. Raises OSError that names path, as open does; path
    is then untouched.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.urandom(4).hex()}.partial")
    try:
        with open(partial, "wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            if durable:
                os.fsync(file.fileno())                       # the bytes must be there before the name is
        os.replace(partial, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, str(partial)):
            raise OSError(error.errno, error.strerror, str(path)) from error  # a full disk does not say of which file
        raise
    if durable and os.name == "posix":                        # and the name, before we say that it is saved
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextlib.contextmanager
def sole_writer(folder: str | Path) -> Iterator[None]:
    """Keep a folder from others who ask for the same, and clear away what killed writers left in it half-written.

    The lock is the system's, on the folder itself: there is no file to forget, and a process that is killed holds nothing.
    Where there are no such locks (Windows, some network drives) nothing is held, and only what is a day old is cleared away.
    Raises BlockingIOError where another has it.
    """
    with _locked(folder) as alone:
        for partial in Path(folder).glob(".*.partial"):
            with contextlib.suppress(OSError):
                if alone or partial.stat().st_mtime < time.time() - _DAY:
                    partial.unlink()
        yield


@contextlib.contextmanager
def _locked(folder: str | Path) -> Iterator[bool]:
    """Lock a folder. Yields False where its file system, or the system, has no locks."""
    if fcntl is None:
        yield False
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        alone = True
    except BlockingIOError:
        os.close(handle)
        raise
    except OSError:
        alone = False
    try:
        yield alone
    finally:
        os.close(handle)                                      # and with it goes the lock


def write_new(path: Path, text: str) -> None:
    """Write a file that is not there yet. Raises ValueError where one is: what somebody has changed is never overwritten."""
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise ValueError(f"{path}: is there already, and is not overwritten: choose another name") from None
