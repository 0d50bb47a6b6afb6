"""The tiny language model of tasks without one: it starts as the task's reference, and it learns."""

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from textgym_agents.algorithms.ppo import LMPPO
from textgym_agents.config import LMPPOConfig
from textgym_agents.lm import tiny
from textgym_agents.lm.tiny import TOLERANCE, start_model, tiny_model
from textgym_agents.registry import load_agent, make_agent, make_env

from textgym.lm.causal import CausalLM
from textgym.lm.reference import NGramReference, UniformReference
from textgym.solver import policy_values, prefix_tree, solve
from textgym.task import has_language_model, make_reference, make_task, reference_model
from textgym.vector import TokenVectorEnv

WORDS = ("a", "b", "c", "<end>")


def table(*shape, seed=0, sharpness=1.0):
    logits = sharpness * np.random.default_rng(seed).normal(size=shape)
    return np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)


def word_task(reference, **options):
    settings = {
        "prompts": ["a b", "c a"],
        "tokenizer": WORDS,
        "stop": "<end>",
        "max_new_tokens": 4,
        **options,
    }
    return make_task("Text", reference=reference, **settings)


def divergences(task, model):
    """KL(reference || model) in every running state of the task, nats, by a forward pass of its own."""
    reference, tree = make_reference(task), prefix_tree(task)
    allowed = torch.tensor(task.vocabulary.allowed)
    result = []
    for depth, level in enumerate(tree.levels[:-1]):
        for row in np.flatnonzero(~level.finished):
            prompt = task.encoded("train")[int(tree.prompt_of[depth][row])]
            own = tree.completions(depth, np.array([row]))[0].tolist() if depth else []
            ids = np.array([[*prompt.ids, *own]])
            with torch.no_grad():
                logits = model(torch.tensor(ids)).logits[0, -1].double()[allowed]
            target = reference.log_probs({"input_ids": ids, "attention_mask": np.ones_like(ids)})[0]
            target = torch.tensor(target)[allowed]
            result.append(float((target.exp() * (target - torch.log_softmax(logits, -1))).sum()))
    return np.array(result)


@pytest.mark.parametrize("name", ["Bandit", "Stop", "BigVocab", "Recall"])
def test_it_is_exactly_uniform_where_the_reference_is(name):
    task = make_task(name)
    agent = CausalLM(tiny_model(task), task.vocabulary.allowed, device="cpu")
    prompt = task.encoded("train")[0]
    ids = np.array([prompt.ids])
    observation = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    expected = np.exp(make_reference(task).log_probs(observation))
    np.testing.assert_allclose(np.exp(agent.log_probs(observation)), expected, rtol=1e-6, atol=1e-30)


@pytest.mark.slow
def test_a_table_of_pairs_is_met_to_float32():
    assert divergences(make_task("TwoModes"), tiny_model(make_task("TwoModes"))).max() < 1e-9
    for probabilities in (table(4, 4, sharpness=4.0), table(4)):
        task = word_task(NGramReference(probabilities))
        assert divergences(task, tiny_model(task)).max() < 1e-9


def test_a_table_without_context_has_a_row_for_every_state():
    ids = np.array([[0, 1], [2, 3]])
    logs = NGramReference(table(4)).log_probs({"input_ids": ids, "attention_mask": np.ones_like(ids)})
    np.testing.assert_allclose(np.exp(logs), [table(4), table(4)])


@pytest.mark.long
@pytest.mark.slow
def test_other_tables_are_distilled_to_the_tolerance():
    task = word_task(NGramReference(table(4, 4, 4)))
    # The tolerance is for random states, these are all of them.
    assert divergences(task, tiny_model(task)).mean() < 2 * TOLERANCE
    assert divergences(task, tiny_model(word_task("uniform"))).mean() > 50 * TOLERANCE


@pytest.mark.long
def test_any_object_with_log_probs_is_a_reference():
    class Wrapped:
        """A table of pairs that nobody can see is one."""

        def __init__(self):
            self.log_probs = NGramReference(table(4, 4)).log_probs

    task = word_task(Wrapped())
    assert make_reference(task) is task.reference
    assert not has_language_model(task)
    assert divergences(task, tiny_model(task)).mean() < 2 * TOLERANCE


def test_what_no_model_can_be_is_refused(monkeypatch):
    impossible = table(4, 4)
    impossible[1] = [1.0, 0.0, 0.0, 0.0]
    with pytest.raises(ValueError, match="an allowed token probability 0"):
        tiny_model(word_task(NGramReference(impossible)))
    monkeypatch.setattr(tiny, "_STEPS", 1)
    with pytest.raises(ValueError, match=r"reference='3-gram' .* nats per state away, allowed is 0.001"):
        tiny_model(word_task(NGramReference(table(4, 4, 4))))
    with pytest.raises(ValueError, match="reference='3-gram' of task 'Text' is no language model"):
        reference_model(word_task(NGramReference(table(4, 4, 4))))


def test_a_narrower_uniform_reference_is_not_taken_for_the_task_s():
    with pytest.raises(ValueError, match="probability 0"):
        tiny_model(word_task(UniformReference(np.array([True, True, False, True]))))


def test_its_weights_come_from_the_seed_and_from_nothing_else():
    task = make_task("Stop")
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = tiny_model(task, seed=3).state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    again, other = tiny_model(task, seed=3).state_dict(), tiny_model(task, seed=4).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["model.embed_tokens.weight"], other["model.embed_tokens.weight"])
    assert sum(tensor.numel() for tensor in first.values()) < 25_000


def test_a_named_model_or_a_reference_that_is_one_comes_first():
    helpful = make_task("Helpful")
    assert start_model(helpful).config.vocab_size == 1024
    assert start_model(make_task("Bandit"), str(reference_model(helpful))).config.vocab_size == 1024
    assert start_model(make_task("Bandit")).config.vocab_size == 33


@pytest.mark.parametrize("name", ["Stop", "TwoModes"])
def test_an_agent_starts_with_no_kl_and_the_reference_s_value(name):
    task = make_task(name)
    agent = LMPPO(task, LMPPOConfig(device="cpu"))
    values = policy_values(task, agent)
    assert values.objective == pytest.approx(solve(make_task(name), split="eval").reference_objective, abs=1e-5)
    assert values.kl == pytest.approx(0.0, abs=1e-6)


@pytest.mark.long
def test_ppo_learns_a_diagnostic_without_being_told_anything():
    task = make_task("Bandit", difficulty=3)
    agent = LMPPO(task, LMPPOConfig(device="cpu", learning_rate=3e-3))
    agent.learn(TokenVectorEnv(task, 256, autoreset_mode=AutoresetMode.DISABLED), 4_000)
    assert solve(task).optimality(policy_values(task, agent).objective) > 0.9


@pytest.mark.slow
def test_it_is_saved_and_read_like_any_other_model(tmp_path):
    env = make_env("textgym/TwoModes-v0", 32)
    agent = make_agent("lm-ppo", env, batch=32, device="cpu")
    agent.learn(env, 64)
    agent.save(tmp_path / "agent")
    again = load_agent(tmp_path / "agent", env)
    observation, _ = env.reset(seed=0)
    np.testing.assert_array_equal(agent.log_probs(observation), again.log_probs(observation))
    for each in (agent, again):
        each.learn(env, 32)
    np.testing.assert_array_equal(agent.log_probs(observation), again.log_probs(observation))


def test_a_table_as_reference_keeps_its_rows_in_any_precision():
    generator = np.random.default_rng(0)
    table = generator.dirichlet(np.ones(6), 6)
    task = make_task(
        "Text",
        prompts=["a b", "c a"],
        tokenizer=["a", "b", "c", "d", "e", "<end>"],
        stop="<end>",
        max_new_tokens=4,
        reference=NGramReference(table),
        reward="length",
    )  # of 316 states, and bfloat16 knows integers up to 256
    env = TokenVectorEnv(task, 16, autoreset_mode=AutoresetMode.DISABLED)
    env.reset(seed=0)
    settings = {"batch": 16, "minibatches": 1, "device": "cpu", "model": "table", "learning_rate": 1e-9}
    rows = []
    make_agent("lm-ppo", env, **settings, reference_precision="bfloat16").learn(env, 16, rows.append)
    assert rows[0]["objective/kl"] == pytest.approx(0, abs=1e-5)
