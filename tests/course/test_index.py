"""Every statement of the course stands in the table of its page, leads to a section, and has a test of its number."""

from __future__ import annotations

import re
from pathlib import Path

from textgym_benchmarks.course.chapters import all_chapters
from textgym_benchmarks.course.exercises import numbers

PAGE = Path(__file__).parents[2] / "docs" / "course" / "index.md"
ROW = re.compile(r"^\| (\d+)([a-z]+) \| (.+) \| \[(.+)\]\((.+)\) \|$", re.MULTILINE)


def slug(heading: str) -> str:
    """The anchor that forges give a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_every_statement_leads_to_its_section():
    found = ROW.findall(PAGE.read_text(encoding="utf-8"))
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if re.match(r"\| \d", line)]
    assert len(found) == len(rows) > 60
    for number, letter, statement, heading, link in found:
        path, _, anchor = link.partition("#")
        chapter = (PAGE.parent / path).resolve()
        assert chapter.name.startswith(f"{int(number):02}_"), link
        headings = re.findall(r"^#+ (.+)$", chapter.read_text(encoding="utf-8"), re.MULTILINE)
        assert anchor in map(slug, headings), link
        assert heading in headings, f"{number}{letter}: {statement}"


def test_every_statement_has_a_test_and_every_test_a_statement():
    rows = sorted(number + letter for number, letter, *_ in ROW.findall(PAGE.read_text(encoding="utf-8")))
    tests = [
        name
        for path in sorted(Path(__file__).parent.glob("test_chapter*.py"))
        for name in re.findall(r"^def test_(\d+[a-z]+)_", path.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    assert sorted(set(tests)) == rows


def test_there_are_twelve_chapters_and_45_exercises():
    assert [chapter.number for chapter in all_chapters()] == list(range(1, 13))
    assert len(numbers()) >= 45
    places = [tuple(map(int, number.split("."))) for number in numbers().values()]
    assert places == sorted(set(places))
