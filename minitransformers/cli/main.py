"""The command ``minitransformers``: what becomes of its output and of errors. What it offers is in parser.

A mistake of the caller, and what the machine cannot do, ends in one line on stderr and exit code 2; a check, a claim or a
chapter that fails in 1; Ctrl-C in 130. Nothing large is imported before: Ctrl-C is as quiet then as it is later.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
from collections.abc import Sequence

from minitransformers.console import prepare_streams


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    try:
        prepare_streams()
        try:
            return _run(argv)
        finally:
            _flush()
    except KeyboardInterrupt:
        status = 128 + signal.SIGINT
    except BrokenPipeError:  # the reader of our output, such as head, has seen enough
        status = 128 + signal.SIGPIPE
    except OSError as error:
        status = _explain(f"{error.filename}: {error.strerror}" if error.filename else error.strerror or error)
    except MemoryError as error:
        status = _explain(f"not enough memory: {error}")
    except ValueError as error:
        status = _explain(error)
    _drop_what_cannot_be_written()
    return status


def _run(argv: Sequence[str] | None) -> int:
    from minitransformers.cli.parser import make_parser
    from minitransformers.reporting.arguments import UsageError

    parser = make_parser()
    arguments = parser.parse_args(argv)
    if arguments.run is None:
        parser.print_help()
        return 0
    module, _, function = arguments.run.partition(":")
    try:
        return getattr(importlib.import_module(f"minitransformers.cli.{module}"), function)(arguments)
    except UsageError as error:
        return _explain(error)


def _explain(error: object) -> int:
    with contextlib.suppress(OSError):                       # there is nowhere to say it
        print("minitransformers:", " ".join(str(error).split()), file=sys.stderr)
    return 2


def _flush() -> None:
    """Write what print has kept back: an error is a line of ours here, and one of Python's once we have returned."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OSError(error.errno, error.strerror, "standard output") from None


def _drop_what_cannot_be_written() -> None:
    """Let go of it here: Python would try once more at its end, and complain."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
