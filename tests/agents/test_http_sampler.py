"""The HTTP sampler: what a server writes is replayed through the environment, and its refusals and errors."""

from __future__ import annotations

import socket

import numpy as np
import pytest
import torch
from agents.enumerated import STOP, tiny_task
from agents.lora_tools import SIZE, adapted, adapted_agent, base, lora_config
from agents.test_masks import batch_env
from agents.test_pitfalls_returns import Staggered
from gymnasium.vector import AutoresetMode
from textgym_agents import make_agent
from textgym_agents.algorithms.grpo import GRPO
from textgym_agents.algorithms.ppo import LMPPO
from textgym_agents.lm.http_sampler import HTTPSampler, SamplerError
from textgym_agents.lm.metrics import rollout_metrics
from textgym_agents.lm.processors import Processors
from textgym_agents.lm.rollout import collect, score_reference, token_kl
from textgym_agents.lm.sampler import DecoderSampler, SampledRollouts

from textgym import TokenVectorEnv

pytest.importorskip("peft")
from agents.stand_in_server import serving, slow

pytestmark = pytest.mark.slow


@pytest.fixture
def server():
    with serving(base) as found:
        yield found


@pytest.fixture
def client(server):
    return HTTPSampler(server.address, SIZE, retries=1, pause=0.01)


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


@pytest.mark.long
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


@pytest.mark.parametrize("kind", [pytest.param(LMPPO, marks=pytest.mark.long), GRPO])
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


# Refusals and errors


def test_full_weights_are_refused(server):
    env = batch_env(tiny_task(), 16)
    with pytest.raises(ValueError, match=rf"sampler='{server.address}': .* LoRA adapter, and this policy trains all"):
        make_agent("lm-ppo", env, sampler=server.address)
    assert not server.requests


def test_a_start_whose_adapter_is_merged_is_refused(server):
    config = lora_config(sampler=server.address)
    with pytest.raises(
        ValueError, match=rf"sampler='{server.address}': the start's adapter is merged before lora_rank=2"
    ):
        LMPPO(tiny_task(), config, model=adapted())
    assert not server.requests


@pytest.mark.parametrize("address", ["localhost:8000", "ftp://host", "http://", ""])
def test_addresses_of_another_form_are_refused(address):
    with pytest.raises(ValueError, match="allowed is an address such as 'http://localhost:8000'"):
        HTTPSampler(address, SIZE)


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
