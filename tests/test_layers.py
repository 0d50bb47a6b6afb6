"""Imports point one way through the layers of `.ci/house.py`, lazy ones included, and never in a circle."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from cli_tools import environment
from house_tools import HOUSE

PATHS: dict[str, Path] = HOUSE.modules()
OTHER_PACKAGE = re.compile(r"textgym_(agents|benchmarks)(\.\w+)*(:\w+)?")


@cache
def tree(name: str) -> ast.Module:
    return ast.parse(PATHS[name].read_text(encoding="utf-8"))


@cache
def all_imports() -> dict[str, set[str]]:
    return {name: HOUSE.imports(name, tree(name), set(PATHS), path) for name, path in PATHS.items()}


def code_texts(module: ast.AST) -> Iterator[str]:
    """Yield the texts of a module, docstrings and other texts that stand alone left out."""
    alone = {id(node.value) for node in ast.walk(module) if isinstance(node, ast.Expr)}
    for node in ast.walk(module):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in alone:
            yield node.value


def test_every_module_has_its_layer() -> None:
    assert len(PATHS) > 50
    named = {root for roots in HOUSE.LAYERS for root in roots}
    # `textgym` itself is in the table, so that a module without a line of its own would hide there.
    assert {name for name in PATHS if name.count(".") == 1 and name.startswith("textgym.")} <= named
    assert named <= set(PATHS)


@pytest.mark.slow
def test_imports_point_one_way() -> None:
    assert HOUSE.against(all_imports()) == []


def test_no_modules_import_each_other() -> None:
    assert HOUSE.cycles(all_imports()) == []


@pytest.mark.parametrize("name", [name for name in PATHS if name.split(".")[0] == "textgym"])
def test_the_core_imports_no_other_package_by_its_text(name: str) -> None:
    found = {text for text in code_texts(tree(name)) if OTHER_PACKAGE.fullmatch(text)}
    # textgym.sources lists the packages; no module of theirs stands anywhere.
    assert found <= ({"textgym_agents", "textgym_benchmarks"} if name == "textgym.sources" else set())


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("import textgym_agents.config", "textgym_agents.config"),
        ("def f():\n    from textgym_agents import config", "textgym_agents.config"),
        ("if TYPE_CHECKING:\n    from textgym_agents.config import LMConfig", "textgym_agents.config"),
    ],
)
def test_the_house_sees_imports_of_every_kind(source: str, target: str) -> None:
    path = PATHS["textgym.task"]
    found = HOUSE.imports("textgym.task", ast.parse(source), set(PATHS), path)
    assert found == {target}
    assert HOUSE.against({"textgym.task": found}) == [f"textgym.task -> {target}"]
    assert HOUSE.cycles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == [["b", "c"]]
    assert list(code_texts(ast.parse("'''textgym_agents'''\nf('textgym_agents.x')"))) == ["textgym_agents.x"]


@pytest.mark.slow
def test_importing_the_core_imports_no_torch_and_no_task() -> None:
    code = (
        "import sys, textgym, textgym.cli, textgym_agents;"
        "print({'torch', 'transformers'} & set(sys.modules));"
        "print([name for name in sys.modules if name.startswith('textgym.tasks.')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=True)
    assert done.stdout == "set()\n[]\n"


@pytest.mark.slow
def test_importing_textgym_imports_nothing_that_is_not_needed_to_register() -> None:
    code = "import sys, textgym; print(sorted(name for name in sys.modules if name.startswith('textgym')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=True)
    modules = ["textgym", "textgym.checks", "textgym.registry", "textgym.sources"]
    assert done.stdout == f"{modules}\n"


@pytest.mark.slow
def test_what_posix_alone_has_stands_in_few_places() -> None:
    names = {"fcntl", "resource", "killpg", "SIGKILL", "SIGPROF", "setrlimit"}
    found = set()
    for name in PATHS:
        for node in ast.walk(tree(name)):
            used = {alias.name for alias in node.names} if isinstance(node, ast.Import | ast.ImportFrom) else set()
            used |= {node.module} if isinstance(node, ast.ImportFrom) else set()
            used |= {node.attr} if isinstance(node, ast.Attribute) else set()
            found |= {name} if used & names else set()
    # The program that renders chat templates imports nothing of ours.
    assert found == {"textgym.files", "textgym.processes", "textgym.codecs.rendering"}


@pytest.mark.slow
def test_no_two_public_classes_have_one_name() -> None:
    found = Counter(
        node.name
        for path in PATHS.values()
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    assert [name for name, count in found.items() if count > 1] == []
