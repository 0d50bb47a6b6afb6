"""The command of the referee: what it prints and writes, from which policies, and what it refuses."""

import json
import re
from dataclasses import replace

import pytest
from textgym_agents.algorithms.rloo import RLOO
from textgym_agents.commands.referee import _print, main
from textgym_agents.exact.estimators import Moments
from textgym_agents.exact.referee import (
    GROUP_ESTIMATORS,
    KL_ESTIMATORS,
    REWARD_ESTIMATORS,
    VALUES_FROM_ROLLOUTS,
    Verdict,
    referee,
)
from textgym_agents.exact.samples import samples_of
from textgym_agents.registry import make_agent, make_config, make_env

from textgym.commands.console import UsageError


@pytest.mark.slow
def test_an_update_may_take_more_episodes_than_there_are_environments(capsys):
    main(["Bandit-v0", "--env", "difficulty=1", "--agent", "vine-ppo", "--updates", "2", "--stale", "2", "--json"])
    (age,) = json.loads(capsys.readouterr().out)
    assert age["stale"] == 2
    assert any(row["along"] not in (None, 0) for row in age["rows"])


@pytest.mark.long
def test_the_command_prints_and_writes_its_table(tmp_path, capsys):
    words = ["Bandit-v0", "--env", "difficulty=1", "--updates", "1", "--stale", "0", "1", "--group", "2"]
    main([*words, "--json"])
    ages = json.loads(capsys.readouterr().out)
    assert [age["stale"] for age in ages] == [0, 1]
    rows = {row["estimator"]: row for row in ages[0]["rows"]}
    named = (REWARD_ESTIMATORS, VALUES_FROM_ROLLOUTS, GROUP_ESTIMATORS, KL_ESTIMATORS)
    assert len(rows) == sum(map(len, named))
    assert {name for name, row in rows.items() if row["sampled"] is None} == {*VALUES_FROM_ROLLOUTS}
    for row in rows.values():  # what was drawn agrees with what was summed
        if row["sampled"] is not None:
            assert abs(row["sampled"] - row["along"]) <= 5 * row["sampled_error"] + 1e-9, row["estimator"]
    assert rows["token ratio"]["along"] == pytest.approx(1, abs=1e-5)
    pytest.importorskip("matplotlib")
    main([*words, "--out", str(tmp_path / "out")])
    shown = capsys.readouterr().out
    assert "age of the samples: 1" in shown
    assert "nan" not in shown
    written = json.loads((tmp_path / "out" / "referee.json").read_text())
    assert written.pop("ages") == ages
    assert written == {
        "id": "textgym/Bandit-v0",
        "agent": "rloo",
        "checkpoint": None,
        "updates": 1,
        "top_p": None,
        "group": 2,
        "env": ["difficulty=1"],
        "seed": 0,
    }
    with pytest.raises(UsageError, match=r"holds a referee\.json; allowed is another folder"):
        main([*words, "--out", str(tmp_path / "out")])
    assert (tmp_path / "out" / "referee.png").stat().st_size > 10_000


@pytest.mark.slow
def test_the_command_judges_the_policy_of_a_saved_agent(tmp_path, capsys):
    env = make_env("textgym/Bandit-v0", 32, difficulty=1)
    agent = make_agent(RLOO, env, make_config(RLOO, {"batch": 32, "learning_rate": 0.05}))
    agent.learn(env, 256)
    agent.save(tmp_path / "agent")
    words = ["Bandit-v0", "--env", "difficulty=1", "--updates", "0", "--stale", "0", "--group", "2", "--json"]
    found = []
    for more in ([], ["--checkpoint", str(tmp_path / "agent")]):
        main([*words, *more])
        found.append({row["estimator"]: row for row in json.loads(capsys.readouterr().out)[0]["rows"]})
    wanted = {
        row.moments.estimator: row.moments
        for row in referee(samples_of(env.task, *[agent.policy] * 2, agent.reference), 2)
    }
    for name, row in found[1].items():
        assert row["variance"] == pytest.approx(wanted[name].variance, rel=1e-4, abs=1e-9), name
    assert found[0]["token ratio"]["variance"] != pytest.approx(found[1]["token ratio"]["variance"], rel=0.1)


@pytest.mark.slow
def test_updates_of_a_saved_agent_are_of_the_command_s_own_batches(tmp_path, capsys):
    env = make_env("textgym/Bandit-v0", 32, difficulty=1)
    make_agent(RLOO, env, make_config(RLOO, {"batch": 32})).save(tmp_path / "agent")
    words = ["Bandit-v0", "--env", "difficulty=1", "--group", "2", "--json", "--checkpoint", str(tmp_path / "agent")]
    main([*words, "--updates", "2", "--stale", "2"])  # two of 32 episodes each would be one of 64
    assert [each["stale"] for each in json.loads(capsys.readouterr().out)] == [2]


def test_a_drawn_row_says_so_and_its_error_has_the_unit_of_its_figure(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "150")
    moments = Moments("RLOO", 4.0, 0.2, 0.4, 0.9, 2.0, 0.8, 0.1, 0.5)
    _print(
        "title",
        [Verdict("reward", moments, "", (0.7, 0.05)), Verdict("KL", replace(moments, bias_error=0.0), "", (0.7, 0.05))],
    )
    drawn, summed = (
        re.split(r"\s{2,}", line.strip()) for line in capsys.readouterr().out.splitlines() if "RLOO" in line
    )
    assert drawn == ["reward", "RLOO, Monte Carlo", "0.400 ± 0.2", "0.900", "8 ± 2", "0.800", "0.700 ± 0.05"]
    assert summed == ["KL", "RLOO", "0.400", "0.900", "8", "0.800", "0.700 ± 0.05"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["Bandit-v0", "--stale", "9"], r"stale=\(9,\): allowed are integers in 0..updates=8"),
        (["Bandit-v0", "--group", "1"], "group=1"),
        (
            ["Bandit-v0", "--agent", "q-learning"],
            "--agent q-learning: allowed is a policy gradient on a language model",
        ),
        (["Helpful-v0", "--updates", "1", "--stale", "0"], "states"),
    ],
)
def test_what_cannot_be_refereed_is_refused(words, message, capsys):
    with pytest.raises((SystemExit, ValueError, UsageError)) as caught:
        main(words)
    assert re.search(message, f"{caught.value} {capsys.readouterr().err}")
