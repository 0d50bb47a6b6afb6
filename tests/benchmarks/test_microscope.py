"""The trace of an episode: by hand, against the exact solver, and against independent sums over trajectories."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from benchmarks.microscope_tools import Fixed, Silent, letters, traced
from hypothesis import given, settings
from hypothesis import strategies as st
from solver_tools import (
    WORDS,
    Paid,
    Table,
    bigram,
    completions,
    log_probability,
    odd_grammar,
    score,
    small_task,
)
from textgym_agents import make_agent, make_env
from textgym_benchmarks.microscope.exact import Critic, critic_of
from textgym_benchmarks.microscope.record import TraceRequest, record
from textgym_benchmarks.microscope.trace import parting, trace_json

from textgym import make_task
from textgym.lm.reference import UniformReference
from textgym.solver import policy_values, solve

EVEN = Fixed(0.5, 0.5)


def text_of(tokens):
    """A completion as it is given on the command line."""
    return " ".join(WORDS[token] for token in tokens)


def test_a_trace_by_hand():
    # pi(a) = 3/4, ref(a) = 1/2, beta = 1/2; "a b" pays 1 at its end. KL = 3/4 log 3/2 + 1/4 log 1/2 in both states.
    trace = traced(Fixed(0.75, 0.25, value=0.4), letters(), EVEN, completion="a b")
    first, second = trace.steps
    kl = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert (first.text, second.text, trace.completion) == ("a", "b", "a b")
    assert (first.written, second.written) == ("", "a")
    assert (first.rank, second.rank) == (1, 2)
    assert first.log_ratio == pytest.approx(math.log(1.5))
    assert second.log_ratio == pytest.approx(math.log(0.5))
    assert first.kl == pytest.approx(kl)
    assert first.entropy == pytest.approx(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    assert (first.reward, second.reward) == (0, 1)
    assert trace.kl == second.running_kl == pytest.approx(2 * kl)
    assert trace.objective == pytest.approx(1 - 0.5 * 2 * kl)
    # GAE(1) with V = 0.4: what is still to come, less beta times this token's log-ratio, less V.
    assert second.advantage == pytest.approx(1 - 0.5 * math.log(0.5) - 0.4)
    assert first.advantage == pytest.approx(1 - 0.5 * kl - 0.5 * math.log(1.5) - 0.4)
    # After "a": Q*(a) = 2, Q*(b) = 1, so V* = 1/2 log(1/2 e^4 + 1/2 e^2).
    best = 0.5 * math.log(0.5 * math.exp(4) + 0.5 * math.exp(2))
    assert second.optimal_value == pytest.approx(best)
    assert second.optimal_action_value == pytest.approx(1)
    assert second.regret == pytest.approx(best - (1 - 0.5 * math.log(0.5)))
    means = 0.75 * (2 - 0.5 * math.log(1.5)) + 0.25 * (1 - 0.5 * math.log(0.5))
    assert second.policy_value == pytest.approx(means)
    assert second.state_regret == pytest.approx(best - means)
    assert second.exact_advantage == pytest.approx(1 - 0.5 * math.log(0.5) - means)


def test_without_a_price_of_kl_regret_is_the_gap_to_the_best_token():
    first, second = traced(Fixed(0.75, 0.25), letters(), EVEN, completion="b a", beta=0.0).steps
    assert (first.optimal_value, first.regret) == (2, 1)  # "b" gives one of two words away
    assert second.regret == 0
    assert first.state_regret == pytest.approx(0.25)


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(
    prompt=st.integers(0, 1),
    seed=st.integers(0, 2**32),
    policy=st.integers(0, 50),
    beta=st.sampled_from([0.0, 0.4]),
    gamma=st.sampled_from([1.0, 0.7]),
    grammar=st.booleans(),
)
def test_every_state_is_the_solvers(prompt, seed, policy, beta, gamma, grammar):
    task = small_task(gamma=gamma, mask=odd_grammar if grammar else None)
    agent, reference = Table(policy), bigram()
    trace = traced(agent, task, reference, prompt_index=prompt, seed=seed, beta=beta)
    solution = solve(task, reference, beta, split="train")
    values = policy_values(task, agent, reference, beta, split="train")
    assert trace.known.optimum == pytest.approx(solution.prompt_values[prompt])
    assert trace.known.policy == pytest.approx(values.prompt_objectives[prompt])
    for t, step in enumerate(trace.steps):
        depth, row = solution.tree.find(prompt, trace.tokens[:t])
        _, edge = solution.tree.find(prompt, trace.tokens[: t + 1])
        edges = slice(*solution.tree.levels[depth].first[row : row + 2])
        own, base = np.exp(values.log_policy[depth][edges]), np.exp(values.log_reference[depth][edges])
        assert step.optimal_value == pytest.approx(solution.values[depth][row])
        assert step.optimal_action_value == pytest.approx(solution.action_values[depth][edge])
        assert step.policy_value == pytest.approx(values.values[depth][row])
        assert step.policy_action_value == pytest.approx(values.action_values[depth][edge])
        assert step.exact_advantage == pytest.approx(values.advantages[depth][edge], abs=1e-12)
        assert step.kl == pytest.approx(sum(p * math.log(p / q) for p, q in zip(own, base, strict=True)))
        assert step.entropy == pytest.approx(-sum(p * math.log(p) for p in own))
        paid = step.optimal_action_value - beta * step.log_ratio
        assert step.regret == pytest.approx(step.optimal_value - paid, abs=1e-9)
        assert step.state_regret >= -1e-12
    assert trace.total_return == pytest.approx(score(task, task.encoded("train")[prompt], trace.tokens), abs=1e-12)


def test_log_probabilities_add_up_to_those_of_the_completion():
    task, agent, reference = small_task(), Table(1), bigram()
    for tokens in list(completions())[::5]:
        trace = traced(agent, task, reference, prompt_index=1, completion=text_of(tokens), max_states=0)
        ids = task.encoded("train")[1].ids
        own, base = (log_probability(policy, ids, tokens) for policy in (agent, reference))
        assert trace.tokens == tokens
        assert trace.log_prob == pytest.approx(own)
        assert sum(step.log_ratio for step in trace.steps) == pytest.approx(own - base)
        paid = sum(task.gamma**step.step * step.reward for step in trace.steps)
        assert trace.total_return == trace.steps[-1].running_return == pytest.approx(paid)
        assert trace.objective == pytest.approx(paid - task.beta * sum(step.kl for step in trace.steps))


@pytest.mark.slow
def test_regrets_add_up_to_what_the_policy_lacks():
    task, agent, reference = small_task(gamma=0.9), Table(3), bigram()
    lacking = advantage = 0.0
    for tokens in completions():
        trace = traced(agent, task, reference, prompt_index=0, completion=text_of(tokens))
        mass = math.exp(trace.log_prob)
        lacking += mass * sum(step.state_regret for step in trace.steps)
        advantage += mass * sum(step.exact_advantage for step in trace.steps)
        # Along one completion: beta log pi(y) / pi*(y).
        best = math.exp(trace.log_reference + (trace.total_return - trace.known.optimum) / task.beta)
        along = sum(step.regret for step in trace.steps)
        assert along == pytest.approx(task.beta * math.log(mass / best))
    assert lacking == pytest.approx(trace.known.optimum - trace.known.policy)
    assert advantage == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("beta", [0.0, 0.4])
def test_the_optimum_regrets_nothing(beta):
    task, reference = small_task(), bigram()
    optimum = solve(task, reference, beta, split="train")
    for seed in range(5):
        trace = traced(optimum, task, reference, beta=beta, seed=seed)
        for step in trace.steps:
            assert step.regret == pytest.approx(0, abs=1e-9)
            assert step.state_regret == pytest.approx(0, abs=1e-9)
            assert step.policy_value == pytest.approx(step.optimal_value)


def test_the_likeliest_tokens_stand_side_by_side():
    task, agent, reference = small_task(), Table(2), bigram()
    step = traced(agent, task, reference, prompt_index=0, completion="a", top=1).steps[0]
    own, base = agent.distribution([0]), np.exp(reference.log_probs(task_observation(task)))[0]
    shown = {candidate.token: candidate for candidate in step.candidates}
    assert {int(own.argmax()), int(base.argmax()), 0} <= set(shown)
    descending = sorted((own[token] for token in shown), reverse=True)
    assert [candidate.probability for candidate in step.candidates] == pytest.approx(descending)
    for token, candidate in shown.items():
        assert candidate.text == WORDS[token]
        assert candidate.reference == pytest.approx(base[token])
    assert step.rest == pytest.approx(1 - own[list(shown)].sum())
    assert step.reference_rest == pytest.approx(1 - base[list(shown)].sum())
    assert sum(candidate.optimal for candidate in step.candidates) <= 1 + 1e-12


def task_observation(task):
    ids = np.array([task.encoded("train")[0].ids])
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


@pytest.mark.slow
def test_tokens_are_drawn_from_the_policy_and_shared_between_agents():
    task = letters(max_new_tokens=1)
    near, far = Fixed(0.7, 0.3), Fixed(0.6, 0.4)
    first = {
        agent: [traced(agent, task, EVEN, seed=seed, max_states=0).tokens[0] for seed in range(150)]
        for agent in (near, far)
    }
    assert np.mean(first[near]) == pytest.approx(0.3, abs=3 * math.sqrt(0.21 / 150))
    differs = np.mean(np.array(first[near]) != first[far])
    assert differs <= 0.2  # (1 - sum min) / sum max = 0.18 is the most for shared noise; independent draws: 0.46
    one, again = (traced(near, task, EVEN, seed=9) for _ in range(2))
    assert one == again


def test_where_two_episodes_part():
    task = letters()
    one, other, same = (traced(EVEN, task, EVEN, completion=text) for text in ("a b", "a a", "a b"))
    assert parting(one, other) == 1
    assert parting(one, same) is None
    assert parting(one, replace(one, steps=one.steps[:1])) == 1
    assert trace_json([one, other])["parting"] == 1


def test_the_likeliest_token_is_followed_and_pi_stays_what_it_is():
    step = traced(Fixed(0.75, 0.25), letters(), EVEN, deterministic=True).steps[0]
    assert step.token == 0
    assert step.kl == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))


@pytest.mark.parametrize("pay", ["every", "difference"])
def test_rewards_of_every_prefix(pay):
    task = small_task(reward=Paid(pay))
    trace = traced(Table(0), task, bigram(), prompt_index=0, completion="a b a")
    # `uneven` of the prefixes a, ab, aba with the prompt "a": 1, 1 + 0.3, 2.
    worth = [1, 1.3, 2]
    expected = worth if pay == "every" else np.diff([0, *worth])
    assert [step.reward for step in trace.steps] == pytest.approx(expected)
    potentials = [step.potential for step in trace.steps]
    assert potentials == ([None] * 3 if pay == "every" else pytest.approx(worth))


def test_what_is_not_known_has_a_reason():
    task = small_task()
    trace = traced(Silent(0, 1, 2), task, bigram(), prompt_index=0, max_states=10)
    assert trace.tokens == (0, 1, 2)
    for step in trace.steps:
        for name, value in vars(step).items():
            missing = value is None and name not in ("potential", "running_kl", "rest")
            assert missing == (name in trace.unknown), name
    assert trace.unknown["kl"] == "the agent gives no probabilities"
    assert trace.unknown["optimal_value"].startswith(
        "too many states: the prefix tree has 53 states"
    )  # 1 + 4 + 12 + 36
    assert (trace.kl, trace.objective, trace.known) == (None, None, None)
    known = traced(Silent(0, 1, 2), task, bigram(), prompt_index=0)
    assert known.steps[0].optimal_value == pytest.approx(solve(task, bigram()).prompt_values[0])
    assert known.unknown["policy_value"] == "the agent gives no probabilities"


@pytest.mark.parametrize(
    ("kind", "charged_here", "charged"),
    [("k1", 0, 1), (None, 0, 1), ("exact", 1, 1), ("k2", 1, 1), ("k3", 0, 0), ("k3-ratio", 0, 0)],
)
def test_values_are_put_on_the_scale_of_j(kind, charged_here, charged):
    # "exact" and "k2" leave the KL of the state itself to the loss; a critic of k3 counts rewards alone.
    first, second = traced(Fixed(0.75, 0.25, value=0.4, kl=kind), letters(), EVEN, completion="a a").steps
    kl = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    value = 0.4 - charged_here * 0.5 * kl
    assert first.value == pytest.approx(value)
    assert second.advantage == pytest.approx(2 - charged * 0.5 * math.log(1.5) - value)
    assert first.advantage == pytest.approx(2 - charged * 0.5 * (kl + math.log(1.5)) - value)


def test_values_are_those_of_time_0():
    first, second = traced(Fixed(0.75, 0.25, value=0.4), letters(gamma=0.5), EVEN, completion="a a").steps
    assert (first.value, second.value) == (0.4, 0.4)
    assert second.running_return == 1
    assert second.advantage == pytest.approx(1 - 0.5 * math.log(1.5) - 0.4)


def test_what_the_reference_never_writes_costs_infinitely_much_and_stays_json():
    trace = traced(Fixed(0.5, 0.5), letters(), Fixed(1.0, 0.0), completion="b a")
    assert trace.steps[0].log_ratio == trace.steps[0].kl == trace.kl == math.inf
    assert trace.steps[0].regret == math.inf
    text = json.dumps(trace_json([trace]), allow_nan=False)
    assert json.loads(text)["traces"][0]["kl"] == "inf"
    assert json.loads(text)["traces"][0]["objective"] == "-inf"


def test_without_a_price_an_infinite_kl_costs_nothing():
    trace = traced(Fixed(0.5, 0.5), letters(), Fixed(1.0, 0.0), completion="b a", beta=0.0)
    assert (trace.kl, trace.objective) == (math.inf, trace.total_return)
    free, charged = (Critic(lambda observation: np.array([0.5]), "later", charge) for charge in (0.0, 0.1))
    assert free.value({}, math.inf) == 0.5
    assert charged.value({}, 2.0) == pytest.approx(0.3)
    assert charged.value({}, math.inf) == -math.inf


def test_looking_moves_no_reward_that_learns():
    task = letters(reward={"name": "running_norm", "reward": {"name": "length", "target": 1}})
    before = task.scorer.state_dict()
    traced(EVEN, task, EVEN, max_states=0)
    assert task.scorer.state_dict() == before


def test_a_prompt_of_ones_own():
    task = letters(prompts=["a", "b"], max_prompt_tokens=2, columns={"bonus": [1, 2]}, reward=bonus)
    assert traced(EVEN, task, EVEN, prompt="b").total_return == 2
    mine = traced(EVEN, task, EVEN, prompt="a b")
    assert (mine.prompt_index, mine.total_return) == (None, 0)
    assert mine.known.optimum == pytest.approx(0)


def bonus(prompts, completions, bonus, **columns):
    return [float(value or 0) for value in bonus]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a z", "'z' is not a word"),
        ("a b a b", "it has 4 tokens, allowed are 1..3"),
        ("<end> a", "'<end>' is not a word"),
    ],
)
def test_completions_that_cannot_be_written(text, words):
    with pytest.raises(ValueError, match=r"completion '.*': ") as error:
        traced(Table(), small_task(), bigram(), prompt_index=0, completion=text)
    assert words in str(error.value)


def test_a_completion_that_the_grammar_forbids():
    with pytest.raises(ValueError, match="its token 0 \\('b'\\) is not one that the task allows there"):
        traced(Table(), small_task(mask=odd_grammar), bigram(), prompt_index=0, completion="b")


def test_a_completion_without_a_stop_token_fills_its_budget():
    with pytest.raises(ValueError, match="it has 1 tokens, allowed are exactly 2, there being no stop token"):
        traced(EVEN, letters(), EVEN, completion="a")


@pytest.mark.parametrize(
    "options",
    [
        {"seed": -1},
        {"top": 0},
        {"max_states": -1},
        {"beta": -0.1},
        {"beta": math.nan},
        {"prompt": "a", "prompt_index": 0},
        {"deterministic": True, "completion": "a"},
    ],
)
def test_requests_that_make_no_sense(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        TraceRequest(**options)


@pytest.mark.parametrize("row", [(0.5, 0.6), (math.nan, 1.0)])
def test_a_policy_that_is_no_distribution(row):
    with pytest.raises(ValueError, match="log_probs at step 0: probabilities sum to"):
        traced(Fixed(*row), letters(), UniformReference(np.array([True, True])))


def test_what_the_environment_wrote_stands_behind_the_turn():
    task = make_task("TwentyQuestions", difficulty=1)
    uniform = UniformReference(task.vocabulary.allowed)
    traces = [record(uniform, task, uniform, TraceRequest(seed=seed)) for seed in range(20)]
    trace = next(each for each in traces if [step.text for step in each.steps][:1] == ["<1"] and len(each.steps) == 2)
    first, second = trace.steps
    assert first.reply in (("yes",), ("no",))
    assert first.reply_ids == (task.vocabulary.codec.token_id(first.reply[0]),)
    assert second.reply[0] in ("right", "wrong", "yes", "no")
    assert (first.written, second.written) == ("", f"<1 {first.reply[0]}")
    assert trace.completion == f"<1 {first.reply[0]} {second.text} {second.reply[0]}"
    # By hand, beta 0.05 and cost 0.05. Told, the right number is worth 0.95, the wrong one -0.05, to ask again -0.1.
    beta, ask = task.beta, task.reward.cost
    told = beta * math.log((math.exp((1 - ask) / beta) + math.exp(-ask / beta) + math.exp(-2 * ask / beta)) / 3)
    assert second.optimal_value == pytest.approx(told)
    assert first.optimal_action_value == pytest.approx(told)  # the mean over yes and no, which are alike
    guess = 0.5
    assert first.optimal_value == pytest.approx(
        beta * math.log((math.exp(told / beta) + 2 * math.exp(guess / beta)) / 3)
    )
    assert trace.tokens == (first.token, second.token)
    assert parting(trace, trace) is None
    assert trace_json([trace])["traces"][0]["steps"][0]["reply"] == [*first.reply]
    with pytest.raises(ValueError, match="'TwentyQuestions' writes, too; allowed is to sample one"):
        record(uniform, task, uniform, TraceRequest(completion="<1"))


def test_the_kl_that_a_value_head_leaves_out_is_charged_at_the_beta_of_the_agent():
    env = make_env("textgym/Stop-v0", 8)
    agent = make_agent("lm-ppo", env, beta=1.0, kl="exact", model="table", batch=64, device="cpu")
    agent.learn(env, 128)
    found = critic_of(agent, env.unwrapped.task.beta)
    assert (found.counts, found.charge) == ("later", 1.0)
    assert "V - 1 KL(s) with the agent's beta" in found.meaning
    task = env.unwrapped.task
    trace = record(agent, task, agent.reference, TraceRequest(seed=1))
    seen, _ = make_env("textgym/Stop-v0", 1).reset(options={"prompt_index": trace.prompt_index})
    assert trace.steps[0].value == pytest.approx(float(agent.values(seen)[0]) - trace.steps[0].kl)
