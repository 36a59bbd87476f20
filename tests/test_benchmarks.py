"""Benchmarks are not run with the tests. What they import from the package must be there all the same."""

import ast
import importlib
from pathlib import Path

import pytest

CASES = Path(__file__).parent / "benchmarks" / "cases.py"
IMPORTED = sorted(
    {
        (node.module, alias.name)
        for node in ast.walk(ast.parse(CASES.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("minitransformers")
        for alias in node.names
    }
)


@pytest.mark.parametrize(("module", "name"), IMPORTED)
def test_what_a_case_imports_exists(module, name):
    found = importlib.import_module(module)
    assert hasattr(found, name) or importlib.util.find_spec(f"{module}.{name}") is not None
