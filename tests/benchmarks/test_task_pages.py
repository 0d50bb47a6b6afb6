"""The pages of tasks are what their command makes of the docstrings and the committed results."""

from __future__ import annotations

from pathlib import Path

import pytest
from synthetic import make_results
from textgym_benchmarks.results.store import Result, load_results
from textgym_benchmarks.results.task_pages import TITLES, sections, task_pages

from textgym.task import task_entry, task_names

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    cells = make_results(("lm-ppo", "sb3-ddpg"), ("textgym/Bandit-v0", "textgym/Helpful-v0"), 2)
    return task_pages(Result.from_json(cell) for cell in cells)


@pytest.mark.slow
def test_every_task_has_its_place_on_one_page(pages: dict[str, str]) -> None:
    families = "".join(text for name, text in pages.items() if name != "README.md")
    for name in task_names():
        if task_entry(name).family in TITLES:
            assert families.count(f"## {task_entry(name).id}\n") == 1
            assert f"`{task_entry(name).id}`" in pages["README.md"]


def test_no_section_of_a_docstring_is_lost(pages: dict[str, str]) -> None:
    entry = task_entry("Helpful")
    found = sections(entry)
    assert next(iter(found)) == "Description"
    for title in ("Description", "Rewards", "Starting State", "Episode End", "Version History"):
        assert found[title] in pages["alignment.md"]
    assert "- `max_new_tokens`: tokens of an answer, at least 1." in pages["alignment.md"]
    assert "`Box(0, 1023, (57,), int64)`" in pages["alignment.md"]


def test_scores_stand_with_their_task_and_an_unmeasured_task_says_so(pages: dict[str, str]) -> None:
    bandit = pages["diagnostics.md"].split("## textgym/Bandit-v0")[1].split("\n## ")[0]
    assert "| `lm-ppo` | " in bandit
    assert "Exactly solved: J_ref" in bandit
    assert "| `sb3-ddpg` | - | " in bandit  # without a KL there is no optimality, but the reward is shown
    copy = pages["diagnostics.md"].split("## textgym/Copy-v0")[1].split("\n## ")[0]
    assert "No agent has been measured" in copy


def test_what_rounds_to_zero_has_no_sign() -> None:
    cells = make_results(("lm-ppo",), ("textgym/Bandit-v0",), 1, failed=0.0, missing=0.0)
    cells[0]["measures"]["after"]["optimality"] = {"mean": -0.0001, "low": -0.0004, "high": 0.0002}
    page = task_pages(Result.from_json(cell) for cell in cells)["diagnostics.md"]
    assert "| `lm-ppo` | 0.000 [0.000, 0.000] | " in page


@pytest.mark.slow
def test_the_committed_pages_are_made_of_the_committed_results() -> None:
    results = ROOT / "benchmarks" / "results" / "core.json"
    for name, text in task_pages(load_results(results)).items():
        assert (ROOT / "docs" / "tasks" / name).read_text(encoding="utf-8") == text, (
            "run: python -m textgym_benchmarks.results.task_pages"
        )
