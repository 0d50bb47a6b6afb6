"""Whatever can be refused is refused before work: nothing is sampled, solved or learned, and nothing is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cli_tools import assert_one_line, run

from textgym.preferences import Ranking, write_rankings


@pytest.fixture(autouse=True)
def _no_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with some files, in which no command may begin to work."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken-v0").mkdir()
    write_rankings(tmp_path / "pairs.jsonl", [Ranking("Good morning!", ("Hello.", "No."), (True, True))], "trl")
    with (tmp_path / "pairs.jsonl").open("a") as file:
        file.write('{"prompt": "no answers"}\n')

    def work(*_: object, **__: object) -> Any:
        raise AssertionError("it began to work")

    for name in ("evaluate.play", "estimates.play", "play.play_batch", "solver.build._free_levels"):
        monkeypatch.setattr(f"textgym.{name}", work)


def assert_refused(capsys: Any, words: tuple[str, ...], said: list[str]) -> None:
    before = sorted(path.name for path in Path().iterdir())
    code, _, err = run(capsys, *words)
    assert_one_line(code, err, *said)
    assert sorted(path.name for path in Path().iterdir()) == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("eval", "Bandit-v0", "--guide", "-1"), ["guide=-1"]),
        (("eval", "Bandit-v0", "--seed", "-1"), ["seed=-1"]),
        (("eval", "Bandit-v0", "--beta", "-1"), ["beta=-1"]),
        (("eval", "Bandit-v0", "--optimum-per-prompt", "-1"), ["optimum_per_prompt=-1"]),
        (("record", "Bandit-v0"), ["--out"]),
        (("record", "Bandit-v0", "--out", "taken-v0"), ["taken-v0", "is there already"]),
        (("record", "Bandit-v0", "--out", "no-id"), ["no Minari id"]),
        (("record", "Bandit-v0", "--out", "x-v0", "--episodes", "3", "--per-prompt", "2"), ["multiples of"]),
        (("solve", "Bandit-v0", "--beta", "-1"), ["beta=-1"]),
        (("solve", "Bandit-v0", "--gamma", "2"), ["gamma=2"]),
        (("overoptimise", "Helpful-v0", "--beta", "0.1"), ["beta=0.1", "`betas`"]),
        (("rlhf", "Helpful-v0", "--per-prompt", "1"), ["per_prompt=1"]),
    ],
)
def test_flags(capsys: Any, words: tuple[str, ...], said: list[str]) -> None:
    assert_refused(capsys, words, said)


@pytest.mark.parametrize(
    ("agent", "flags", "said"),
    [
        ("dpo", ("--data", "nowhere.jsonl"), ["nowhere.jsonl"]),
        ("dpo", ("--data", "pairs.jsonl"), ["pairs.jsonl, line 2"]),
        ("behaviour-cloning", ("--data", "nowhere.jsonl"), ["nowhere.jsonl"]),
        ("behaviour-cloning", ("--data", "pairs.jsonl", "--on-broken", "skp"), ["--on-broken"]),
    ],
)
def test_data(capsys: Any, agent: str, flags: tuple[str, ...], said: list[str]) -> None:
    assert_refused(capsys, ("train", "Helpful-v0", "--agent", agent, "--episodes", "64", *flags), said)


def test_a_split_that_the_task_does_not_have(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import textgym.lm.causal

    monkeypatch.setattr(textgym.lm.causal, "load_causal_lm", None)  # not even the model is loaded
    options = ("--env", 'prompts=["a"]', 'eval_prompts=["b"]')
    assert_refused(capsys, ("eval", "Text-v0", "--split", "tune", *options), ["split", "'tune'"])
