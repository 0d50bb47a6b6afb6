"""The README's set-up lines, the pinned set, and CI's reading of both."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PINS = dict(
    line.split("==")
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if line and not line.startswith("#")
)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def marked(name: str) -> str:
    found = re.findall(rf"<!-- set-up: {name} -->\n```sh\n(.+)\n```\n", README)
    assert len(found) == 1
    return found[0]


def test_there_are_exactly_two_set_up_lines():
    assert re.findall(r"```(?:sh|bash|console|shell)\n((?:.|\n)*?)\n```", README) == [
        marked("demo"),
        marked("tests"),
    ]
    assert marked("demo").endswith("textgym demo")
    assert marked("tests").endswith("-m pytest -n auto")
    for line in (marked("demo"), marked("tests")):
        assert line.startswith("python3 -m venv .venv && ")
        assert "-c constraints.txt" in line


def test_ci_runs_the_readme_s_test_line():
    done = subprocess.run([ROOT / ".ci" / "run", "--print"], capture_output=True, text=True, check=True)
    assert done.stdout == marked("tests") + "\n"


PARTS = [
    "foreign",
    "project",
    "extras",
    "walks",
    "dist",
    "lowest",
    "windows",
    "site",
    "course",
    "trainings",
    "long",
    "sweeps",
    "coverage",
    "mutation",
]


def test_the_full_check_lists_its_parts_and_refuses_others_before_it_runs_any():
    full = ROOT / ".ci" / "full"
    listed = subprocess.run([full], capture_output=True, text=True, check=True, cwd="/").stdout.splitlines()
    assert [line.split()[0] for line in listed] == PARTS
    done = subprocess.run([full, "long", "nothing"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"part 'nothing': allowed are {' '.join(PARTS)}\n"


def test_the_script_of_the_site_says_what_it_can_do():
    done = subprocess.run([ROOT / ".ci" / "site", "nothing"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith("site 'nothing': allowed are no word and linkcheck\n")


def test_workflows_run_scripts_that_are_there():
    texts = {path.stem: path.read_text() for path in (ROOT / ".github" / "workflows").glob("*.yml")}
    assert sorted(texts) == ["docs", "nightly", "release", "tests"]
    steps = [line for text in texts.values() for line in re.findall(r"- run: (.+)", text)]
    assert len(steps) == sum(text.count("run: ") for text in texts.values())
    for step in steps:
        script = ROOT / step.split()[0]
        assert script.stat().st_mode & 0o111, step
    (listed,) = re.findall(r"part: \[(.*)\]", texts["nightly"])
    assert listed.split(", ") == PARTS
    done = subprocess.run([ROOT / ".ci" / "sets", "test", "oldest"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "set 'oldest': allowed are lowest, newest and pinned\n")


def test_the_citation_has_the_version():
    assert f"\nversion: {PROJECT['version']}\n" in (ROOT / "CITATION.cff").read_text()


def test_the_entry_of_gymnasiums_list_names_the_version_that_is_tested():
    guide = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (entry,) = re.findall(r"```markdown\n(- \[TextGym: .+\]\(LINK\)\n\n(?:  !\[.+\n){2}\n  .+\n)```", guide)
    assert f"/Gymnasium-v{PINS['gymnasium']}-blue" in entry
    assert 2 <= len(re.findall(r"\.(?=\s)", entry)) <= 5  # sentences that the list asks for


def test_every_direct_dependency_is_pinned():
    pinned = {canonical(name) for name in PINS}
    extras = PROJECT["optional-dependencies"]
    wanted = PROJECT["dependencies"] + [word for words in extras.values() for word in words]
    names = {canonical(re.match(r"[\w.-]+", word).group()) for word in wanted} - {"textgym"}
    assert names <= pinned


def test_every_pin_is_a_plain_version():
    assert all(re.fullmatch(r"\d[\w.]*", version) for version in PINS.values())
    assert PINS["torch"] == "2.13.0"  # without a local part: the CPU build serves it too


@pytest.mark.slow
def test_everything_that_the_pinned_packages_need_is_pinned():
    """Walks the requirements of what is installed here at its pin, from this project's own on."""
    from importlib.metadata import PackageNotFoundError, requires, version

    from packaging.requirements import Requirement

    pinned = {canonical(name): pin for name, pin in PINS.items()}
    extras = PROJECT["optional-dependencies"]
    waiting = [Requirement(word) for word in PROJECT["dependencies"] + [w for words in extras.values() for w in words]]
    seen: set[tuple[str, str]] = set()
    while waiting:
        requirement = waiting.pop()
        name = canonical(requirement.name)
        for extra in requirement.extras or {""}:
            if name == "textgym" or (name, extra) in seen:
                continue
            seen.add((name, extra))
            assert name in pinned, f"constraints.txt: {name} is missing"
            try:
                if version(name).partition("+")[0] != pinned[name]:
                    continue  # another version needs other packages
                needed = [Requirement(text) for text in requires(name) or []]
            except PackageNotFoundError:
                continue
            environments = [{"extra": ""}, {"extra": extra}]
            waiting += [r for r in needed if r.marker is None or any(map(r.marker.evaluate, environments))]


@pytest.mark.parametrize("block", re.findall(r"```python\n((?:.|\n)*?)\n```", README))
def test_the_snippets_run(block):
    exec(compile(f"import gymnasium as gym\nimport textgym\n{block}", "README.md", "exec"), {})


def test_nothing_in_the_readme_points_nowhere():
    for path in re.findall(r"`((?:textgym|agents|benchmarks|tests|\.ci)/[\w./-]*)`", README):
        if not path.startswith("textgym/Helpful") and not path.startswith("textgym/Text"):
            assert (ROOT / path).exists(), path
