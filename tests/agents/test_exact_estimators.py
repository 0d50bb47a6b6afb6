"""Exact gradients and the moments of estimators, against finite differences, autograd, listing and sampling."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from agents.enumerated import exact_objective, tiny_agent
from solver_tools import bigram, odd_grammar, small_task
from textgym_agents.exact.estimators import (
    enumerate_trajectories,
    estimator_table,
    kl_gradient,
    kl_gradient_table,
    kl_value_table,
    leave_one_out,
    standardised,
)
from textgym_agents.exact.objective import (
    EnumeratedPolicy,
    edge_jacobian,
    log_ratios,
    policy_gradient,
    state_sums,
    to_go,
)
from textgym_agents.lm.processors import Cut, Processors

from textgym.solver import policy_values, prefix_tree


class Recurrent(torch.nn.Module):
    """A float64 policy whose distribution depends on every token of the state."""

    def __init__(self, size=4, hidden=5, seed=0):
        super().__init__()
        self.embedding = torch.nn.Parameter(torch.zeros(size, hidden, dtype=torch.float64))
        self.recurrence = torch.nn.Parameter(torch.zeros(hidden, hidden, dtype=torch.float64))
        self.head = torch.nn.Parameter(torch.zeros(hidden, size, dtype=torch.float64))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))

    def states(self, input_ids, rows, columns):
        state, steps = torch.zeros(len(input_ids), len(self.recurrence), dtype=torch.float64), []
        for column in range(input_ids.shape[1]):
            state = torch.tanh(state @ self.recurrence + self.embedding[input_ids[:, column]])
            steps.append(state)
        return torch.stack(steps, 1)[rows, columns] @ self.head, None


def finite_differences(policy, objective, step=1e-5):
    """Central differences of objective() by every parameter of the policy."""
    result = []
    for parameter in policy.parameters():
        flat = parameter.data.view(-1)
        for i in range(len(flat)):
            kept, ends = flat[i].item(), []
            for sign in (1, -1):
                flat[i] = kept + sign * step
                ends.append(objective())
            flat[i] = kept
            result.append((ends[0] - ends[1]) / (2 * step))
    return np.array(result)


@pytest.mark.slow
@pytest.mark.parametrize(("gamma", "beta"), [(1.0, 0.4), (0.6, 0.4), (1.0, 0.0)])
def test_gradient_of_j_by_finite_differences(gamma, beta):
    tree, policy, reference = prefix_tree(small_task(gamma=gamma)), Recurrent(), bigram()
    got = policy_gradient(tree, policy, reference, beta=beta)
    want = finite_differences(policy, lambda: policy_values(tree, EnumeratedPolicy(policy), reference, beta).objective)
    assert got.norm > 0.1
    assert np.linalg.norm(got.gradient.numpy() - want) < 1e-6 * np.linalg.norm(want)
    np.testing.assert_allclose(got.gradient.numpy(), want, atol=1e-7)


@pytest.mark.slow
def test_gradient_under_a_mask_by_finite_differences():
    tree, policy, reference = prefix_tree(small_task(mask=odd_grammar)), Recurrent(), bigram()
    got = policy_gradient(tree, policy, reference)
    want = finite_differences(policy, lambda: policy_values(tree, EnumeratedPolicy(policy), reference).objective)
    assert np.linalg.norm(got.gradient.numpy() - want) < 1e-6 * np.linalg.norm(want)


def test_gradient_of_an_lm_agent_against_autograd_through_j():
    agent = tiny_agent()
    got = policy_gradient(agent.task, agent, agent.reference)
    agent.policy.zero_grad()
    objective = exact_objective(agent)
    objective.backward()
    assert got.values.objective == pytest.approx(objective.item(), abs=1e-5)
    want = torch.cat(
        [(torch.zeros_like(p) if p.grad is None else p.grad).flatten().double() for p in agent.policy.parameters()]
    )
    assert got.norm > 0.1
    torch.testing.assert_close(got.gradient, want, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("mask", [None, odd_grammar])
def test_the_jacobian_makes_the_same_gradient(mask):
    tree, policy = prefix_tree(small_task(gamma=0.7, mask=mask)), Recurrent()
    enumeration = enumerate_trajectories(tree, policy, bigram())
    want = policy_gradient(tree, policy, bigram()).gradient.numpy()
    np.testing.assert_allclose(enumeration.gradient, want, atol=1e-12)
    assert enumeration.mass.sum() == pytest.approx(1, abs=1e-12)
    # E grad log P(tau) = 0, over the legal actions alone.
    np.testing.assert_allclose(enumeration.mass @ enumeration.scores, 0, atol=1e-12)


class Halved(torch.nn.Module):
    """Half the logits of a policy that it has."""

    def __init__(self):
        super().__init__()
        self.policy = Recurrent()

    def states(self, input_ids, rows, columns):
        return self.policy.states(input_ids, rows, columns)[0] / 2, None


def test_a_policy_in_a_policy_is_not_taken_for_it():
    seen = prefix_tree(small_task()).observations(0, np.arange(2))
    want = torch.log_softmax(EnumeratedPolicy(Recurrent()).logits(seen).detach() / 2, -1)
    np.testing.assert_allclose(EnumeratedPolicy(Halved()).log_probs(seen), want, atol=1e-12)


def test_what_a_cut_keeps_is_held_fixed_as_what_a_mask_allows():
    whole, cut = Recurrent(), Recurrent()
    cut.cut = Cut(small_task(), Processors(top_k=2))

    def likeliest(states):
        masks = np.zeros((len(states), 4), dtype=bool)
        for row, state in enumerate(states):
            last = torch.tensor([len(state.tokens) - 1])
            logits = whole.states(torch.tensor([state.tokens]), torch.tensor([0]), last)[0][0]
            masks[row, np.argsort(logits.tolist())[2:]] = True
        return masks

    got, want = (
        policy_gradient(small_task(mask=mask), policy, beta=0.0) for mask, policy in ((None, cut), (likeliest, whole))
    )
    assert want.norm > 0.1
    assert got.values.objective == pytest.approx(want.values.objective, abs=1e-12)
    torch.testing.assert_close(got.gradient, want.gradient, atol=1e-12, rtol=1e-9)


def test_where_the_policy_never_goes_the_log_ratio_is_zero(enumeration):
    # A cut token has log pi = -1e9, as `FORBIDDEN` has it, and probability 0.
    logs = [each.copy() for each in enumeration.values.log_policy]
    logs[0][0] = -1e9
    found = log_ratios(replace(enumeration.values, log_policy=tuple(logs)))
    assert found[0][0] == 0
    np.testing.assert_allclose(found[0][1:], logs[0][1:] - enumeration.values.log_reference[0][1:])


def test_sums_over_the_edges_of_a_state():
    # In every state that goes on there are four actions, of which three go on; after three tokens none does.
    tree = prefix_tree(small_task())
    found = state_sums(tree, [np.ones(len(level.parent)) for level in tree.levels[1:]])
    assert [sums.tolist() for sums in found] == [[4, 4], [4, 4, 4, 0] * 2, [4, 4, 4, 0] * 6]


def test_the_jacobian_is_refused_where_it_would_not_fit(monkeypatch):
    import textgym_agents.exact.objective as exact

    # Two prompts with 4 + 3 * 4 + 9 * 4 edges each; 4 * 5 + 5 * 5 + 5 * 4 parameters.
    tree, policy = prefix_tree(small_task()), EnumeratedPolicy(Recurrent())
    monkeypatch.setattr(exact, "_LARGEST", 104 * 65)
    assert edge_jacobian(tree, policy).shape == (104, 65)
    monkeypatch.setattr(exact, "_LARGEST", 104 * 65 - 1)
    with pytest.raises(ValueError, match="104 edges times 65 parameters"):
        edge_jacobian(tree, policy)


class OnlyStates:
    """A policy without parameters."""

    def states(self, input_ids, rows, columns):
        return torch.zeros(len(rows), 4), None


@pytest.mark.parametrize("policy", [object(), torch.nn.Linear(2, 2), OnlyStates()])
def test_what_is_no_torch_policy_is_refused(policy):
    with pytest.raises(TypeError, match="allowed is"):
        policy_gradient(small_task(), policy)


def test_a_torch_policy_can_be_the_reference():
    values = policy_gradient(small_task(), Recurrent(), Recurrent()).values
    assert values.kl == pytest.approx(0, abs=1e-12)
    assert policy_gradient(small_task(), Recurrent(), Recurrent(seed=1)).values.kl > 0.1


def test_a_parameter_that_nothing_depends_on_has_no_gradient():
    tree, plain, policy = prefix_tree(small_task()), Recurrent(), Recurrent()
    policy.register_parameter("unused", torch.nn.Parameter(torch.ones(2)))
    found = edge_jacobian(tree, EnumeratedPolicy(policy))
    assert not found[:, -2:].any()
    np.testing.assert_array_equal(found[:, :-2], edge_jacobian(tree, EnumeratedPolicy(plain)))
    gradient = policy_gradient(tree, policy, bigram()).gradient
    assert gradient[-2:].tolist() == [0, 0]
    torch.testing.assert_close(gradient[:-2], policy_gradient(tree, plain, bigram()).gradient)


@pytest.fixture(scope="module")
def enumeration():
    return enumerate_trajectories(small_task(gamma=0.8), Recurrent(), bigram())


def table(enumeration, **options):
    return {row.estimator: row for row in estimator_table(enumeration, **options)}


@pytest.mark.slow
def test_which_estimators_are_unbiased(enumeration):
    rows = table(enumeration, lams=(0.0, 0.95, 1.0))
    unbiased = {name for name, row in rows.items() if row.relative_bias < 1e-10}
    assert unbiased == {
        "REINFORCE",
        "REINFORCE, reward to go",
        "REINFORCE, reward to go - V",
        "GAE(0), V",
        "GAE(0.95), V",
        "GAE(1), V",
        "GAE(1), critic 0",
        "RLOO, groups of 2",
    }
    assert rows["GAE(0), critic 0"].relative_bias > 0.05
    assert rows["GAE(0.95), critic 0"].relative_bias > 1e-3
    # With its own return in the mean, half of the gradient is left in groups of two; its direction is right.
    assert rows["GRPO without std, groups of 2"].relative_bias == pytest.approx(0.5, abs=1e-10)
    assert rows["GRPO without std, groups of 2"].cosine == pytest.approx(1, abs=1e-10)
    assert rows["GRPO, groups of 2"].cosine < 1 - 1e-4
    assert all(row.bias_error == row.variance_error == 0 for row in rows.values())


@pytest.mark.slow
def test_variance_falls_as_theory_says(enumeration):
    rows = table(enumeration, lams=(0.0, 0.95, 1.0))
    variance = {name: row.variance for name, row in rows.items()}
    # The exact V with lambda 0 leaves the noise of the action alone; a value baseline takes out what was known before.
    assert variance["GAE(0), V"] < variance["GAE(0.95), V"] < variance["GAE(1), V"]
    assert variance["REINFORCE, reward to go - V"] == pytest.approx(variance["GAE(1), V"])
    assert variance["REINFORCE, reward to go"] == pytest.approx(variance["GAE(1), critic 0"])
    assert variance["REINFORCE, reward to go - V"] < variance["REINFORCE"]
    # A centred group of two is RLOO's, halved.
    assert variance["GRPO without std, groups of 2"] == pytest.approx(variance["RLOO, groups of 2"] / 4)


@pytest.mark.long
def test_variance_against_the_definition(enumeration):
    # REINFORCE: the gradient of each trajectory by autograd of its own log-probability, times its charged return.
    policy, tree = Recurrent(), enumeration.values.tree
    every, mean, second = enumeration.values.trajectories, 0.0, 0.0
    for index in range(len(every.prompt)):
        prompt = tree.task.encoded("train")[every.prompt[index]].ids
        tokens = tree.completions(int(every.length[index]), every.row[index : index + 1])[0].tolist()
        ids = torch.tensor([[*prompt, *tokens]])
        columns = torch.arange(len(prompt) - 1, len(prompt) - 1 + len(tokens))
        logits, _ = policy.states(ids, torch.zeros_like(columns), columns)
        taken = torch.log_softmax(logits, -1)[torch.arange(len(tokens)), torch.tensor(tokens)].sum()
        score = torch.cat([g.flatten() for g in torch.autograd.grad(taken, list(policy.parameters()))])
        gradient = score.numpy() * (every.returns[index] - 0.4 * every.log_ratio[index])
        mean = mean + every.probability[index] * gradient
        second += every.probability[index] * float(gradient @ gradient)
    row = table(enumeration)["REINFORCE"]
    np.testing.assert_allclose(mean, enumeration.gradient, atol=1e-12)
    assert row.variance == pytest.approx(second - mean @ mean, rel=1e-10)


@pytest.mark.long
def test_drawn_groups_agree_with_all_groups(enumeration, monkeypatch):
    import textgym_agents.exact.estimators as module

    exact = table(enumeration)
    monkeypatch.setattr(module, "_MOST_COUNTS", 0)
    drawn = table(enumeration, draws=40_000)
    for name in ("RLOO, groups of 2", "GRPO, groups of 2"):
        assert drawn[name].bias_error > 0
        assert abs(drawn[name].variance - exact[name].variance) < 4 * drawn[name].variance_error
        assert abs(drawn[name].bias - exact[name].bias) < 4 * drawn[name].bias_error
    with pytest.raises(ValueError, match="group"):
        estimator_table(enumeration, group=1)


@pytest.mark.long
@pytest.mark.slow
def test_larger_groups(enumeration):
    rows = table(enumeration, group=3)
    assert rows["RLOO, groups of 3"].relative_bias < 1e-10
    assert rows["GRPO without std, groups of 3"].relative_bias == pytest.approx(1 / 3, abs=1e-10)
    pairs = table(enumeration)
    assert rows["RLOO, groups of 3"].variance < pairs["RLOO, groups of 2"].variance


def test_advantages_by_hand():
    returns = np.array([[1.0, 0.0, 2.0]])
    np.testing.assert_allclose(leave_one_out(returns), [[0.0, -1.5, 1.5]])
    np.testing.assert_allclose(standardised(returns), [[0.0, -1.0, 1.0]], atol=2e-4)
    np.testing.assert_allclose(to_go(np.array([[1.0, 2.0, 4.0]])), [[7.0, 6.0, 4.0]])


@pytest.mark.slow
def test_gradient_of_the_kl_by_finite_differences(enumeration):
    policy, tree, reference = Recurrent(), enumeration.values.tree, bigram()
    want = finite_differences(policy, lambda: policy_values(tree, EnumeratedPolicy(policy), reference).kl)
    assert np.linalg.norm(kl_gradient(enumeration) - want) < 1e-6 * np.linalg.norm(want)


def test_values_of_kl_estimators(enumeration):
    rows = {row.estimator: row for row in kl_value_table(enumeration)}
    assert rows["exact"].mean == pytest.approx(enumeration.values.kl, abs=1e-12)
    for name in ("k1", "k3", "exact"):
        assert abs(rows[name].bias) < 1e-12
    assert abs(rows["k2"].bias) > 1e-3
    assert rows["exact"].variance < rows["k1"].variance
    every = enumeration.values.trajectories
    second = every.probability @ every.log_ratio**2
    assert rows["k1"].variance == pytest.approx(second - enumeration.values.kl**2)


def test_gradients_of_kl_estimators(enumeration):
    rows = {row.estimator: row for row in kl_gradient_table(enumeration)}
    unbiased = {name for name, row in rows.items() if row.relative_bias < 1e-10}
    assert unbiased == {
        "k1 in the reward",
        "k1 in the reward, whole sequence",
        "k2 in the loss, later KL in the reward",
        "exact in the loss, later KL in the reward",
    }
    # The expected gradient of k1 in the loss is 0: all of the gradient is missing.
    assert rows["k1 in the loss"].relative_bias == pytest.approx(1, abs=1e-10)
    assert np.isnan(rows["k1 in the loss"].cosine)
    # Differentiating the KL of the states visited leaves out how the states came about, and the reverse.
    assert rows["exact in the loss"].relative_bias > 0.01
    assert rows["exact in the loss"].bias == pytest.approx(rows["k2 in the loss"].bias, abs=1e-10)
    assert rows["exact in the reward"].relative_bias > 0.01
    assert rows["exact in the loss"].variance < rows["k2 in the loss"].variance


def test_k3_in_the_loss_follows_the_opposite_kl_state_by_state(enumeration):
    # sum_s d(s) grad KL(ref || pi) = - sum_s d(s) sum_a ref(a given s) grad log pi(a given s)
    tree, values = enumeration.values.tree, enumeration.values
    weights = []
    for depth, level in enumerate(tree.levels[:-1]):
        mass = tree.weights[tree.prompt_of[depth]] * values.reach[depth]
        parent = tree.levels[depth + 1].parent
        assert len(level.parent) == len(mass)
        weights.append(-mass[parent] * np.exp(values.log_reference[depth]))
    want = np.concatenate(weights) @ enumeration.jacobian
    ratio = enumeration.steps.log_ratio
    got = enumeration.moments("k3", -np.expm1(-ratio), want)
    assert got.relative_bias < 1e-10


def test_at_the_optimum_the_gradient_is_zero():
    # A table of pairs as torch parameters, for a task of one token, set to the Gibbs policy.
    from textgym.solver import solve

    task = small_task(max_new_tokens=1)
    solution = solve(task, bigram())

    class Table(torch.nn.Module):
        def __init__(self):
            super().__init__()
            rows = torch.tensor(solution.log_policy[0].reshape(2, 4))
            self.table = torch.nn.Parameter(torch.zeros(4, 4, dtype=torch.float64))
            self.table.data[[0, 2]] = rows  # prompts "a" and "b c" end in ids 0 and 2

        def states(self, input_ids, rows, columns):
            return self.table[input_ids[rows, columns]], None

    assert policy_gradient(task, Table(), bigram()).norm < 1e-12
