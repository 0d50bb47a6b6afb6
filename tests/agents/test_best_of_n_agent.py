"""Best-of-n as an agent: it writes the best of n whole answers, with the reward and the KL that theory says."""

import dataclasses
import json

import numpy as np
import pytest
from agents.enumerated import HORIZON, tiny_task, trajectories
from gymnasium.vector import AutoresetMode
from textgym_agents import fixed
from textgym_agents.best_of_n import BestOfN, BestOfNConfig

from textgym import TokenVectorEnv, make_task
from textgym.evaluate import evaluate
from textgym.sampling import play
from textgym.task import prompt_set


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


@pytest.mark.parametrize("n", [1, 2, 5])
def test_reward_kl_and_objective_are_those_of_theory(n):
    task = tiny_task()
    agent = BestOfN(task, BestOfNConfig(n=n))
    found = evaluate(agent, task, split="train", per_prompt=1500)
    error = (found.reward.high - found.reward.low) / 3.92
    assert abs(found.reward.mean - expected_best(task, n)) < 4 * error
    assert found.kl.mean == pytest.approx(np.log(n) - (n - 1) / n)
    assert found.objective.mean == pytest.approx(found.reward.mean - task.beta * found.kl.mean)
    assert found.optimality is not None
    assert found.entropy is None


def test_an_answer_is_written_as_it_was_planned():
    task = tiny_task()
    agent = BestOfN(task, BestOfNConfig(n=3))
    planned = []
    best = agent._best
    agent._best = lambda states: planned.append(best(states)) or planned[-1]
    env = TokenVectorEnv(task, 8, autoreset_mode=AutoresetMode.DISABLED)
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


def test_a_state_seen_again_or_in_the_middle_of_an_answer_is_planned_from_there():
    task = tiny_task()
    agent = BestOfN(task, BestOfNConfig(n=64))
    env = TokenVectorEnv(task, 200, autoreset_mode=AutoresetMode.DISABLED)
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
    env = TokenVectorEnv(task, 20, autoreset_mode=AutoresetMode.DISABLED)
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
    env = TokenVectorEnv(task, 1)
    BestOfN(task, BestOfNConfig(n=2, seed=4)).save(tmp_path)
    loaded = BestOfN.load(tmp_path, env)
    assert loaded.config == BestOfNConfig(n=2, seed=4)
    assert (play(loaded, task, per_prompt=9).completions == one.completions).all()


def test_n_1_is_the_reference():
    task = tiny_task()
    agent = BestOfN(task, BestOfNConfig(n=1))
    assert agent.sequence_kl == 0.0
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
        ({"format": 2}, "holds agent 'best-of-n' in format 2; allowed is 'best-of-n' in format 1"),
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

    monkeypatch.setattr(fixed, "write_json", fail)
    with pytest.raises(OSError, match="no space"):
        BestOfN(task, BestOfNConfig(n=3)).save(tmp_path / "agent")
    assert BestOfN.load(tmp_path / "agent", TokenVectorEnv(task, 1)).config.n == 2
