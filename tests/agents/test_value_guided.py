"""Value-guided decoding: with V* it is the optimum exactly, with V of a policy it is one step of policy iteration."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from agents.enumerated import tiny_agent, tiny_task
from cli_tools import assert_one_line, run
from solver_tools import Paid, Table, batch_env, bigram, odd_grammar, small_task
from textgym_agents import load_agent, make_agent, make_env
from textgym_agents.algorithms.value_guided import ValueGuided, ValueGuidedConfig
from textgym_agents.lm.critic import critic_of

from textgym import TokenEnv
from textgym.sampling import play
from textgym.solver import policy_values, solve

EVERY = {"k": 4, "prior": "reference"}


class Exact:
    """A policy and the values (time-0 units, per level) of a tree's states, as a guide."""

    def __init__(self, solution, policy, levels):
        self._solution, self._policy, self._levels = solution, policy, levels
        self.asked = 0

    def log_probs(self, observation):
        return self._policy.log_probs(observation)

    def values(self, observation):
        self.asked += 1
        depths, rows = self._solution._lookup.locate(observation)
        return np.array([self._levels[d][r] for d, r in zip(depths, rows, strict=True)])


def agent_of(solution, policy, levels, **config):
    task = solution.tree.task
    return ValueGuided(task, ValueGuidedConfig(**{**EVERY, **config}), Exact(solution, policy, levels))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gamma": 0.5},
        {"beta": 0.03},
        {"mask": odd_grammar},
        {"reward": Paid("every")},
        {"reward": Paid("difference")},
        {"reward": Paid("difference", 0.5), "gamma": 0.5},
    ],
    ids=["plain", "discount", "low beta", "grammar", "every", "difference", "discounted difference"],
)
@pytest.mark.parametrize("reference", ["uniform", "bigram"])
def test_with_the_optimal_values_it_is_the_optimum(options, reference):
    given = {} if reference == "uniform" else {"reference": bigram(3)}
    solution = solve(small_task(**options, **given))
    agent = agent_of(solution, Table(1), solution.values)
    found = policy_values(solution.tree, agent)
    assert found.objective == pytest.approx(solution.objective, abs=1e-9)
    for depth in range(solution.tree.task.max_new_tokens):
        running = solution.tree.levels[depth].running
        seen = solution.tree.observations(depth, running)
        np.testing.assert_allclose(agent.log_probs(seen), solution.log_probs(seen), atol=1e-9)


def test_what_it_looks_ahead_at_is_scored_for_the_answer():
    # Answers of one token: each of the four tokens is scored before one of them is written.
    task = small_task(max_new_tokens=1)
    agent = agent_of(solve(task), Table(1), solve(task).values)
    assert play(agent, task, per_prompt=3).answer_tokens == 4
    assert play(Table(1), task, per_prompt=3).answer_tokens == 0


def test_with_its_own_exact_values_it_is_better_than_the_policy():
    """Soft policy iteration (Haarnoja et al., 2018, lemma 2), relative to the reference: up to the optimum."""
    solution = solve(small_task(reference=bigram(3)))
    policy, before = Table(2), -np.inf
    for _ in range(4):
        values = policy_values(solution.tree, policy)
        assert values.objective > before
        before = values.objective
        policy = agent_of(solution, policy, values.values)
    # Three tokens at most: three steps are all it can take.
    assert before == pytest.approx(solution.objective, abs=1e-9)


@pytest.mark.parametrize("options", [{}, {"gamma": 0.5}, {"mask": odd_grammar}], ids=["plain", "discount", "grammar"])
def test_the_optimum_stays_the_optimum_and_a_second_tilt_lowers_it(options):
    solution = solve(small_task(reference=bigram(3), **options))
    tilted = agent_of(solution, solution, solution.values)
    again = agent_of(solution, solution, solution.values, prior="policy", temperature=solution.beta)
    short = agent_of(solution, solution, solution.values, prior="policy")
    assert (tilted.temperature, short.temperature) == (solution.beta, 4 * solution.beta)
    assert policy_values(solution.tree, tilted).objective == pytest.approx(solution.objective, abs=1e-9)
    assert policy_values(solution.tree, again).objective < solution.objective - 0.01


@pytest.mark.parametrize("options", [{}, {"gamma": 0.5}, {"mask": odd_grammar}], ids=["plain", "discount", "grammar"])
@pytest.mark.parametrize("factor", [4.0, 1.5, 1.1, 0.7])
def test_a_policy_on_the_way_becomes_better(options, factor):
    """The optimum at another beta: it has gone a part of the way, or too far."""
    task = small_task(reference=bigram(3), **options)
    solution, policy = solve(task), solve(task, beta=factor * task.beta)
    values = policy_values(solution.tree, policy)
    step = policy_values(solution.tree, agent_of(solution, policy, values.values))
    assert values.objective < step.objective <= solution.objective + 1e-12


def test_with_few_tokens_they_are_the_likeliest_of_the_reference():
    task = small_task(reference=bigram(3))
    solution = solve(task)
    policy = Table(2)
    agent = agent_of(solution, policy, solution.values, k=2)
    for depth in range(task.max_new_tokens):
        seen = solution.tree.observations(depth, solution.tree.levels[depth].running)
        written = np.isfinite(agent.log_probs(seen))
        reference, own = (np.argsort(-each.log_probs(seen), axis=1)[:, :2] for each in (bigram(3), policy))
        assert (np.sort(reference, axis=1) != np.sort(own, axis=1)).any()
        want = np.zeros_like(written)
        np.put_along_axis(want, reference, True, axis=1)
        np.testing.assert_array_equal(written, want)


def test_only_the_k_likeliest_are_written_and_they_are_tilted_by_hand():
    task = tiny_task(max_new_tokens=1)
    solution = solve(task)
    prior = Table(5)
    guide = Exact(solution, prior, solution.values)
    agent = ValueGuided(task, ValueGuidedConfig(k=2, prior="policy", temperature=0.5), guide)
    env = TokenEnv(task, segments=True)
    observation, _ = env.reset(options={"prompt": "a b"})
    seen = {name: array[None] for name, array in observation.items()}
    logs, own = agent.log_probs(seen)[0], prior.log_probs(seen)[0]
    best = np.argsort(-own)[:2]
    # One token is the whole answer: Q is what it earns, 1 + 0.25 for a, 0.25 for b and c, 0 for the stop alone.
    weights = np.exp(own[best]) * np.exp(np.array([1.25, 0.25, 0.25, 0.0])[best] / 0.5)
    np.testing.assert_allclose(np.exp(logs[best]), weights / weights.sum())
    assert np.isneginf(np.delete(logs, best)).all()
    assert agent.act(seen, deterministic=True)[0] == best[weights.argmax()]
    assert guide.asked == 0
    greedy = ValueGuided(task, ValueGuidedConfig(k=1), guide)
    assert greedy.log_probs(seen)[0, best[0]] == 0


@pytest.mark.parametrize("written", [0, 1])
@pytest.mark.parametrize("kl", ["exact", "k1", "k2", "k3", "k3-ratio"])
def test_the_critic_is_v_of_the_objective(kl, written):
    """Where nothing was written, one of the prompts is a single token."""
    agent = tiny_agent(tiny_task(), kl=kl)
    with torch.no_grad():
        agent.policy.value_head.weight.normal_(generator=torch.Generator().manual_seed(0))
    agent.value_offset, agent.value_scale = 0.4, 2.0
    env = batch_env(agent.task)
    observation = env.reset(options={"prompt_index": np.array([0, 0, 0, 0, 1, 1, 1, 0])})[0]
    if written:
        observation = env.step(np.array([0, 1, 2, 0, 0, 1, 0, 1]))[0]
    own, reference = agent.log_probs(observation), agent.own_reference().log_probs(observation)
    divergence = (np.exp(own) * (own - reference)).sum(1)
    assert (divergence > 1e-3).all()
    charged = 0.3 * divergence if kl in ("exact", "k2") else 0.0
    np.testing.assert_allclose(critic_of(agent)(observation, None), agent.values(observation) - charged, atol=1e-4)


def test_the_critic_charges_the_kl_of_what_a_grammar_allows():
    task = replace(tiny_task(), mask=odd_grammar)
    agent, env = tiny_agent(task, kl="exact"), batch_env(task, 8)
    env.reset(seed=0, options={"prompt_index": np.arange(8) % 2})
    env.step(np.array([0, 1, 2, 0, 0, 1, 0, 2]))
    observation, masks = env.reset(options={"reset_mask": np.arange(8) > 5, "prompt_index": 1})[0], env.action_masks()
    assert not masks.all()
    places = torch.arange(8), torch.tensor(observation["attention_mask"].sum(1) - 1)
    ids = torch.tensor(observation["input_ids"])
    with torch.no_grad():
        own, base = (
            torch.log_softmax(each.model(ids).logits[places].masked_fill(~torch.tensor(masks), -torch.inf), -1)
            for each in (agent.policy, agent.reference)
        )
    kl = torch.where(torch.tensor(masks), own.exp() * (own - base), 0.0).sum(1).numpy()
    assert (kl > 1e-3).all()
    np.testing.assert_allclose(critic_of(agent)(observation, masks), agent.values(observation) - 0.3 * kl, atol=1e-4)
    assert set(observation["attention_mask"].sum(1)) == {1, 2, 3}
    alone = {name: each[7:] for name, each in observation.items()}
    np.testing.assert_allclose(critic_of(agent)(alone, masks[7:]), agent.values(alone) - 0.3 * kl[7:], atol=1e-4)


@pytest.mark.slow
def test_it_is_saved_with_its_guide(tmp_path):
    agent = tiny_agent(tiny_task())
    env = batch_env(agent.task, 6)
    observation, _ = env.reset(seed=0)
    guided = ValueGuided(agent.task, ValueGuidedConfig(k=3, temperature=0.2), agent)
    guided.save(tmp_path / "guided")
    loaded = load_agent(tmp_path / "guided", env)
    np.testing.assert_array_equal(loaded.log_probs(observation), guided.log_probs(observation))
    agent.save(tmp_path / "ppo")
    made = make_agent("value-guided", env, run=str(tmp_path / "ppo"), k=3, temperature=0.2)
    np.testing.assert_array_equal(made.log_probs(observation), guided.log_probs(observation))


def test_looking_ahead_moves_no_reward_that_learns_and_noise_is_steady():
    task = make_env("textgym/Noisy-v0", 1).unwrapped.task
    before = task.scorer.state_dict()
    agent = ValueGuided(task, ValueGuidedConfig(k=8), Flat(task))
    observation, _ = batch_env(task, 6).reset(seed=0)
    first, again = agent.log_probs(observation), agent.log_probs(observation)
    np.testing.assert_array_equal(first, again)
    assert task.scorer.state_dict() == before


class Flat:
    def __init__(self, task):
        self._size = task.vocabulary.size

    def log_probs(self, observation):
        return np.full((len(observation["input_ids"]), self._size), -np.log(self._size))

    def values(self, observation):
        return np.zeros(len(observation["input_ids"]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda env: make_agent("value-guided", env), "run=None: allowed is the folder"),
        (
            lambda env: ValueGuided(env.task, None, make_agent("random", env)),
            "'random' has no trained critic",
        ),
        (
            lambda env: ValueGuided(env.task, None, make_agent("rloo", env, device="cpu")),
            "'rloo' has no trained critic",
        ),
        (lambda env: ValueGuidedConfig(k=0), "k=0"),
        (lambda env: ValueGuidedConfig(temperature=0.0), "temperature=0.0"),
        (lambda env: ValueGuidedConfig(prior="guide"), "prior='guide'"),
        (
            lambda env: ValueGuided(tiny_task(beta=0.0), None, Flat(env.task)),
            "temperature=0.0: that of the task",
        ),
    ],
)
def test_what_does_not_serve_is_said(make, message, task):
    with pytest.raises(ValueError, match=message):
        make(batch_env(task, 6))


@pytest.mark.slow
def test_the_command_line(tmp_path, capsys):
    env = make_env("textgym/Delayed-v0", 8)
    make_agent("lm-ppo", env, device="cpu").save(tmp_path / "ppo")
    words = ["eval", "Delayed-v0", "--agent", str(tmp_path / "ppo"), "--per-prompt", "2"]
    words += ["--optimum-per-prompt", "4", "--json"]
    code, out, err = run(capsys, *words, "--guide", "4")
    assert code == 0, err
    assert json.loads(out)["kl"] is not None
    assert_one_line(*run(capsys, *words, "--guide", "-1")[::2], "guide=-1", "an integer in 0..")
    make_agent("rloo", env, device="cpu").save(tmp_path / "rloo")
    words[3] = str(tmp_path / "rloo")
    assert_one_line(*run(capsys, *words, "--guide", "4")[::2], "'rloo' has no trained critic")
