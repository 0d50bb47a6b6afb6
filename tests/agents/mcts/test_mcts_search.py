"""Tree search against the exact solver: values and tokens at the root, PUCT by hand, and every way to score a leaf."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from agents.enumerated import BETA, tiny_agent, tiny_task
from solver_tools import STOP, Paid, batch_env, bigram, no_repeats, odd_grammar, small_task
from textgym_agents import make_agent, make_env
from textgym_agents.conformance.under_test import turn_task
from textgym_agents.mcts.agent import MCTS
from textgym_agents.mcts.forest import ENDED, Forest, Leaves, Model, likeliest, widened
from textgym_agents.mcts.search import Evaluator, MCTSConfig, Search, soft_result

from textgym import make_task
from textgym.lm.reference import NGramReference, restricted
from textgym.solver import policy_values, prefix_tree, solve
from textgym.state import TokenState


def smooth(seed):
    """A bigram reference that takes every token now and then: PUCT goes by the prior, so rare ones take long."""
    table = np.exp(bigram(seed).log_probs({"input_ids": np.arange(4)[:, None], "attention_mask": np.ones((4, 1))}))
    return NGramReference(0.5 * table + 0.125)


TASKS = {
    "bigram": {"reference": smooth(0)},
    "discounted": {"reference": smooth(1), "gamma": 0.7},
    "every step": {"reward": Paid("every"), "gamma": 0.8},
    "differences": {"reward": Paid("difference", 0.9), "gamma": 0.9},
    "masked": {"reference": smooth(2), "mask": no_repeats},
}


def roots(tree):
    return tree.observations(0, tree.levels[0].running)


@pytest.mark.parametrize("options", TASKS.values(), ids=TASKS.keys())
@pytest.mark.parametrize("backup", ["soft", "max"])
def test_with_many_simulations_root_and_policy_are_those_of_the_solver(options, backup):
    """The search reaches all 26 running states of the task from its two prompts alone, and then it is exact."""
    task = small_task(**options)
    solution = solve(task, beta=None if backup == "soft" else 0.0)
    agent = make_agent("mcts", batch_env(task), backup=backup, simulations=400, c_init=20.0)
    observation = roots(solution.tree)
    np.testing.assert_allclose(agent.values(observation), solution.values[0], atol=1e-9)
    if backup == "soft":  # of several best tokens a greedy policy may take any
        want = np.exp(solution.log_probs(observation))
        np.testing.assert_allclose(np.exp(agent.log_probs(observation)), want, atol=1e-9)
    reached = policy_values(solution.tree, agent, beta=solution.beta).objective
    assert reached == pytest.approx(solution.objective, abs=1e-9)


def test_the_prior_guides_and_the_reference_is_what_counts():
    task = small_task(reference=smooth(0))
    solution = solve(task)
    agent = make_agent("mcts", batch_env(task), prior="uniform", simulations=400, c_init=20.0)
    observation = roots(solution.tree)
    np.testing.assert_allclose(agent.values(observation), solution.values[0], atol=1e-9)
    np.testing.assert_allclose(agent.log_probs(observation), solution.log_probs(observation), atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("options", [TASKS["every step"], TASKS["differences"]], ids=["every", "differences"])
def test_visit_counts_come_to_the_best_token(options):
    task = small_task(**options)
    solution = solve(task, beta=0.0)
    agent = make_agent("mcts", batch_env(task), backup="mean", temperature=0, simulations=800, c_init=0.5)
    observation = roots(solution.tree)
    best = solution.log_probs(observation).argmax(1)
    assert agent.act(observation).tolist() == best.tolist()
    gap = solution.values[0] - agent.values(observation)
    assert (gap > -1e-9).all()  # a mean of returns stays below their maximum
    assert (gap < 0.3).all()  # returns range over more than 3


def test_the_first_simulations_by_hand():
    """One prompt, tokens 0..3 with prior p; every leaf is worth 0, so PUCT goes by p sqrt(N) / (1 + n) alone."""
    task = small_task(reward=lambda prompts, completions, **columns: [0.0] * len(prompts))
    prior = np.array([0.41, 0.29, 0.19, 0.11])

    class Even:
        def log_probs(self, observation):
            return np.log(np.tile(prior, (len(observation["input_ids"]), 1)))

        def values(self, observation):
            return np.zeros(len(observation["input_ids"]))

    config = MCTSConfig(backup="mean", prior="guide", leaf="values", c_init=1.0, c_base=1e12)
    forest, model = Forest(4, 100), Model(task, "train", 1)
    evaluator = Evaluator(task, config, 0.4, Even())
    states = [TokenState(task.encoded("train")[0])]
    root = forest.add(states, ["train"], Leaves(np.log(prior)[None], np.log(prior)[None], np.zeros(1)))
    search = Search(forest, model, evaluator, root, np.random.default_rng(0))
    visits = np.zeros(4)
    for _ in range(30):
        visits[(prior / (1 + visits)).argmax()] += 1  # sqrt(N) is the same for all tokens
        search.run(1)
        assert forest.visits[0].tolist() == visits.tolist()
    assert forest.children[0, STOP] == ENDED
    assert sorted(forest.children[0, :3].tolist()) == np.flatnonzero(forest.parents[: len(forest)] == 0).tolist()


@pytest.mark.parametrize("backup", ["soft", "max", "mean"])
def test_an_end_is_tried_once_where_visits_are_not_the_answer(backup):
    env = make_env("textgym/Bandit-v0", 1, segments=True)  # 32 arms, each an end
    agent = make_agent("mcts", env, simulations=20, backup=backup)
    agent.log_probs(env.reset(seed=0)[0])
    visits = agent.planner.forest.visits[0]
    assert visits.sum() == 20
    assert (visits.max() > 1) == (backup == "mean")


def test_a_search_ends_when_all_is_known():
    env = make_env("textgym/Bandit-v0", 1, segments=True)
    agent = make_agent("mcts", env, simulations=1000)
    solution = solve(agent.task)
    assert solution.optimality(policy_values(solution.tree, agent).objective) == pytest.approx(1)
    assert agent.planner.forest.visits[0].sum() == 32
    assert agent.planner.scored == 33  # one completion for what the root is worth
    assert agent.planner.forest.solved[0]


@pytest.mark.long
def test_a_noisy_end_is_tried_again():
    env = make_env("textgym/Noisy-v0", 1, segments=True)
    agent = make_agent("mcts", env, simulations=1000)
    agent.log_probs(env.reset(seed=0)[0])
    assert agent.planner.forest.visits[0].sum() == 1000


def test_the_mean_is_over_all_simulations():
    """V is the mean of the leaf's own evaluation and of what every later simulation returned."""
    task = small_task()
    agent = make_agent("mcts", batch_env(task), backup="mean", prior="uniform", simulations=40)
    tree = prefix_tree(task)
    agent.log_probs(roots(tree))
    forest = agent.planner.forest
    below = [node for node in range(len(forest)) if forest.parents[node] == 0]
    assert below
    for node in below:
        column = int(np.flatnonzero(forest.children[0] == node)[0])
        assert forest.visits[0, column] == 1 + forest.visits[node].sum()
    values, known = forest.action_values(np.array([0]))
    total = forest.own[0] + (forest.visits[0] * np.where(known, values, 0))[0].sum()
    assert forest.values[0] == pytest.approx(total / (1 + forest.visits[0].sum()))
    assert forest.visits[0].sum() == 40


def test_exact_leaves_need_one_visit_of_every_token():
    task = small_task()
    solution = solve(task)
    agent = make_agent("mcts", batch_env(task), leaf="exact", simulations=4, c_init=1000.0)
    np.testing.assert_allclose(agent.values(roots(solution.tree)), solution.values[0], atol=1e-9)


def test_a_guides_values_and_prior_are_asked_for():
    task = small_task(gamma=0.5)
    solution = solve(task, beta=0.0)

    class Oracle:
        def log_probs(self, observation):
            return np.log(np.full((len(observation["input_ids"]), 4), 0.25))

        def values(self, observation):
            return solution.state_values(observation)

    config = MCTSConfig(backup="max", prior="guide", leaf="values", simulations=4, c_init=1000.0)
    agent = MCTS(task, config, guide=Oracle())
    np.testing.assert_allclose(agent.values(roots(solution.tree)), solution.values[0], atol=1e-9)
    with pytest.raises(ValueError, match="guide: there is none"):
        MCTS(task, config)
    with pytest.raises(ValueError, match="guide: object has no log_probs"):
        MCTS(task, config, guide=object())


@pytest.mark.parametrize("mask", [None, odd_grammar], ids=["free", "grammar"])
@pytest.mark.parametrize(("kl", "backup"), [("exact", "soft"), ("k2", "soft"), ("k1", "soft"), ("exact", "mean")])
def test_leaves_valued_by_an_lm_agent_are_charged_what_its_head_leaves_out(kl, backup, mask):
    task = replace(tiny_task(gamma=0.9), mask=mask)
    guide = tiny_agent(task, kl=kl)
    with torch.no_grad():
        guide.policy.value_head.weight.normal_(generator=torch.Generator().manual_seed(0))
    guide.value_offset, guide.value_scale = 0.4, 2.0
    completions = [(), (0,), (2,), (0, 1), (2, 1)]
    states = [TokenState(prompt, tokens) for prompt in task.encoded("train") for tokens in completions]
    model = Model(task, "train", len(states))
    arrival = model.place(states)
    evaluator = Evaluator(task, MCTSConfig(backup=backup, leaf="values"), BETA, guide)
    found = evaluator.evaluate(model, arrival, np.random.default_rng(0)).values
    own, reference = (
        restricted(each.log_probs(arrival.observation), arrival.masks) for each in (guide, guide.own_reference())
    )
    divergence = np.where(np.isfinite(own), np.exp(own) * (own - np.where(np.isfinite(own), reference, 0)), 0).sum(1)
    assert (divergence > 1e-3).all()
    charged = BETA * divergence if kl != "k1" and backup == "soft" else 0.0
    want = guide.values(arrival.observation) - charged
    np.testing.assert_allclose(found, want, atol=1e-4)


@pytest.mark.parametrize("given", [{}, {"leaf": "exact"}, {"prior": "uniform"}])
def test_a_guide_that_nothing_asks_for_is_refused(given):
    task = small_task()
    with pytest.raises(ValueError, match="allowed with a guide is prior='guide', leaf='values', or both"):
        MCTS(task, MCTSConfig(**given), guide=bigram())
    with pytest.raises(ValueError, match="guide='run': allowed is None without prior='guide' or leaf='values'"):
        MCTSConfig(guide="run", **given)
    MCTS(task, MCTSConfig(prior="guide"), guide=bigram())


def test_few_candidates_leave_the_rest_to_the_reference():
    task = small_task(reference=bigram())
    observation = roots(prefix_tree(task))
    reference = bigram().log_probs(observation)
    agent = make_agent("mcts", batch_env(task), candidates=2, simulations=50)
    got = agent.log_probs(observation)
    np.testing.assert_allclose(np.exp(got).sum(1), 1.0)
    rest = np.argsort(reference, axis=1)[:, :2]
    np.testing.assert_allclose(np.take_along_axis(got, rest, 1), np.take_along_axis(reference, rest, 1))
    hard = make_agent("mcts", batch_env(task), candidates=2, simulations=50, backup="mean")
    assert np.isneginf(np.take_along_axis(hard.log_probs(observation), rest, 1)).all()


def test_the_likeliest_tokens_in_order():
    tokens, logs = likeliest(np.log(np.array([[0.1, 0.5, 0.15, 0.25]])), 2)
    assert tokens.tolist() == [[1, 3]]
    np.testing.assert_allclose(np.exp(logs), [[0.5, 0.25]])
    tokens, logs = likeliest(np.zeros((1, 2)), 3)
    assert (tokens.tolist(), logs[0, 2]) == ([[0, 1, 0]], -np.inf)


def test_soft_values_where_prior_and_reference_differ_by_hand():
    """Tokens 0 and 1 were tried; the third keeps the prior's share of 0.2."""
    prior, reference, beta = np.array([0.6, 0.2, 0.2]), np.array([0.5, 0.25, 0.25]), 2.0
    forest = Forest(3, 10)
    logs = np.log(prior)[None], np.log(reference)[None]
    node = forest.add([TokenState(small_task().encoded("train")[0])], ["train"], Leaves(*logs, np.zeros(1)))
    forest.visits[0], forest.rewards[0], forest.children[0] = [3, 1, 0], [1.0, 4.0, 0.0], [ENDED, ENDED, -1]
    value, policy = soft_result(forest, node, beta)
    want = beta * np.log((0.5 * np.exp(0.5) + 0.25 * np.exp(2.0)) / 0.8)
    assert value == pytest.approx(want)
    tilted = [0.5 * np.exp((1 - want) / 2), 0.25 * np.exp((4 - want) / 2), 0.2]
    np.testing.assert_allclose(np.exp(policy)[0], tilted)
    assert sum(tilted) == pytest.approx(1.0)


@pytest.mark.parametrize("backup", ["soft", "max", "mean"])
def test_a_tree_that_may_widen_to_all_at_once_is_the_tree_that_does_not_widen(backup):
    task = small_task(reference=smooth(0))
    observation = roots(prefix_tree(task))
    plain, wide = (
        make_agent("mcts", batch_env(task), backup=backup, simulations=40, **given) for given in ({}, {"widening": 4.0})
    )
    np.testing.assert_array_equal(wide.log_probs(observation), plain.log_probs(observation))
    np.testing.assert_array_equal(wide.planner.forest.visits, plain.planner.forest.visits)


def test_the_likeliest_tokens_open_one_by_one():
    """With C = 1 and power 1/2 the second token opens at the second visit, the third at the fifth."""
    task = small_task(reference=NGramReference(np.tile([0.1, 0.2, 0.4, 0.3], (4, 1))))
    env, opened = batch_env(task, 1), []
    for simulations in range(1, 13):
        agent = make_agent("mcts", env, backup="mean", widening=1.0, simulations=simulations, c_init=100.0)
        agent.log_probs(env.reset(seed=0)[0])
        opened.append(np.flatnonzero(agent.planner.forest.visits[0]).tolist())
    # The root itself is the first visit: the n-th simulation finds ceil(sqrt(n)) of them open.
    assert opened[:4] == [[2], [2, 3], [2, 3], [2, 3]]
    assert opened[4:9] == [[1, 2, 3]] * 5
    assert opened[9:] == [[0, 1, 2, 3]] * 3


def test_what_is_known_to_the_end_opens_the_next_token():
    env = make_env("textgym/Bandit-v0", 1, segments=True)  # 32 arms, each an end
    agent = make_agent("mcts", env, simulations=20, widening=0.5, widening_power=0.1)
    agent.log_probs(env.reset(seed=0)[0])
    assert np.count_nonzero(agent.planner.forest.visits[0]) == 20
    done = np.array([[True, False, False, True], [True, True, True, True]])
    found = widened(np.log([[0.4, 0.1, 0.3, 0.2]] * 2), done, np.array([[1.0], [2.0]]))
    assert found.tolist() == [[True, False, True, False], [True, False, True, False]]


@pytest.mark.parametrize("widening", [None, 1.0, 3.0])
@pytest.mark.parametrize("backup", ["soft", "max"])
def test_regret_falls_to_nothing(backup, widening):
    task = small_task(reference=smooth(1), gamma=0.7)
    found = [
        make_agent("mcts", batch_env(task), backup=backup, simulations=count, widening=widening, c_init=20.0).regret()
        for count in (1, 400)
    ]
    assert found[0].regret > 0.01
    assert found[1].regret == pytest.approx(0, abs=1e-9)
    assert found[1].error == pytest.approx(0, abs=1e-9)
    assert found[0].optimum == pytest.approx(solve(task, beta=None if backup == "soft" else 0.0).objective)


@pytest.mark.parametrize("simulations", [1, 2, 3, 4])
def test_what_is_left_out_keeps_the_priors_share_and_is_taken_to_be_worth_as_much(simulations):
    """J of the answer in one state is s V + (1 - s) E[Q of what was not tried], with s the share of the tried."""
    task = small_task(reference=smooth(0))
    solution = solve(task)
    observation = roots(solution.tree)
    agent = make_agent("mcts", batch_env(task), leaf="exact", widening=9.0, simulations=simulations, c_init=1000.0)
    logs, values = agent.log_probs(observation), agent.values(observation)
    reference = smooth(0).log_probs(observation)
    action_values = task.beta * (solution.log_probs(observation) - reference) + solution.values[0][:, None]
    objective = (np.exp(logs) * (action_values - task.beta * (logs - reference))).sum(1)
    tried = agent.planner.forest.visits[:2] > 0
    assert (tried.sum(1) == simulations).all()
    rest = np.where(tried, 0.0, np.exp(reference))
    np.testing.assert_allclose(objective, (1 - rest.sum(1)) * values + (rest * action_values).sum(1), atol=1e-9)
    if simulations == 4:
        np.testing.assert_allclose(values, solution.values[0], atol=1e-9)


@pytest.mark.slow
def test_the_greatest_value_found_is_never_above_the_optimum():
    task = small_task(reference=smooth(0), reward=Paid("every"))
    best = solve(task, beta=0.0).objective
    for widening in (None, 1.0):
        errors = [
            make_agent("mcts", batch_env(task), backup="max", widening=widening, simulations=count).regret().error
            for count in (1, 3, 9, 27)
        ]
        assert max(errors) <= 1e-9
        assert errors[0] < errors[-1]
    assert best > 0


def never_b(**options):
    """The reference never writes the second of three words; the reward counts the first."""

    def count(prompts, completions, **columns):
        return [float(text.split().count("a")) for text in completions]

    reference = NGramReference(np.tile([0.5, 0.0, 0.3, 0.2], (4, 1)))
    words = {"tokenizer": ("a", "b", "c", "<end>"), "stop": "<end>", "prompts": ["a"], "max_new_tokens": 2}
    return make_task("Text", **words, reward=count, beta=0.3, reference=reference, **options)


@pytest.mark.parametrize("leaf", ["rollout", "exact"])
@pytest.mark.parametrize("candidates", [64, 3])
def test_what_the_reference_never_writes_is_never_written_whatever_the_prior(leaf, candidates):
    task = never_b()
    solution = solve(task)
    agent = MCTS(task, MCTSConfig(simulations=500, prior="uniform", leaf=leaf, candidates=candidates))
    observation = roots(solution.tree)
    found = np.exp(agent.log_probs(observation))
    assert found[0, 1] == 0
    assert found.sum() == pytest.approx(1)
    if candidates == 64:
        np.testing.assert_allclose(agent.values(observation), solution.values[0], atol=1e-9)
        np.testing.assert_allclose(found, np.exp(solution.log_policy[0]).reshape(found.shape), atol=1e-9)


@pytest.mark.long
def test_states_of_all_depths_are_searched_at_once_where_the_environment_answers():
    task = turn_task()
    solution = solve(task)
    tree, parts, wanted = solution.tree, [], []
    for depth, level in enumerate(tree.levels[:-1]):
        own = level.running if level.environment is None else level.running[~level.environment[level.running]]
        if len(own):
            parts.append(tree.observations(depth, own))
            wanted.append(solution.values[depth][own])
    states = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    agent = MCTS(task, MCTSConfig(simulations=300))
    np.testing.assert_allclose(agent.values(states), np.concatenate(wanted), atol=1e-9)


@pytest.mark.parametrize("kind", ["mcts", "best-of-n"])
@pytest.mark.parametrize("held_out", [False, True])
def test_a_prompt_with_different_data_is_not_searched_for_one_of_them(kind, held_out):
    def first(prompts, completions, answer, **columns):
        return [float(text.split()[:1] == [right]) for text, right in zip(completions, answer, strict=True)]

    words = {"tokenizer": ("a", "b", "<end>"), "stop": "<end>", "max_new_tokens": 1, "reference": "uniform"}
    one, other = ({"answer": [answer]} for answer in "ab")
    texts = {"prompts": ["a"], "columns": one, "eval_prompts": ["a"], "eval_columns": other if held_out else one}
    if not held_out:
        texts |= {"prompts": ["a", "a"], "columns": {"answer": ["a", "b"]}}
    task = make_task("Text", **words, **texts, reward=first)
    agent = make_agent(kind, batch_env(task, 2))
    observation, _ = batch_env(task, 2).reset(seed=0)
    with pytest.raises(ValueError, match="the prompt 'a' stands in this task with different data"):
        agent.act(observation)
    alike = replace(task, prompts=dict.fromkeys(("train", "eval"), task.prompts["eval"]))
    make_agent(kind, batch_env(alike, 2)).act(batch_env(alike, 2).reset(seed=0)[0])
