"""Distillation: each divergence by hand and by enumeration, the teacher as its optimum, and who may teach."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from agents.enumerated import beside, full_rollout, tiny_agent, tiny_task
from agents.groups import expected_gradient, flat_gradient, small_agent
from agents.test_exact_estimators import Recurrent
from gymnasium.vector import AutoresetMode
from lm.tiny_models import tiny_llama
from solver_tools import odd_grammar, small_task
from textgym_agents import load_agent, make_agent, make_env
from textgym_agents.algorithms.distill import Distill, DistillConfig
from textgym_agents.conformance import FAILS, NOT_ASKED, check, check_names
from textgym_agents.exact.objective import EnumeratedPolicy, edge_mass
from textgym_agents.lm.metrics import UpdateMeter

from textgym import TokenVectorEnv
from textgym.lm.categorical import divergence
from textgym.solver import policy_values, prefix_tree, solve

KINDS = [("reverse", 0.5), ("forward", 0.5), ("jsd", 0.5), ("jsd", 0.1)]


def taught(folder: Path, vocab: int = 4, seed: int = 5) -> str:
    """A folder with a small causal LM that nobody has trained."""
    tiny_llama(vocab, seed=seed).save_pretrained(folder)
    return str(folder)


def test_divergences_by_hand():
    own, aim = torch.log(torch.tensor([[0.5, 0.5]])), torch.log(torch.tensor([[0.8, 0.2]]))
    # 0.5 log(0.5 / 0.8) + 0.5 log(0.5 / 0.2); 0.8 log(0.8 / 0.5) + 0.2 log(0.2 / 0.5)
    assert float(divergence(own, aim, "reverse")) == pytest.approx(0.5 * math.log(0.625) + 0.5 * math.log(2.5))
    assert float(divergence(own, aim, "forward")) == pytest.approx(0.8 * math.log(1.6) + 0.2 * math.log(0.4))
    # M = 0.25 (0.8, 0.2) + 0.75 (0.5, 0.5) = (0.575, 0.425)
    teacher = 0.8 * math.log(0.8 / 0.575) + 0.2 * math.log(0.2 / 0.425)
    student = 0.5 * math.log(0.5 / 0.575) + 0.5 * math.log(0.5 / 0.425)
    assert float(divergence(own, aim, "jsd", 0.25)) == pytest.approx(0.25 * teacher + 0.75 * student, rel=1e-5)


def test_the_mixture_lies_between_both():
    generator = torch.Generator().manual_seed(0)
    own, aim = (torch.log_softmax(torch.randn(6, 5, generator=generator).double(), -1) for _ in range(2))
    for mix, kind in ((1e-6, "forward"), (1 - 1e-6, "reverse")):
        scaled = divergence(own, aim, "jsd", mix) / min(mix, 1 - mix)
        torch.testing.assert_close(scaled, divergence(own, aim, kind), atol=1e-4, rtol=1e-4)
    for kind, mix in KINDS:
        assert (divergence(own, aim, kind, mix) > 1e-3).all()
        torch.testing.assert_close(divergence(aim, aim, kind, mix), torch.zeros(6).double(), atol=1e-12, rtol=0)


def slope(own, aim, kind, mix):
    """The derivative of a divergence by the logits of `own` (n, V), worked out by hand."""
    p, t = own.exp(), aim.exp()
    if kind == "forward":
        return p - t
    m = mix * t + (1 - mix) * p
    inner = own - aim if kind == "reverse" else (1 - mix) * (own - m.log())
    return p * (inner - (p * inner).sum(-1, keepdim=True))


@pytest.mark.parametrize("options", [{}, {"mask": odd_grammar}])
@pytest.mark.parametrize(("kind", "mix"), KINDS)
def test_the_expected_gradient_by_enumeration(kind, mix, options):
    tree, student, teacher = prefix_tree(small_task(**options)), Recurrent(), Recurrent(seed=3)
    own = EnumeratedPolicy(student)
    values = policy_values(tree, own)
    listed = torch.zeros(sum(p.numel() for p in student.parameters()), dtype=torch.float64)
    by_state = listed.clone()
    every, visits = values.trajectories, edge_mass(values)
    for depth in range(len(tree.levels) - 1):
        for row in tree.levels[depth].running:
            seen = tree.observations(depth, np.array([row]))
            where, _ = tree.edges(depth, np.array([row]))
            legal = torch.tensor(tree.levels[depth + 1].action[where])
            logits = own.logits(seen)[:, legal]
            aim = torch.log_softmax(EnumeratedPolicy(teacher).logits(seen)[:, legal], -1).detach()
            # Every text that goes through the state, one by one.
            through = [n for n in range(len(every.row)) if ancestor(tree, every, n, depth) == row]
            loss = divergence(torch.log_softmax(logits, -1), aim, kind, mix) * every.probability[through].sum()
            listed += own.flat(torch.autograd.grad(loss.sum(), own.parameters, retain_graph=True, allow_unused=True))
            by_hand = slope(torch.log_softmax(logits, -1).detach(), aim, kind, mix) * visits[depth][where].sum()
            by_state += own.flat(torch.autograd.grad((logits * by_hand).sum(), own.parameters, allow_unused=True))
    assert by_state.norm() > 0.1
    torch.testing.assert_close(listed, by_state, atol=1e-8, rtol=0)


def ancestor(tree, every, number, depth):
    """The state of a text at a depth; None where it has ended before."""
    at, row = int(every.length[number]), int(every.row[number])
    if at < depth:
        return None
    for level in range(at, depth, -1):
        row = int(tree.levels[level].parent[row])
    return row


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "mix"), [("reverse", 0.5), ("forward", 0.5), ("jsd", 0.1)])
def test_the_agent_s_gradient_is_that_of_the_states_it_visits(kind, mix, tmp_path):
    given = {"mix": mix} if kind == "jsd" else {}
    agent = small_agent(Distill, teacher=taught(tmp_path), divergence=kind, **given)
    rollout, probabilities = full_rollout(agent)
    got = expected_gradient(agent, rollout, probabilities)
    agent.policy.zero_grad()
    total = torch.zeros(())
    for (_, own, aim), probability in zip(beside(agent, agent.teacher), probabilities, strict=True):
        total = total + probability * divergence(own, aim, kind, mix).sum()
    total.backward()
    want = flat_gradient(agent)
    assert want.norm() > 0.05
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize(("kind", "mix"), KINDS)
def test_at_the_teacher_nothing_is_left_to_learn(kind, mix, tmp_path):
    given = {"mix": mix} if mix != 0.5 else {}
    config = DistillConfig(teacher=taught(tmp_path), divergence=kind, device="cpu", batch=16, **given)
    agent = Distill(tiny_task(), config, model=tiny_llama(4, seed=5))
    rollout, probabilities = full_rollout(agent)
    assert expected_gradient(agent, rollout, probabilities).abs().max() < 1e-6


def test_what_a_step_measures(tmp_path):
    agent = small_agent(Distill, teacher=taught(tmp_path))
    rollout, _ = full_rollout(agent)
    listed = [(one.completion, own, aim) for one, own, aim in beside(agent, agent.teacher)]
    # As if every token had been written with probability 1 / 2: the ratios are twice the policy's probabilities.
    written = replace(rollout, log_probs=torch.full((len(rollout.rows),), math.log(0.5)))
    targets, meter = agent._targets(written, np.zeros(len(rollout.rows))), UpdateMeter()
    meter.start(len(rollout.rows))
    agent._loss(rollout.features, torch.arange(len(rollout.rows)), written, targets, torch.zeros(0), meter)
    meter.finish(1.0)
    found = meter.means()
    ratios = torch.cat([2 * own.detach()[range(len(tokens)), tokens].exp() for tokens, own, _ in listed])
    losses = torch.cat([divergence(own.detach(), aim, "reverse") for _, own, aim in listed])
    entropies = torch.cat([-(own.exp() * own).sum(-1).detach() for _, own, _ in listed])
    assert found["val/ratio"] == pytest.approx(float(ratios.mean()), rel=1e-5)
    assert found["loss/policy_avg"] == pytest.approx(float(losses.mean()), rel=1e-4)
    assert found["policy/entropy_avg"] == pytest.approx(float(entropies.mean()), rel=1e-5)
    assert found["loss/value_avg"] == found["policy/clipfrac_avg"] == 0  # no critic, and nothing is clipped
    assert ratios.min() < 1 < ratios.max()


def test_a_policy_whose_tokens_are_cut_cannot_follow_forward():
    for settings in ({"top_p": 0.9}, {"top_k": 2}, {"min_p": 0.1}):
        with pytest.raises(ValueError, match="divergence='forward': allowed is 'reverse' or 'jsd' with top_p"):
            DistillConfig(teacher="x", divergence="forward", **settings)
        DistillConfig(teacher="x", **settings)


@pytest.mark.slow
def test_a_trained_agent_teaches_at_its_own_temperature(tmp_path):
    teacher = tiny_agent(temperature=0.7)
    teacher.save(tmp_path / "run" / "checkpoint")
    env = TokenVectorEnv(tiny_task(), 2)
    seen = env.reset(seed=0)[0]
    for folder, temperature in ((tmp_path / "run", 0.7), (tmp_path / "run" / "checkpoint" / "model", 1.0)):
        agent = small_agent(Distill, teacher=str(folder))
        found = agent.teacher.log_probs(seen)
        np.testing.assert_allclose(found, tiny_agent(temperature=temperature).log_probs(seen), atol=1e-6)


@pytest.mark.long
def test_a_student_becomes_like_its_teacher(tmp_path):
    agent = small_agent(Distill, teacher=taught(tmp_path), batch=64, minibatches=4, learning_rate=0.01)
    tree = prefix_tree(agent.task)
    before = policy_values(tree, agent, agent.teacher).kl
    agent.learn(TokenVectorEnv(agent.task, 64, autoreset_mode=AutoresetMode.DISABLED), 2560)
    assert before > 0.5
    assert policy_values(tree, agent, agent.teacher).kl < 0.05 * before


@pytest.mark.slow
def test_it_goes_on_bit_for_bit_and_is_read_without_its_teacher(tmp_path):
    folder = taught(tmp_path / "teacher")
    env = TokenVectorEnv(tiny_task(), 16, autoreset_mode=AutoresetMode.DISABLED)
    whole, part = (small_agent(Distill, teacher=folder) for _ in range(2))
    whole.learn(env, 64)
    part.learn(env, 64, lambda row: row["iteration"] == 2)
    part.save(tmp_path / "half")
    again = load_agent(tmp_path / "half", env)
    again.learn(env, 32)
    for one, other in zip(whole.policy.parameters(), again.policy.parameters(), strict=True):
        assert torch.equal(one, other)
    (tmp_path / "teacher").rename(tmp_path / "gone")
    seen = env.reset(seed=0)[0]
    moved = load_agent(tmp_path / "half", env)
    np.testing.assert_array_equal(moved.log_probs(seen), part.log_probs(seen))
    with pytest.raises(ValueError, match=r"teacher=.*: no folder, and no model"):
        moved.check_learning(env)


@pytest.mark.slow
def test_who_cannot_teach_is_named(tmp_path):
    env = make_env("textgym/Stop-v0", 4)
    with pytest.raises(ValueError, match="teacher=None: allowed is folder of a model or run, or hub id"):
        make_agent("distill", env)
    make_agent("q-learning", env).save(tmp_path / "table")
    table = make_agent("distill", env, teacher=str(tmp_path / "table"), device="cpu")
    with pytest.raises(ValueError, match="agent 'q-learning' has no language model; allowed are such as lm-ppo"):
        table.check_learning(env)
    larger = make_agent("distill", env, teacher=taught(tmp_path / "larger", 11), device="cpu")
    with pytest.raises(ValueError, match=r"teacher=.*larger': model: it has 11 logits but the task has 7 actions"):
        larger.check_learning(env)


def test_the_learning_rate_that_is_settled_does_not_depend_on_rewards(tmp_path, monkeypatch):
    found = []

    def spy(agent, config, gamma, *rest):
        found.append(gamma)
        return agent.learning_rate, 1.0, "settled"

    monkeypatch.setattr("textgym_agents.lm.rates.settled", spy)
    task = tiny_task()
    env = TokenVectorEnv(task, 8, autoreset_mode=AutoresetMode.DISABLED)
    env.reset(seed=0)
    agent = Distill(
        task, DistillConfig(teacher=taught(tmp_path / "teacher"), batch=8, device="cpu"), model=tiny_llama(4)
    )
    agent.settles = True
    agent.learn(env, 16)
    assert found == [None]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"divergence": "kl"}, "divergence='kl': allowed is 'reverse' or 'forward' or 'jsd'"),
        ({"mix": 0.3}, r"mix=0\.3: allowed is 0\.5 without divergence='jsd'"),
        ({"mix": 1.0, "divergence": "jsd"}, r"mix=1\.0: allowed is a number in \(0, 1\)"),
        ({"whiten": True}, "whiten=True: allowed is False"),
        ({"entropy_coefficient": 0.1}, r"entropy_coefficient=0\.1: allowed is 0\.0"),
        ({"kl_target": 1.0}, r"kl_target=1\.0: allowed is None"),
        ({"entropy_target": 1.0}, r"entropy_target=1\.0: allowed is None"),
        ({"importance": "truncate", "sampler": "http://x", "lora_rank": 1}, "importance='truncate': allowed is 'none'"),
        ({"importance_cap": 3.0, "sampler": "http://x", "lora_rank": 1}, r"importance_cap=3\.0: allowed is 2\.0"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        DistillConfig(teacher="x", **settings)


@pytest.mark.long
def test_it_passes_what_the_kit_can_ask_of_it(tmp_path):
    def student(env):
        task = env.unwrapped.task
        folder = tmp_path / f"teacher-{task.vocabulary.size}"
        teacher = str(folder) if folder.exists() else taught(folder, task.vocabulary.size)
        return Distill(task, DistillConfig(teacher=teacher, device="cpu", batch=env.num_envs))

    findings = check(student, check_names(slow=False), envs=32, iterations=2)
    assert {f.check: f.found for f in findings if f.status == FAILS} == {}
    asked = {f.check for f in findings if f.status != NOT_ASKED}
    print(sorted({f.check for f in findings} - asked))
    assert asked >= {"first ratio", "resumed", "same seed, same policy", "starts at the reference", "mask obedience"}


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("kind", ["reverse", "forward", "jsd"])
def test_it_reaches_the_optimality_of_its_teacher(kind, tmp_path):
    env = make_env("textgym/Copy-v0", 256)
    solution = solve(env.unwrapped.task)
    teacher = make_agent("lm-ppo", env, device="cpu")
    teacher.learn(env, 16_384)
    teacher.save(tmp_path / "teacher")
    student = make_agent("distill", env, teacher=str(tmp_path / "teacher"), divergence=kind, device="cpu")
    student.learn(env, 8_192)
    found, wanted = (solution.optimality(policy_values(solution.tree, each).objective) for each in (student, teacher))
    print(f"{kind}: {found:.4f}, teacher {wanted:.4f}")
    assert wanted > 0.95
    assert found > wanted - 0.01
