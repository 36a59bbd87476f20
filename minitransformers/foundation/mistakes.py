"""Every small mistake that can be made in a concept: made out of its source, one at a time.

A sign flipped, a factor or a term dropped, a transpose or a sum forgotten, a constant changed, a statement left out,
gradients swapped or zeroed. Whoever judges concepts must refuse every one; and a gradient that equals a mutant's was
most likely made by that mistake.

Only the code object of the function is exchanged, and put back afterwards: the catalogue and whoever imported the
function see the mutant under the same name, and nothing is registered twice.
"""

from __future__ import annotations

import ast
import contextlib
import copy
import inspect
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType
from typing import Any

from minitransformers.foundation import catalogue

_ZEROS = "__import__('minitransformers.foundation.trees', fromlist=['trees']).zeros_like"
# Calls without which nothing is a number any more: dropping them proves nothing.
_PYTHON = {"array", "asarray", "ascontiguousarray", "arange", "empty", "zeros", "ones", "eye", "finfo", "enumerate", "float", "int", "len",
           "list", "max", "min", "range", "reversed", "sum", "tuple", "zip"}  # fmt: skip
# Functions of the same file that only callers put into a slot: mistakes in them are the concept's, too.
_IN_SLOTS = {"transformer_block": ("post_norm",)}
_PAIRS = {"add": "subtract", "subtract": "add", "multiply": None, "divide": None, "true_divide": None}


@dataclass(frozen=True)
class Mutant:
    """One mistake: what it changes, in words that name it in tables, and the code that holds it."""

    module: str
    function: str
    change: str
    line: int
    code: CodeType
    forward_intact: bool

    @contextlib.contextmanager
    def alive(self) -> Iterator[None]:
        """Inside, the module's function is the mutant."""
        module = sys.modules[self.module]
        function = inspect.unwrap(getattr(module, self.function))
        original = function.__code__
        try:
            function.__code__ = self.code
            _forget(module)
            yield
        finally:
            function.__code__ = original
            _forget(module)


def _forget(module: Any) -> None:
    for value in vars(module).values():
        if hasattr(value, "cache_clear"):
            value.cache_clear()


def backward_mutants(entry: catalogue.Entry) -> list[Mutant]:
    """Every mistake in the closures called backward, in helpers that only they use, and in slopes made ahead."""
    return _mutants(entry, backward=True)


def forward_mutants(entry: catalogue.Entry) -> list[Mutant]:
    """Every mistake in the concept's other lines and in the helpers of its module that it calls."""
    return _mutants(entry, backward=False)


def handed_to(entry: catalogue.Entry) -> str:
    """The concept whose out and backward this one returns as they are, so that it has no backward of its own.

    It ends in ``return other(...)``, returns nowhere else and makes no function; other is named in its module, or stands in a
    slot by default. Raises AssertionError for anything else.
    """
    file = inspect.getsourcefile(inspect.unwrap(entry.function))
    assert file is not None
    functions = [node for node in ast.parse(Path(file).read_text()).body if isinstance(node, ast.FunctionDef)]
    (function,) = (node for node in functions if node.name == entry.name)
    inside = [node for statement in function.body for node in ast.walk(statement)]
    assert not any(isinstance(node, (ast.FunctionDef, ast.Lambda)) for node in inside), f"{entry.name} makes functions"
    returns = [node for node in inside if isinstance(node, ast.Return)]
    assert returns == [function.body[-1]], f"{entry.name} returns in several places"
    call = returns[0].value
    assert isinstance(call, ast.Call) and isinstance(call.func, ast.Name), f"{entry.name} returns something of its own"
    slots = inspect.signature(entry.function).parameters
    other = slots[call.func.id].default if call.func.id in slots else getattr(sys.modules[entry.module], call.func.id)
    (name,) = (concept.name for concept in catalogue.concepts().values() if concept.function is other)
    return name


def _mutants(entry: catalogue.Entry, *, backward: bool) -> list[Mutant]:
    file = inspect.getsourcefile(inspect.unwrap(entry.function))
    assert file is not None
    functions = {node.name: node for node in ast.parse(Path(file).read_text()).body if isinstance(node, ast.FunctionDef)}
    used = _used(entry, functions)
    found = {}
    for name, function in functions.items():
        if name not in used:
            continue
        function.decorator_list = []
        for node, slot, new, change, ahead in list(_sites(function, used[name] == "backward", backward)):
            field, index = slot
            old = getattr(node, field) if index is None else getattr(node, field)[index]
            _put(node, slot, ast.fix_missing_locations(ast.copy_location(new, old)))
            compiled = compile(ast.Module([function], []), file, "exec")
            _put(node, slot, old)
            code = next(c for c in compiled.co_consts if isinstance(c, CodeType) and c.co_name == name)
            if len(set(change.split(" -> "))) == 1:
                continue                                     # [cos, cos] in the other order
            found[name, change] = Mutant(entry.module, name, change, old.lineno, code, forward_intact=backward and not ahead)
    return list(found.values())


def _put(node: ast.AST, slot: tuple[str, int | None], new: ast.AST) -> None:
    field, index = slot
    if index is None:
        setattr(node, field, new)
    else:
        getattr(node, field)[index] = new


# Which lines belong to the backward -----------------------------------------------------------------------------------


def _names(node: ast.AST) -> set[str]:
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}


def _is_backward(node: ast.AST) -> bool:
    if isinstance(node, ast.Lambda):
        return len(node.args.args) == 1 and node.args.args[0].arg.startswith("d")
    return isinstance(node, ast.FunctionDef) and (node.name == "backward" or node.name.endswith("_backward"))


def _used(entry: catalogue.Entry, functions: dict[str, ast.FunctionDef]) -> dict[str, str]:
    """The module's functions that the concept reaches: "forward", or "backward" where only its backward does."""
    tables = {}  # a module's constant may hold functions: _GATES = {"tanh": _tanh_gate}
    for name, value in vars(sys.modules[entry.module]).items():
        if isinstance(value, dict):
            tables[name] = {f.__name__ for f in value.values() if getattr(f, "__name__", "") in functions}

    def reached(name: str, skip_backward: bool, seen: set[str]) -> set[str]:
        if name in seen:
            return seen
        seen.add(name)
        nodes: list[Any] = [functions[name]]
        while nodes:
            node = nodes.pop()
            children = [c for c in ast.iter_child_nodes(node) if not (skip_backward and _is_backward(c))]
            nodes += children
            for child in children:
                if isinstance(child, ast.Name):
                    for callee in {child.id} & functions.keys() | tables.get(child.id, set()):
                        reached(callee, skip_backward, seen)
        return seen

    forward: set[str] = set()
    every: set[str] = set()
    for name in (entry.name, *_IN_SLOTS.get(entry.name, ())):
        functions[name].decorator_list = []
        reached(name, True, forward)
        reached(name, False, every)
    return {name: "forward" if name in forward else "backward" for name in every}


def _nested_backward(function: ast.FunctionDef) -> set[Any]:
    """The closures of one function that are its backward, and those that only the backward uses."""
    nested = [n for n in ast.walk(function) if n is not function and isinstance(n, (ast.FunctionDef, ast.Lambda))]
    found = {n for n in nested if _is_backward(n)}
    inside = {m for n in found for m in ast.walk(n)}
    for helper in nested:
        if isinstance(helper, ast.FunctionDef) and helper not in found:
            uses = [n for n in ast.walk(function) if isinstance(n, ast.Name) and n.id == helper.name]
            if uses and all(use in inside for use in uses):
                found.add(helper)
    return found


def _made_ahead(function: ast.FunctionDef) -> set[ast.stmt]:
    """Forward statements that the output does not need: a slope made for the backward while x is in the cache."""
    if not isinstance(function.body[-1], ast.Return) or not isinstance(function.body[-1].value, ast.Tuple):
        return set()
    ahead: set[ast.stmt] = set()

    def back(statements: list[ast.stmt], needed: set[str]) -> set[str]:
        for s in reversed(statements):
            if isinstance(s, ast.With):
                needed = back(s.body, needed)
            elif isinstance(s, ast.For):
                needed = needed | back(s.body, needed)
                needed = needed | back(s.body, needed)       # a second turn: what the next iteration needs
            elif isinstance(s, ast.If):
                needed = back(s.body, needed) | back(s.orelse, needed)
            elif isinstance(s, (ast.Assign, ast.AugAssign, ast.Expr)):
                needed = pieces(s, needed)
        return needed

    def pieces(s: ast.stmt, needed: set[str]) -> set[str]:
        outs = [k.value for n in ast.walk(s) if isinstance(n, ast.Call) for k in n.keywords if k.arg == "out"]
        targets = s.targets if isinstance(s, ast.Assign) else [s.target] if isinstance(s, ast.AugAssign) else []
        pairs: list[tuple[Any, Any]] = [(target, s) for target in [*targets, *outs]]
        if isinstance(s, ast.Assign) and isinstance(targets[0], ast.Tuple) and isinstance(s.value, ast.Tuple):
            pairs = list(zip(targets[0].elts, s.value.elts, strict=True))  # a, b = f(a), g(b): each from its own
        elif isinstance(s, ast.Assign):
            pairs = [(target, s.value) for target in [*targets, *outs]]
        wanted = [(target, source) for target, source in pairs if _names(target) & needed]
        for target, _ in wanted:
            if isinstance(s, ast.Assign) and target not in outs and not isinstance(target, ast.Subscript):
                needed = needed - _names(target)
        for _, source in wanted:
            needed = needed | _names(source)
        (ahead.discard if wanted or not pairs else ahead.add)(s)
        return needed

    body = [s for s in function.body[:-1] if not isinstance(s, ast.FunctionDef)]
    back(body, _names(function.body[-1].value.elts[0]))
    return ahead


# The mistakes ---------------------------------------------------------------------------------------------------------


def _sites(function: ast.FunctionDef, all_backward: bool, backward: bool) -> Iterator[tuple]:
    """(parent, slot, replacement, change) for every mistake on the side that is wanted."""
    closures, ahead = _nested_backward(function), _made_ahead(function)
    takers = {n for f in closures if any(a.arg == "dout" for a in f.args.args) for n in ast.walk(f)}

    def walk(node: ast.AST, inside: bool, statement: ast.AST) -> Iterator[tuple]:
        for field, value in ast.iter_fields(node):
            children = list(enumerate(value)) if isinstance(value, list) else [(None, value)]
            for index, child in children:
                if not isinstance(child, ast.AST) or _untouched(child, field):
                    continue
                here = inside or child in closures or child in ahead
                simple = child if isinstance(child, ast.stmt) and not hasattr(child, "body") else statement
                if hasattr(child, "body") and isinstance(child, ast.stmt):
                    simple = child
                if here == backward:
                    undone = [ast.Name("dout", ast.Load())] if child in takers and _is_gradient(child, node) else []
                    for new in [*_variants(child, node, backward), *undone]:
                        yield node, (field, index), new, _words(node, (field, index), child, new, simple), child in ahead or simple in ahead
                if not _is_minus(child):
                    yield from walk(child, here, simple)

    yield from walk(function, all_backward, function)


def _is_gradient(node: ast.AST, parent: ast.AST) -> bool:
    """Whether this is a gradient at work, for which the one at the output might be taken by mistake."""
    works = isinstance(parent, (ast.Call, ast.BinOp, ast.AugAssign)) and node is not getattr(parent, "target", None)
    return works and isinstance(node, ast.Name) and node.id.startswith("d") and node.id != "dout" and node is not getattr(parent, "func", None)


def _untouched(node: ast.AST, field: str) -> bool:
    """Errors and their conditions, annotations, defaults and docstrings are no mathematics."""
    refuses = isinstance(node, ast.If) and all(isinstance(s, (ast.Raise, ast.Assign)) for s in node.body) and isinstance(node.body[-1], ast.Raise)
    docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    return refuses or docstring or field in ("annotation", "returns", "args_defaults") or isinstance(node, (ast.Raise, ast.Import, ast.ImportFrom, ast.arguments))


def _words(node: ast.AST, slot: tuple, old: ast.AST, new: ast.AST, statement: ast.AST) -> str:
    if statement is old:
        return f"{ast.unparse(old)} -> {ast.unparse(new).replace(_ZEROS, 'zeros_like')}"
    before = ast.unparse(statement)
    _put(node, slot, new)
    after = ast.unparse(statement).replace(_ZEROS, "zeros_like")
    _put(node, slot, old)
    if hasattr(statement, "body"):  # the line that opens a block stands for it
        before, after = before.splitlines()[0], after.splitlines()[0]
    return f"{before} -> {after}"


def _variants(node: Any, parent: ast.AST, backward: bool) -> list[Any]:
    """Every mistake that can be made at this node."""
    if isinstance(node, ast.BinOp):
        left, right = node.left, node.right
        flipped = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Div: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd}.get(type(node.op))
        other = [ast.BinOp(left, flipped(), right)] if flipped else []
        if isinstance(node.op, ast.MatMult):
            return [ast.BinOp(right, node.op, left)]
        return [*other, left, *([right] if isinstance(node.op, (ast.Add, ast.Sub, ast.Mult, ast.BitAnd, ast.BitOr)) else [])]
    if _is_minus(node):
        counts = isinstance(parent, (ast.Call, ast.Subscript, ast.Slice, ast.Tuple, ast.keyword))  # an axis, or a place from the end
        return [] if counts else [node.operand, *(ast.UnaryOp(ast.USub(), c) for c in _other_constants(node.operand, parent))]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.Invert)):
        return [node.operand]
    if isinstance(node, ast.Constant):
        return _other_constants(node, parent)
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        turned: Any = {ast.Lt: [ast.Gt, ast.LtE], ast.Gt: [ast.Lt, ast.GtE], ast.LtE: [ast.GtE, ast.Lt], ast.GtE: [ast.LtE, ast.Gt],
                  ast.Eq: [ast.NotEq], ast.NotEq: [ast.Eq]}.get(type(node.ops[0]), [])  # fmt: skip
        # A boundary moved (< to <=) matters to masks; where derivatives jump, both sides are right.
        return [ast.Compare(node.left, [op()], node.comparators) for op in (turned[:1] if backward else turned)]
    if isinstance(node, ast.AugAssign):
        flipped = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Div: ast.Mult}.get(type(node.op))
        return [ast.Pass(), *([ast.AugAssign(node.target, flipped(), node.value)] if flipped else [])]
    if isinstance(node, ast.Assign) and any(isinstance(t, ast.Subscript) for t in node.targets):
        return [ast.Pass()]
    if isinstance(node, ast.Expr):
        return [ast.Pass()]
    if isinstance(node, ast.Attribute) and node.attr == "T":
        return [node.value]
    if isinstance(node, ast.Call):
        return _other_calls(node, isinstance(parent, ast.Assign) and isinstance(parent.targets[0], ast.Tuple))
    if isinstance(node, (ast.Return, ast.Lambda)) and backward:
        value = node.value if isinstance(node, ast.Return) else node.body
        wrong = [*_swapped_and_zeroed(value)] if value is not None and not _is_closure_pair(value) else []
        return [ast.Return(w) if isinstance(node, ast.Return) else ast.Lambda(node.args, w) for w in wrong]
    return []


def _is_minus(node: ast.AST) -> bool:
    """A negative number, which the parser takes for a minus and a number."""
    return isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant)


def _other_constants(node: ast.Constant, parent: ast.AST) -> list[Any]:
    value = node.value
    formula = isinstance(parent, (ast.BinOp, ast.AugAssign, ast.UnaryOp, ast.Compare)) or isinstance(value, float)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not formula:
        return []
    return [ast.Constant(2 * value if value else 1)]


def _other_calls(node: ast.Call, unpacked: bool) -> list[Any]:
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    of_numpy = isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name) and node.func.value.id == "np"
    args = [a for a in node.args if not isinstance(a, ast.Starred)]
    if name in ("swapaxes", "transpose", "sum", "mean", "conj", "cumsum", "max") and isinstance(node.func, ast.Attribute):
        return [args[0] if of_numpy else node.func.value]
    if of_numpy and name in _PAIRS:
        other = _PAIRS[name]
        flipped = [ast.Call(ast.Attribute(ast.Name("np", ast.Load()), other, ast.Load()), node.args, node.keywords)] if other else []
        return [*flipped, args[0], *([] if "divide" in name else [args[1]])]
    if of_numpy and name in ("maximum", "minimum"):
        return args
    if of_numpy and name == "where" and len(args) == 3:
        return [ast.Call(node.func, [args[0], args[2], args[1]], [])]
    if of_numpy and name == "concatenate" and isinstance(args[0], (ast.List, ast.Tuple)) and len(args[0].elts) == 2:
        return [ast.Call(node.func, [ast.List(args[0].elts[::-1], ast.Load())], node.keywords)]
    dropped = [
        ast.Call(node.func, node.args, [k for k in node.keywords if k is not gone])
        for gone in node.keywords
        if gone.arg not in ("out", "axis", "keepdims", "dtype", "order", "copy", "strict", "shape")
    ]
    one_step = len(node.args) == 1 and len(args) == 1 and (of_numpy or isinstance(node.func, ast.Name))
    return dropped + ([args[0]] if one_step and name not in _PYTHON and not unpacked else [])


def _is_closure_pair(value: ast.AST) -> bool:
    """``return out, backward`` of a helper that serves the backward."""
    return isinstance(value, ast.Tuple) and "backward" in _names(value.elts[-1])


def _swapped_and_zeroed(value: ast.expr) -> Iterator[ast.expr]:
    """Gradients returned in the wrong order, and one of them zero; parameter tuples are looked into."""

    def zero(part: ast.expr) -> ast.expr:
        return ast.parse(f"{_ZEROS}({ast.unparse(part)})", mode="eval").body

    parts = value.elts if isinstance(value, ast.Tuple) else None
    if isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id[0].isupper():
        parts = value.args
    if parts is None:
        yield zero(value)
        return
    for i, part in enumerate(parts):
        nothing = isinstance(part, ast.Constant) and part.value is None  # its zeros are None as well
        for wrong in () if nothing else _swapped_and_zeroed(part):
            yield _with(value, [*parts[:i], wrong, *parts[i + 1 :]])
        if i:
            yield _with(value, [*parts[: i - 1], part, parts[i - 1], *parts[i + 1 :]])


def _with(value: ast.expr, parts: list[ast.expr]) -> ast.expr:
    other = copy.copy(value)
    setattr(other, "elts" if isinstance(value, ast.Tuple) else "args", parts)
    return other
