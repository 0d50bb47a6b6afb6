"""Best-of-n as an agent: it writes the best of n whole answers, with the reward and the KL that theory says."""

import dataclasses
import json
from collections import Counter

import numpy as np
import pytest
from agents.enumerated import HORIZON, tiny_task, trajectories
from gymnasium.vector import AutoresetMode
from textgym_agents import saving
from textgym_agents.algorithms.best_of_n import BestOfN, BestOfNConfig

from textgym import TokenVectorEnv, make_task
from textgym.best_of_n import best_of_n, best_of_n_kl
from textgym.estimates import RESAMPLES
from textgym.evaluate import evaluate
from textgym.optimum import optimality_of, optimum_of
from textgym.prompts import prompt_set
from textgym.sampling import play
from textgym.solver import evaluate_edges, solve
from textgym.task import make_reference


def uniform_probability(trajectory):
    return 4.0 ** -len(trajectory.completion)


def expected_best(task, n):
    """E[R] of the best of n uniformly written answers: sum over rewards r of r (F(r)^n - F(<r)^n), by hand."""
    every = trajectories(task)
    means = []
    for prompt in {t.prompt for t in every}:
        own = [(t.score, uniform_probability(t)) for t in every if t.prompt == prompt]
        below, total = 0.0, 0.0
        for level in sorted({score for score, _ in own}):
            up_to = below + sum(p for score, p in own if score == level)
            total += level * (up_to**n - below**n)
            below = up_to
        assert below == pytest.approx(1.0)
        means.append(total)
    return float(np.mean(means))


def exact(agent, task, split="train"):
    """The solution of a task, and the values of the agent's exact edges."""
    solution = solve(task, split=split)
    edges = agent.edge_log_probs(solution.tree, solution.log_reference)
    return solution, evaluate_edges(solution.tree, edges, solution.log_reference, task.beta, task.gamma)


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 2, 5])
def test_reward_and_kl_are_those_of_theory(n):
    task = tiny_task()
    agent = BestOfN(task, BestOfNConfig(n=n))
    solution, values = exact(agent, task)
    assert values.expected_return == pytest.approx(expected_best(task, n))
    returns = play(agent, task, split="train", per_prompt=1500).returns
    error = returns.std(1).max() / np.sqrt(returns.size)
    assert abs(solution.tree.weights @ returns.mean(1) - values.expected_return) < 4 * error
    means, replicates = agent.sequence_kl(task, "train", 0)
    assert replicates.shape == (RESAMPLES, 2)
    low, high = np.quantile(replicates @ solution.tree.weights, [0.025, 0.975])
    assert low - 1e-9 <= values.kl <= high + 1e-9
    assert low - 1e-9 <= means @ solution.tree.weights <= high + 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Stop", "Noisy"])
def test_what_it_writes_has_the_exact_probabilities(name):
    task = make_task(name, difficulty=1)
    agent = BestOfN(task, BestOfNConfig(n=4))
    _, values = exact(agent, task, "eval")
    every = values.trajectories
    texts = [
        task.vocabulary.decode([values.tree.completions(int(t), np.array([row]))[0].tolist()])[0]
        for t, row in zip(every.length, every.row, strict=True)
    ]
    expected = Counter[tuple[str, int]]()
    for text, length, probability in zip(texts, every.length, every.probability, strict=True):
        expected[text, int(length)] += probability
    episodes = play(agent, task, per_prompt=4000)
    found = Counter(zip(episodes.completions[0].tolist(), episodes.lengths[0].tolist(), strict=True))
    assert set(found) <= set(expected)
    rare = sum(p for p in expected.values() if p * 4000 < 5)
    cells = [(found[key], p * 4000) for key, p in expected.items() if p * 4000 >= 5]
    cells += [(4000 - sum(count for count, _ in cells), rare * 4000)] if rare * 4000 >= 5 else []
    squares = sum((count - wanted) ** 2 / wanted for count, wanted in cells)
    freedom = len(cells) - 1
    assert squares < freedom + 4 * np.sqrt(2 * freedom)  # chi-square: mean k, variance 2 k


def test_kl_from_samples_of_a_noisy_reward():
    task = make_task("Noisy")
    agent = BestOfN(task, BestOfNConfig(n=16))
    _, values = exact(agent, task, "eval")
    means, replicates = agent.sequence_kl(task, "eval", 1)
    low, high = np.quantile(replicates[:, 0], [0.025, 0.975])
    assert low <= values.kl <= high
    assert means[0] == pytest.approx(values.kl, abs=0.03)  # the bound is 1.84, the truth 0.10


@pytest.mark.parametrize(("name", "truth"), [("Stop", 0.81), ("Noisy", 0.30)])
def test_an_evaluation_is_exact(name, truth):
    task = make_task(name)
    agent = BestOfN(task)
    found = evaluate(agent, task, per_prompt=2)
    _, values = exact(agent, task, "eval")
    assert found.exact
    assert found.kl.low == found.kl.high == values.kl
    assert found.optimality.low == found.optimality.high == pytest.approx(truth, abs=0.01)


class Hidden:
    """Noisy, and says nothing of its noise."""

    name, noisy = "hidden", True

    def __call__(self, prompts, completions, **columns):
        return [float(len(text)) for text in completions]

    expected = __call__


def test_where_the_noise_is_unknown_so_is_the_kl():
    task = tiny_task(reward=Hidden())
    agent = BestOfN(task)
    solution = solve(tiny_task())
    assert agent.sequence_kl(task, "train", 0) is None
    assert agent.edge_log_probs(dataclasses.replace(solution.tree, task=task), solution.log_reference) is None


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize(("name", "truth"), [("Arithmetic", 1.00), ("Helpful", 0.99)])
def test_optimality_where_nothing_can_be_solved(name, truth):
    task = make_task(name)
    episodes = play(make_reference(task), task, per_prompt=128, seed=3)
    best = best_of_n(episodes.returns, episodes.returns, episodes.weights, 16)
    assert best.kl is not None
    optimum = optimum_of(task)
    replicates = best.replicates[:, 0] - task.beta * best.replicates[:, 2]
    found = optimality_of(best.proxy.mean - task.beta * best.kl.mean, replicates, optimum)
    assert found is not None
    assert found.low - 0.01 <= truth <= found.high + 0.01
    assert best.kl.high < best_of_n_kl(16)  # the levels have ties


def test_an_answer_is_written_as_it_was_planned():
    task = tiny_task()
    agent = BestOfN(task, BestOfNConfig(n=3))
    planned = []
    best = agent._best
    agent._best = lambda states: planned.append(best(states)) or planned[-1]
    env = TokenVectorEnv(task, 8, segments=True, autoreset_mode=AutoresetMode.DISABLED)
    observation, _ = env.reset(seed=0)
    for _ in range(HORIZON):
        observation, _, ended, _, _ = env.step(agent.act(observation))
    assert ended.all()
    assert len(planned) == 1
    assert [state.tokens for state in env.get_states()] == planned[0]
    # A new episode from the same prompts is planned anew, though an old plan begins as it does.
    observation, _ = env.reset(seed=0)
    agent.act(observation)
    assert len(planned) == 2


@pytest.mark.slow
def test_a_state_seen_again_or_in_the_middle_of_an_answer_is_planned_from_there():
    task = tiny_task()
    agent = BestOfN(task, BestOfNConfig(n=64))
    env = TokenVectorEnv(task, 200, segments=True, autoreset_mode=AutoresetMode.DISABLED)
    observation, _ = env.reset(options={"prompt": "a b"})
    observation, *_ = env.step(np.full(200, 1))
    # Of "b" followed by up to two tokens "b a a" pays most, 2, and 64 of 16 endings are hardly ever without it.
    for _ in range(2):
        assert (agent.act(observation) == 0).mean() > 0.9


def says_the_prompt(prompts, completions, **columns):
    return [float(prompt == completion) for prompt, completion in zip(prompts, completions, strict=True)]


def test_the_held_out_split_and_a_prompt_of_ones_own():
    task = make_task(
        "Text",
        prompts=["a"],
        tokenizer=("a", "b", "c", "<end>"),
        stop="<end>",
        max_new_tokens=2,
        reward=says_the_prompt,
    )
    task = dataclasses.replace(task, prompts={"train": prompt_set(["a"]), "eval": prompt_set(["b"])})
    agent = BestOfN(task, BestOfNConfig(n=64))
    for split, text in (("train", "a"), ("eval", "b")):
        episodes = play(agent, task, split=split, per_prompt=20)
        assert (episodes.completions == text).mean() > 0.8  # chance is 1/16 + 1/4 of 1/4 in 64 tries
    env = TokenVectorEnv(task, 20, segments=True, autoreset_mode=AutoresetMode.DISABLED)
    observation, _ = env.reset(options={"prompt": "c"})
    paid = np.zeros(20)
    for _ in range(2):
        observation, rewards, *_ = env.step(agent.act(observation))
        paid += rewards
    assert paid.mean() > 0.8


def test_noise_and_running_statistics_are_left_alone():
    task = make_task("Noisy")
    agent = BestOfN(task, BestOfNConfig(n=4))
    before = task.scorer.state_dict()
    episodes = play(agent, task, per_prompt=20)
    assert task.scorer.state_dict() == before
    assert np.isfinite(episodes.returns).all()


def test_the_same_seed_gives_the_same_answers_and_it_is_saved(tmp_path):
    task = tiny_task()
    one, other = (play(BestOfN(task, BestOfNConfig(n=2, seed=4)), task, per_prompt=9) for _ in range(2))
    assert (one.completions == other.completions).all()
    env = TokenVectorEnv(task, 1, segments=True)
    BestOfN(task, BestOfNConfig(n=2, seed=4)).save(tmp_path)
    loaded = BestOfN.load(tmp_path, env)
    assert loaded.config == BestOfNConfig(n=2, seed=4)
    assert (play(loaded, task, per_prompt=9).completions == one.completions).all()


@pytest.mark.slow
def test_n_1_is_the_reference():
    task = tiny_task()
    agent = BestOfN(task, BestOfNConfig(n=1))
    solution, values = exact(agent, task)
    for edges, reference in zip(values.log_policy, solution.log_reference, strict=True):
        np.testing.assert_allclose(edges, reference, atol=1e-12)
    for kl in agent.sequence_kl(task, "train", 0):
        np.testing.assert_allclose(kl, 0, atol=1e-12)
    lengths = play(agent, task, per_prompt=2000).lengths
    assert (lengths == 1).mean() == pytest.approx(0.25, abs=0.03)  # it stops at once


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="n=0"):
        BestOfNConfig(n=0)
    with pytest.raises(ValueError, match="seed=-1"):
        BestOfNConfig(seed=-1)
    with pytest.raises(ValueError, match=r"n=2\.5: allowed is an integer"):
        BestOfNConfig(n=2.5)


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"format": 1}, "holds agent 'best-of-n' in format 1; allowed is 'best-of-n' in format 2"),
        ({"agent": "random"}, "holds agent 'random'"),
        ({"config": None}, "the saved agent is damaged"),
        ({"config": {"m": 3}}, "damaged .*'m'"),
        ({"config": {"n": 0}}, "damaged .*n=0"),
    ],
)
def test_a_damaged_folder_is_one_clear_error(tmp_path, state, words):
    task = tiny_task()
    BestOfN(task, BestOfNConfig(n=2)).save(tmp_path / "agent")
    file = tmp_path / "agent" / "agent.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | state))
    with pytest.raises(ValueError, match=words):
        BestOfN.load(tmp_path / "agent", TokenVectorEnv(task, 1))


def test_saving_that_fails_leaves_the_old_folder_whole(tmp_path, monkeypatch):
    task = tiny_task()
    BestOfN(task, BestOfNConfig(n=2)).save(tmp_path / "agent")

    def fail(path, data):
        path.write_text("half")
        raise OSError("no space left")

    monkeypatch.setattr(saving, "write_json", fail)
    with pytest.raises(OSError, match="no space"):
        BestOfN(task, BestOfNConfig(n=3)).save(tmp_path / "agent")
    assert BestOfN.load(tmp_path / "agent", TokenVectorEnv(task, 1)).config.n == 2
