"""`textgym new`: what it writes is whole, keeps its own promises, and is found by name where it lies."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from cli_tools import COMMAND, assert_one_line, environment, run

from textgym.commands.new import project

pytestmark = pytest.mark.slow

NAME = "soup-shop"
GROUPS = ("tasks", "rewards", "agents", "suites", "commands")


@pytest.fixture
def folder(capsys, tmp_path, monkeypatch):
    """A folder in which a project was just written, in which the user stands."""
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, "new", NAME)
    assert (code, err) == (0, "")
    assert f"textgym bench --suite {NAME}" in out
    return tmp_path / NAME


def textgym(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The command `textgym` in a folder."""
    variables = environment() | {"COLUMNS": "200"}
    return subprocess.run(
        [*COMMAND, *words], cwd=folder, env=variables, capture_output=True, text=True, timeout=300, check=False
    )


def test_every_file_is_there_under_its_own_name(folder):
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    modules = {f"soup_shop/{name}.py" for name in ("__init__", "task", "reward", "agent", "suite", "command")}
    assert set(files) == {"README.md", "pyproject.toml", "notebook.ipynb", "tests/test_soup_shop.py", *modules}
    for name, path in files.items():
        text = path.read_text(encoding="utf-8")
        assert not any(word in text for word in ("my_task", "my-task", "MyTask")), name
        if name.endswith(".py"):
            compile(text, name, "exec")
    points = tomllib.loads(files["pyproject.toml"].read_text())["project"]["entry-points"]
    assert set(points) == {f"textgym.{group}" for group in GROUPS}
    agent = files["soup_shop/agent.py"].read_text().partition("class SoupShopAgent")[2]
    assert len([line for line in agent.splitlines() if line.strip()]) <= 40


def test_the_code_is_clean(folder):
    pytest.importorskip("ruff")
    ruff = [sys.executable, "-m", "ruff"]
    for words in (["format", "--check", "--line-length", "120"], ["check", "--select", "E,F,W,I,UP,B,RUF"]):
        done = subprocess.run(
            [*ruff, *words, "--isolated", "--config", "line-length=120", "."], cwd=folder, check=False
        )
        assert done.returncode == 0


class Counter:
    """Counts what another pytest runs."""

    def __init__(self) -> None:
        self.outcomes: list[str] = []

    def pytest_runtest_logreport(self, report):
        if report.when == "call" or report.failed:
            self.outcomes.append(report.outcome)


@pytest.mark.parametrize(
    ("chosen", "count"), [("not conforms", 8), pytest.param("conforms", 1, marks=pytest.mark.sweep)]
)
def test_its_own_tests_pass(folder, monkeypatch, chosen, count):
    monkeypatch.setattr(sys, "path", [*sys.path])
    before, counter = set(sys.modules), Counter()
    options = ["-q", "-p", "no:cacheprovider", "--import-mode=importlib", "-k", chosen]
    code = pytest.main([*options, "-c", str(folder / "pyproject.toml"), str(folder)], plugins=[counter])
    for name in set(sys.modules) - before:
        if "soup_shop" in name:
            del sys.modules[name]
    assert code == 0
    assert counter.outcomes == ["passed"] * count


@pytest.mark.long
def test_its_tests_see_a_broken_reward(folder, monkeypatch):
    reward = folder / "soup_shop" / "reward.py"
    reward.write_text(reward.read_text().replace('("please" in words) +', '("pleas" in words) +'))
    monkeypatch.setattr(sys, "path", [*sys.path])
    before, counter = set(sys.modules), Counter()
    options = ["-q", "-p", "no:cacheprovider", "--import-mode=importlib", "-k", "reward_and_gold"]
    pytest.main([*options, "-c", str(folder / "pyproject.toml"), str(folder)], plugins=[counter])
    for name in set(sys.modules) - before:
        if "soup_shop" in name:
            del sys.modules[name]
    assert counter.outcomes.count("failed") == 3  # all but the answer without "please"


@pytest.mark.long
def test_the_notebook_runs(folder, monkeypatch, capsys):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    names: dict[str, object] = {}
    for cell in json.loads((folder / "notebook.ipynb").read_text())["cells"]:
        if cell["cell_type"] == "code":
            exec(compile(cell["source"], "notebook", "exec"), names)
    for name in [name for name in sys.modules if name.startswith("soup_shop")]:
        del sys.modules[name]
    assert names["found"].optimality.mean > 0.6
    assert "J of the reference 0.342, J* 0.893" in capsys.readouterr().out


@pytest.mark.long
def test_its_names_are_found_in_its_folder_without_an_installation(folder):
    said = {
        ("soup-shop", "--text", "tea please"): "reward 1.00, gold 1.00\n",
        ("soup-shop", "--text", "tea salt bread please"): "reward 1.00, gold 0.00\n",
        ("agents",): "soup-shop-agent",
        ("rewards",): "please=0.5",
        ("bench", "--list"): "SoupShop: your agent beside RLOO.",
        ("solve", "SoupShop-v0", "--tree", "0", "--env", "length=3"): "J* 0.8",
        ("train", "SoupShop-v0", "--agent", "soup-shop-agent", "--episodes", "128", "--out", "runs/a"): "optimality",
        ("train", "Text-v0", "--agent", "random", "--env", "reward=soup-shop", "--help"): "textgym train",
        ("check", "soup-shop-agent", "--only", "2"): "0 FAILS",
    }
    end = "the end of a command"
    code = f"""
from textgym.cli import main
for words in {list(said)}:
    assert main(list(words)) == 0, words
    print({end!r})
"""
    variables = environment() | {"COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=folder, env=variables, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    for (words, text), out in zip(said.items(), done.stdout.split(end)[:-1], strict=True):
        assert text in out, words
    elsewhere = textgym(folder.parent, "train", "SoupShop-v0")
    assert_one_line(elsewhere.returncode, elsewhere.stderr, "there is no such environment")


@pytest.mark.long
def test_a_new_project_is_trained_compared_and_reported_in_90_seconds_of_cpu(folder):
    import resource

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    train = ("train", "SoupShop-v0", "--agent", "soup-shop-agent", "--episodes", "4096", "--out", "runs/first")
    for words in (train, ("bench", "--suite", NAME, "--workers", "1"), ("report", f"runs/bench-{NAME}")):
        done = textgym(folder, *words)
        assert done.returncode == 0, done.stderr
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 90
    assert json.loads((folder / "runs/first/result.json").read_text())["after"]["eval/optimality"] > 0.6
    assert (folder / f"runs/bench-{NAME}/report/index.html").exists()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("My_Task", ("lower-case letters, digits and dashes", "Did you mean 'my-task'?")),
        ("SoupShop", ("Did you mean 'soup-shop'?",)),
        ("../up", ("lower-case letters",)),
        ("-", ("lower-case letters",)),
        ("a" * 99, ("up to 40",)),
        ("json", ("'json'", "is taken", "as in my-json")),
        ("class", ("is taken",)),
        ("numpy", ("is taken",)),
        ("copy", ("is taken",)),  # a task of TextGym
        ("words", ("is taken",)),  # a name of the template's own code
        ("there", ("is there already", "another name")),
    ],
)
def test_a_name_that_cannot_be_is_refused_before_anything_is_written(capsys, tmp_path, monkeypatch, name, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    code, _, err = run(capsys, "new", name)
    assert_one_line(code, err, *words)
    assert list(tmp_path.rglob("*")) == [tmp_path / "there"]


def test_no_file_of_the_template_is_forgotten_in_the_wheel():
    package_data = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
    assert package_data["tool"]["setuptools"]["package-data"]["textgym.commands"] == ["project/**/*"]
    assert len(dict(project(NAME))) == 10


@pytest.mark.long
def test_a_broken_pyproject_of_the_current_folder_stops_nothing(tmp_path):
    for text in ("[project", "project = 3", '[project.entry-points]\n"textgym.agents" = 3', ""):
        (tmp_path / "pyproject.toml").write_text(text)
        done = subprocess.run(
            [*COMMAND, "agents"], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
    points = '[project.entry-points]\n"textgym.agents" = { a = 3, b = "no_such:A", "c d" = "x:y" }'
    (tmp_path / "pyproject.toml").write_text(points)
    done = subprocess.run(
        [*COMMAND, "agents"], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert "entry point of ./pyproject.toml: a=3" in done.stderr
    assert "agent 'b' of ./pyproject.toml (no_such:A) cannot be loaded" in done.stderr
