"""The command about exercises: exercise. It writes a concept with a blank for its backward, or judges what was written into one."""

from __future__ import annotations

import argparse
import importlib.util
import sys
import traceback
from pathlib import Path
from types import ModuleType

from minitransformers.foundation import catalogue
from minitransformers.foundation.atomic import write_new
from minitransformers.foundation.exercises import blank, judge, named_in
from minitransformers.reporting.arguments import UsageError


def exercise(arguments: argparse.Namespace) -> int:
    """``minitransformers exercise``: 1 where what was written is wrong, or not written yet."""
    if (arguments.name is None) == (arguments.check is None):
        raise UsageError("exercise: wants the name of a concept, or --check FILE")
    if arguments.check is not None:
        if arguments.out is not None:
            raise UsageError("exercise: --out goes with a name, not with --check")
        return _check(arguments.check)
    entry = catalogue.find(arguments.name)
    path = arguments.out or Path(f"exercise_{entry.name}.py")
    write_new(path, blank(entry))
    print(f"Wrote {path}. Write its backward; then: minitransformers exercise --check {path}")
    return 0


def _check(path: Path) -> int:
    module = _loaded(path)
    try:
        entry = named_in(module)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    found = judge(entry, getattr(module, entry.name), file=str(path))
    if not found:
        print(f"{entry.name}: right. Every gradient agrees with central differences, in both precisions, and nothing is written to.")
        return 0
    print(f"{entry.name}: not right yet", *(f"  {finding}" for finding in found), sep="\n")
    return 1


def _loaded(path: Path) -> ModuleType:
    """The file as a module. It is the user's own code, and it is run."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    spec = importlib.util.spec_from_loader("exercise", None)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    module.__file__ = str(path)
    sys.modules["exercise"] = module
    try:
        exec(compile(path.read_bytes(), str(path), "exec"), vars(module))
    except SyntaxError as error:
        raise ValueError(f"{path}:{error.lineno}: {error.msg}") from None
    except Exception as error:
        own = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        raise ValueError(f"{path}:{own[-1].lineno if own else 1}: {type(error).__name__}: {error}") from None
    return module
