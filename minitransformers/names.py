"""The names that can be imported from the package itself, found in the sources without importing them.

    python -m minitransformers.names                        # writes __init__.pyi, after a concept has come or gone

The stub ``__init__.pyi`` says of each name which module it is from. Type checkers read it, and so does ``__init__.py``.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from minitransformers.foundation.atomic import write_atomically
from minitransformers.foundation.catalogue import READING_ORDER

PACKAGE = Path(__file__).parent
# What is offered besides the chapters' own: the tools, what goes into slots, and what language_model takes that is no tree of parameters.
BESIDES = (
    ("minitransformers.attention.core", "causal"),
    ("minitransformers.attention.core", "causal_attention"),
    ("minitransformers.attention.core", "softmax_attention"),
    ("minitransformers.attention.prepare", "on_both"),
    ("minitransformers.foundation", "assert_gradients"),
    ("minitransformers.foundation", "catalogue"),
    ("minitransformers.foundation", "check_gradients"),
    ("minitransformers.foundation", "slot"),
    ("minitransformers.foundation", "trees"),
    ("minitransformers.models.workbench.configuration", "LanguageModelConfig"),
)
_HEAD = """\
# Every public name and the module that it is from. Written by `python -m minitransformers.names`; __init__.py imports by it.
# ruff: noqa: I001
"""


def stub(package: Path = PACKAGE) -> str:
    """The text of ``__init__.pyi``. Raises ValueError where two modules offer the same name."""
    places: dict[str, str] = {}
    for module, name in [*BESIDES, *_offered(package)]:
        if name in places:
            raise ValueError(f"{name}: got it from {places[name]} and {module}, wants one place for a name that all can import")
        places[name] = module
    taken = {path.stem for path in package.iterdir()} & places.keys()  # a chapter's name: what Python finds under it is the chapter
    lines = [f"# {name} is a chapter: import what {name} computes from {places.pop(name)}" for name in sorted(taken)]
    lines += sorted(f"from {module} import {name} as {name}" for name, module in places.items())
    return _HEAD + "\n".join([*lines, "", "__version__: str", ""])


def _offered(package: Path) -> Iterator[tuple[str, str]]:
    """Module and name of all that the chapters offer."""
    for chapter in READING_ORDER:
        for path in sorted((package / chapter).rglob("*.py")):
            module = ".".join(["minitransformers", *path.relative_to(package).with_suffix("").parts])
            yield from ((module, name) for name in _names(ast.parse(path.read_text(encoding="utf-8"))))


def _names(module: ast.Module) -> list[str]:
    """Concepts and procedures, and beside them the types of parameters, inits and steps; none of a module of helpers."""
    functions = [node for node in module.body if isinstance(node, ast.FunctionDef)]
    labelled = [node.name for node in functions if any(map(_is_label, node.decorator_list))]
    aliases = [node.targets[0].id for node in module.body if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)]
    beside = [name for name in [*(node.name for node in functions), *aliases] if name.startswith("init_") or name.endswith("_step")]
    types = [node.name for node in module.body if isinstance(node, ast.ClassDef) and any(map(_is_named_tuple, node.bases))]
    return [name for name in dict.fromkeys(labelled + beside + types) if not name.startswith("_")] if labelled else []


def _is_label(decorator: ast.expr) -> bool:
    return isinstance(decorator, ast.Call) and isinstance(decorator.func, ast.Name) and decorator.func.id in ("concept", "procedure")


def _is_named_tuple(base: ast.expr) -> bool:
    return isinstance(base, ast.Name) and base.id == "NamedTuple"


if __name__ == "__main__":
    write_atomically(PACKAGE / "__init__.pyi", [stub().encode()])
