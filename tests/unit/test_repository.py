"""Rules of the house that a machine can check."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("iedn", "sites", "client", "server", "simulation")
MODULES = sorted(p for package in PACKAGES for p in (ROOT / package).rglob("*.py"))
FORBIDDEN_NAMES = {"utils", "util", "helper", "helpers", "manager", "data", "info", "misc"}


@pytest.mark.parametrize("module", MODULES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_module_is_one_concept(module):
    text = module.read_text()
    assert text.count("\n") <= 400
    assert module.stem not in FORBIDDEN_NAMES
    tree = ast.parse(text)
    assert ast.get_docstring(tree), "a module says what it is"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            length = (node.end_lineno or 0) - node.lineno
            assert length <= 60, f"{node.name} has {length} lines"


def test_tests_are_no_package():
    """A tests/server/__init__.py would shadow the package ``server``."""
    assert not list((ROOT / "tests").rglob("__init__.py"))
