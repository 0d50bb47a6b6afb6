"""Print the form of the house as a table: files, lines, who imports whom, types, and the way of LM PPO.

`python .ci/house.py` counts the packages textgym, textgym_agents and textgym_benchmarks as they stand in this checkout;
`--rooms` adds a line per folder, `--names` the names behind the numbers.
"""

from __future__ import annotations

import ast
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {"textgym": ROOT, "textgym_agents": ROOT / "agents", "textgym_benchmarks": ROOT / "benchmarks"}
# What stands further down may import what stands further up, and nothing may import against it, lazily or not.
LAYERS = (
    (
        "textgym.files",
        "textgym.checks",
        "textgym.registry",
        "textgym.interrupts",
        "textgym.processes",
        "textgym.sources",
    ),
    ("textgym.state", "textgym.codecs", "textgym.vocab", "textgym.rows", "textgym.prompts", "textgym.turns"),
    ("textgym.rewards", "textgym.lm", "textgym.grammar"),
    ("textgym.task", "textgym.responders", "textgym.world", "textgym.tasks"),
    (
        "textgym.env",
        "textgym.episodes",
        "textgym.vector",
        "textgym.vector_io",
        "textgym.render",
        "textgym.wrappers",
    ),
    ("textgym",),
    ("textgym.parts", "textgym.play", "textgym.sampling", "textgym.solver", "textgym.users"),
    ("textgym.best_of_n", "textgym.estimates", "textgym.exploits", "textgym.optimum", "textgym.planning"),
    ("textgym.preferences", "textgym.evaluate"),
    ("textgym.bridges", "textgym.commands", "textgym.cli", "textgym.__main__"),
    ("textgym_agents",),
    ("textgym_benchmarks",),
)
TIMED = "textgym_benchmarks.speed"  # times bare steps, and plays nothing for anybody
# What LM PPO runs through, from `learn` to the step of the optimiser; tests/test_docs_lm_ppo.py traces a run. Beside it
# textgym_agents.lm.metrics only measures, and textgym_agents.lm.rates sets the learning rate.
PPO = (
    "textgym_agents.algorithms.ppo",
    "textgym_agents.lm.agent",
    "textgym_agents.lm.maths",
    "textgym_agents.lm.policy",
    "textgym_agents.lm.rollout",
)
Tree = dict[str, ast.Module]


def modules() -> dict[str, Path]:
    """Return the product's modules by dotted name."""
    found = {}
    for package, root in PACKAGES.items():
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, tree: ast.AST, known: set[str], path: Path) -> set[str]:
    """Return the modules of the product that a module imports, wherever the import stands."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                found.add(inner if inner in known else base)
    return (found & known) - {name}


def cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Return the strongly connected components of more than one module (Tarjan, 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for after in sorted(graph[node]):
            if after not in index:
                visit(after)
                low[node] = min(low[node], low[after])
            elif after in stack:
                low[node] = min(low[node], index[after])
        if low[node] == index[node]:
            component = []
            while not component or component[-1] != node:
                component.append(stack.pop())
            if len(component) > 1:
                found.append(sorted(component))

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return found


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Yield every function and method."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return the lines of a function from `def` to its end, the docstring apart."""
    total = (function.end_lineno or function.lineno) - function.lineno + 1
    first = function.body[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        total -= (first.end_lineno or first.lineno) - first.lineno + 1
    return max(total, 1)


def anys(tree: ast.AST) -> int:
    """Return how often `Any` stands in the annotations of arguments and results."""
    count = 0
    for function in functions(tree):
        every = function.args
        arguments = [*every.posonlyargs, *every.args, *every.kwonlyargs, every.vararg, every.kwarg]
        notes = [argument.annotation for argument in arguments if argument is not None] + [function.returns]
        for note in notes:
            if note is not None:
                count += sum(isinstance(node, ast.Name) and node.id == "Any" for node in ast.walk(note))
    return count


def players(tree: ast.AST) -> list[str]:
    """Return the functions that step an environment in a loop until its episodes have ended."""
    found = []
    for function in functions(tree):
        for loop in ast.walk(function):
            if isinstance(loop, ast.While | ast.For):
                calls = [node.func for node in ast.walk(loop) if isinstance(node, ast.Call)]
                steps = [call for call in calls if isinstance(call, ast.Attribute) and call.attr == "step"]
                if any("env" in ast.unparse(call.value).lower() for call in steps):
                    found.append(function.name)
                    break
    return found


def layer(name: str) -> int:
    """Return the place of a module in `LAYERS`, by the longest name that it begins with."""
    places = {root: place for place, roots in enumerate(LAYERS) for root in roots}
    while name not in places:
        name = name.rpartition(".")[0]
    return places[name]


def against(every: dict[str, set[str]]) -> list[str]:
    """Return the imports that run against the layers."""
    return [f"{name} -> {target}" for name in every for target in every[name] if layer(target) > layer(name)]


def rooms(lines: dict[str, int], trees: dict[str, ast.Module]) -> Iterator[str]:
    """Yield files, lines and `Any` of each folder of a package."""
    found: dict[str, list[str]] = {}
    for name in lines:
        found.setdefault(".".join(name.split(".")[:2]) if name.count(".") > 1 else name.split(".")[0], []).append(name)
    for room, names in sorted(found.items()):
        total = sum(lines[name] for name in names)
        yield f"{room:40} {len(names):4} files {total:6,} lines {sum(anys(trees[name]) for name in names):5} Any"


def main() -> None:
    """Print the table."""
    paths = modules()
    known = set(paths)
    sources = {name: path.read_text(encoding="utf-8") for name, path in paths.items()}
    trees = {name: ast.parse(source) for name, source in sources.items()}
    lines = {name: source.count("\n") for name, source in sources.items()}
    every = {name: imports(name, tree, known, paths[name]) for name, tree in trees.items()}
    importers = {name: sum(name in targets for targets in every.values()) for name in known}
    once = [name for name in known if importers[name] == 1 and paths[name].name != "__init__.py"]
    found = [function for tree in trees.values() for function in functions(tree)]
    lengths = [code_lines(function) for function in found]
    plays = [f"{name}.{function}" for name, tree in trees.items() for function in players(tree)]
    loops = cycles(every)
    wrong = against(every)
    way = [name for name in PPO if name in lines]
    rows = [
        ("product files / lines", f"{len(paths)} / {sum(lines.values()):,}"),
        ("files imported by exactly one other", f"{len(once)}"),
        ("places that play a batch of episodes", f"{sum(TIMED not in place for place in plays)}"),
        ("`Any` in signatures", f"{sum(anys(tree) for tree in trees.values()):,}"),
        ("import cycles; imports against the layers", f"{len(loops)}; {len(wrong)}"),
        (
            "LM PPO, `learn` to optimiser step",
            f"{len(way)} files, {sum(lines[name] for name in way):,} lines",
        ),
        (
            "median lines, file / function",
            f"{statistics.median(lines.values()):.0f} / {statistics.median(lengths):.0f}",
        ),
        ("longest file / function", f"{max(lines.values())} / {max(lengths)}"),
    ]
    for label, value in rows:
        print(f"| {label} | {value} |")
    if "--rooms" in sys.argv:
        print("", *rooms(lines, trees), sep="\n")
    if "--names" in sys.argv:
        print("\nplay:", *sorted(plays), sep="\n  ")
        print("\ncycles:", *loops, sep="\n  ")
        print("\nagainst the layers:", *sorted(wrong), sep="\n  ")
        print("\nimported once:", *sorted(once), sep="\n  ")


if __name__ == "__main__":
    main()
