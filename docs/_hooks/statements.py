"""The lines that compute an equation: the statement that bears its number, and what is made ready right above it.

A marked line stands for its whole statement. From there the equation reaches upwards over statements without a number,
until something parts them: a marked statement, a blank line, a line of comment, a `def`, a way out of the block
(`return`, `raise`), a check of an argument. A `for`, `with` or `if` whose block holds one number only is a statement
that bears it, and its header belongs to the equation; one that holds several belongs to none.
"""

import ast
from collections.abc import Iterator

Numbers = dict[int, tuple[int, ...]]  # equation numbers by line; lines count from 1

_APART = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Import | ast.ImportFrom
_WAY_OUT = ast.Return | ast.Raise | ast.Break | ast.Continue


def lit_lines(tree: ast.Module, lines: list[str], marks: Numbers) -> Numbers:
    """The equations that each line helps to compute; `marks` are the numbers written on the lines."""
    lit = dict(marks)
    for block in (block for node in ast.walk(tree) for block in _blocks(node)):
        reach: tuple[int, ...] = ()  # the equations that the statement above may still belong to
        edge = 0  # where the statement below begins
        for statement in reversed(block):
            span = extent(statement)
            if marks.keys() & set(span):
                own, reach = _of_marked(statement, lines, marks)
                lit |= dict.fromkeys(own, reach)
            elif span.stop < edge or ends_reach(statement):
                reach = ()
            elif reach:
                lit |= dict.fromkeys(span, reach)
            edge = span.start
    return lit


def _of_marked(statement: ast.stmt, lines: list[str], marks: Numbers) -> tuple[list[int], tuple[int, ...]]:
    """The lines that a marked statement lights as a whole, and the numbers that reach on upwards from it."""
    span = extent(statement)
    marked = [line for line in span if line in marks]
    numbers = tuple(dict.fromkeys(number for line in marked for number in marks[line]))
    if isinstance(statement, _APART):
        return [], ()
    inner = {line for block in _blocks(statement) for one in block for line in extent(one)}
    if not inner:  # a simple statement; in a long one each of several numbers keeps to its own line
        return list(span) if len(marked) == 1 else [], numbers
    if len(numbers) > 1:
        return [], ()
    header = [line for line in span if line not in inner and lines[line - 1].lstrip()[:1] not in ("", "#")]
    return list(span) if marks.keys() & set(header) else header, numbers


def ends_reach(statement: ast.stmt) -> bool:
    """Whether an equation below does not reach over this statement."""
    if isinstance(statement, _APART | _WAY_OUT) or is_docstring(statement) or is_check(statement):
        return True
    return any(ends_reach(block[-1]) for block in _blocks(statement))


def is_check(statement: ast.stmt) -> bool:
    """Whether it only refuses bad arguments: each branch ends in a `raise`, or it calls `check_...`."""
    if isinstance(statement, ast.If | ast.For):
        return all(isinstance(block[-1], ast.Raise) or is_check(block[-1]) for block in _blocks(statement))
    if not (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call)):
        return False
    return ast.unparse(statement.value.func).rpartition(".")[2].lstrip("_").startswith("check_")


def is_docstring(statement: ast.stmt) -> bool:
    """Whether it is a text that stands alone."""
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant) and isinstance(statement.value.value, str)


def extent(statement: ast.stmt) -> range:
    """Its lines, with decorators."""
    first = min([statement.lineno, *(decorator.lineno for decorator in getattr(statement, "decorator_list", []))])
    return range(first, (statement.end_lineno or statement.lineno) + 1)


def _blocks(node: ast.AST) -> Iterator[list[ast.stmt]]:
    """The blocks of statements inside a node, those of handlers and cases included."""
    for _, value in ast.iter_fields(node):
        if isinstance(value, list) and value:
            if isinstance(value[0], ast.stmt):
                yield value
            elif isinstance(value[0], ast.ExceptHandler | ast.match_case) and isinstance(node, ast.stmt):
                yield from (one.body for one in value)


def in_words(numbers: list[int]) -> str:
    """Line numbers as people list them: "line 7", "lines 41–44, 50"."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    parts = [str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs]
    return f"{'line' if len(numbers) == 1 else 'lines'} {', '.join(parts)}" if numbers else ""
