"""Put one small mistake at a time into the mathematics, and see whether the tests notice.

`python .ci/mutants.py` tries every mutant of the modules in mutants.toml, or of those of their functions that it
names; `--sample 300` tries as many, chosen by `--seed`; words choose those whose name holds one of them, and `--list`
shows them. Results go to build/mutants, so that a run that was stopped goes on, with the mutants whose module or tests
have changed since. A mutant that no test kills stands in mutants.toml with the reason: as equivalent or as a survivor.
Exits with 1 if one does not, if one that stands there is killed, or if fewer than 95% of those that are not equivalent
are killed.

Everything is imported once. A mutant is a fork of that process in which the code of one function, or one constant, is
replaced; it runs the tests that come to the changed lines, as `coverage` has seen them, the quickest of a file first.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import importlib
import json
import os
import resource
import signal
import sys
import time
import tomllib
import types
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import coverage
import pytest

ROOT = Path(__file__).resolve().parents[1]
STORE = ROOT / "build" / "mutants"
LISTED = tomllib.loads((ROOT / ".ci" / "mutants.toml").read_text())
MODULES = {path: group["tests"] for group in LISTED["modules"] for path in group["paths"]}
FUNCTIONS = {path: group["functions"] for group in LISTED["modules"] for path in group["paths"] if "functions" in group}
# As they were when everything was imported, whoever edits them while mutants run.
SOURCES = {
    file: (ROOT / file).read_bytes() for file in {*MODULES, *(test for tests in MODULES.values() for test in tests)}
}
LEAST = 0.95
MOST = 8.0  # seconds of CPU that a mutant's tests take without it: file by file, the quickest first
# Checks of whole agents, which take most of the time.
LEFT_OUT = "passes or test_28 or test_33 or committed_optimum or any_registered or covers"
PYTEST = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-k", f"not ({LEFT_OUT})"]
FAST, ALSO_SLOW = ["-m", "not slow and not long and not sweep"], ["-m", "not long and not sweep"]
SLOW = {test for group in LISTED["modules"] if group.get("slow") for test in group["tests"]}

SWAPS: dict[type[ast.AST], tuple[type[ast.AST], ...]] = {
    ast.Add: (ast.Sub,), ast.Sub: (ast.Add,), ast.Mult: (ast.Div,), ast.Div: (ast.Mult,), ast.Pow: (ast.Mult,),
    ast.FloorDiv: (ast.Mod,), ast.Mod: (ast.FloorDiv,), ast.BitAnd: (ast.BitOr,), ast.BitOr: (ast.BitAnd,),
    ast.Lt: (ast.LtE, ast.GtE), ast.LtE: (ast.Lt, ast.Gt), ast.Gt: (ast.GtE, ast.LtE), ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.Is: (ast.IsNot,), ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,), ast.NotIn: (ast.In,), ast.And: (ast.Or,), ast.Or: (ast.And,),
}  # fmt: skip
PAIRS = ("min max", "minimum maximum", "sum mean", "any all", "exp expm1", "zeros ones", "zeros_like ones_like")
NAMES = {one: two for pair in PAIRS for one, two in (pair.split(), pair.split()[::-1])}
DROPPED = (
    "detach",
    "exp",
    "log",
    "clamp",
    "square",
    "abs",
    "copy",
    "cumsum",
    "ravel",
    "float",
    "bool",
)  # x.f() becomes x
UNCHANGED = (ast.Raise, ast.Assert, ast.JoinedStr, ast.Import, ast.ImportFrom)
NOT_MATHEMATICS = ("_repr_html_", "__str__", "draw_reliability", "FOLDER", "Problem")
UNCHANGED_FIELDS = {"annotation", "returns", "decorator_list", "defaults", "kw_defaults"}
NOT_SHOWN_ALONE = (ast.Tuple, ast.List, ast.Slice, ast.UnaryOp, ast.Attribute, ast.Constant, ast.keyword)


def variants(node: ast.AST) -> Iterator[ast.AST]:
    """Yield what may stand in the place of an expression or a statement by mistake."""
    match node:
        case ast.Constant(value=bool()):
            yield ast.Constant(not node.value)
        case ast.Constant(value=int() | float()):
            yield ast.Constant(node.value + 1)
        case ast.UnaryOp(op=ast.USub() | ast.Not() | ast.Invert()):
            yield node.operand
        case ast.BinOp():
            yield from (ast.BinOp(node.left, new(), node.right) for new in SWAPS.get(type(node.op), ()))
            if isinstance(node.op, ast.Add | ast.Sub | ast.Mult | ast.Div | ast.BitAnd):
                yield node.left
        case ast.Compare(ops=[op]):
            yield from (ast.Compare(node.left, [new()], node.comparators) for new in SWAPS[type(op)])
        case ast.BoolOp():
            yield from (ast.BoolOp(new(), node.values) for new in SWAPS[type(node.op)])
        case ast.IfExp():
            yield from (node.body, node.orelse)
        case ast.If(test=ast.Name() | ast.Attribute() | ast.Call()):
            yield ast.If(ast.UnaryOp(ast.Not(), node.test), node.body, node.orelse)
        case ast.AugAssign():
            yield from (ast.AugAssign(node.target, new(), node.value) for new in SWAPS.get(type(node.op), ()))
        case ast.Call(func=ast.Attribute(attr="where"), args=[_, one, other]):
            yield from (one, other)
        case ast.Call(func=ast.Attribute(value=value, attr=name)):
            if name in NAMES:
                yield ast.Call(ast.Attribute(value, NAMES[name], ast.Load()), node.args, node.keywords)
            if name in DROPPED and ast.unparse(value) not in ("np", "torch", "math"):
                yield value
        case ast.Call(func=ast.Name(id=name)) if name in NAMES:
            yield ast.Call(ast.Name(NAMES[name], ast.Load()), node.args, node.keywords)


Slot = tuple[ast.AST, str, int | None]


def put(slot: Slot, new: ast.AST) -> None:
    """Put a node into its place."""
    parent, field, place = slot
    if place is None:
        setattr(parent, field, new)
    else:
        getattr(parent, field)[place] = new


def slots(node: ast.AST) -> Iterator[tuple[Slot, ast.AST]]:
    """Yield every place below a node with what it holds, from the outside to the inside."""
    for field, value in ast.iter_fields(node):
        if field not in UNCHANGED_FIELDS:
            for place, child in enumerate(value) if isinstance(value, list) else ((None, value),):
                if isinstance(child, ast.AST) and not isinstance(child, UNCHANGED):
                    yield (node, field, place), child
                    yield from slots(child)


@dataclass(frozen=True)
class Mutant:
    """A module with one change, in a function or a constant that `owner` names, at some lines."""

    path: str
    owner: tuple[str, ...]
    lines: range
    name: str
    tree: ast.Module
    slot: Slot
    new: ast.AST

    def install(self) -> None:
        """Replace the function's code, or the constant, in the module that everybody has imported."""
        put(self.slot, self.new)
        code = compile(ast.fix_missing_locations(self.tree), str(ROOT / self.path), "exec", dont_inherit=True)
        found: Any = importlib.import_module(self.path.removeprefix("agents/").removesuffix(".py").replace("/", "."))
        module = found
        if len(self.lines) > 10**5:
            changed = dict(vars(module))
            exec(code, changed)
            # All constants, of which one may be made from another.
            for owner in (owner[0] for owner, root in owners(self.tree) if not isinstance(root, ast.FunctionDef)):
                old = getattr(module, owner)
                if isinstance(old, dict):  # tests have it by name
                    old.clear()
                    old.update(changed[owner])
                elif owner == self.owner[0]:
                    setattr(module, owner, changed[owner])
            return
        for name in self.owner:
            code = next(each for each in code.co_consts if isinstance(each, types.CodeType) and each.co_name == name)
            found = vars(found)[name]
        while inner := [part for part in ("__wrapped__", "__func__", "fget", "func") if hasattr(found, part)]:
            found = getattr(found, inner[0])
        found.__code__ = code


def owners(tree: ast.Module) -> Iterator[tuple[tuple[str, ...], ast.stmt]]:
    """Yield functions, methods and constants."""
    for node in tree.body:
        match node:
            case ast.FunctionDef():
                yield (node.name,), node
            case ast.ClassDef():
                yield from (((node.name, each.name), each) for each in node.body if isinstance(each, ast.FunctionDef))
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name), value=ast.expr()):
                yield (name,), node


def mutants(path: str) -> Iterator[Mutant]:
    """Yield all mutants of a module."""
    tree, seen = ast.parse(SOURCES[path]), Counter[str]()
    for owner, root in owners(tree):
        if owner[-1] in NOT_MATHEMATICS or {owner[0], ".".join(owner)}.isdisjoint(FUNCTIONS.get(path, owner)):
            continue
        statements: dict[ast.AST, ast.stmt] = {root: root}
        parents: dict[ast.AST, ast.AST] = {}
        for slot, node in slots(root):
            statement = statements[node] = node if isinstance(node, ast.stmt) else statements[slot[0]]
            parents[node] = slot[0]
            body = getattr(statement, "body", None)
            last = body[0].lineno - 1 if body else statement.end_lineno or 0
            lines = range(statement.lineno, max(statement.lineno, last) + 1)
            shown = slot[0] if isinstance(slot[0], ast.expr | ast.keyword) else node
            while isinstance(shown, NOT_SHOWN_ALONE) and isinstance(parents[shown], ast.expr | ast.keyword):
                shown = parents[shown]
            shown = node if isinstance(shown, ast.Dict) else shown
            for new in variants(node):
                before = ast.unparse(shown).splitlines()[0]
                put(slot, new)
                after = ast.unparse(new if shown is node else shown).splitlines()[0]
                put(slot, node)
                name = f"{path}:{'.'.join(owner)}: {before} -> {after}"
                seen[name] += 1
                name += f" ({seen[name]})" if seen[name] > 1 else ""
                everywhere = lines if isinstance(root, ast.FunctionDef) else range(10**6)
                yield Mutant(path, owner, everywhere, name, tree, slot, new)


def forked(work: Callable[[], int], seconds: float) -> tuple[str, float]:
    """Run something in a fork, silently and in so many seconds of CPU; return how it ended, and its seconds."""
    child = os.fork()
    if not child:
        resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + 1, int(seconds) + 2))
        resource.setrlimit(resource.RLIMIT_AS, (16 << 30, 16 << 30))
        signal.alarm(60 + int(10 * seconds))
        for stream in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        try:
            os._exit(work())
        except BaseException:
            os._exit(99)
    _, status, usage = os.wait4(child, 0)
    code = os.waitstatus_to_exitcode(status)
    end = "killed" if code == 1 or code < 0 else "survived" if code in (0, 5) else f"error {code}"
    return end, usage.ru_utime + usage.ru_stime


class Watch:
    """A plugin of pytest that tells `coverage` which test runs, and how many seconds of CPU it takes."""

    def __init__(self, cover: coverage.Coverage) -> None:
        self.cover, self.seconds = cover, dict[str, float]()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:  # noqa: D102
        self.cover.switch_context(item.nodeid)
        start = time.process_time()
        result = yield
        self.seconds[item.nodeid] = time.process_time() - start
        return result


def reached(file: str) -> dict[str, Any]:
    """Return the seconds of a file's tests, and by module and line which of them come there; kept in STORE."""
    sources = b"".join(SOURCES[each] for each in (*MODULES, file)) + bytes(file in SLOW)
    kept = STORE / f"{file.replace('/', '-')}.{hashlib.sha256(sources).hexdigest()[:16]}.json"

    def work() -> int:
        cover = coverage.Coverage(data_file=None, include=[str(ROOT / each) for each in MODULES], config_file=False)
        watch = Watch(cover)
        cover.start()
        code = pytest.main([*PYTEST, *(ALSO_SLOW if file in SLOW else FAST), file], plugins=[watch])
        cover.stop()
        lines = {path: cover.get_data().contexts_by_lineno(str(ROOT / path)) for path in MODULES}
        kept.write_text(json.dumps({"seconds": watch.seconds, "lines": lines}))
        return int(code)

    if not kept.exists():
        end, seconds = forked(work, 900)
        print(f"{end}, {seconds:.0f} s: {file} without a mutant", flush=True)
        if end != "survived":
            kept.unlink(missing_ok=True)
            raise SystemExit(1)
    found: dict[str, Any] = json.loads(kept.read_text())
    return found


def tried(mutant: Mutant) -> dict[str, Any]:
    """Run the tests that come to the changed lines, file by file, the quickest first."""
    seconds, usual = dict[str, float](), 0.0
    for reach in map(reached, MODULES[mutant.path]):
        lines = reach["lines"][mutant.path].items()
        tests = {test for line, found in lines if int(line) in mutant.lines for test in found if test}
        for test in sorted(tests, key=lambda test: reach["seconds"][test]):
            if usual + reach["seconds"][test] <= MOST:
                usual += reach["seconds"][test]
                seconds[test] = reach["seconds"][test]

    def work() -> int:
        mutant.install()
        return int(pytest.main([*PYTEST, *ALSO_SLOW, *seconds]))

    end, taken = forked(work, 10 + 4 * usual) if seconds else ("survived", 0.0)
    return {"name": mutant.name, "end": end, "seconds": round(taken, 2), "tests": len(seconds)}


def listed(kind: str) -> set[str]:
    """Return the mutants that mutants.toml lists as "equivalent" or "survivor"."""
    return {name for group in LISTED.get(kind, ()) for name in group["mutants"]}


def report(results: dict[str, dict[str, Any]]) -> bool:
    """Print what came of the mutants, by module; return whether that is enough."""
    equivalent, survivors = listed("equivalent"), listed("survivor")
    alive = {name for name, result in results.items() if result["end"] != "killed"}
    print(f"{'module':<48}{'mutants':>8}{'killed':>8}{'equivalent':>12}{'survived':>10}")
    for path in [*MODULES, ""]:
        own = {name for name in results if name.startswith(path)}
        counts = len(own), len(own - alive), len(own & alive & equivalent), len(own & alive - equivalent)
        print(f"{path or 'all':<48}{counts[0]:>8}{counts[1]:>8}{counts[2]:>12}{counts[3]:>10}")
    share = counts[1] / max(1, counts[0] - counts[2])
    print(f"killed of those that are not equivalent: {share:.1%}")
    print(f"CPU: {sum(result['seconds'] for result in results.values()):.0f} s")
    unlisted, wrong = alive - equivalent - survivors, (results.keys() - alive) & (equivalent | survivors)
    for title, names in (("not in mutants.toml", unlisted), ("in mutants.toml", wrong)):
        for name in sorted(names):
            print(f"{results[name]['end']} by {results[name]['tests']} tests, {title}: {name}")
    return share >= LEAST and not unlisted and not wrong


def main() -> None:
    """Try mutants, or list them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*")
    parser.add_argument("--sample", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args()
    chosen = [each for path in MODULES for each in mutants(path)]
    if unknown := (listed("equivalent") | listed("survivor")).difference(each.name for each in chosen):
        raise SystemExit("\n".join(f"in mutants.toml, but no mutant: {name}" for name in sorted(unknown)))
    # By a hash of the name: a sample stays what it is where other code changes.
    chosen.sort(key=lambda each: hashlib.sha256(f"{options.seed} {each.name}".encode()).digest())
    chosen = chosen[: options.sample]
    chosen = [each for each in chosen if not options.words or any(word in each.name for word in options.words)]
    if options.list:
        print("\n".join(sorted(each.name for each in chosen)))
        return
    os.chdir(ROOT)
    STORE.mkdir(parents=True, exist_ok=True)
    kept, results = STORE / "results.jsonl", dict[str, dict[str, Any]]()
    if kept.exists():
        results = {result["name"]: result for result in map(json.loads, kept.read_text().splitlines())}
    files = list(dict.fromkeys(file for each in chosen for file in MODULES[each.path]))
    if pytest.main([*PYTEST, "--collect-only", "-qq", *files]):
        raise SystemExit("the tests cannot be collected")
    for each in chosen:
        sources = b"".join(SOURCES[file] + bytes(file in SLOW) for file in (each.path, *MODULES[each.path]))
        state, known = hashlib.sha256(sources).hexdigest(), results.get(each.name, {})
        if known.get("state") != state:
            result = results[each.name] = tried(each) | {"state": state}
            with kept.open("a") as file:
                file.write(json.dumps(result) + "\n")
            print(f"{result['end']}, {result['seconds']} s: {each.name}", flush=True)
    sys.exit(0 if report({each.name: results[each.name] for each in chosen}) else 1)


if __name__ == "__main__":
    main()
