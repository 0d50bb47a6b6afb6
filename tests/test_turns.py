"""Turns: who wrote what, what the solver says of chance, and what a policy can know of what is hidden."""

from __future__ import annotations

from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st

from textgym import TokenEnv, TokenVectorEnv, make_task
from textgym.evaluate import evaluate
from textgym.lm.reference import UniformReference
from textgym.optimum import optimum_of
from textgym.planning import Tree
from textgym.rewards.base import NamedReward
from textgym.sampling import play
from textgym.solver import UnsolvableError, policy_values, prefix_tree, solve
from textgym.state import ENVIRONMENT, POLICY, PROMPT, TokenState
from textgym.task import Task
from textgym.turns import Reply, Turns, written_by

TASKS = ("TwentyQuestions", "Clarify")


class Echo:
    """Repeats the turn behind a mark; it answers with as many tokens as it got, and hides a number that it adds."""

    def __init__(self, mark=5, weights=(1.0,), ends_after=None):
        self.mark, self._weights, self.ends_after = mark, weights, ends_after

    def weights(self, prompt):
        return self._weights

    def replies(self, states):
        return [
            Reply((self.mark + (state.hidden or 0), *state.turn[:2]), state.replies + 1 == self.ends_after)
            for state in states
        ]


class CountsTurns(NamedReward):
    """Pays for every turn of the policy, and for every a in one."""

    name = "turns"

    def __call__(self, prompts, completions, **columns):
        said = [[text for author, text in each if author == "policy"] for each in columns["turns"]]
        return [len(texts) + sum(text.split().count("a") for text in texts) for texts in said]


def ragged(responder=None, most=3, tokens=3, close=(), **options) -> Task:
    """A task over a b c d e f whose turns end with f, or after three tokens."""
    base = make_task("Copy", difficulty=2)
    turns = Turns(responder or Echo(), most, tokens, reply_tokens=3, ends=(5,), close=close)
    return replace(base, turns=turns, max_new_tokens=turns.room, reward=CountsTurns(), gold=None, **options)


def soft(values, beta):
    """beta log of the mean of exp(v / beta): a state's value under a uniform reference."""
    values = np.array(values)
    return values.max() + beta * np.log(np.mean(np.exp((values - values.max()) / beta)))


@pytest.mark.parametrize("name", TASKS)
def test_gymnasiums_checker_has_nothing_to_say(name, recwarn):
    check_env(gym.make(f"textgym/{name}-v0").unwrapped)
    assert not recwarn.list


def test_tokens_of_both_stand_in_the_state():
    env = TokenEnv(ragged(), segments=True)
    env.reset(options={"prompt_index": 0})
    prompt = len(env.get_state().prompt.ids)
    observation, reward, ended, _, info = env.step(0)
    assert (reward, ended, info) == (0.0, False, {})
    observation, *_ = env.step(5)  # ends the turn: the environment writes its mark and the turn
    assert observation["input_ids"][prompt : prompt + 5].tolist() == [0, 5, 5, 0, 5]
    segments = observation["segment_ids"].tolist()
    assert segments == [PROMPT] * prompt + [POLICY] * 2 + [ENVIRONMENT] * 3 + [0] * (len(segments) - prompt - 5)
    for token in (1, 2, 0):
        assert env.get_state().finish_reason is None
        observation, reward, ended, _, info = env.step(token)  # the budget ends this turn
    assert env.get_state().completion[5:] == (1, 2, 0, 5, 1, 2)
    assert (ended, env.get_state().replies) == (False, 2)
    for token in (0, 0, 5):
        observation, reward, ended, _, info = env.step(token)
    assert (ended, reward) == (True, 3 + 4)
    assert info["finish_reason"] == "stop"
    assert info["completion"].split() == [
        "a",
        "f",
        "f",
        "a",
        "f",
        "b",
        "c",
        "a",
        "f",
        "b",
        "c",
        "a",
        "a",
        "f",
        "f",
        "a",
        "a",
    ]


def test_the_environment_closes_a_turn_that_its_budget_cut_off():
    env = TokenEnv(ragged(close=(4,)))
    env.reset(seed=0)
    for token in (0, 0, 0):
        env.step(token)
    assert env.get_state().completion[3:] == (4, 5, 0, 0)  # closed, then answered
    env.step(5)
    assert env.get_state().completion[7:] == (5, 5, 5)  # closed by itself


def test_an_environment_that_ends_an_episode_has_stopped_it():
    env = TokenEnv(ragged(Echo(ends_after=1)))
    env.reset(seed=0)
    results = [env.step(0) for _ in range(3)]
    assert [result[2] for result in results] == [False, False, True]
    assert results[-1][4]["finish_reason"] == "stop"


def test_every_turn_has_its_whole_budget():
    class Nods(Echo):
        def replies(self, states):
            return [Reply((2,)) for _ in states]

    env = TokenEnv(ragged(Nods(), tokens=4))
    env.reset(seed=0)
    env.step(5)  # ends its turn long before the budget
    for _ in range(4):
        assert env.get_state().replies == 1
        env.step(0)
    assert env.get_state().replies == 2


def test_turns_that_run_out_are_a_matter_of_length():
    env = TokenEnv(ragged(most=1))
    env.reset(seed=0)
    *_, last = [env.step(0) for _ in range(3)]
    assert last[2]
    assert last[4]["finish_reason"] == "length"


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("task", [*TASKS, "ragged"])
def test_one_at_a_time_and_side_by_side_are_the_same(task, mode):
    made = ragged(Echo(mark=2, weights=(0.3, 0.3, 0.4))) if task == "ragged" else make_task(task)
    vector = TokenVectorEnv(made, 5, autoreset_mode=mode, segments=True)
    apart = SyncVectorEnv([lambda: TokenEnv(made, segments=True)] * 5, autoreset_mode=mode)
    generator = np.random.default_rng(0)
    first, second = vector.reset(seed=3), apart.reset(seed=3)
    over = np.zeros(5, dtype=bool)
    for _ in range(120):
        for name, array in first[0].items():
            assert (array == second[0][name]).all()
        if mode is AutoresetMode.DISABLED and over.any():
            options = {"reset_mask": over}
            first, second = vector.reset(options=options), apart.reset(options=options)
            over = np.zeros(5, dtype=bool)
            continue
        actions = generator.choice(np.flatnonzero(made.vocabulary.allowed), 5)
        first, second = vector.step(actions), apart.step(actions)
        for one, other in zip(first[1:4], second[1:4], strict=True):
            assert (one == other).all()
        over = first[2].copy()


def test_set_state_goes_on_bit_for_bit_with_what_is_hidden():
    task = make_task("TwentyQuestions", difficulty=3)
    env, other = TokenEnv(task), TokenEnv(task)
    env.reset(seed=7)
    env.step(3)
    state = env.get_state()
    other.set_state(state)
    assert other.get_state() == state
    for token in (1, 5, 9):
        one, two = env.step(token), other.step(token)
        assert (one[0]["input_ids"] == two[0]["input_ids"]).all()
        assert one[1:3] == two[1:3]


def test_what_is_known_of_the_number_is_bayes_rule():
    task = make_task("TwentyQuestions", difficulty=3)
    turns, env = task.turns, TokenEnv(task)
    env.reset(seed=0)
    assert turns.beliefs(env.get_state()) == pytest.approx(np.full(8, 1 / 8))
    hidden = env.get_state().hidden
    env.step(3)  # <4
    env.step(5)  # <6
    state = env.get_state()
    possible = [k for k in range(8) if (k < 4) == (hidden < 4) and (k < 6) == (hidden < 6)]
    assert turns.beliefs(state) == pytest.approx([(k in possible) / len(possible) for k in range(8)])
    generator = np.random.default_rng(0)
    drawn = [turns.redraw(state, generator) for _ in range(400)]
    assert {each.hidden for each in drawn} == set(possible)
    assert {replace(each, hidden=None) for each in drawn} == {replace(state, hidden=None)}
    with pytest.raises(ValueError, match="does not write what stands"):
        turns.beliefs(replace(state, completion=(3, 15, 5, 0)))


def test_the_smallest_game_by_hand():
    beta, cost = 0.05, 0.05
    solution = solve(make_task("TwentyQuestions", difficulty=1))
    # The words are <1, 0 and 1. In the second turn the number is known; asking again ends it unanswered.
    second = soft([-2 * cost, 1 - cost, -cost], beta)
    by_hand = soft([second, 0.5, 0.5], beta)
    assert solution.objective == pytest.approx(by_hand, abs=1e-12)
    reference = ((-2 * cost + (1 - cost) - cost) / 3 + 0.5 + 0.5) / 3
    assert solution.reference_objective == pytest.approx(reference, abs=1e-12)


@pytest.mark.parametrize(("difficulty", "greatest"), [(1, 0.95), (2, 0.90), (3, 0.85)])
def test_halving_is_the_best_without_a_price_of_kl(difficulty, greatest):
    task = make_task("TwentyQuestions", difficulty=difficulty)
    assert solve(task, beta=0.0).objective == pytest.approx(greatest, abs=1e-12)


def test_asking_pays_where_the_best_guess_is_worse_than_its_price():
    task = make_task("Clarify", difficulty=3, cost=0.2)
    values = dict(zip([p.text for p in task.encoded("train")], solve(task, beta=0.0).prompt_values, strict=True))
    assert values["paint any"] == pytest.approx(0.8)
    assert values["paint red"] == pytest.approx(1.0)
    assert values["paint mostly red"] == pytest.approx(0.9)  # guessing beats asking: 0.8
    dear = solve(make_task("Clarify", difficulty=3, cost=0.8), beta=0.0)
    assert dear.prompt_values[0] == pytest.approx(1 / 3)


def test_the_formula_over_whole_episodes_is_too_high_where_chance_has_a_say():
    for task, equal in ((make_task("TwentyQuestions", difficulty=2), False), (ragged(most=2, tokens=1), True)):
        solution = solve(task, beta=0.3)
        every = solution.reference.trajectories
        formula = 0.3 * np.log(
            np.bincount(every.prompt, every.probability * np.exp(every.returns / 0.3)) / solution.tree.weights
        )
        gap = formula - solution.prompt_values
        assert (gap > 1e-3).all() if not equal else gap == pytest.approx(0.0, abs=1e-9)


def test_probabilities_of_all_conversations_sum_to_one():
    solution = solve(make_task("Clarify"))
    for values in (solution.optimal, solution.reference):
        assert values.trajectories.probability.sum() == pytest.approx(1, abs=1e-12)


def test_exact_values_are_those_of_play():
    task = make_task("TwentyQuestions", difficulty=2, beta=0.2)
    solution = solve(task)
    episodes = play(solution, task, reference=UniformReference(task.vocabulary.allowed), per_prompt=4000, seed=1)
    for sampled, exact in (
        (episodes.returns, solution.optimal.expected_return),
        (episodes.kl, solution.optimal.kl),
        (episodes.entropy, solution.optimal.entropy),
        (episodes.lengths, solution.optimal.length),
    ):
        error = sampled.std() / np.sqrt(sampled.size)
        assert abs(sampled.mean() - exact) < 4 * error + 1e-9
    found = evaluate(solution, task, optimum=optimum_of(task))
    assert found.optimality.mean == pytest.approx(1.0)


def test_the_reference_costs_no_kl_whatever_the_environment_writes():
    task = make_task("Clarify")
    values = policy_values(task, UniformReference(task.vocabulary.allowed))
    assert values.kl == pytest.approx(0, abs=1e-12)
    # A turn is one of 4 words: log 4 nats each, and which ends no episode.
    assert values.entropy == pytest.approx(np.log(4) * (1 + 1 / 4), abs=1e-12)
    assert values.length == pytest.approx(1 + 1 / 4, abs=1e-12)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=9), st.integers(0, 2), st.integers(1, 3), st.integers(1, 3))
def test_every_state_of_play_stands_in_the_tree(tokens, hidden, most, budget):
    task = ragged(Echo(mark=2, weights=(0.5, 0.25, 0.25)), most=most, tokens=min(budget, 4 - most))
    env, tree = TokenEnv(task, segments=True), _tree(task)
    env.reset(options={"prompt_index": 0})
    env.set_state(replace(env.get_state(), hidden=hidden))
    for token in tokens:
        observation, reward, ended, *_ = env.step(token)
        state = env.get_state()
        depth = len(written_moves(state))
        level = tree.levels[depth]
        texts, places = tree.written(depth, np.arange(len(level.parent)))
        found = [
            row
            for row, (text, place) in enumerate(zip(texts, places, strict=True))
            if tuple(text) == state.completion and place == state.environment and tree.prompt_of[depth][row] == 0
        ]
        assert len(found) == 1
        assert level.finished[found[0]] == ended
        seen = tree.observations(depth, np.array(found))
        assert all((seen[name][0] == array).all() for name, array in observation.items())
        if ended:
            assert level.reward[found[0]] == reward
            break


TREES = {}


def _tree(task):
    key = (task.turns.most, task.turns.tokens)
    if key not in TREES:
        TREES[key] = prefix_tree(replace(task, prompts={"train": _one(task), "eval": _one(task)}))
    return TREES[key]


def _one(task):
    from textgym.prompts import prompt_set

    return prompt_set(task.prompts["train"].texts[:1])


def written_moves(state: TokenState) -> list[object]:
    """The tokens of the policy and the replies of the environment, each one move."""
    moves = []
    for author, ids in written_by(state.completion, state.environment):
        moves += [ids] if author == "environment" else list(ids)
    return moves


def test_pieces_are_cut_where_the_author_changes():
    assert written_by([1, 2, 3, 4, 5], (1, 2, 4)) == [
        ("policy", [1]),
        ("environment", [2, 3]),
        ("policy", [4]),
        ("environment", [5]),
    ]
    assert written_by([1, 2], ()) == [("policy", [1, 2])]
    assert written_by([], ()) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"gamma": 0.9}, "gamma=0.9: in a task with turns allowed is 1"),
        ({"min_new_tokens": 1}, "min_new_tokens=1"),
    ],
)
def test_what_turns_do_not_go_with_is_refused(options, said):
    with pytest.raises(ValueError, match=said):
        ragged(**options)


def test_a_budget_of_its_own_is_refused():
    task = ragged()
    with pytest.raises(ValueError, match="max_new_tokens=7: in a task with turns allowed is 18"):
        replace(task, max_new_tokens=7)


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (Reply(()), "a reply of 0 tokens, allowed are 1 to reply_tokens=3"),
        (Reply((1, 2, 3, 4)), "a reply of 4 tokens"),
        (Reply((99,)), "a reply holds an id outside 0..7"),
        ((1, 2), "allowed is a textgym.turns.Reply"),
    ],
)
def test_a_reply_that_is_none_is_refused(reply, said):
    class Bad(Echo):
        def replies(self, states):
            return [reply for _ in states]

    env = TokenEnv(ragged(Bad()))
    env.reset(seed=0)
    with pytest.raises(ValueError, match=said):
        env.step(5)


@pytest.mark.parametrize("weights", [(0.5, 0.6), (-0.5, 1.5), (), ((1.0,),)])
def test_weights_that_are_none_are_refused(weights):
    with pytest.raises(
        ValueError, match=r"weights .* for the prompt 'copy .*; allowed are numbers >= 0 whose sum is 1"
    ):
        ragged(Echo(weights=weights))


def test_what_would_have_ended_the_episode_is_not_believed():
    class Ends(Echo):
        def replies(self, states):
            return [Reply((2,), ends=state.hidden == 1) for state in states]

    env = TokenEnv(ragged(Ends(weights=(0.5, 0.5))))
    env.reset(options={"prompt_index": 0})
    env.set_state(replace(env.get_state(), hidden=0))
    env.step(5)
    assert env.task.turns.beliefs(env.get_state()).tolist() == [1.0, 0.0]


def test_a_seed_can_be_played_and_neither_solved_nor_searched():
    task = ragged(Echo(weights=None))
    env = TokenEnv(replace(task, turns=replace(task.turns, responder=Seeded())))
    env.reset(seed=0)
    env.step(5)
    with pytest.raises(ValueError, match="what is hidden is a seed"):
        env.task.turns.redraw(env.get_state(), np.random.default_rng(0))
    with pytest.raises(UnsolvableError, match="what its environment hides is a seed"):
        solve(env.task)
    assert optimum_of(env.task).value is None
    assert "overstate" in str(optimum_of(env.task))
    with pytest.raises(ValueError, match="a search takes episodes of one turn"):
        Tree(env)


class Seeded(Echo):
    """Says one of two things by the hidden seed and the number of the turn."""

    def weights(self, prompt):
        return None

    def replies(self, states):
        return [Reply((int(np.random.default_rng([state.hidden, state.replies]).integers(2)),)) for state in states]


@pytest.mark.parametrize("agent", ["best-of-n", "mcts", "alphazero", "vine-ppo", "soft-q", "rejection", "dpo"])
def test_agents_of_one_turn_say_so(agent):
    from textgym_agents.registry import agent_class, make_agent, make_config, make_env

    env = make_env("textgym/Clarify-v0", 4)
    with pytest.raises(ValueError, match=r"answers in turns; .* takes episodes of one turn, docs/turns.md"):
        make_agent(agent, env, make_config(agent_class(agent), {}))


def test_the_exact_gradient_is_that_of_finite_differences():
    import torch
    from textgym_agents.exact.objective import EnumeratedPolicy, policy_gradient
    from textgym_agents.registry import agent_class, make_agent, make_config, make_env

    env = make_env("textgym/TwentyQuestions-v0", 4, difficulty=1)
    agent = make_agent("rloo", env, make_config(agent_class("rloo"), {"seed": 0}))
    agent.policy.double()
    task = env.unwrapped.task
    parameters = [each for each in agent.policy.parameters() if each.requires_grad]
    found = policy_gradient(task, agent).gradient
    direction = torch.randn(found.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    start = torch.nn.utils.parameters_to_vector(parameters).detach().clone()

    tree = prefix_tree(task)
    edges = EnumeratedPolicy(agent).edges(tree, 1, tree.levels[1].running)
    assert edges.detach().numpy() == pytest.approx(np.log(np.full(6, 0.5)))  # of what the environment writes

    def moved(by: float) -> float:
        torch.nn.utils.vector_to_parameters(start + by * direction, parameters)
        return policy_gradient(task, agent).values.objective

    assert (moved(1e-4) - moved(-1e-4)) / 2e-4 == pytest.approx(float(direction @ found), rel=1e-4)


def test_a_rollout_holds_the_policys_tokens_alone():
    from textgym_agents.lm.rollout import collect
    from textgym_agents.registry import agent_class, make_agent, make_config, make_env

    env = make_env("textgym/TwentyQuestions-v0", 16, difficulty=2)
    agent = make_agent("lm-ppo", env, make_config(agent_class("lm-ppo"), {"seed": 0}))
    rollout = collect(env, agent.policy, 3, ())
    states = env.unwrapped.get_states()
    authors = [np.array(state.authors) for state in states]
    assert rollout.lengths.tolist() == [int((each == POLICY).sum()) for each in authors]
    assert max(state.replies for state in states) > 1
    for row, column, action in zip(rollout.rows, rollout.columns, rollout.actions.tolist(), strict=True):
        assert authors[row][column + 1] == POLICY  # what was chosen behind the state stands there
        assert states[row].tokens[column + 1] == action
    # The log-probability of each is that of the plain forward pass of the whole row.
    logs, _ = agent.policy.states(rollout.input_ids, *(_tensor(each) for each in (rollout.rows, rollout.columns)))
    plain = logs.log_softmax(-1).gather(1, rollout.actions[:, None]).squeeze(1)
    assert plain.detach().numpy() == pytest.approx(rollout.log_probs.numpy(), abs=1e-5)


def _tensor(array):
    import torch

    return torch.tensor(array)


def curious(conversations):
    return [f"Why {conversation[-1]['content'].split(' ')[0]}?" for conversation in conversations]


def test_a_user_of_texts_writes_in_the_chat_template():
    env = TokenEnv("Text", prompts=["What do you like?"], responder=curious, turns=2, turn_tokens=4)
    vocabulary = env.task.vocabulary
    token = {vocabulary.token_text(i): i for i in range(vocabulary.size)}
    env.reset(seed=0)
    for text in (" People", "<|end|>"):
        env.step(token[text])
    after = env.get_state().completion[2:]
    assert after == vocabulary.encode_prompt("Why People?")
    env.reset(seed=0)
    for text in (" People", " are", " are", " are"):
        env.step(token[text])
    assert env.get_state().completion[4:] == (token["<|end|>"], *vocabulary.encode_prompt("Why People?"))


@pytest.mark.learning
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("agent", ["lm-ppo", "rloo"])
def test_policy_gradients_learn_to_ask(agent, seed):
    from textgym_agents.registry import agent_class, make_agent, make_config, make_env

    env = make_env("textgym/Clarify-v0", 256)
    learner = make_agent(agent, env, make_config(agent_class(agent), {"seed": seed}))
    env.reset(seed=seed)
    learner.learn(env, 8192)
    task = env.unwrapped.task
    assert evaluate(learner, task, optimum=optimum_of(task)).optimality.mean >= 0.9


@pytest.mark.parametrize("template", ["chatml", "llama-3", "gemma", "mistral"])
def test_a_conversation_of_turns_is_the_templates_own(template):
    from chat_tools import chat_tokenizer

    tokenizer = chat_tokenizer("byte-level", template)
    end = {"chatml": "<|im_end|>", "llama-3": "<|eot_id|>", "gemma": "<end_of_turn>", "mistral": "</s>"}[template]
    heard = []

    def reply(conversations):
        heard.extend(conversations)
        return ["what is it?" for _ in conversations]

    env = TokenEnv("Text", prompts=["Say Hello"], tokenizer=tokenizer, stop=end, responder=reply, turn_tokens=20)
    said = [
        *tokenizer(" " * (template == "mistral") + "Hello world", add_special_tokens=False)["input_ids"],
        tokenizer.convert_tokens_to_ids(end),
    ]
    env.reset(seed=0)
    for token in said:
        env.step(token)
    messages = [
        {"role": "user", "content": "Say Hello"},
        {"role": "assistant", "content": "Hello world"},
    ]
    assert heard == [messages]
    messages.append({"role": "user", "content": "what is it?"})
    whole = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert tokenizer.decode(env.get_state().tokens) == whole
    # A turn that its budget cuts off is ended by the environment.
    env = TokenEnv(
        "Text", prompts=["Say Hello"], tokenizer=tokenizer, stop=end, responder=reply, turn_tokens=len(said) - 1
    )
    env.reset(seed=0)
    for token in said[:-1]:
        env.step(token)
    assert tokenizer.decode(env.get_state().tokens) == whole


def test_a_template_that_rewrites_earlier_turns_is_refused():
    from chat_tools import chat_tokenizer

    tokenizer = chat_tokenizer("byte-level", "chatml")
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content if loop.last else m.content | upper }}"
        "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    with pytest.raises(ValueError, match="the chat template writes earlier turns anew"):
        TokenEnv("Text", prompts=["Hello"], tokenizer=tokenizer, stop="<|im_end|>", responder=curious)
