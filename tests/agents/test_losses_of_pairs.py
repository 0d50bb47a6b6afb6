"""Losses of agents that learn from pairs, by hand, and which pairs and prompts they learn from."""

import numpy as np
import pytest
import torch
from agents.enumerated import tiny_task
from agents.test_losses_by_hand import an_env
from lm.tiny_models import tiny_llama
from textgym_agents.algorithms.dpo import DPO
from textgym_agents.algorithms.ilql import ILQL
from textgym_agents.datasets.reading import Recording
from textgym_agents.lm.sequences import Sequences


@pytest.mark.parametrize(("kind", "settings"), [(ILQL, {"logged": 20}), (DPO, {"pairs": 10})])
def test_old_completions_come_again_after_as_many_rounds_as_hold_them(kind, settings):
    # 20 episodes, or 10 pairs, are three rounds of 8 episodes.
    agent, env, found = kind(tiny_task(), kind.config_type(device="cpu", **settings), model=tiny_llama(4)), an_env(), []
    for agent.iteration in (0, 1, 2, 3):
        batch, metrics = agent._batch(env)
        found.append(batch.input_ids.tobytes())
        assert metrics["data/scores"] == pytest.approx(batch.returns.mean())
    assert found[3] == found[0]
    assert len(set(found)) == 3


def test_of_a_pair_the_preferred_one_comes_first():
    agent = DPO(tiny_task(), DPO.config_type(device="cpu", noise=1e-6, sampler="policy"), model=tiny_llama(4))
    agent.iteration = 0
    batch, metrics = agent._batch(an_env(16))
    returns = batch.returns.reshape(-1, 2)
    assert (returns[:, 0] >= returns[:, 1]).all()
    assert (returns[:, 0] > returns[:, 1]).any()
    assert metrics["data/disagreement"] == 0.0
    prompts = batch.input_ids[:, 0].reshape(-1, 2)
    assert (prompts[:, 0] == prompts[:, 1]).all()


def test_metrics_of_pairs_are_sums_of_rewards():
    agent, env = DPO(tiny_task(), DPO.config_type(device="cpu", sampler="policy"), model=tiny_llama(4)), an_env()
    agent.iteration = 0
    batch, _ = agent._batch(env)
    reference = agent._score_reference(batch)
    shift = torch.linspace(-1, 1, 8)
    _, metrics = agent._losses(batch, reference - shift)
    chosen, rejected = agent.controller.beta * shift.view(-1, 2).sum(0)
    assert metrics["rewards/chosen"] == pytest.approx(float(chosen), rel=1e-4)
    assert metrics["rewards/rejected"] == pytest.approx(float(rejected), rel=1e-4)
    assert metrics["rewards/margins"] == pytest.approx(float(chosen - rejected), rel=1e-4)
    assert metrics["rewards/accuracies"] == 0.0
    assert agent._losses(batch, reference + shift)[1]["rewards/accuracies"] == 4.0
    assert agent._losses(batch, reference)[1]["rewards/accuracies"] == 0.0  # where both are as likely, none is right


@pytest.mark.parametrize("settings", [{"label_smoothing": 0.2}, {"loss": "ipo"}])
def test_losses_of_pairs_have_the_strength_of_beta_over_the_noise(settings):
    config = DPO.config_type(device="cpu", sampler="policy", beta=0.3, noise=0.2, **settings)
    agent, env = DPO(tiny_task(), config, model=tiny_llama(4)), an_env()
    agent.iteration = 0
    batch, _ = agent._batch(env)
    reference = agent._score_reference(batch)
    found, _ = agent._losses(batch, reference - torch.tensor([1.0, 0.5, 0.0, 2.0, -1.0, 1.0, 3.0, 0.0]))
    differences = np.array([0.5, -2.0, -2.0, 3.0])
    wanted = 0.8 * np.log1p(np.exp(-1.5 * differences)) + 0.2 * np.log1p(np.exp(1.5 * differences))
    if "loss" in settings:  # s = 0.3 / (4 * 0.2)
        wanted = (differences - 4 / 3) ** 2
    np.testing.assert_allclose(found.detach(), wanted, rtol=1e-4)


def test_annotators_disagree_with_the_returns_where_they_prefer_what_pays_less():
    agent = DPO(tiny_task(), DPO.config_type(device="cpu"), model=tiny_llama(4))
    agent.iteration = 0
    agent._annotate = lambda returns, seed: np.argsort(returns, axis=1, kind="stable")
    batch, metrics = agent._batch(an_env(16))
    returns = batch.returns.reshape(-1, 2)
    unequal = returns[:, 0] < returns[:, 1]
    assert (returns[:, 0] <= returns[:, 1]).all()
    assert 0 < unequal.mean() < 1
    assert metrics["data/disagreement"] == unequal.mean()


@pytest.mark.parametrize("sampler", ["reference", "policy"])
def test_pairs_are_written_by_the_reference_or_by_the_policy(sampler):
    agent, env = DPO(tiny_task(), DPO.config_type(device="cpu", sampler=sampler), model=tiny_llama(4)), an_env()
    agent.iteration = 0
    first, _ = agent._batch(env)
    with torch.no_grad():
        agent.policy.model.lm_head.weight.neg_()
    second, _ = agent._batch(env)
    assert np.array_equal(first.input_ids, second.input_ids) == (sampler == "reference") == agent.offline


def test_of_two_recorded_answers_the_better_one_comes_first():
    agent = DPO(tiny_task(), DPO.config_type(device="cpu", data="unread", noise=1e-9), model=tiny_llama(4))
    ids, ones = np.array([[1, 0], [1, 1], [1, 2], [1, 3]]), np.ones(4, dtype=np.int64)
    rewards = np.array([[0, 1], [0, 2], [0, 4], [0, 3]])
    chosen = agent._select(Recording(Sequences(ids, ones, ones, rewards=rewards)))
    assert chosen.input_ids[:, 1].tolist() == [1, 0, 2, 3]


@pytest.mark.parametrize(("kind", "name"), [(DPO, "pairs"), (ILQL, "logged")])
def test_whose_prompts_are_learned_from(kind, name):
    assert kind.config_type().prompts_from == ""
    assert kind.config_type(**{name: 8}).prompts_from == name
    assert kind.config_type(data="rows.jsonl").prompts_from == "data"


def test_pairs_of_a_file_ended_where_it_does_not_say_so(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"prompt": "a b", "chosen": "a", "rejected": "b"}\n')
    agent = DPO(tiny_task(), DPO.config_type(device="cpu", data=str(path)), model=tiny_llama(4))
    assert [(row.prompt, row.completion, row.ended) for row in agent._read()] == [
        ("a b", "a", True),
        ("a b", "b", True),
    ]
