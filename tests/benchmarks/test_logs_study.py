"""Agents on one log of Helpful: what runs, what is chosen, and the table by hand."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from textgym_agents.registry import agent_class, make_config
from textgym_benchmarks import logs


def result(label, seed, value):
    measures = {"after": {name: {"mean": value} for name in ("objective", "optimality", "reward", "kl")}}
    return SimpleNamespace(cell=SimpleNamespace(name=label, seed=seed), measures=measures)


def test_every_contestant_reads_the_same_log_with_as_many_trials():
    suite = logs.contest(Path("log.jsonl"), 64, None, 1)
    assert set(Counter(cell.name.rsplit(" ", 1)[0] for cell in suite.cells).values()) == {3}
    assert {(cell.config["data"], cell.config["epochs"], cell.episodes) for cell in suite.cells} == {
        ("log.jsonl", 2, 64)
    }
    assert suite.evaluation.split == "tune"
    for cell in suite.cells:
        make_config(agent_class(cell.agent), dict(cell.config))
    fresh = logs.contest(Path("log.jsonl"), 64, {"dpo": 2}, 5)
    assert [(cell.name, cell.seed) for cell in fresh.cells] == [("dpo 2", seed) for seed in range(5)]
    assert {cell.seed for cell in suite.cells}.isdisjoint(cell.seed for cell in fresh.cells)
    assert fresh.evaluation.split == "eval"


def test_the_trial_with_the_best_j_is_chosen(monkeypatch):
    rows = [result("awr 0", 0, 0.1), result("awr 2", 0, 0.3), result("dpo 1", 0, 0.2)]
    monkeypatch.setattr(logs, "load_results", lambda folder: rows)
    assert logs.best_trials(Path()) == {"awr": 2, "dpo": 1}


def test_the_table_by_hand(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "160")
    rows = [result("awr 1", 0, 0.9), result("awr 1", 1, 1.0), result("dpo 0", 0, 0.5), result("dpo 0", 1, 0.6)]
    monkeypatch.setattr(logs, "load_results", lambda folder: rows)
    logs.print_contest(Path())
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    first, second = (line for line in lines if line and line[0] in ("awr", "dpo"))
    # Welch: the errors are 0.05 each, sqrt(0.005) in all, with two degrees of freedom: 4.303 * 0.0707.
    assert first[:6] == ["awr", "0.950", "0.900", "1.000", "+0.400", "[+0.096,"]
    assert first[-2:] == ["advantage_temperature", "0.1"]
    assert second[:5] == ["dpo", "0.550", "0.500", "0.600", "-"]


@pytest.mark.slow
def test_the_log_is_written_once(tmp_path):
    logs.helpful_log(tmp_path / "helpful.jsonl", 8)
    before = (tmp_path / "helpful.jsonl").read_bytes()
    logs.helpful_log(tmp_path / "helpful.jsonl", 8)
    assert (tmp_path / "helpful.jsonl").read_bytes() == before
    assert before.count(b"\n") == 8
