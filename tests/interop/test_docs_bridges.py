"""The blocks of docs/bridges.md print what stands below them."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "bridges.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"(?:<!-- needs: (\w+)[^\n]*-->\n\n)?```python\n(.*?)```\n(?:\n```text\n(.*?)```\n)?", re.DOTALL)
BLOCKS = BLOCK.findall(PAGE)
URL = "http://127.0.0.1:8000"


def printed(source: str) -> str:
    found = io.StringIO()
    with contextlib.redirect_stdout(found):
        exec(compile(source, "bridges.md", "exec"), {"__name__": "page"})
    return found.getvalue()


def test_each_block_has_its_test() -> None:
    assert [needs for needs, _, _ in BLOCKS] == ["trl", "", "openenv", "openenv"]


def test_turns_as_an_environment_of_trl() -> None:
    ((source, shown),) = [block[1:] for block in BLOCKS if not block[0]]
    assert printed(source) == shown


@pytest.mark.slow
def test_a_task_in_trl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trl", reason="TRL is not installed")
    monkeypatch.chdir(tmp_path)
    ((source, _),) = [block[1:] for block in BLOCKS if block[0] == "trl"]
    assert "'rewards/" in printed(source)


@pytest.mark.slow
def test_the_server_and_the_user() -> None:
    pytest.importorskip("openenv.core", reason="openenv-core is not installed")
    from test_openenv import served

    from textgym import make_task

    with served(make_task("TwentyQuestions", difficulty=2)) as url:
        for needs, source, shown in BLOCKS:
            if needs == "openenv":
                assert printed(source.replace(URL, url)) == shown
