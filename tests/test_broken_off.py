"""Commands that were interrupted while they sampled go on from the parts that they had."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cli_tools import run

from textgym import sampling
from textgym.files import read_json

# 32 completions for J*, 16 for an evaluation: four parts of 8, and two.
TASK = ("--optimum-per-prompt", "16", "--env", 'prompts=["a","b"]', "max_new_tokens=6", "reward=length")
EVAL = ("eval", "Text-v0", "--per-prompt", "8", "--json", *TASK)
TRAIN = ("train", "Text-v0", "--agent", "reference", "--episodes", "4", "--final-per-prompt", "8", *TASK)


class Parts:
    """Counts the parts that are played, and breaks off behind so many."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count, self.most = 0, 99
        self._play = sampling._play_part
        monkeypatch.setattr(sampling, "_BLOCK", 8)
        monkeypatch.setattr(sampling, "_play_part", self._part)

    def of(self, capsys: Any, *words: str, most: int = 99) -> tuple[int, str, str]:
        """Run a command with at most so many parts."""
        self.count, self.most = 0, most
        return run(capsys, *words)

    def _part(self, *arguments: Any) -> Any:
        if self.count == self.most:
            raise KeyboardInterrupt
        self.count += 1
        return self._play(*arguments)


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> Parts:
    return Parts(monkeypatch)


@pytest.mark.slow
def test_an_evaluation_goes_on(capsys: Any, parts: Parts, tmp_path: Path) -> None:
    code, expected, err = parts.of(capsys, *EVAL)
    assert (code, parts.count) == (0, 6), err
    kept = ("--keep", str(tmp_path / "kept"))
    assert parts.of(capsys, *EVAL, *kept, most=5)[0] == 130
    assert parts.of(capsys, *EVAL, "--seed", "1", *kept, most=3)[0] == 130
    code, found, err = parts.of(capsys, *EVAL, *kept)
    assert (code, parts.count) == (0, 1), err
    assert found == expected
    assert len(list((tmp_path / "kept").glob("*/*"))) == 3  # what the other command has sampled
    (tmp_path / "file").touch()
    code, _, err = run(capsys, *EVAL, "--keep", str(tmp_path / "file"))
    assert code == 2
    assert f"--keep {tmp_path / 'file'}: no folder can be made there" in err


@pytest.mark.slow
def test_a_training_goes_on_within_j_star_and_its_evaluation(capsys: Any, parts: Parts, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    code, _, err = parts.of(capsys, *TRAIN, "--out", str(whole))
    assert (code, parts.count) == (0, 6), err
    assert parts.of(capsys, *TRAIN, "--out", str(broken), most=3)[0] == 130  # one of J*'s is left
    assert parts.of(capsys, *TRAIN, "--out", str(broken), "--resume", most=2)[0] == 130
    code, _, err = parts.of(capsys, *TRAIN, "--out", str(broken), "--resume")
    assert (code, parts.count) == (0, 1), err
    expected, found = (read_json(folder / "result.json") for folder in (whole, broken))
    assert {**found, "seconds": 0} == {**expected, "seconds": 0}
    assert (broken / "optimum.safetensors").read_bytes() == (whole / "optimum.safetensors").read_bytes()
    assert not (broken / "sampling").exists()
