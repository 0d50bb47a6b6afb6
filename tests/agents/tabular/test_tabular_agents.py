"""Tabular agents against the exact solver: their values, their policies, and what happens at the edges."""

from types import SimpleNamespace

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from solver_tools import Paid, bigram, no_repeats, small_task
from textgym_agents import load_agent, make_agent, make_env
from textgym_agents.conformance import FAILS, check
from textgym_agents.conformance.under_test import CutOff
from textgym_agents.tabular.policies import UNKNOWN, state_keys

from textgym import TokenVectorEnv
from textgym.rewards import TextGymWarning
from textgym.solver import policy_values, prefix_tree, solve

NAMES = ("q-learning", "sarsa", "monte-carlo")
FAST = ("same seed, same policy", "saved and loaded", "resumed", "global random numbers", "logged scores")


TASKS = {
    "bigram": {"reference": bigram()},
    "discounted": {"reference": bigram(1), "gamma": 0.7},
    "every step": {"reward": Paid("every"), "gamma": 0.8},
    "masked": {"reference": bigram(2), "mask": no_repeats},
}
OPTIMISTIC = [(options, None) for options in TASKS.values()] + [(TASKS["masked"], 5.0)]


def batch_env(task, count=256):
    return TokenVectorEnv(task, count, segments=True, autoreset_mode=AutoresetMode.DISABLED)


def table_values(agent, tree):
    """The agent's Q and counts on every edge of each depth."""
    for depth in range(len(tree.levels) - 1):
        level, below = tree.levels[depth], tree.levels[depth + 1]
        rows = np.full(len(level.parent), -1)
        rows[level.running] = agent.table.find(state_keys(tree.observations(depth, level.running)))
        assert (rows[below.parent] >= 0).all()
        yield (
            depth,
            agent.table.values[rows[below.parent], below.action],
            agent.table.counts[rows[below.parent], below.action],
        )


@pytest.mark.parametrize("name", ["q-learning", "sarsa", "monte-carlo"])
def test_rewards_that_are_paid_together_teach_the_same(name):
    task = small_task(gamma=0.7)
    tables = []
    for together in (False, True):
        env = TokenVectorEnv(task, 64, autoreset_mode=AutoresetMode.DISABLED, score_together=together)
        agent = make_agent(name, env)
        agent.learn(env, 512)
        tables.append(agent.table.values[: len(agent.table)])
    np.testing.assert_array_equal(*tables)


@pytest.mark.parametrize(("initial", "after"), [(None, [2.0, 5.0]), (1.0, [1.25, 2.0])])
def test_with_a_constant_rate_the_first_target_stands_where_there_was_no_value(initial, after):
    agent = make_agent(
        "monte-carlo", batch_env(small_task(), 2), step_size="constant", learning_rate=0.25, initial=initial
    )
    states = agent.table.add([b"one", b"two"])
    decision = SimpleNamespace(states=states, columns=np.array([0, 3]))
    agent._update(decision, np.array([2.0, 5.0]))
    assert agent.table.values[states, [0, 3]].tolist() == after
    # Two more of the same count by their mean, once for each.
    twice = SimpleNamespace(states=states[[0, 0]], columns=np.array([0, 0]))
    agent._update(twice, np.array([4.0, 8.0]))
    assert agent.table.values[states[0], 0] == pytest.approx(after[0] + (1 - 0.75**2) * (6.0 - after[0]))


@pytest.mark.parametrize(("backup", "charged"), [("soft", 0.3), ("hard", 0.0)])
def test_what_a_step_is_worth_to_the_one_before_by_hand(backup, charged):
    """With a KL of 0.3 reward units; the second state is not in the table."""
    task = small_task()
    decision = SimpleNamespace(columns=np.array([2, 2]), log_ratio=np.full(2, 0.3 / task.beta), legal=None)
    targets = np.array([2.0, 4.0])
    for name in ("sarsa", "monte-carlo", "q-learning"):
        agent = make_agent(name, batch_env(task, 2), backup=backup)
        states = decision.states = np.append(agent.table.add([b"one"]), UNKNOWN)
        agent.table.values[states[0]], agent.table.counts[states[0]] = [0.0, 9.0, 1.0, 9.0], [0, 0, 1, 0]
        decision.log_reference = np.log(np.full((2, 4), 0.25))
        found = agent._continuation(decision, targets)
        # Q-learning knows of a single token what it is worth; of none, the target is all there is.
        want = {"sarsa": [1 - charged, 4 - charged], "monte-carlo": [2 - charged, 4 - charged], "q-learning": [1, 4]}
        assert found.tolist() == pytest.approx(want[name])


@pytest.mark.parametrize("backup", ["soft", "hard"])
def test_exploration_is_uniform_over_what_may_be_taken(backup):
    agent = make_agent("sarsa", batch_env(small_task(), 2), backup=backup, exploration="epsilon-greedy")
    with np.errstate(divide="ignore"):
        reference = np.log([[0.5, 0.5, 0.0, 0.0]])
    nowhere, legal = np.array([UNKNOWN]), np.array([[True, True, True, False]])
    own = 0.8 * np.array([0.5, 0.5, 0, 0])
    for allowed, among in ((None, [1, 1, 1, 1]), (legal, [1, 1, 1, 0])):
        share = np.array(among) / sum(among) if backup == "hard" else np.array([0.5, 0.5, 0, 0])
        found = np.exp(agent._behaviour(nowhere, reference, allowed, 0.2))[0]
        np.testing.assert_allclose(found, own + 0.2 * share)


@pytest.mark.slow
@pytest.mark.parametrize(("options", "initial"), OPTIMISTIC, ids=[*TASKS, "masked, optimistic"])
@pytest.mark.parametrize("backup", ["soft", "hard"])
def test_q_learning_converges_to_q_star(options, initial, backup):
    task = small_task(**options)
    solution = solve(task, beta=None if backup == "soft" else 0.0)
    agent = make_agent(
        "q-learning",
        batch_env(task),
        backup=backup,
        exploration="epsilon-greedy",
        epsilon=1.0,
        learning_rate=1.0,
        initial=initial,
    )
    agent.learn(batch_env(task), 8_000)
    for depth, values, counts in table_values(agent, solution.tree):
        assert counts.min() > 0
        np.testing.assert_allclose(values, solution.action_values[depth], atol=1e-9)
    reached = policy_values(solution.tree, agent, beta=solution.beta).objective
    assert reached == pytest.approx(solution.objective, abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("backup", ["soft", "hard"])
def test_optimism_about_illegal_tokens_moves_nobody(backup):
    """The grammar forbids them, so they are never tried and keep their initial value."""
    task = small_task(**TASKS["masked"])
    settings = {"backup": backup, "exploration": "epsilon-greedy", "epsilon": 1.0, "learning_rate": 1.0}
    agent = make_agent("q-learning", batch_env(task), initial=5.0, **settings)
    agent.learn(batch_env(task), 4_000)
    env = batch_env(task)
    observation, _ = env.reset(seed=0)
    for _ in range(2):
        legal = env.action_masks()
        probabilities = np.exp(agent.log_probs(observation))
        assert (probabilities[~legal] == 0).all()
        np.testing.assert_allclose(probabilities.sum(1), 1.0)
        tokens = agent.act(observation)
        assert legal[np.arange(len(tokens)), tokens].all()
        observation, *_ = env.step(tokens)
    # Nor does an episode that was cut go on with them.
    before = agent.table.values[: len(agent.table)].copy()
    agent.learn(CutOff(task, 256), 256)
    np.testing.assert_allclose(agent.table.values[: len(agent.table)], before, atol=1e-9)


def test_a_mask_is_asked_about_states_of_the_table_only():
    asked = []

    def counting(states):
        asked.append(len(states))
        return no_repeats(states)

    task = small_task(reference=bigram(), mask=counting)
    agent = make_agent("q-learning", batch_env(task, 8), max_states=1)
    observation, _ = batch_env(task, 8).reset(seed=0)
    np.testing.assert_allclose(agent.log_probs(observation), bigram().log_probs(observation))
    assert not asked
    agent.table.add(state_keys(observation)[:1])
    agent.act(observation)
    assert asked == [sum(key == state_keys(observation)[0] for key in state_keys(observation))]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sarsa", "monte-carlo"])
@pytest.mark.parametrize("options", TASKS.values(), ids=TASKS.keys())
@pytest.mark.parametrize("backup", ["soft", pytest.param("hard", marks=pytest.mark.long)])
def test_on_policy_values_are_those_of_the_policy_that_acts(name, options, backup):
    """With epsilon = 1 the behaviour stays uniform, and Q has to become its exact Q."""
    task = small_task(**options)
    tree = prefix_tree(task)
    settings = {"backup": backup, "exploration": "epsilon-greedy", "epsilon": 1.0, "step_size": "harmonic"}
    agent = make_agent(name, batch_env(task), **settings)
    agent.learn(batch_env(task), 12_000)

    class Uniform:
        def log_probs(self, observation):
            return np.zeros((len(observation["input_ids"]), 4))

    exact = policy_values(tree, Uniform(), beta=None if backup == "soft" else 0.0)
    for depth, values, counts in table_values(agent, tree):
        # The returns of this task spread by less than 1 reward unit: five standard errors.
        assert (np.abs(values - exact.action_values[depth]) * np.sqrt(counts) < 5).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_boltzmann_at_beta_comes_to_the_soft_optimum(name):
    task = small_task(reference=bigram())
    agent = make_agent(name, batch_env(task), temperature=2.0, temperature_end=0.4)
    agent.learn(batch_env(task), 8_000)
    solution = solve(task)
    assert solution.optimality(policy_values(solution.tree, agent).objective) > 0.98


def hard_settings(**more):
    return {"backup": "hard", "exploration": "epsilon-greedy", "epsilon": 1.0, "epsilon_end": 0.05, **more}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("task", ["Delayed", "Stop"])
def test_the_hard_optimum_of_delayed_and_stop(name, task):
    env = make_env(f"textgym/{task}-v0", 128)
    agent = make_agent(name, env, **hard_settings())
    agent.learn(env, 8192)
    hard = solve(env.unwrapped.task, beta=0.0)
    assert policy_values(hard.tree, agent).expected_return >= 0.99 * hard.objective


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_both_optima_of_copy(name):
    env = make_env("textgym/Copy-v0", 128)
    tree = prefix_tree(env.unwrapped.task)
    hard, soft = solve(tree, beta=0.0), solve(tree)
    agent = make_agent(name, env, **hard_settings())
    agent.learn(env, 200_000)
    assert policy_values(tree, agent).expected_return >= 0.99 * hard.objective
    agent = make_agent(name, env, temperature=1.0, temperature_end=0.1)
    agent.learn(env, 200_000)
    assert soft.optimality(policy_values(tree, agent).objective) >= 0.98


@pytest.mark.long
def test_optimistic_values_are_tried_before_long():
    """Greedy without exploration stays with the first thing that paid, unless all else promises more."""
    task = small_task(beta=0.1)
    returns = []
    for initial in (-5.0, 5.0):
        settings = {"backup": "hard", "exploration": "epsilon-greedy", "epsilon": 0.0, "initial": initial}
        agent = make_agent("q-learning", batch_env(task, 16), learning_rate=1.0, **settings)
        agent.learn(batch_env(task, 16), 4000)
        returns.append(policy_values(task, agent).expected_return)
    best = solve(task, beta=0.0).objective
    assert returns[1] == pytest.approx(best)
    assert returns[0] < best - 0.1


@pytest.mark.parametrize("name", NAMES)
def test_the_kit_finds_nothing(name):
    findings = check(name, FAST, envs=16, iterations=6)
    assert not [finding for finding in findings if finding.status == FAILS]


def test_what_explores_otherwise_does_not_claim_to_be_the_objective():
    task, seen = small_task(), []
    make_agent("q-learning", batch_env(task), **hard_settings()).learn(batch_env(task), 256, seen.append)
    assert "behaviour/scores" in seen[0]
    assert "objective/scores" not in seen[0]


def test_a_full_table_says_so_and_plays_the_reference_beyond():
    task = small_task(reference=bigram())
    agent = make_agent("q-learning", batch_env(task), max_states=3)
    with pytest.warns(TextGymWarning, match="the table is full at 3 states"):
        agent.learn(batch_env(task), 512)
    assert len(agent.table) == 3
    tree = prefix_tree(task)
    observation = tree.observations(2, tree.levels[2].running)
    unknown = agent.table.find(state_keys(observation)) < 0
    np.testing.assert_allclose(
        agent.log_probs(observation)[unknown], bigram().log_probs(observation)[unknown], atol=1e-12
    )


def test_more_states_than_memory_are_refused():
    with pytest.raises(ValueError, match=r"max_states=1000000: .* holds 16384"):
        make_agent("q-learning", batch_env(small_task()), max_states=1_000_000, memory=1)


def test_beta_zero_needs_the_hard_backup():
    env = batch_env(small_task(beta=0.0))
    with pytest.raises(ValueError, match="backup='soft' needs a number > 0"):
        make_agent("q-learning", env)
    with pytest.raises(ValueError, match="exploration='boltzmann' needs"):
        make_agent("q-learning", env, backup="hard")
    make_agent("q-learning", env, backup="hard", temperature=0.5).learn(env, 256)


def test_an_environment_that_resets_by_itself_is_refused():
    task = small_task()
    agent = make_agent("sarsa", batch_env(task))
    with pytest.raises(ValueError, match="DISABLED"):
        agent.learn(TokenVectorEnv(task, 4), 4)
    with pytest.raises(ValueError, match="episodes=0"):
        agent.learn(batch_env(task), 0)


@pytest.mark.slow
def test_an_episode_that_was_cut_goes_on_by_the_table():
    task = small_task()
    agent = make_agent("q-learning", batch_env(task), learning_rate=1.0, exploration="epsilon-greedy", epsilon=1.0)
    agent.learn(batch_env(task), 8_000)
    before = agent.table.values[: len(agent.table)].copy()
    agent.learn(CutOff(task, 256), 256)
    np.testing.assert_allclose(agent.table.values[: len(agent.table)], before, atol=1e-9)


def test_an_agent_survives_its_folder(tmp_path):
    task = small_task()
    agent = make_agent("monte-carlo", batch_env(task))
    agent.save(tmp_path / "empty")
    assert len(load_agent(tmp_path / "empty", batch_env(task)).table) == 0
    agent.learn(batch_env(task), 512)
    agent.save(tmp_path / "full")
    agent.save(tmp_path / "full")
    loaded = load_agent(tmp_path / "full", batch_env(task))
    for name, array in agent.table.tensors().items():
        np.testing.assert_array_equal(loaded.table.tensors()[name], array, err_msg=name)
    assert (loaded.iteration, loaded.episodes, loaded.budget) == (2, 512, 512)
    (tmp_path / "full" / "tensors.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="damaged"):
        load_agent(tmp_path / "full", batch_env(task))
    with pytest.raises(ValueError, match="holds agent 'monte-carlo'"):
        load_agent(tmp_path / "empty", batch_env(task), "sarsa")
    other = make_env("textgym/Bandit-v0", 1)
    with (
        pytest.warns(TextGymWarning, match="trained on task"),
        pytest.raises(ValueError, match="has 4 actions"),
    ):
        load_agent(tmp_path / "empty", other)


def test_a_table_says_what_it_never_met():
    env = make_env("textgym/Text-v0", 8, prompts=["a", "b"], eval_prompts=["a", "c", "d"], reference="uniform",
                   tokenizer=[*"abcd"], max_new_tokens=1)  # fmt: skip
    task = env.unwrapped.task
    agent = make_agent("q-learning", env)
    assert agent.caveat(task, "train").startswith("q-learning: 2 of 2 train prompts were never met")
    agent.learn(env, 64)
    assert agent.caveat(task, "train") == ""
    assert agent.caveat(task, "eval").startswith("q-learning: 2 of 3 eval prompts were never met")


def test_a_full_table_counts_on_where_it_was_saved(tmp_path):
    env = make_env("textgym/Copy-v0", num_envs=16)
    refused = {}
    for budgets in ((64,), (32, 32)):
        agent, refused[budgets] = make_agent("q-learning", env, batch=16, max_states=20), []
        for episodes in budgets:
            agent.learn(env, episodes, lambda row, seen=refused[budgets]: seen.append(row["states_refused"]))
            agent.save(tmp_path / "agent")
            agent = load_agent(tmp_path / "agent", env)
    assert refused[64,][-1] > refused[64,][1] > 0
    assert refused[32, 32] == refused[64,]
