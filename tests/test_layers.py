"""Imports point one way: the core, then agents, then benchmarks; only the command line looks to the right."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_tools import environment

ROOT = Path(__file__).parents[1]
PACKAGES = {"textgym": ROOT, "textgym_agents": ROOT / "agents", "textgym_benchmarks": ROOT / "benchmarks"}
ORDER = list(PACKAGES)
# Of the core, from left to right; what is not named here stands left of the environments.
CORE = [
    {"state", "vocab", "codecs", "checks", "files"},
    {"rewards", "lm", "prompts", "grammar"},
    {"task", "catalog", "tasks", "world"},
    {"env", "vector", "wrappers", "play", "sampling", "solver", "planning", "exploits"},
    {"registration", "evaluate", "optimum", "estimates", "best_of_n", "preferences"},
    {"commands"},
    {"cli"},
]


def modules() -> list[tuple[str, Path]]:
    return [
        (".".join(path.relative_to(root).with_suffix("").parts), path)
        for package, root in PACKAGES.items()
        for path in sorted((root / package).rglob("*.py"))
    ]


def imports(tree: ast.AST, in_function: bool = False) -> Iterator[tuple[str, bool]]:
    """Every imported module of our packages, and whether the import stands in a function."""
    for node in ast.iter_child_nodes(tree):
        inside = in_function or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names = [node.module or ""]
        yield from ((name, in_function) for name in names if name.split(".")[0] in PACKAGES)
        yield from imports(node, inside)


def layer(module: str) -> int | None:
    parts = module.split(".")
    if parts[0] != "textgym" or len(parts) == 1:
        return None
    return next((rank for rank, names in enumerate(CORE) if parts[1] in names), None)


@pytest.mark.parametrize(
    ("module", "path"), modules(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_imports_point_left(module, path):
    own_package, own_layer = module.split(".")[0], layer(module)
    for target, in_function in imports(ast.parse(path.read_text(encoding="utf-8"))):
        package = target.split(".")[0]
        if ORDER.index(package) > ORDER.index(own_package):
            assert module.startswith("textgym.commands."), f"{module} imports {target}"
            assert in_function, f"{module} imports {target} outside a function"
        theirs = layer(target)
        if own_layer is not None and theirs is not None and package == own_package and not in_function:
            assert theirs <= own_layer, f"{module} imports {target}"


def test_the_walk_finds_what_it_should():
    source = "import textgym.env\ndef f():\n    if 1:\n        from textgym_agents.x import y\nimport numpy\n"
    assert list(imports(ast.parse(source))) == [("textgym.env", False), ("textgym_agents.x", True)]
    assert len(modules()) > 50


def test_importing_the_core_imports_no_torch():
    code = "import sys, textgym, textgym.cli, textgym_agents; print({'torch', 'transformers'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=True
    )
    assert done.stdout == "set()\n"
