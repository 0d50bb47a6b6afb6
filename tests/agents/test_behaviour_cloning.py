"""Behaviour cloning: its loss, where its data come from, and that it becomes what it imitates."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from agents.enumerated import full_rollout
from agents.groups import flat_gradient, small_agent
from textgym_agents import make_agent, make_env
from textgym_agents.algorithms.behaviour_cloning import BehaviourCloning, BehaviourCloningConfig
from textgym_agents.conformance import FAILS, check, check_names
from textgym_agents.datasets.reading import Recording
from textgym_agents.lm.sequences import Sequences, of_rollout

from textgym.preferences import Demonstration, Ranking, write_demonstrations, write_rankings
from textgym.solver import policy_values, solve
from textgym.world.demonstrations import task_demonstrations

CPU = {"device": "cpu"}
UNTRAINED = check_names(slow=False)


@pytest.fixture
def file(tmp_path):
    rows = [Demonstration("a b", "a a"), Demonstration("a b", "c", False), Demonstration("c", "b")]
    write_demonstrations(tmp_path / "demonstrations.jsonl", rows)
    return tmp_path / "demonstrations.jsonl"


def test_the_loss_is_the_cross_entropy_of_the_completions_tokens():
    agent = small_agent(BehaviourCloning, data="unread.jsonl")
    rollout, _ = full_rollout(agent)
    chosen = np.array([0, 7, 42, 79])
    sequences = of_rollout(rollout).rows(chosen)
    agent.policy.zero_grad()
    losses, measures = agent._losses(sequences, torch.zeros(4))
    (losses.sum() / agent._total(sequences)).backward()
    got = flat_gradient(agent)
    agent.policy.zero_grad()
    total, count = 0.0, 0
    for row in chosen:
        start, length = of_rollout(rollout).starts[row], rollout.lengths[row]
        ids = rollout.input_ids[row : row + 1, : start + length]
        logits = agent.policy.model(ids).logits[0, start - 1 : -1]
        total = total + torch.nn.functional.cross_entropy(logits, ids[0, start:], reduction="sum")
        count += length
    (total / count).backward()
    torch.testing.assert_close(got, flat_gradient(agent), atol=1e-6, rtol=1e-4)
    assert measures["loss/cross_entropy"] == pytest.approx(float(total.detach()), rel=1e-5)


@pytest.mark.slow
def test_it_learns_a_file_by_heart_and_counts_what_it_sees(env, file):
    agent = make_agent("behaviour-cloning", env, data=str(file), learning_rate=1e-2, **CPU)
    rows = []
    agent.learn(env, 640, rows.append)
    # Two answers to the same prompt: log 2 once in the 2 + 1 and 1 tokens after it, and 0 everywhere else.
    assert rows[-1]["loss/cross_entropy"] == pytest.approx(2 * np.log(2) / 6, abs=0.03)
    assert [row["episode"] for row in rows] == [16 * i for i in range(1, 41)]


def test_of_preferences_it_takes_the_best(env, tmp_path):
    write_rankings(tmp_path / "pairs.jsonl", [Ranking("a b", ("b c", "a"))])
    agent = make_agent("behaviour-cloning", env, data=str(tmp_path / "pairs.jsonl"), **CPU)
    assert [row.completion for row in agent._read()] == ["b c"]


def test_the_built_in_world_has_demonstrations_of_its_own():
    env = make_env("textgym/Helpful-v0", 4)
    agent = make_agent("behaviour-cloning", env, demonstrations=20, seed=3, **CPU)
    assert [(row.prompt, row.completion, row.ended) for row in agent._read()] == task_demonstrations(
        "Helpful", 20, seed=3
    )
    agent.learn(env, 4)
    assert len(agent._data.lengths) == 20


def test_without_demonstrations_there_is_nothing_to_learn_from(env):
    with pytest.raises(ValueError, match="For another task, name a file"):
        make_agent("behaviour-cloning", env)
    with pytest.raises(ValueError, match="demonstrations=0"):
        BehaviourCloningConfig(demonstrations=0)
    with pytest.raises(ValueError, match="demonstrations=20: allowed is 5000 without data=None"):
        BehaviourCloningConfig(demonstrations=20, data="rows.jsonl")


@pytest.mark.parametrize(("best_of", "wanted"), [("log", [0, 1]), ("prompt", [0, 3])])
def test_the_best_are_of_the_whole_log_or_of_each_prompt(best_of, wanted):
    agent = small_agent(BehaviourCloning, data="unread.jsonl", best_share=0.5, best_of=best_of)
    texts = Sequences.of([([0], [1]), ([0], [2]), ([1], [1]), ([1], [2])], 0)
    returns = np.array([[0.0, 4.0], [0.0, 3.0], [0.0, 1.0], [0.0, 2.0]])
    chosen = agent._select(Recording(replace(texts, rewards=returns)))
    assert chosen.returns.tolist() == returns[wanted, 1].tolist()


def test_which_share_is_named():
    for share in (0.0, 1.5, 2.0):
        with pytest.raises(ValueError, match=rf"best_share={share}: allowed is a number in \(0, 1\]"):
            BehaviourCloningConfig(best_share=share, data="rows.jsonl")
    with pytest.raises(ValueError, match=r"best_share=0\.5: allowed is 1\.0 without logged episodes"):
        BehaviourCloningConfig(best_share=0.5)
    with pytest.raises(ValueError, match="best_of='prompt': allowed is 'log' without best_share below 1"):
        BehaviourCloningConfig(best_of="prompt", data="rows.jsonl")


@pytest.mark.long
def test_it_passes_every_check_that_applies(file):
    settings = {**CPU, "data": str(file)}
    findings = check("behaviour-cloning", UNTRAINED, settings=settings, envs=16, iterations=2)
    assert not {f.check: f.found for f in findings if f.status == FAILS}
    asked = {f.check for f in findings if f.status != "not asked"}
    assert {"starts at the reference", "same seed, same policy", "resumed", "saved and loaded"} <= asked


def optimal_texts(task, trajectories, per_prompt):
    """Demonstrations that the exact optimum of a task would write."""
    generator = np.random.default_rng(0)
    for index, prompt in enumerate(task.prompt_set("train").texts):
        written = trajectories.likeliest(index, 1000)
        weights = np.array([one.probability for one in written])
        for place in generator.choice(len(written), size=per_prompt, p=weights / weights.sum()):
            tokens, text = written[place].tokens, written[place].text
            if text:
                yield Demonstration(prompt, text, tokens[-1] in task.vocabulary.stop_ids)


@pytest.mark.slow
@pytest.mark.long
def test_imitating_the_optimum_leads_to_it(tmp_path):
    env = make_env("textgym/Bandit-v0", 64)
    solution = solve(env.unwrapped.task)
    rows = optimal_texts(env.unwrapped.task, solution.optimal.trajectories, 2000)
    write_demonstrations(tmp_path / "expert.jsonl", rows)
    agent = make_agent("behaviour-cloning", env, data=str(tmp_path / "expert.jsonl"), **CPU)
    agent.learn(env, 4096)
    assert solution.optimality(policy_values(solution.tree, agent).objective) >= 0.9
