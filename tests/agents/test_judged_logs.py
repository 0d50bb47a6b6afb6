"""Recordings as logs of a policy that is judged: weights, states, KL, bounds, refusals, and the command."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from agents.enumerated import tiny_agent, tiny_task
from textgym_agents import make_agent, make_env
from textgym_agents.algorithms.fixed import RandomAgent, ReferenceAgent
from textgym_agents.commands.ope import _least, main
from textgym_agents.datasets import play_episodes, read_recording, write_log
from textgym_agents.datasets.logged import logged, prefixes
from textgym_agents.datasets.off_policy import (
    Logged,
    judge,
)

from textgym import make_task
from textgym.estimates import greatest_return
from textgym.lm.reference import NGramReference
from textgym.solver import policy_values, solve


@pytest.fixture(scope="module")
def actor():
    return tiny_agent(tiny_task())


@pytest.fixture
def recording(actor, tmp_path):
    write_log(tmp_path / "log.jsonl", play_episodes(actor, actor.task, 40, seed=3))
    return read_recording(tmp_path / "log.jsonl", actor.task)


def test_a_policy_that_judges_its_own_log_has_weights_of_one(actor, recording):
    log = logged(recording, actor, actor.task)
    np.testing.assert_allclose(log.weights, 1.0, atol=1e-4)
    np.testing.assert_allclose(log.step_weights, 1.0, atol=1e-4)
    np.testing.assert_allclose(log.returns, recording.returns)
    # The same tokens have the same number, at all times; others have others.
    prefixes = {}
    rows, columns = recording.sequences.places()
    times = np.concatenate([np.arange(length) for length in log.lengths])
    for row, column, time in zip(rows, columns, times, strict=True):
        prefix = tuple(recording.sequences.input_ids[row, : column + 1])
        assert prefixes.setdefault((time, log.edges[row, time]), prefix) == prefix
    assert len(set(prefixes.values())) == len(prefixes)


def test_states_of_prompts_of_several_lengths_are_told_apart():
    """Judged by itself, a log of sure answers has every estimate at its mean return."""
    kinds = [([1, 2, 3], 9, 0.0), ([1, 2, 4], 9, 0.0), ([5, 6], 8, 1.0)]  # prompt, answer, reward
    drawn = np.random.default_rng(0).choice(3, 400, p=[0.1, 0.1, 0.8])
    rows = np.arange(400)
    ids = np.array([(kinds[each][0] + [kinds[each][1], 0])[:4] for each in drawn])
    starts = np.array([len(kinds[each][0]) for each in drawn])
    numbers, paid, nothing = prefixes(ids), np.array([[kinds[each][2]] for each in drawn]), np.zeros((400, 1))
    states, edges = (numbers[rows, starts + more][:, None] for more in (0, 1))
    assert len(set(states[:, 0])) == len(set(edges[:, 0])) == 3
    assert not set(states[:, 0]) & set(edges[:, 0])
    log = Logged(np.ones(400, dtype=np.int64), states, edges, paid, nothing, nothing, nothing[:, 0])
    for name, estimate in judge(log).items():
        if name != "lower bound, 95%":
            assert estimate.estimate.mean == pytest.approx(paid.mean(), abs=0.01), name


def test_the_kl_is_charged_token_by_token(actor, recording):
    task = replace(actor.task, beta=0.5)
    bare, charged = (logged(recording, actor, task, each) for each in (None, actor.reference))
    against = logged(recording, actor.reference, task)
    np.testing.assert_allclose(charged.rewards, bare.rewards - 0.5 * (bare.log_policy - against.log_policy), atol=1e-9)


def test_masked_tokens_count_as_in_the_recording(tmp_path):
    task = replace(make_task("Stop"), min_new_tokens=3)
    agent = ReferenceAgent(task)
    write_log(tmp_path / "log.jsonl", play_episodes(agent, task, 30, seed=1))
    log = logged(read_recording(tmp_path / "log.jsonl", task), agent, task)
    np.testing.assert_allclose(log.log_policy, log.log_logged, atol=1e-6)


def test_what_a_cut_never_writes_has_no_kl(tmp_path):
    task = make_task("Stop")
    reference = ReferenceAgent(task)
    write_log(tmp_path / "log.jsonl", play_episodes(reference, task, 60, seed=1))
    env = make_env("textgym/Stop-v0", 8)
    for cut in ({"top_p": 0.6}, {"mask_top_p": 0.6}):
        agent = make_agent("rloo", env, device="cpu", **cut)
        log = logged(read_recording(tmp_path / "log.jsonl", task), agent, task, reference)
        never = log.log_policy < -1e8
        assert 0 < never.sum() < never.size
        assert np.abs(log.rewards).max() < 2  # beta is 0.1, and what is written has a few nats
        assert log.weights[never.any(1)].max() == 0


@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_where_the_reference_never_writes_what_is_logged_j_is_its_reward_or_not_known(tmp_path, beta):
    table = NGramReference(np.tile([0.4, 0.3, 0.0, 0.3], (4, 1)))
    words = {"prompts": ["a b", "c"], "tokenizer": ("a", "b", "c", "<end>"), "stop": "<end>", "max_new_tokens": 3}
    task = make_task("Text", reward={"name": "length", "target": 2}, beta=beta, reference=table, **words)
    agent = RandomAgent(task)
    write_log(tmp_path / "log.jsonl", play_episodes(agent, task, 300, seed=1))
    recording = read_recording(tmp_path / "log.jsonl", task)
    rewards, charged = (judge(logged(recording, agent, task, each)) for each in (None, table))
    if not beta:
        assert charged == rewards
        return
    assert {each.estimate for each in charged.values()} == {None}
    assert {each.why for each in charged.values()} == {
        "the policy writes what the reference never does, so that J is -inf"
    }


class Bounded:
    minimum, maximum = 0.5, 1.0

    def __call__(self, prompts, completions, **columns):
        return [0.5] * len(completions)


def test_a_return_below_the_declared_one_costs_the_bound_alone(tmp_path, capsys):
    task = make_task("Bandit")
    write_log(tmp_path / "log.jsonl", play_episodes(RandomAgent(task), task, 60, seed=1))
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    name = next(key for key in rows[0] if key.startswith("reward"))
    for row in rows:
        row[name] = [each - 0.5 for each in row[name]] if isinstance(row[name], list) else row[name] - 0.5
    (tmp_path / "less.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    main([str(tmp_path / "less.jsonl"), "--agent", "random", "--id", "Bandit-v0"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "no lower bound: a return in the log is less than the 0 that the reward declares; pass --minimum" in shown
    words = {"prompts": ["a"], "tokenizer": ["a", "b"], "reward": Bounded(), "reference": "uniform"}
    for penalty, ends in ((-2.0, (-2.0, 1.0)), (7.0, (0.5, 7.0))):
        failing = make_task("Text", on_error="penalty", penalty=penalty, **words)
        assert (_least(failing, np.ones(3)), greatest_return(failing)) == ((ends[0], ""), ends[1])
    skipping = make_task("Text", on_error="skip", **words)
    assert (_least(skipping, np.ones(3)), greatest_return(skipping)) == ((0.0, ""), 1.0)


def test_the_command_speaks_of_the_estimates_that_it_shows(tmp_path, capsys):
    task = make_task("Bandit")
    write_log(tmp_path / "log.jsonl", play_episodes(RandomAgent(task), task, 60, seed=1))
    first, *others = (json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines())
    first["token_logprobs"] = None
    (tmp_path / "some.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (first, *others)))
    main([str(tmp_path / "some.jsonl"), "--agent", "random", "--id", "Bandit-v0"])
    shown = capsys.readouterr()
    assert "not known: not every episode of the log has log-probabilities\n" in shown.out
    assert "the interval of fitted Q ignores its bias" in shown.err
    assert "truncated" not in shown.err


def test_a_task_with_turns_is_refused(actor, recording):
    with pytest.raises(
        ValueError, match="its environment answers in turns; off-policy evaluation takes episodes of one"
    ):
        logged(recording, actor, make_task("TwentyQuestions"))


def test_texts_are_refused(actor, tmp_path):
    (tmp_path / "x.jsonl").write_text(json.dumps({"prompt": "c", "completion": "a", "reward": 1}) + "\n")
    recording = read_recording(tmp_path / "x.jsonl", actor.task)
    with pytest.raises(ValueError, match="episode 1 is a text; allowed are episodes with completion_ids"):
        logged(recording, actor, actor.task)


@pytest.mark.long
def test_the_command_shows_the_truth_beside_the_estimates(tmp_path, capsys):
    task = make_task("Copy")
    agent = make_agent("random", make_env("textgym/Copy-v0", 2))
    write_log(tmp_path / "log.jsonl", play_episodes(agent, task, 400, seed=2))
    main([str(tmp_path / "log.jsonl"), "--id", "Copy-v0", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert report["truth"]["reward"] == pytest.approx(1 / 6)
    own = report["estimates"]["objective"]["self-normalised"]["estimate"]
    assert own["low"] < report["truth"]["objective"] < own["high"]
    assert report["mean_weight"] == pytest.approx(1.0)
    assert 0 < report["lower_bound"] < 1 / 6
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    stop = make_task("Stop")
    write_log(tmp_path / "stop.jsonl", play_episodes(ReferenceAgent(stop), stop, 200, seed=2))
    first = [line for line in (tmp_path / "stop.jsonl").read_text().splitlines() if json.loads(line)["prompt"] == "4"]
    (tmp_path / "one.jsonl").write_text("\n".join(first) + "\n")
    main([str(tmp_path / "one.jsonl"), "--id", "Stop-v0", "--json"])
    (one,) = [prompt for prompt in stop.encoded("train") if prompt.text == "4"]
    exact = policy_values(solve(stop, split="train").tree, ReferenceAgent(stop))
    assert json.loads(capsys.readouterr().out)["truth"]["reward"] == pytest.approx(exact.prompt_returns[one.index])
    assert exact.prompt_returns[one.index] != pytest.approx(exact.expected_return)
    by = {}
    for row in rows:
        by.setdefault(row["prompt"], []).append(row)
    pairs = [row for own in by.values() if len(own) > 1 for row in own[:2]]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    main([str(tmp_path / "pairs.jsonl"), "--id", "Copy-v0"])
    assert "every 2 consecutive episodes have the same prompt: use --group 2" in capsys.readouterr().err
    main([str(tmp_path / "log.jsonl"), "--id", "Copy-v0"])
    shown = capsys.readouterr()
    assert "may miss" in shown.err
    lines = shown.out.splitlines()
    assert max(map(len, lines)) <= 80
    (row,) = [line for line in lines if "doubly robust" in line]
    assert re.fullmatch(r" *doubly robust( +[\d.]+ \[[\d.]+, [\d.]+\]){2} +\d+, \d+ *", row)
