"""Arguments of the commands: an error is one line and exit code 2, and every help ends with an example."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Iterable
from typing import Any, NoReturn


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one line, whose options are never abbreviated and whose help keeps its line breaks.

    ``--option=--`` gives the text "--", which argparse would take for the end of all options. A help that cannot be written is
    an error, too.
    """

    def __init__(self, *args, example: str = "", **settings) -> None:
        settings.setdefault("allow_abbrev", False)
        settings.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        if example:
            settings["epilog"] = f"example:\n  {example}"
        super().__init__(*args, **settings)

    def error(self, message: str) -> NoReturn:
        """Say in one line what is wrong, and exit with 2."""
        fail(message)

    def _print_message(self, message: str, file: Any = None) -> None:
        (file or sys.stderr).write(message)

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        if not action.option_strings or action.nargs is not None or arg_strings != ["--"]:
            return super()._get_values(action, arg_strings)
        value = self._get_value(action, "--")
        self._check_value(action, value)
        return value


class UsageError(Exception):
    """A mistake of the caller; its message is what they read."""


def fail(message: object) -> NoReturn:
    """Print one line to stderr and exit with 2."""
    print("minitransformers:", " ".join(str(message).split()), file=sys.stderr)
    raise SystemExit(2)


def known(name: str, names: Iterable[str], *, kind: str) -> str:
    """The name, where it is among the names. Raises UsageError that suggests the nearest."""
    names = list(names)
    if name in names:
        return name
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise UsageError(f"unknown {kind} {name!r}{hint} (known: {', '.join(names)})")


def natural(text: str) -> int:
    """An integer that is not negative."""
    number = _integer(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"got {text}, wants a whole number that is not negative")
    return number


def positive(text: str) -> int:
    """An integer of at least 1."""
    number = _integer(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"got {text}, wants a whole number of at least 1")
    return number


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}, wants a whole number") from None
