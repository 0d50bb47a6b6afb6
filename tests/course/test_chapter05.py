"""The numbers of chapter 5, each computed anew."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from course_tools import ran

pytestmark = pytest.mark.long

BETA = 0.05


@pytest.fixture(scope="module")
def chapter():
    return ran(5)


def objective(chapter, agent):
    """Return J of an agent on the spelling task, from its answers to all 64 texts in turn."""
    task = chapter["spelling"]
    (prompt,) = task.encoded("eval")
    letters = [i for i in range(task.vocabulary.size) if task.vocabulary.allowed[i]]
    total = 0.0
    for text in itertools.product(letters, repeat=3):
        chance, log_ratio = 1.0, 0.0
        for t in range(3):
            ids = [*prompt.ids, *text[:t]]
            row = np.array([ids + [0] * (prompt_room(task) - len(ids))])
            mask = (np.arange(row.shape[1]) < len(ids)).astype(np.int8)[None]
            own = np.exp(agent.log_probs({"input_ids": row, "attention_mask": mask})[0][text[t]])
            chance *= own
            log_ratio += np.log(own * 4) if own > 0 else 0.0
        right = np.mean([task.vocabulary.token_text(i) == letter for i, letter in zip(text, "dab", strict=True)])
        total += chance * (right - BETA * log_ratio)
    return total


def prompt_room(task):
    return task.max_prompt_tokens + task.max_new_tokens


def optimality(chapter, agent):
    best = 3 * BETA * np.log((np.exp(1 / (3 * BETA)) + 3) / 4)  # beta log Z, place by place
    return (objective(chapter, agent) - 0.25) / (best - 0.25)


@pytest.mark.parametrize("name", ["q-learning", "sb3-dqn", "reinforce", "a2c", "lm-ppo", "alphazero"])
def test_5a_what_seven_algorithms_reach_is_what_enumeration_says(chapter, name):
    for agent, curve in zip(chapter["learned"][name], chapter["curves"][name], strict=True):
        assert curve[-1][1] == pytest.approx(optimality(chapter, agent), abs=1e-4)
        assert curve[-1][1] >= 0.9


def test_5b_families_differ_in_the_texts_that_they_need(chapter):
    needed = {name: np.median(texts) for name, texts in chapter["needed"].items()}
    for name, (family, *_) in chapter["plan"].items():
        assert (
            f"{name:11} {family:13} texts scored: {chapter['needed'][name]}, median {needed[name]:.0f}"
            in chapter.printed
        )
    assert max(needed["mcts"], needed["q-learning"]) <= 128  # of 64 different texts
    assert needed["lm-ppo"] < needed["reinforce"]
    assert needed["alphazero"] < needed["a2c"]
    assert needed["q-learning"] < needed["sb3-dqn"]
    assert 300 < needed["reinforce"] < 3000


def test_5c_a_table_knows_nothing_of_prompts_that_it_never_met(chapter):
    generalised = chapter["generalised"]
    assert generalised["q-learning", "eval"] == pytest.approx(0, abs=1e-9)
    assert generalised["q-learning", "train"] > 0.5
    assert generalised["lm-ppo", "eval"] > 0.6
    assert "held-out prompts 0.000" in chapter.printed


def test_5d_the_rules_and_schedules_are_the_formulas(chapter):
    from textgym_agents.tabular.policies import boltzmann, greedy, mixed, scheduled

    values = np.array([[0.2, 0.5, 0.1]])
    known, uniform = np.ones((1, 3), dtype=bool), np.log(np.full((1, 3), 1 / 3))
    with_chance = np.exp(mixed(greedy(values, known, uniform), known, 0.3))
    assert with_chance[0] == pytest.approx([0.1, 0.8, 0.1])
    weights = np.exp(values[0] / 0.2)
    assert np.exp(boltzmann(values, known, uniform, 0.2))[0] == pytest.approx(weights / weights.sum())
    assert scheduled("linear", 1.0, 0.02, 0.5) == pytest.approx(0.51)
    assert scheduled("exponential", 1.0, 0.02, 0.5) == pytest.approx(np.sqrt(0.02))


def test_5e_on_deepsea_all_find_the_treasure_and_pay_differently(chapter):
    earned = {name: (final, rewards.mean()) for name, (final, rewards) in chapter["deep"].items()}
    for name, (final, _) in earned.items():
        assert (final > 0.99).mean() >= 0.9, name
    texts = 20 * 512
    assert earned["epsilon 1"][1] == pytest.approx(1 / 64, abs=4 * np.sqrt(1 / 64 / texts))
    late = chapter["deep"]["epsilon 0.1"][1][:, -16:].mean()
    assert late == pytest.approx((1 - 0.05) ** 6, abs=0.05)


def test_5f_on_deceptive_a_small_epsilon_is_caught_and_schedules_are_not(chapter):
    solved = {name: (final > 0.99).mean() for name, (final, _) in chapter["trap"].items()}
    iteration = np.repeat(np.arange(64) * 8 / 512, 8)
    expected = {
        "epsilon 0.1": 512 * 0.05**6,
        "epsilon 1": 1 - (63 / 64) ** 512,
        "epsilon 1 to 0.02": 1 - np.exp(np.log1p(-(((1 - 0.98 * iteration) / 2) ** 6)).sum()),
    }
    for name, chance in expected.items():
        assert chapter["chances"][name] == pytest.approx(chance, rel=1e-3)
        assert f"{name:18} chance {chance:.6f}" in chapter.printed
    assert solved["epsilon 0.1"] == 0
    assert solved["T 0.05"] <= 0.4
    assert solved["epsilon 1"] == solved["T 1 to 0.02"] == 1
    assert solved["epsilon 1 to 0.02"] >= 0.45
    by_chance = 0.5 * 0.5 + 1 / 64  # what uniform texts earn
    assert chapter["trap"]["epsilon 1"][1].mean() == pytest.approx(by_chance, abs=0.015)
