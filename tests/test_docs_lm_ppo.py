"""The page on LM PPO: each line that it names is the code that it quotes, and the files are those that run.

`python tests/test_docs_lm_ppo.py` writes the numbers of the lines anew where code has moved.
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest
from house_tools import HOUSE

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "lm_ppo.md"
QUOTE = re.compile(
    r"\[(?P<name>[\w.]+):(?P<said>\d+)\]\((?P<path>\.\./[^)#]+)#L(?P<line>\d+)\)\n\n```python\n(?P<code>.*?)```",
    re.DOTALL,
)


def lines_of(quote: re.Match[str]) -> list[int]:
    """The numbers of the lines at which the file has the code of a quote."""
    lines = (PAGE.parent / quote["path"]).read_text(encoding="utf-8").splitlines()
    wanted = quote["code"].splitlines()
    spans = (lines[first : first + len(wanted)] for first in range(len(lines)))
    found = (textwrap.dedent("\n".join(span)).splitlines() for span in spans)
    return [number for number, span in enumerate(found, 1) if span == wanted]


def quotes() -> Iterator[re.Match[str]]:
    yield from QUOTE.finditer(PAGE.read_text(encoding="utf-8"))


def test_every_line_that_is_named_is_the_code_that_is_quoted() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert len(list(quotes())) == text.count("```python") == len(re.findall(r"#L\d+\)", text))
    for quote in quotes():
        said = f"{quote['name']}:{quote['said']} (python {Path(__file__).name} writes the numbers anew)"
        assert quote["path"].endswith(f"/{quote['name']}"), said
        assert [int(quote["said"])] == [int(quote["line"])] == lines_of(quote), said


def test_the_files_that_are_named_are_those_that_run_from_learn_to_the_step(monkeypatch) -> None:
    import torch
    from agents.enumerated import tiny_agent, tiny_task
    from gymnasium.vector import AutoresetMode

    from textgym import TokenVectorEnv

    class Stepped(Exception):  # noqa: N818
        """Ends the run at the optimiser's first step."""

    def stop(*_: object, **__: object) -> None:
        raise Stepped

    agent = tiny_agent(tiny_task(), kl_target=1.0, value_coefficient=0.5)
    env = TokenVectorEnv(agent.task, 16, autoreset_mode=AutoresetMode.DISABLED)
    monkeypatch.setattr(torch.optim.Adam, "step", stop)
    ran = set()

    def watch(frame: FrameType, event: str, _: object) -> None:
        ran.add(frame.f_globals.get("__name__", ""))

    sys.setprofile(watch)
    try:
        with pytest.raises(Stepped):
            agent.learn(env, 16)
    finally:
        sys.setprofile(None)
    ours = {name for name in ran if name.startswith("textgym_agents.")}
    # One measures; with one device the others give back what they were given.
    beside = {f"textgym_agents.lm.{name}" for name in ("metrics", "rates", "devices", "gathered", "sharding")}
    assert ours - beside == set(HOUSE.PPO)
    files = {quote["path"] for quote in quotes()}
    assert {path.removeprefix("../agents/").removesuffix(".py").replace("/", ".") for path in files} <= ours


def renumber() -> None:
    """Write the page with the true numbers of lines. Raises: ValueError for code that is not there once."""

    def true(quote: re.Match[str]) -> str:
        found = lines_of(quote)
        if len(found) != 1:
            raise ValueError(f"{quote['path']} has {quote['code']!r} {len(found)} times; allowed is once")
        code = quote[0].partition("\n")[2]
        return f"[{quote['name']}:{found[0]}]({quote['path']}#L{found[0]})\n{code}"

    PAGE.write_text(QUOTE.sub(true, PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    renumber()
