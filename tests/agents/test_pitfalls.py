"""What must hold of PPO on language models, each statement checked on a running agent."""

import copy

import numpy as np
import pytest
import torch
from agents.enumerated import STOP, count_a, first_metrics, tiny_agent, tiny_task
from gymnasium.vector import AutoresetMode
from lm.tiny_models import tiny_gpt2, tiny_llama
from textgym_agents.algorithms.ppo import LMPPO
from textgym_agents.config import LMPPOConfig
from textgym_agents.lm.maths import make_targets, penalties, scores
from textgym_agents.lm.metrics import UpdateMeter
from textgym_agents.lm.rollout import collect, micro_batches, score_reference, token_kl

from textgym import TokenVectorEnv, make_task
from textgym.lm.categorical import statistics


def batch_of(agent, env, seed=0):
    kind = agent.config.kl
    rollout = collect(env, agent.policy, seed, agent.task.vocabulary.stop_ids, keep_features=kind == "exact")
    reference = score_reference(agent.reference, rollout, 64, kind == "exact")
    kl = token_kl(rollout, agent.policy, agent.reference, reference, kind)
    config = agent.config
    targets = make_targets(rollout, kl, kind, agent.controller.beta, 1.0, config.lam, config.whiten, 1.0)
    return rollout, reference, targets


def gradient_of(agent, rollout, reference, targets, size):
    agent.policy.zero_grad()
    rows = np.arange(len(rollout.lengths))
    for part in micro_batches(rollout, rows, size):
        agent._add_gradient(part, rollout, targets, reference, UpdateMeter(), len(rollout.rows))
    return torch.cat([p.grad.flatten().clone() for p in agent.policy.parameters()])


@pytest.mark.parametrize("kl", ["exact", "k1", "k2", "k3", "k3-ratio"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_1_and_2_the_first_ratio_is_one_and_nothing_is_clipped(env, task, kl, temperature):
    agent = tiny_agent(task, kl=kl, temperature=temperature, minibatches=4)
    metrics = first_metrics(agent, env)
    assert metrics["val/first_ratio"] == pytest.approx(1.0, abs=1e-5)
    assert metrics["val/first_clipfrac"] == 0.0


def test_2_masked_tokens_are_never_sampled_and_get_no_probability():
    task = tiny_task(vocab_size=7)  # three padding rows in the embedding
    agent = LMPPO(task, LMPPOConfig(batch=64, minibatches=1, device="cpu"), model=tiny_llama(7))
    env = TokenVectorEnv(task, 64, autoreset_mode=AutoresetMode.DISABLED)
    rollout = collect(env, agent.policy, 0, task.vocabulary.stop_ids, keep_features=True)
    assert int(rollout.actions.max()) < 4
    assert float(agent.policy.distribution(rollout.features).exp()[:, 4:].max()) == 0.0
    reference = score_reference(agent.reference, rollout, 64, True)
    assert float(agent.reference.distribution(reference).exp()[:, 4:].max()) == 0.0


def test_3_policy_equals_reference_at_the_start_and_the_reference_never_moves(env, task):
    agent = LMPPO(task, LMPPOConfig(batch=16, minibatches=2, device="cpu"), model=tiny_llama(4))
    ids, rows, columns = torch.tensor([[0, 1, 2]]), torch.tensor([0]), torch.tensor([2])
    assert torch.equal(agent.policy.states(ids, rows, columns)[0], agent.reference.states(ids, rows, columns)[0])
    before = copy.deepcopy(agent.reference.state_dict())
    metrics = first_metrics(agent, env)
    assert abs(metrics["objective/kl"]) < 1e-5
    agent.learn(env, 64)
    for name, value in agent.reference.state_dict().items():
        assert torch.equal(value, before[name])
    assert not torch.equal(agent.policy.model.lm_head.weight, agent.reference.model.lm_head.weight)


def test_4_dropout_is_off_while_acting_and_scoring(env, task):
    model = tiny_gpt2(4).train()
    assert model.config.resid_pdrop > 0
    agent = LMPPO(task, LMPPOConfig(batch=16, minibatches=1, device="cpu"), model=model)
    assert first_metrics(agent, env)["val/first_ratio"] == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("bigger", [4, 9])
def test_5_14_and_15_more_padding_changes_nothing(bigger):
    outcomes = []
    for width in (2, bigger):
        task = tiny_task(max_prompt_tokens=width)
        agent = tiny_agent(task, whiten=True)
        env = TokenVectorEnv(task, 16, autoreset_mode=AutoresetMode.DISABLED)
        rollout, reference, targets = batch_of(agent, env)
        padded = torch.nn.functional.pad(rollout.input_ids, (0, bigger - width))
        rollout = type(rollout)(**{**rollout.__dict__, "input_ids": padded})
        gradient = gradient_of(agent, rollout, reference, targets, 64)
        outcomes.append((rollout.log_probs, rollout.values, targets.advantages, torch.tensor(targets.kl), gradient))
    for got, want in zip(*outcomes, strict=True):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)


def test_6_pad_equal_to_stop_changes_nothing(env, task):
    # The task of this file has one control token, and it is both.
    assert task.vocabulary.pad_id == STOP == task.vocabulary.stop_ids[0]
    agent = tiny_agent(task)
    rollout, _, _ = batch_of(agent, env)
    ended = np.flatnonzero(rollout.stopped)
    assert len(ended) > 0
    for row in ended:
        actions = rollout.actions[torch.tensor(rollout.rows == row)].tolist()
        assert actions.count(STOP) == 1
        assert actions[-1] == STOP


def test_7_the_stop_action_gets_its_gradient_and_nothing_after_it_does(env, task):
    agent = tiny_agent(task, temperature=10.0)  # no probability is so near 1 that its gradient rounds to 0
    rollout, _, _ = batch_of(agent, env)
    (part,) = micro_batches(rollout, np.arange(16), 16, by_length=False)
    assert len(part.rows) == rollout.lengths.sum() < part.input_ids.numel()
    logits, _ = agent.policy.states(part.input_ids, part.rows, part.columns)
    logits.retain_grad()
    taken, _, _ = statistics(logits, rollout.actions[part.states])
    taken.sum().backward()
    last = np.cumsum(rollout.lengths) - 1
    assert (logits.grad[last[rollout.stopped]].abs().sum(1) > 0).all()


@pytest.mark.parametrize("kl", ["exact", "k1", "k2", "k3", "k3-ratio"])
def test_8_the_score_is_paid_on_the_last_action_and_token_rewards_add_up(env, task, kl):
    agent = tiny_agent(task, kl=kl)
    rollout, _, targets = batch_of(agent, env)
    last = np.cumsum(rollout.lengths) - 1
    assert np.delete(rollout.rewards, last).tolist() == [0.0] * (len(rollout.rewards) - 16)
    np.testing.assert_allclose(rollout.rewards[last], scores(rollout, 1.0))
    charged = np.bincount(rollout.rows, penalties(targets.kl, rollout, kl))
    per_row = np.bincount(rollout.rows, targets.kl)
    first = targets.kl[last - rollout.lengths + 1]
    # k1 charges every log-ratio; exact and k2 leave the first state's own KL to the loss; k3 leaves all of it.
    charges = {"k1": per_row, "exact": per_row - first, "k2": per_row - first}
    want = charges.get(kl, 0 * per_row)
    np.testing.assert_allclose(charged, want, atol=1e-7)


def test_9_several_stop_ids_end_an_episode():
    task = make_task("Text", prompts=["a"], tokenizer=("a", "b", "x", "<end>"), stop=["x", "<end>"], max_new_tokens=8)
    agent = tiny_agent(task, temperature=10.0)
    env = TokenVectorEnv(task, 64, autoreset_mode=AutoresetMode.DISABLED)
    rollout = collect(env, agent.policy, 0, task.vocabulary.stop_ids)
    last = rollout.actions[torch.tensor(np.cumsum(rollout.lengths) - 1)].numpy()
    assert {2, 3} <= set(last[rollout.stopped].tolist())
    assert (rollout.lengths[~rollout.stopped] == 8).all()


def test_11_and_23_actions_are_the_sampled_ids_and_a_length_end_keeps_its_last_token(env, task):
    rollout, _, _ = batch_of(tiny_agent(task), env)
    ids = rollout.input_ids.numpy()
    next_tokens = ids[rollout.rows, rollout.columns + 1]
    np.testing.assert_array_equal(next_tokens, rollout.actions.numpy())
    assert (~rollout.stopped).any()


def test_12_a_value_reads_nothing_at_or_after_its_step(env, task):
    agent = tiny_agent(task)
    torch.nn.init.normal_(agent.policy.value_head.weight)
    rollout, _, _ = batch_of(agent, env)
    row = int(np.argmax(rollout.lengths))
    mine = torch.tensor(np.flatnonzero(rollout.rows == row))
    columns = torch.tensor(rollout.columns)[mine]
    ids = rollout.input_ids[row : row + 1].clone()
    rows = torch.zeros_like(columns)
    before = agent.policy.states(ids, rows, columns)[1]
    torch.testing.assert_close(before, rollout.values[mine], atol=1e-5, rtol=1e-4)
    ids[0, int(columns[1]) + 1] = (ids[0, int(columns[1]) + 1] + 1) % 4  # the action of step 1
    after = agent.policy.states(ids, rows, columns)[1]
    assert torch.equal(after[:2], before[:2])
    assert not torch.allclose(after[2:], before[2:])


def test_14_whitening_sees_real_tokens_only(env, task):
    _, _, targets = batch_of(tiny_agent(task, whiten=True), env)
    assert float(targets.advantages.mean()) == pytest.approx(0.0, abs=1e-6)
    assert float(targets.advantages.std(correction=0)) == pytest.approx(1.0, abs=1e-5)


def test_whitening_scales_the_kl_in_the_loss_with_the_advantages(env, task):
    plain = batch_of(tiny_agent(task), env)[2]
    white = batch_of(tiny_agent(task, whiten=True), env)[2]
    spread = float(plain.advantages.double().std(correction=0))
    assert white.kl_weight == pytest.approx(plain.kl_weight / spread, rel=1e-5)


def test_16_the_split_into_micro_batches_does_not_change_the_gradient(env, agent):
    batch = batch_of(agent, env)
    whole = gradient_of(agent, *batch, 16)
    for size in (1, 3, 5):
        torch.testing.assert_close(gradient_of(agent, *batch, size), whole, atol=1e-6, rtol=1e-4)


def test_17_and_19_the_logged_kl_is_the_penalised_kl_per_sequence(env, task):
    agent = tiny_agent(task, shift=0.3)
    rollout, reference, targets = batch_of(agent, env)
    by_hand = 0.0
    own, base = agent.policy.distribution(rollout.features), agent.reference.distribution(reference)
    for state in range(len(rollout.rows)):
        p, q = own[state].double(), base[state].double()
        by_hand += float((p.exp() * (p - q)).sum())
    metrics = first_metrics(tiny_agent(task, shift=0.3), env)
    assert targets.kl.sum() == pytest.approx(by_hand, rel=1e-5)
    assert metrics["objective/non_score_reward"] == pytest.approx(-0.3 * metrics["objective/kl"])
    assert metrics["objective/rlhf_reward"] == pytest.approx(
        metrics["objective/scores"] - 0.3 * metrics["objective/kl"]
    )
    assert metrics["objective/kl"] > 0


def test_18_an_adaptive_beta_is_checkpointed(env, task, tmp_path):
    agent = tiny_agent(task, kl_target=1e-3, kl_horizon=100)
    agent.learn(env, 32)
    assert agent.controller.beta > 0.3  # the KL is above its target
    agent.save(tmp_path / "agent")
    assert LMPPO.load(tmp_path / "agent", env).controller.beta == agent.controller.beta


def test_21_values_start_at_zero(env, task):
    agent = LMPPO(task, LMPPOConfig(batch=16, minibatches=1, device="cpu"), model=tiny_llama(4))
    observation, _ = env.reset(seed=0)
    assert agent.values(observation).tolist() == [0.0] * 16


def test_24_only_states_in_which_the_agent_acted_are_trained_on(env, task):
    rollout, _, _ = batch_of(tiny_agent(task), env)
    prompts = np.array([len(task.encoded("train")[0].ids), len(task.encoded("train")[1].ids)])
    assert rollout.columns.min() >= prompts.min() - 1
    assert len(rollout.rows) == rollout.lengths.sum()


def test_26_adams_epsilon_is_the_configured_one(task):
    agent = tiny_agent(task, adam_epsilon=3e-6)
    assert agent.optimizer.param_groups[0]["eps"] == 3e-6


@pytest.mark.slow
def test_27_the_same_seed_repeats_a_run_without_global_random_numbers(env, task):
    runs = []
    for noise in (0, 1):
        torch.manual_seed(noise)
        np.random.seed(noise)  # noqa: NPY002
        model = tiny_llama(4)
        state = torch.get_rng_state()
        agent = LMPPO(task, LMPPOConfig(batch=16, minibatches=2, device="cpu"), model=model)
        agent.learn(env, 48)
        assert torch.equal(torch.get_rng_state(), state)
        runs.append(agent.policy.state_dict())
    for name, value in runs[0].items():
        assert torch.equal(value, runs[1][name]), name


@pytest.mark.slow
def test_27_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(env, task, tmp_path):
    def fresh():
        config = LMPPOConfig(batch=16, minibatches=2, device="cpu", kl_target=0.5, schedule="cosine")
        return LMPPO(task, config, model=tiny_llama(4))

    whole = fresh()
    whole.learn(env, 96)
    part = fresh()
    part.learn(env, 96, lambda metrics: metrics["episode"] >= 48)
    part.save(tmp_path / "agent")
    resumed = LMPPO.load(tmp_path / "agent", env)
    resumed.learn(env, 48)
    for name, value in whole.policy.state_dict().items():
        assert torch.equal(value, resumed.policy.state_dict()[name]), name
    assert resumed.controller == whole.controller
    assert resumed.episodes == whole.episodes == 96


@pytest.mark.slow
@pytest.mark.parametrize("scale", [0.01, *(pytest.param(scale, marks=pytest.mark.long) for scale in (1.0, 100.0))])
def test_28_the_scale_of_the_reward_does_not_stop_learning(scale):
    def scaled(prompts, completions, **columns):
        return [scale * value for value in count_a(prompts, completions)]

    task = tiny_task(reward=scaled, beta=0.02 * scale)
    env = TokenVectorEnv(task, 64, autoreset_mode=AutoresetMode.DISABLED)
    config = LMPPOConfig(batch=64, minibatches=2, learning_rate=0.01, device="cpu")
    agent = LMPPO(task, config, model=tiny_llama(4))
    scores = []
    agent.learn(env, 64 * 25, lambda metrics: scores.append(metrics["objective/scores"] / scale))
    # The best completions are worth 3 after "a b" and 0.25 after "c".
    assert np.mean(scores[-3:]) > 1.3 > np.mean(scores[:1]) + 0.5


@pytest.mark.slow
@pytest.mark.parametrize("offset", [pytest.param(-10.0, marks=pytest.mark.long), 100.0])
def test_28_a_constant_in_the_reward_does_not_matter(offset):
    def shifted(prompts, completions, **columns):
        return [offset + value for value in count_a(prompts, completions)]

    task = tiny_task(reward=shifted, beta=0.02)
    env = TokenVectorEnv(task, 64, autoreset_mode=AutoresetMode.DISABLED)
    config = LMPPOConfig(batch=64, minibatches=2, learning_rate=0.01, device="cpu")
    agent = LMPPO(task, config, model=tiny_llama(4))
    scores = []
    agent.learn(env, 64 * 25, lambda metrics: scores.append(metrics["objective/scores"] - offset))
    assert np.mean(scores[-3:]) > 1.2
    observation, _ = env.reset(seed=0)
    assert abs(agent.values(observation).mean() - offset) < 3
