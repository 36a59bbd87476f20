"""Exercises out of the source: a concept whose backward is a blank, and a judge of what somebody wrote into it.

Nothing is kept for an exercise but the concept itself. ``blank`` takes the function out of its file, with its comments, and
leaves the body of ``backward`` out, and so it cannot go stale. ``judge`` holds what was written against central
differences, and then against every small mistake that could be made in the concept's own backward (mistakes): where the
gradients are those of a mistake, it says which.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from minitransformers.foundation import catalogue, checks, trees
from minitransformers.foundation.catalogue import Entry, Example
from minitransformers.foundation.contract import trusted
from minitransformers.foundation.gradients import check_gradients, fresh, one_each
from minitransformers.foundation.mistakes import backward_mutants

NAME = "EXERCISE"
_NUMBERS = re.compile(r"#.*?((?:\(\d{1,3}\)[ \t]*)+)$")
_SEEDS = (0, 1)


def blank(entry: Entry) -> str:
    """The text of a file that holds the concept without its backward. Raises ValueError where it has none of its own."""
    source, function, hole = _parts(entry)
    lines = source.splitlines()
    start, end = hole.body[0].lineno, hole.end_lineno or 0
    indent = " " * hole.body[0].col_offset
    left = [indent + line for line in ("# To return, each in the structure and shape of its argument, in their order:", *_shapes(entry))]
    todo = [*left, f'{indent}raise NotImplementedError("the backward of {entry.name}")']
    body = [*lines[function.lineno - 1 : start - 1], *todo, *lines[end : function.end_lineno]]  # without the label above it
    header = _header(entry, source, lines, range(start, end + 1))
    return "\n".join([header, "", *_imports(entry, source, function), "", f'{NAME} = "{entry.name}"', "", "", *body, ""])


def _parts(entry: Entry) -> tuple[str, ast.FunctionDef, ast.FunctionDef]:
    """The source of its file, its function, and the one backward that this makes."""
    if entry.is_procedure:
        raise ValueError(f"{entry.name}: is a procedure: it has no backward to write")
    file = inspect.getsourcefile(inspect.unwrap(entry.function))
    assert file is not None
    source = Path(file).read_text(encoding="utf-8")
    (function,) = (node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef) and node.name == entry.name)
    found = [node for node in ast.walk(function) if isinstance(node, ast.FunctionDef) and node.name == "backward"]
    if len(found) != 1:
        raise ValueError(f"{entry.name}: has no single backward of its own, which could be left out; `minitransformers show {entry.name}` says what it is made of")
    return source, function, found[0]


def _header(entry: Entry, source: str, lines: list[str], hidden: range) -> str:
    """What the file says first: the idea and the forward's equations; those of the backward are to be found."""
    text = ast.get_docstring(ast.parse(source)) or ""
    forward = {n for i, line in enumerate(lines, 1) if i not in hidden for n in _numbers(line)}
    kept = [line for line in text.splitlines() if not (found := _numbers("# " + line)) or found & forward]
    told = (
        f"Exercise: write the backward of {entry.name}.",
        "",
        f"Then:  minitransformers exercise --check FILE   (this file). Its page, docs/{entry.chapter}/{entry.page}.md, derives it.",
        "",
        *kept,
    )
    return '"""' + "\n".join(told).rstrip() + '\n"""'


def _numbers(line: str) -> set[int]:
    found = _NUMBERS.search(line.rstrip())
    return {int(digits) for digits in re.findall(r"\d+", found.group(1))} if found else set()


def _shapes(entry: Entry) -> list[str]:
    """A line for each array of the arguments: its path, and its shape in the label's example."""
    example = entry.example(np.random.default_rng(0))
    names = list(inspect.signature(entry.function).parameters)
    leaves = [(path, np.shape(leaf)) for name, arg in zip(names, example.args, strict=False) for path, leaf in trees.leaves(arg, name)]
    out, _ = entry.function(*example.args, **fresh(example.config))
    width = max(len(path) for path, _ in leaves)
    given = ", ".join(str(np.shape(leaf)) for _, leaf in trees.leaves(out))
    return [*(f"#     {path:<{width}}  {shape}" for path, shape in leaves), f"# in the example that it is checked on; there dout has the shape {given}."]


def _imports(entry: Entry, source: str, function: ast.FunctionDef) -> list[str]:
    """The file's own imports of what the function uses, and of what stands beside it in the file, in the usual order."""
    function.decorator_list = []
    used = {node.id for node in ast.walk(function) if isinstance(node, ast.Name)}
    groups: tuple[list[str], ...] = ([], [], [])
    for node in ast.parse(source).body:
        if not isinstance(node, (ast.Import, ast.ImportFrom)):
            continue
        module = node.module or "" if isinstance(node, ast.ImportFrom) else node.names[0].name
        group = groups[2 if module.startswith("minitransformers") else 0 if module.split(".")[0] in sys.stdlib_module_names else 1]
        names = [alias for alias in node.names if (alias.asname or alias.name).split(".")[0] in used or module == "__future__"]
        if names:
            group += _import(ast.unparse(ast.ImportFrom(module, names, node.level) if isinstance(node, ast.ImportFrom) else ast.Import(names)))
    if beside := {name for node in ast.parse(source).body for name in _defined(node)} & used - {entry.name}:
        groups[2].extend(_import(f"from {entry.module} import {', '.join(sorted(beside))}"))
    return "\n\n".join("\n".join(group) for group in groups if group).splitlines()


def _import(line: str) -> list[str]:
    """One import, in brackets with a name a line where it is long."""
    head, _, names = line.partition(" import ")
    return [line] if len(line) <= 130 else [f"{head} import (", *(f"    {name.strip()}," for name in names.split(",")), ")"]


def _defined(node: ast.stmt) -> list[str]:
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [target.id for target in targets if isinstance(target, ast.Name)]


# The judge ------------------------------------------------------------------------------------------------------------


def judge(entry: Entry, function: Callable, *, file: str = "") -> list[str]:
    """What is wrong with somebody's function, in sentences; nothing where it is right.

    file is where it was written: an error inside it is told with its line.
    """
    function = trusted(function)                             # as inside the concept, whose own call has checked its arguments
    for seed in _SEEDS:
        example = entry.example(np.random.default_rng(seed))
        try:
            found = _of_example(entry, function, example)
        except NotImplementedError as error:
            return [f"not written yet: {error}"]
        except Exception as error:
            return [f"{_line(error, file)}{type(error).__name__}: {error}"]
        if found:
            return found
    own = replace(entry, function=function)
    outcomes = (checks.CHECKS[name](own) for name in ("dtypes", "strides"))
    return [f"{outcome.check}: {outcome.message}" for outcome in outcomes if not outcome.passed]


def _of_example(entry: Entry, function: Callable, example: Example) -> list[str]:
    theirs, _ = function(*example.args, **fresh(example.config))
    ours, _ = entry.function(*example.args, **fresh(example.config))
    pairs = list(zip(trees.leaves(theirs), trees.leaves(ours), strict=False))
    if not pairs or not all(np.shape(a) == np.shape(b) and np.allclose(a, b, rtol=1e-12, atol=1e-12) for (_, a), (_, b) in pairs):
        return ["the forward was changed: it gives another output than the concept's"]
    if not (pure := checks.purity(replace(entry, function=function))).passed:
        return [pure.message]
    if _as_the_concepts_own(entry, function, example):       # differences can be off where an example lies beside a kink; these are not
        return []
    report = check_gradients(function, *example.args, directions=0, second_opinion=False, gradient_of=entry.gradient_of, **example.config)
    failures = [finding for finding in report.failures() if finding.startswith(("gradient of", "backward", "what backward"))] or report.failures()
    if failures and (likely := _mistake(entry, function, example)):
        failures.append(likely)
    return failures


def _as_the_concepts_own(entry: Entry, function: Callable, example: Example) -> bool:
    try:
        return _same(_gradients(function, example), _gradients(entry.function, example))
    except Exception:                                        # what comes back is no list of gradients: the differences tell what is wrong with it
        return False


def _mistake(entry: Entry, function: Callable, example: Example) -> str:
    """Which small mistake in the concept's own backward gives the very gradients that the function gives."""
    theirs = _gradients(function, example)
    lines = inspect.getsource(sys.modules[entry.module]).splitlines()
    for mutant in backward_mutants(entry):
        with mutant.alive():
            try:
                equal = _same(theirs, _gradients(entry.function, example))
            except Exception:                                # this mistake gives no gradients at all: it is not theirs
                continue
        if equal:
            numbers = next((found for line in lines[mutant.line - 1 : mutant.line + 3] if (found := _numbers(line))), set())
            where = f", so look at equation {', '.join(f'({n})' for n in sorted(numbers))} of the page" if numbers else ""
            return f"likely: these are the gradients of `{mutant.change.rpartition(' -> ')[2]}`{where}"
    return ""


def _gradients(of: Callable, example: Example) -> list[np.ndarray]:
    out, backward = of(*example.args, **fresh(example.config))
    rng = np.random.default_rng(2)
    dout = trees.map(lambda leaf: np.asarray(rng.normal(size=np.shape(leaf))), out)
    return [np.asarray(leaf) for _, leaf in trees.leaves(one_each(backward(dout), len(example.args)))]


def _same(one: list[np.ndarray], other: list[np.ndarray]) -> bool:
    return len(one) == len(other) and all(a.shape == b.shape and np.allclose(a, b, rtol=1e-9, atol=1e-12) for a, b in zip(one, other, strict=True))


def _line(error: Exception, file: str) -> str:
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f"line {own[-1].lineno}: " if own else ""


def named_in(module: Any) -> Entry:
    """The concept that a file says it is an exercise on. Raises ValueError where it does not say so, or lacks the function."""
    name = getattr(module, NAME, None)
    if not isinstance(name, str):
        raise ValueError(f'has no {NAME} = "...": `minitransformers exercise NAME` writes a file that has')
    entry = catalogue.find(name)
    if not callable(getattr(module, name, None)):
        raise ValueError(f"has no function {name}")
    return entry
