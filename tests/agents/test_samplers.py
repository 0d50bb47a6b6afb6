"""Samplers: what another engine writes is replayed through the environment, scored by the policy and weighed."""

from __future__ import annotations

import dataclasses
import socket

import numpy as np
import pytest
import torch
from agents.enumerated import HORIZON, STOP, tiny_task
from agents.test_masks import batch_env, no_repeats
from agents.test_pitfalls_returns import Staggered
from gymnasium.vector import AutoresetMode
from lm.tiny_models import tiny_llama
from textgym_agents import make_agent
from textgym_agents.algorithms.grpo import GRPO, GRPOConfig
from textgym_agents.algorithms.ppo import LMPPO
from textgym_agents.config import LMPPOConfig
from textgym_agents.lm.http_sampler import HTTPSampler, SamplerError
from textgym_agents.lm.metrics import UpdateMeter, rollout_metrics
from textgym_agents.lm.processors import Processors
from textgym_agents.lm.rollout import collect, score_reference, token_kl
from textgym_agents.lm.sampler import DecoderSampler, SampledCompletion, SampledRollouts

from textgym import TokenVectorEnv

peft = pytest.importorskip("peft")
from agents.stand_in_server import serving, slow  # noqa: E402  it needs peft

SIZE = 4


def base():
    return tiny_llama(SIZE)


def adapted():
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return peft.get_peft_model(base(), config)


def adapted_agent(task=None, kind=LMPPO, **config):
    """An agent whose adapter has moved away from its reference, so that every KL is positive."""
    settings = {"device": "cpu", "batch": 16, "minibatches": 2, "learning_rate": 0.02, **config}
    made = (GRPOConfig if kind is GRPO else LMPPOConfig)(**settings)
    agent = kind(task or tiny_task(), made, model=adapted())
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in agent.policy.model.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return agent


@pytest.fixture
def server():
    with serving(base) as found:
        yield found


@pytest.fixture
def client(server):
    return HTTPSampler(server.address, SIZE, retries=1, pause=0.01)


def arguments(task, env, seed=0):
    return env, None, seed, task.vocabulary.stop_ids


# The own decoder


def test_a_completion_depends_on_its_own_seed_and_its_log_probs_are_the_models():
    policy = adapted_agent().policy
    sampler = DecoderSampler(policy)
    sampler.update(policy, 7)
    prefixes, seeds = [[0, 1], [2], [0, 1], [1, 1, 2]], [5, 6, 7, 8]
    together = sampler.sample(prefixes, [6, 9, 6, 1], [STOP], 0.7, [0, 1, STOP], seeds)
    assert {each.version for each in together} == {7}
    for prefix, budget, seed, found in zip(prefixes, [6, 9, 6, 1], seeds, together, strict=True):
        (alone,) = sampler.sample([prefix], [budget], [STOP], 0.7, [0, 1, STOP], [seed])
        assert np.array_equal(alone.ids, found.ids)
        assert found.ids[-1] == STOP or len(found.ids) == budget
        assert not np.isin(found.ids[:-1], [STOP, 2]).any()
        logits = policy.model(torch.tensor([[*prefix, *found.ids]])).logits[0, len(prefix) - 1 : -1] / 0.7
        logits[:, 2] = -torch.inf
        want = torch.log_softmax(logits, -1).gather(1, torch.tensor(found.ids)[:, None]).squeeze(1)
        np.testing.assert_allclose(found.log_probs, want.detach().numpy(), atol=1e-5)


def test_what_it_draws_has_the_probabilities_of_the_model():
    policy = adapted_agent().policy
    found = DecoderSampler(policy, Processors(top_k=3)).sample([[0, 1]] * 3000, [1] * 3000, [], 1.0, None, range(3000))
    counts = np.bincount([each.ids[0] for each in found], minlength=SIZE) / 3000
    probabilities = policy.model(torch.tensor([[0, 1]])).logits[0, -1].detach().softmax(-1).numpy()
    probabilities[probabilities.argmin()] = 0
    np.testing.assert_allclose(counts, probabilities / probabilities.sum(), atol=0.03)


def test_min_new_tokens_holds_back_the_stop():
    policy = adapted_agent().policy
    for found in DecoderSampler(policy, min_new_tokens=2).sample([[0]] * 50, [4] * 50, [STOP], 1.0, None, range(50)):
        assert STOP not in found.ids[:2]


# Rollouts


def same(found, want, tolerance=1e-5):
    """Assert that two rollouts are equal but for rounding."""
    for name in ("rows", "columns", "steps", "rewards", "lengths", "truncated", "stopped"):
        assert np.array_equal(getattr(found, name), getattr(want, name)), name
    assert torch.equal(found.input_ids, want.input_ids)
    assert torch.equal(found.actions, want.actions)
    for name in ("log_probs", "values", "features"):
        torch.testing.assert_close(getattr(found, name), getattr(want, name), atol=tolerance, rtol=1e-4)
    np.testing.assert_allclose(found.bootstrap, want.bootstrap, atol=tolerance)
    for name in ("kept", "masks"):
        masks = getattr(want, name)
        assert (getattr(found, name) is None) == (masks is None)
        assert masks is None or torch.equal(getattr(found, name)[:], masks[:])


def seeds_of(seed, count):
    return np.random.SeedSequence([seed, 1]).generate_state(count).tolist()


@pytest.mark.parametrize("options", [{}, {"top_p": 0.9}, {"min_new_tokens": 2, "temperature": 0.8, "top_k": 3}])
@pytest.mark.parametrize("kind", [TokenVectorEnv, Staggered])
def test_replayed_completions_are_the_rollout_of_the_own_decoder(server, client, options, kind):
    options = dict(options)
    task = tiny_task(min_new_tokens=options.pop("min_new_tokens", 0))
    agent = adapted_agent(task, value_coefficient=0.1, micro_batch=5, **options)
    with torch.no_grad():
        agent.policy.value_head.weight.fill_(0.1)
    env = kind(task, 24, autoreset_mode=AutoresetMode.DISABLED)
    want = collect(env, agent.policy, 3, (STOP,), True, reference=agent.reference)
    logs, actions = want.log_probs.double().numpy(), want.actions.numpy()
    for row, seed in enumerate(seeds_of(3, 24)):
        here = want.rows == row
        # An engine knows of no outer limit: it writes on.
        server.replay[seed] = [*actions[here].tolist(), 0, 0], [*logs[here].tolist(), -1.0, -1.0]
    play = SampledRollouts(task, client, rows_at_once=5)
    found = play(env, agent.policy, 3, (STOP,), True, reference=agent.reference)
    same(found, want)
    torch.testing.assert_close(found.sampler_log_probs, want.log_probs, atol=1e-6, rtol=0)
    torch.testing.assert_close(found.importance, torch.ones(len(actions)), atol=1e-4, rtol=0)
    measured = []
    for rollout in (want, found):
        scored = score_reference(agent.reference, rollout, 64, True)
        kl = token_kl(rollout, agent.policy, agent.reference, scored, "exact")
        measured.append(rollout_metrics(rollout, kl, 0.3, 1.0))
    for name, value in measured[0].items():
        assert measured[1][name] == pytest.approx(value, abs=1e-4), name
    assert measured[1]["objective/kl"] > 0.01
    assert measured[1]["sampler/mismatch_max"] < 1e-4
    if kind is Staggered:
        assert found.truncated.any()
        np.testing.assert_allclose(found.bootstrap_kl, want.bootstrap_kl, atol=1e-5)


@pytest.mark.parametrize("kind", [LMPPO, GRPO])
def test_an_agent_learns_by_a_server_as_by_the_own_decoder(server, kind):
    group = {"group": 4} if kind is GRPO else {}
    agents = [adapted_agent(kind=kind, sampler=where, top_p=0.95, **group) for where in (server.address, None)]
    own = agents[1]
    own._collect = SampledRollouts(own.task, DecoderSampler(own.policy, Processors(top_p=0.95)))
    metrics = []
    for agent in agents:
        rows = []
        agent.learn(batch_env(agent.task, 16), 48, rows.append)
        metrics.append(rows)
    for found, want in zip(*metrics, strict=True):
        assert found["val/first_ratio"] == pytest.approx(1.0, abs=1e-5)
        # The weights that moved are in the server: else its log-probabilities were those of the start.
        assert found["sampler/mismatch_max"] < 1e-4
        assert found["sampler/importance"] == pytest.approx(1.0, abs=1e-4)
        for name, value in want.items():
            assert found[name] == pytest.approx(value, abs=2e-3, rel=2e-3), name
    moved = agents[0].policy.model.state_dict()
    start = adapted_agent().policy.model.state_dict()
    assert max(float((moved[name] - start[name]).abs().max()) for name in start) > 0.02
    assert len(server.adapters) == 1
    (name,) = server.adapters
    assert name.endswith("-3")
    assert {body["model"] for call, body in server.requests if call == "completions"} == {
        f"{name[:-1]}{version}" for version in (1, 2, 3)
    }


def test_completions_say_which_version_wrote_them(client):
    policy = adapted_agent().policy
    for version in (4, 9):
        client.update(policy, version)
        found = client.sample([[0], [1]], [2, 3], [STOP], 1.0, None, [1, 2])
        assert [each.version for each in found] == [version, version]


def test_what_a_request_says(server):
    client = HTTPSampler(f"{server.address}/", SIZE, Processors(0.9, 5, 0.1), min_new_tokens=2)
    client.update(adapted_agent().policy, 1)
    client.sample([[0, 1]], [3], (STOP,), 0.5, [0, 1, STOP], [17])
    client.sample([[0, 1]], [3], (STOP,), 0.5, [1], [17])
    (_, first), (_, second) = (request for request in server.requests if request[0] == "completions")
    wanted = {"prompt": [0, 1], "max_tokens": 3, "seed": 17, "temperature": 0.5, "top_p": 0.9, "top_k": 5, "min_p": 0.1}
    wanted |= {"min_tokens": 2, "stop_token_ids": [STOP], "ignore_eos": True, "return_token_ids": True, "n": 1}
    assert wanted.items() <= first.items()
    # The shorter of the two lists: vLLM's are limited.
    assert first["logit_bias"] == {"2": -100.0}
    assert "allowed_token_ids" not in first
    assert second["allowed_token_ids"] == [1]
    assert "logit_bias" not in second


# Another distribution than the policy's


class Wrong:
    """Writes with its own probabilities, which it tells; remembers nothing of updates."""

    def __init__(self, probabilities):
        self.probabilities = np.array(probabilities)

    def update(self, policy, version):
        """Take no weights."""

    def sample(self, prefixes, budgets, stop_ids, temperature, allowed_ids, seeds):
        found = []
        for budget, seed in zip(budgets, seeds, strict=True):
            ids = np.random.default_rng(seed).choice(SIZE, budget, p=self.probabilities)
            found.append(SampledCompletion(ids, np.log(self.probabilities)[ids], 1))
        return found


def test_importance_weights_are_truncated_ratios_and_weigh_the_policy_loss_alone():
    agent = adapted_agent(value_coefficient=0.0)
    play = SampledRollouts(agent.task, Wrong([0.4, 0.3, 0.2, 0.1]), cap=1.5)
    rollout = play(batch_env(agent.task, 64), agent.policy, 0, (STOP,), True)
    policy_probs = rollout.log_probs.exp()
    ratio = (policy_probs / torch.tensor([0.4, 0.3, 0.2, 0.1])[rollout.actions]).double()
    torch.testing.assert_close(rollout.importance.double(), ratio.clamp(max=1.5), atol=1e-5, rtol=1e-4)
    assert (ratio > 1.5).any()
    assert (ratio < 0.9).any()
    metrics = rollout_metrics(rollout, np.zeros(len(ratio)), 0.0, 1.0)
    assert metrics["sampler/mismatch_mean"] == pytest.approx(float(ratio.log().abs().mean()), rel=1e-4)
    assert metrics["sampler/mismatch_max"] == pytest.approx(float(ratio.log().abs().max()), rel=1e-4)
    assert metrics["sampler/mismatch_k3"] == pytest.approx(float((ratio - 1 - ratio.log()).mean()), rel=1e-4)


@pytest.mark.parametrize("kl", ["exact", "k2"])
def test_what_depends_on_the_action_is_weighed_and_the_kl_of_a_state_is_not(kl):
    agent = adapted_agent(kl=kl, value_coefficient=0.0)
    play = SampledRollouts(agent.task, Wrong([0.4, 0.3, 0.2, 0.1]))
    rollout = play(batch_env(agent.task, 16), agent.policy, 0, (STOP,), True)
    scored = score_reference(agent.reference, rollout, 64, kl == "exact")
    states = token_kl(rollout, agent.policy, agent.reference, scored, kl)
    targets = agent._targets(rollout, states)
    features = agent.policy.features(rollout.input_ids, *map(torch.tensor, (rollout.rows, rollout.columns)))
    found = agent._loss(features, slice(None), rollout, targets, scored, UpdateMeter()).detach()
    # The ratio is 1, so that PPO's loss is -A; half the square of log(pi / ref) is k2.
    kl_loss = targets.kl_weight * torch.tensor(states if kl == "exact" else 0.5 * states**2)
    want = -rollout.importance * targets.advantages + (1.0 if kl == "exact" else rollout.importance) * kl_loss
    torch.testing.assert_close(found.double(), want.double(), atol=1e-5, rtol=1e-4)


def test_weights_make_the_expected_gradient_of_a_first_token_the_policys():
    # One token a completion: E over the sampler of weight * A * grad log pi is E over the policy of A * grad log pi.
    task = tiny_task(max_new_tokens=1)
    agent = adapted_agent(task, kl="k1", whiten=False, value_coefficient=0.0, lam=1.0)
    agent.value_scale = 1.0
    env = batch_env(task, 4096)
    play = SampledRollouts(task, Wrong([0.4, 0.3, 0.2, 0.1]), cap=1e9)
    gradients = []
    for how in (collect, play):
        rollout = how(env, agent.policy, 1, (STOP,))
        scored = score_reference(agent.reference, rollout, 4096, False)
        targets = agent._targets(rollout, token_kl(rollout, agent.policy, agent.reference, scored, "k1"))
        features = agent.policy.features(rollout.input_ids, *map(torch.tensor, (rollout.rows, rollout.columns)))
        agent.policy.zero_grad()
        agent._loss(features, slice(None), rollout, targets, scored, UpdateMeter()).mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in agent.policy.parameters() if p.grad is not None]))
    assert torch.nn.functional.cosine_similarity(*gradients, dim=0) > 0.98
    assert gradients[1].norm() == pytest.approx(float(gradients[0].norm()), rel=0.1)


def test_what_the_sampler_took_is_kept_whatever_the_cut_says():
    agent = adapted_agent(top_k=1)
    play = SampledRollouts(agent.task, Wrong([0.25] * 4))
    rollout = play(batch_env(agent.task, 32), agent.policy, 0, (STOP,), True)
    kept = rollout.kept_of(slice(None))
    assert kept.gather(1, rollout.actions[:, None]).all()
    assert set(kept.sum(1).tolist()) == {1, 2}
    assert rollout.log_probs.min() > -50


# Refusals and errors


def test_a_task_with_a_mask_is_refused_by_name():
    masked = dataclasses.replace(tiny_task(), mask=no_repeats)
    with pytest.raises(ValueError, match=r"task 'Text': its mask \(function\) depends on the state"):
        adapted_agent(masked, sampler="http://localhost:1")
    with pytest.raises(ValueError, match="depends on the state"):
        SampledRollouts(dataclasses.replace(masked, min_new_tokens=2), Wrong([0.25] * 4))


def test_full_weights_are_refused(server):
    env = batch_env(tiny_task(), 16)
    with pytest.raises(ValueError, match=rf"sampler='{server.address}': .* LoRA adapter, and this policy trains all"):
        make_agent("lm-ppo", env, sampler=server.address)
    assert not server.requests


@pytest.mark.parametrize("address", ["localhost:8000", "ftp://host", "http://", ""])
def test_addresses_of_another_form_are_refused(address):
    with pytest.raises(ValueError, match="allowed is an address such as 'http://localhost:8000'"):
        HTTPSampler(address, SIZE)


def test_the_cap_needs_a_sampler():
    with pytest.raises(ValueError, match=r"importance_cap=3.0: allowed is 2.0 without sampler"):
        LMPPOConfig(importance_cap=3.0)


def test_a_server_that_is_down_is_named():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    client = HTTPSampler(address, SIZE, retries=2, pause=0.01)
    with pytest.raises(SamplerError, match=rf"'{address}', load_lora_adapter: no connection in 3 attempts"):
        client.update(adapted_agent().policy, 1)


def test_a_lost_connection_is_tried_again(server, client):
    client.update(adapted_agent().policy, 1)
    server.failures = 1
    (found,) = client.sample([[0]], [2], [STOP], 1.0, None, [1])
    assert len(found.ids)
    server.failures = 2
    with pytest.raises(SamplerError, match="completions: no connection in 2 attempts"):
        client.sample([[0]], [2], [STOP], 1.0, None, [1])


def without(*names):
    def edit(call, status, answer):
        if call == "completions":
            for name in names:
                answer["choices"][0].pop(name)
        return status, answer

    return edit


def only(call, status, answer):
    """An edit that answers one call in this way."""
    return lambda asked, *usual: (status, answer) if asked == call else usual


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (only("completions", 500, "Internal Server Error"), "completions: it answers 500 .Internal Server Error"),
        (only("completions", 200, "<html>"), "completions: its answer is no JSON: <html>"),
        (only("completions", 200, {"choices": []}), "completions: its answer has no choices"),
        (
            only("completions", 404, {"error": {"message": "The model does not exist."}}),
            "completions: it answers 404 .The model does not exist",
        ),
        (without("logprobs"), "completions: its answer has no log-probability for each of"),
        (without("token_ids", "logprobs"), "completions: its answer has no token ids"),
        (only("load_lora_adapter", 404, {"detail": "Not Found"}), "load_lora_adapter: .*VLLM_ALLOW_RUNTIME_LORA"),
    ],
)
def test_answers_that_do_not_serve_are_named_with_the_address(server, client, edit, message):
    server.edit = edit
    policy = adapted_agent().policy

    def ask():
        client.update(policy, 1)
        client.sample([[0]], [2], [STOP], 1.0, None, [1])

    with pytest.raises(SamplerError, match=f"sampler='{server.address}', {message}"):
        ask()


def test_ids_are_read_from_tokens_where_a_server_gives_no_others(server, client):
    client.update(adapted_agent().policy, 1)
    (want,) = client.sample([[0]], [3], [STOP], 1.0, None, [1])
    server.edit = without("token_ids")
    (found,) = client.sample([[0]], [3], [STOP], 1.0, None, [1])
    assert np.array_equal(found.ids, want.ids)


def test_a_server_that_reads_another_prompt_is_named(server, client):
    def edit(call, status, answer):
        if call == "completions":
            answer["choices"][0]["prompt_token_ids"] = [1]
        return status, answer

    client.update(adapted_agent().policy, 1)
    server.edit = edit
    with pytest.raises(SamplerError, match="completions: it read 1 other tokens than the 2 sent"):
        client.sample([[0, 1]], [2], [STOP], 1.0, None, [1])


def test_a_server_that_is_too_slow_is_named(server):
    client = HTTPSampler(server.address, SIZE)
    client.update(adapted_agent().policy, 1)
    server.edit, client.timeout = slow, 0.2
    with pytest.raises(SamplerError, match=r"completions: no answer in 0.2 s"):
        client.sample([[0]], [2], [STOP], 1.0, None, [1])


@pytest.mark.parametrize(
    ("ids", "message"),
    [([0], "its completion 0 ended after 1 tokens, and the episode goes on"), ([0, 9, 0], "9"), ([], "0 tokens")],
)
def test_completions_that_do_not_fit_the_episode_are_refused(ids, message):
    class Fixed(Wrong):
        def sample(self, prefixes, *_):
            return [SampledCompletion(np.array(ids, dtype=np.int64), np.zeros(len(ids)), 1) for _ in prefixes]

    agent = adapted_agent()
    play = SampledRollouts(agent.task, Fixed([0.25] * 4))
    with pytest.raises(Exception, match=message):
        play(batch_env(agent.task, 4), agent.policy, 0, (STOP,))


def test_a_token_that_the_task_does_not_allow_is_refused():
    task = tiny_task(min_new_tokens=HORIZON)
    agent = adapted_agent(task)
    play = SampledRollouts(task, Wrong([0.1, 0.1, 0.1, 0.7]))
    with pytest.raises(ValueError, match="it wrote token 3, which the task does not allow"):
        play(batch_env(task, 8), agent.policy, 0, (STOP,))
