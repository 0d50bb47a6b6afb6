"""DPO: its loss by hand, where its population loss is least, what it reads, and what it does with it."""

import math

import numpy as np
import pytest
import torch
from agents.enumerated import BETA, STOP, full_rollout, tiny_task
from agents.groups import flat_gradient, small_agent
from hypothesis import given
from hypothesis import strategies as st
from textgym_agents import load_agent, make_agent, make_env
from textgym_agents.algorithms.dpo import DPO, DPOConfig, dpo_loss, ipo_loss
from textgym_agents.conformance import FAILS, HOLDS, NOT_ASKED, check, check_names
from textgym_agents.lm.offline import passes
from textgym_agents.lm.sequences import encode_texts, of_rollout, sequence_log_probs
from textgym_agents.registry import agent_class, make_config
from turn_tools import ragged

from textgym.preferences import Demonstration, Ranking, write_rankings
from textgym.rewards import TextGymWarning
from textgym.solver import policy_values, solve

NOISE = 0.5
PAIRS = [
    Ranking("a b", ("a a", "b"), (True, True)),
    Ranking("a b", ("c", "b b"), (True, False)),
    Ranking("c", ("b", "a a c"), (False, False)),
    Ranking("c", ("c b", "a"), (True, True)),
]
CPU = {"device": "cpu"}


def t(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_the_losses_by_hand():
    torch.testing.assert_close(dpo_loss(t(math.log(3), 0.0), 1.0), t(math.log(4 / 3), math.log(2)))
    torch.testing.assert_close(dpo_loss(t(math.log(3)), 2.0), t(math.log(10 / 9)))
    smoothed = 0.9 * math.log(4 / 3) + 0.1 * math.log(4)
    torch.testing.assert_close(dpo_loss(t(math.log(3)), 1.0, label_smoothing=0.1), t(smoothed))
    torch.testing.assert_close(ipo_loss(t(3.0, 1.0, -1.0), 0.5), t(4.0, 0.0, 4.0))


@given(p=st.floats(0.05, 0.95), strength=st.floats(0.1, 5.0))
def test_where_the_losses_of_one_pair_are_least(p, strength):
    for loss, least in (
        (dpo_loss, math.log(p / (1 - p)) / strength),
        (ipo_loss, (p - 0.5) / strength),
    ):
        difference = t(least).requires_grad_()
        (p * loss(difference, strength) + (1 - p) * loss(-difference, strength)).sum().backward()
        assert abs(float(difference.grad)) < 1e-9 * max(1.0, 1 / strength)


class Population:
    """DPO's loss over all pairs of the reference's completions, each with its true probability, for a policy that may
    give every completion of a prompt any probability."""

    def __init__(self, noise=NOISE):
        self.solution = solve(tiny_task(reference="uniform"))
        every = self.solution.reference.trajectories
        self.prompt = torch.tensor(every.prompt)
        self.reference = torch.tensor(every.log_probability)
        self.returns, self.noise = torch.tensor(every.returns), noise
        same = self.prompt[:, None] == self.prompt[None]
        both = self.reference.exp()[:, None] * self.reference.exp()[None]
        preferred = torch.sigmoid((self.returns[:, None] - self.returns[None]) / noise)
        self.weights = torch.where(same, both * preferred, 0.0)

    def log_policy(self, logits):
        result = torch.zeros_like(logits)
        for prompt in self.prompt.unique():
            own = self.prompt == prompt
            result = result.masked_scatter(own, torch.log_softmax(logits[own], 0))
        return result

    def loss(self, logits, loss=dpo_loss, strength=BETA / NOISE):
        ratios = self.log_policy(logits) - self.reference
        return (self.weights * loss(ratios[:, None] - ratios[None], strength)).sum()

    def gradient(self, logits, **options):
        logits = logits.clone().requires_grad_()
        self.loss(logits, **options).backward()
        return float(logits.grad.abs().max())

    def objective(self, logits):
        logs = self.log_policy(logits)
        return float((0.5 * logs.exp() * (self.returns - BETA * (logs - self.reference))).sum())


def test_the_population_loss_is_least_at_the_optimum_of_j():
    population = Population()
    optimum = torch.tensor(population.solution.optimal.trajectories.log_probability)
    assert population.gradient(optimum) < 1e-12
    assert population.gradient(population.reference) > 1e-2
    # Only where the strength is beta over the annotators' temperature.
    assert population.gradient(optimum, strength=BETA) > 1e-3
    assert population.gradient(optimum, strength=BETA / (2 * NOISE)) > 1e-3


def test_going_down_the_population_loss_leads_to_the_optimum_of_j():
    population = Population()
    logits = population.reference.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [logits], max_iter=500, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        loss = population.loss(logits)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert population.objective(logits.detach()) == pytest.approx(population.solution.objective, abs=1e-6)


def test_for_annotators_who_hardly_tell_answers_apart_ipo_has_the_same_optimum():
    noise = 500.0
    population = Population(noise)
    optimum = torch.tensor(population.solution.optimal.trajectories.log_probability)
    scale = population.gradient(population.reference, loss=ipo_loss, strength=BETA / (4 * noise))
    assert population.gradient(optimum, loss=ipo_loss, strength=BETA / (4 * noise)) < 1e-4 * scale


def test_log_probabilities_of_sequences_are_sums_over_their_tokens_end_included():
    agent = small_agent(DPO)
    rollout, _ = full_rollout(agent)
    want = np.bincount(rollout.rows, rollout.log_probs.double().numpy())
    with torch.no_grad():
        got = sequence_log_probs(agent.policy, of_rollout(rollout))
    np.testing.assert_allclose(got.numpy(), want, atol=1e-5)


def test_the_gradient_is_that_of_the_formula():
    agent = small_agent(DPO, noise=NOISE)
    rollout, _ = full_rollout(agent)
    sequences = of_rollout(rollout).rows(np.array([3, 17, 44, 70, 5, 6]))
    with torch.no_grad():
        reference = sequence_log_probs(agent.reference, sequences)
    agent.policy.zero_grad()
    agent._losses(sequences, reference)[0].sum().backward()
    got = flat_gradient(agent)
    own = sequence_log_probs(agent.policy, sequences)
    with torch.no_grad():
        chosen, rejected = (own - reference)[::2], (own - reference)[1::2]
        weights = BETA / NOISE * torch.sigmoid(-BETA / NOISE * (chosen - rejected))
    agent.policy.zero_grad()
    (weights * (own[1::2] - own[::2])).sum().backward()
    torch.testing.assert_close(got, flat_gradient(agent), atol=2e-5, rtol=1e-4)
    assert all(parameter.grad is None for parameter in agent.reference.parameters())


def test_an_end_is_there_exactly_where_a_completion_ended():
    task = tiny_task()
    texts = [
        Demonstration("a b", "a", True),
        Demonstration("a b", "a", False),
        Demonstration("c", "b b c", True),
    ]
    sequences, cut = encode_texts(task, texts)
    assert sequences.lengths.tolist() == [2, 1, 3]
    assert sequences.starts.tolist() == [2, 2, 1]
    assert sequences.input_ids[0, :4].tolist() == [0, 1, 0, STOP]
    assert cut == 1  # after the last token that fits the task ends the episode without an end


def test_what_is_too_long_is_cut_and_said(env, tmp_path):
    rows = [Ranking("b a b", ("a a a a", "b"))]
    write_rankings(tmp_path / "pairs.jsonl", rows)
    agent = small_agent(DPO, data=str(tmp_path / "pairs.jsonl"))
    with pytest.warns(TextGymWarning, match="2 of 2 texts do not fit"):
        agent.learn(env, 16)
    assert agent._data.starts.tolist() == [2, 2]
    assert agent._data.input_ids[0].tolist() == [0, 1, 0, 0, 0]


def test_the_first_loss_is_log_two_and_the_reference_stays(env):
    agent = make_agent("dpo", env, minibatches=1, epochs=1, **CPU)
    before = {name: value.clone() for name, value in agent.reference.state_dict().items()}
    rows = []
    agent.learn(env, 48, rows.append)
    assert rows[0]["loss/preference"] == pytest.approx(math.log(2), abs=1e-6)
    assert rows[1]["loss/preference"] != pytest.approx(math.log(2), abs=1e-6)
    assert [row["episode"] for row in rows] == [16, 32, 48]
    assert all(torch.equal(value, before[name]) for name, value in agent.reference.state_dict().items())


def test_a_fixed_number_of_pairs_comes_again(env):
    agent = make_agent("dpo", env, pairs=12, **CPU)
    batches = []
    for agent.iteration in range(4):
        batches.append(agent._batch(env)[0].input_ids.tolist())
    assert batches[0] == batches[2]
    assert batches[1] == batches[3]
    assert batches[0] != batches[1]


def test_annotators_without_doubt_prefer_what_pays_more(env):
    agent = make_agent("dpo", env, noise=1e-9, **CPU)
    batch, measures = agent._batch(env)
    rows = zip(batch.input_ids, batch.starts, batch.lengths, strict=True)
    texts = env.task.vocabulary.decode([row[start : start + length].tolist() for row, start, length in rows])
    prompts = ["a b" if start == 2 else "c" for start in batch.starts]
    assert prompts[::2] == prompts[1::2]
    scores = np.array(env.task.reward(prompts, texts))
    assert (scores[::2] >= scores[1::2]).all()
    assert measures["data/disagreement"] == 0
    assert measures["data/scores"] == pytest.approx(scores.mean())


@pytest.mark.slow
@given(total=st.integers(1, 7), start=st.integers(0, 20), count=st.integers(1, 20), seed=st.integers(0, 3))
def test_every_pass_has_every_row_once_wherever_it_is_cut(total, start, count, seed):
    whole = passes(total, 0, total * 6 + start + count, seed)
    assert all(sorted(part) == list(range(total)) for part in whole[: total * 6].reshape(6, total).tolist())
    assert passes(total, start, count, seed).tolist() == whole[start : start + count].tolist()


@pytest.fixture
def file(tmp_path):
    write_rankings(tmp_path / "pairs.jsonl", PAIRS, "rankings")
    return tmp_path / "pairs.jsonl"


@pytest.mark.slow
def test_a_file_is_learned_from(env, file):
    agent = make_agent("dpo", env, data=str(file), **CPU)
    rows = []
    agent.learn(env, 160, rows.append)
    assert rows[-1]["rewards/accuracies"] == 1
    assert rows[-1]["data/passes"] == 18


@pytest.mark.slow
def test_other_data_are_noticed_and_loading_needs_none(env, file, tmp_path):
    agent = make_agent("dpo", env, data=str(file), **CPU)
    agent.learn(env, 16)
    agent.save(tmp_path / "agent")
    write_rankings(file, PAIRS[:3], "rankings")
    loaded = load_agent(tmp_path / "agent", env)
    with pytest.raises(ValueError, match="other texts than learning began with"):
        loaded.learn(env, 16)
    file.unlink()
    load_agent(tmp_path / "agent", env)


UNTRAINED = check_names(slow=False)
NEED_ITS_OWN_SAMPLES = {"first ratio", "logged KL", "logged scores", "logged RLHF reward"}


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("source", ["own", pytest.param("file", marks=pytest.mark.sweep)])
def test_it_passes_every_check_that_applies(source, file):
    settings = {**CPU, "data": str(file) if source == "file" else None}
    findings = check("dpo", UNTRAINED, settings=settings, envs=16, iterations=2)
    assert not {f.check: f.found for f in findings if f.status == FAILS}
    asked = {f.check for f in findings if f.status != NOT_ASKED}
    assert not asked & NEED_ITS_OWN_SAMPLES
    assert {"starts at the reference", "same seed, same policy", "resumed", "global random numbers"} <= asked


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"noise": 0.0}, "noise=0.0"),
        ({"pairs": 0}, "pairs=0"),
        ({"pairs": 4, "data": "x.jsonl"}, "pairs=4: allowed is None where data is given"),
        ({"loss": "hinge"}, "loss='hinge'"),
        ({"label_smoothing": 0.5}, "label_smoothing=0.5"),
        ({"label_smoothing": 0.1, "loss": "ipo"}, "label_smoothing=0.1"),
        ({"kl": "exact"}, "kl='exact'"),
        ({"kl_target": 1.0}, "kl_target=1.0"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        DPOConfig(**settings)


def test_preferences_of_a_file_are_refused_where_there_are_turns(tmp_path):
    task = ragged(most=2, tokens=1)
    with pytest.raises(ValueError, match="answers in turns; dpo takes episodes of one turn"):
        DPO(task, DPOConfig(data=str(tmp_path / "pairs.jsonl")))


def test_what_it_cannot_do_is_said(env):
    with pytest.raises(ValueError, match=r"beta=0\.0"):
        make_agent("dpo", env, beta=0.0, **CPU)
    odd = make_env("textgym/Bandit-v0", 3)
    with pytest.raises(ValueError, match="3 sub-environments; allowed are multiples of 2"):
        make_agent("dpo", odd, **CPU).learn(odd, 3)


@pytest.mark.slow
@pytest.mark.long
def test_it_learns_bandit_from_pairs_of_the_reference():
    config = make_config(agent_class("dpo"), {**CPU, "batch": 128})
    env = make_env("textgym/Bandit-v0", config.batch)
    solution = solve(env.unwrapped.task)
    agent = make_agent("dpo", env, config)
    agent.learn(env, 8192)
    assert solution.optimality(policy_values(solution.tree, agent).objective) >= 0.95


def test_only_its_own_new_completions_can_be_the_policys(file):
    for settings in ({"data": str(file)}, {"pairs": 8}):
        with pytest.raises(ValueError, match="sampler='policy': allowed is 'reference' with data or pairs"):
            DPOConfig(sampler="policy", **settings)
    with pytest.raises(ValueError, match="sampler='nobody'"):
        DPOConfig(sampler="nobody")


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("name", ["learns Bandit", "learns Delayed", "learns Stop"])
def test_with_its_own_pairs_it_is_asked_to_learn_and_does(name):
    (finding,) = check("dpo", [name], settings={**CPU, "sampler": "policy"})
    assert finding.status == HOLDS
    (finding,) = check("dpo", [name], settings=CPU)
    assert finding.status == NOT_ASKED
    assert "others wrote" in finding.found


def test_broken_rows_are_left_out_where_that_is_asked_for(tmp_path):
    env, file = make_env("textgym/Stop-v0", 4), tmp_path / "pairs.jsonl"
    prompt = env.unwrapped.task.prompt_set("train").texts[0]
    rows = [Ranking(prompt, ("word", "word word"), (True, True)), Ranking(prompt, ("word", "other"), (True, True))]
    write_rankings(file, rows, "trl")
    file.write_text(file.read_text() + '{"prompt": "no answers"}\n')
    with pytest.raises(ValueError, match=r"pairs.jsonl, line 3"):
        make_agent("dpo", env, data=str(file), **CPU).check_learning(env)
    agent = make_agent("dpo", env, data=str(file), on_broken="skip", **CPU)
    with pytest.warns(TextGymWarning) as said:
        agent.check_learning(env)
    messages = [str(warning.message) for warning in said]
    assert "1 of 3 rows are left out, first " in messages[0]
    assert "pairs.jsonl, line 3" in messages[0]
    assert "1 of 2 rows are left out, first text 2 of 2: prompt: 'other' is not a word" in messages[1]
    agent.learn(env, 4)
    assert agent.episodes == 4


def test_a_completion_ends_at_its_first_stop_token():
    words = {"prompts": ["a b"], "tokenizer": ["a", "b", ".", "c"], "stop": ".", "reference": "uniform"}
    task = make_env("textgym/Text-v0", 1, **words, max_new_tokens=8).unwrapped.task
    texts = [Demonstration("a b", text, True) for text in ("c . a .", "c c .", "c c")]
    sequences, cut = encode_texts(task, texts)
    found = [ids[2:].tolist() for ids in sequences.input_ids]
    assert [ids[:length] for ids, length in zip(found, sequences.lengths, strict=True)] == [
        [3, 2],
        [3, 3, 2],
        [3, 3, 2],
    ]
    assert cut == 1
