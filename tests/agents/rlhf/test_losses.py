"""Losses of rankings against hand arithmetic, finite differences and each other."""

import math
from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from textgym_agents.rlhf.ranking import (
    centering_loss,
    pair_logits,
    pairwise_loss,
    plackett_luce_loss,
    ranking_loss,
)

LOSSES = {
    "pairwise": pairwise_loss,
    "margin": lambda s, m=None: pairwise_loss(s, m, torch.linspace(0.5, 1.0, len(s), dtype=s.dtype)),
    "plackett_luce": plackett_luce_loss,
    "centering": centering_loss,
    "all": lambda s, m=None: ranking_loss(s, m, kind="plackett_luce", centering=0.3),
}


def softplus(x):
    return math.log1p(math.exp(x))


def tensor(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def test_pairwise_loss_of_a_ranking_of_three_by_hand():
    # pairs (1, 2), (1, 3), (2, 3) with margins 1, 3, 2, each weighted 1 / C(3, 2)
    want = (softplus(-1) + softplus(-3) + softplus(-2)) / 3
    assert pairwise_loss(tensor([2.0, 1.0, -1.0])).tolist() == pytest.approx([want])


def test_a_margin_is_asked_of_every_pair():
    want = (softplus(-1 + 0.5) + softplus(-3 + 0.5) + softplus(-2 + 0.5)) / 3
    got = pairwise_loss(tensor([2.0, 1.0, -1.0], [1.0, 1.0, 1.0]), margin=torch.tensor([0.5, 0.0]))
    assert got.tolist() == pytest.approx([want, math.log(2)])


def test_plackett_luce_loss_by_hand():
    total, rest = math.exp(2) + math.exp(1) + math.exp(-1), math.exp(1) + math.exp(-1)
    want = -math.log(math.exp(2) / total) - math.log(math.exp(1) / rest)
    assert plackett_luce_loss(tensor([2.0, 1.0, -1.0])).tolist() == pytest.approx([want])


def test_plackett_luce_likelihoods_of_all_orders_sum_to_one():
    scores = torch.tensor([0.3, -1.2, 2.0, 0.5], dtype=torch.float64)
    orders = torch.stack([scores[list(p)] for p in permutations(range(4))])
    assert plackett_luce_loss(orders).neg().exp().sum().item() == pytest.approx(1.0)


def test_centering_loss_by_hand():
    assert centering_loss(tensor([2.0, 1.0, -1.0], [1.0, -1.0, 0.0])).tolist() == pytest.approx(
        [(9 + 1 + 0) / 3, (0 + 1 + 1) / 3]
    )


def test_the_loss_is_log_2_at_equality_and_log_k_factorial_for_an_order():
    same = tensor([0.7, 0.7, 0.7])
    assert pairwise_loss(same).item() == pytest.approx(math.log(2), abs=1e-12)
    assert plackett_luce_loss(same).item() == pytest.approx(math.log(6), abs=1e-12)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.floats(-20, 20), st.floats(-20, 20)), min_size=1, max_size=8))
def test_two_answers_have_one_loss_and_swapping_negates_the_logit(rows):
    scores = torch.tensor(rows, dtype=torch.float64)
    torch.testing.assert_close(plackett_luce_loss(scores), pairwise_loss(scores))
    swapped = scores.flip(1)
    assert torch.equal(pair_logits(swapped)[:, 0, 1], -pair_logits(scores)[:, 0, 1])
    # -log sigmoid(x) + log sigmoid(-x) = -x
    torch.testing.assert_close(pairwise_loss(scores) - pairwise_loss(swapped), scores[:, 1] - scores[:, 0])


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_gradients_equal_finite_differences(name):
    loss = LOSSES[name]
    scores = torch.randn((3, 4), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[True] * 4, [True, True, False, True], [True, True, False, False]])
    scores.requires_grad_()
    (gradient,) = torch.autograd.grad(loss(scores, mask).sum(), scores)
    step = 1e-6
    for row in range(3):
        for column in range(4):
            moved = torch.zeros_like(scores)
            moved[row, column] = step
            with torch.no_grad():
                slope = (loss(scores + moved, mask) - loss(scores - moved, mask)).sum() / (2 * step)
            assert gradient[row, column].item() == pytest.approx(slope.item(), abs=1e-8)


@pytest.mark.parametrize("name", sorted(LOSSES))
@pytest.mark.parametrize("filler", [0.0, 1e30, math.nan, -math.inf])
def test_pad_slots_have_no_influence_and_no_gradient(name, filler):
    loss = LOSSES[name]
    alone = tensor([1.0, 0.2, -0.4])
    padded = tensor([1.0, filler, 0.2, -0.4, filler]).requires_grad_()
    mask = torch.tensor([[True, False, True, True, False]])
    torch.testing.assert_close(loss(padded, mask), loss(alone))
    loss(padded, mask).sum().backward()
    assert padded.grad[0, [1, 4]].tolist() == [0.0, 0.0]
    assert padded.grad[0, [0, 2, 3]].abs().min() > 0


@pytest.mark.parametrize("loss", [pairwise_loss, plackett_luce_loss])
def test_huge_differences_stay_finite(loss):
    scores = torch.tensor([[-1e4, 1e4], [1e4, -1e4]], requires_grad=True)
    got = loss(scores)
    assert got.tolist() == [2e4, 0.0]
    got.sum().backward()
    assert scores.grad.tolist() == [[-1.0, 1.0], [0.0, 0.0]]


def test_ranking_loss_adds_the_centering():
    scores, margin = tensor([2.0, 1.0, -1.0]), torch.tensor([0.5])
    torch.testing.assert_close(
        ranking_loss(scores, margin=margin, centering=0.1),
        pairwise_loss(scores, margin=margin) + 0.1 * centering_loss(scores),
    )
    torch.testing.assert_close(ranking_loss(scores, kind="plackett_luce"), plackett_luce_loss(scores))
    # Without it scores may be so great that their squares are infinite.
    assert ranking_loss(tensor([1e200, 0.0])).tolist() == [0.0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pairwise_loss(torch.zeros(3)), r"scores: the shape is \(3,\), allowed is \(G, K\)"),
        (lambda: pairwise_loss(torch.zeros(3, 1)), r"\(3, 1\)"),
        (lambda: pairwise_loss(torch.zeros(1, 2), torch.ones(1, 2)), "mask: torch.float32.*torch.bool"),
        (lambda: pairwise_loss(torch.zeros(2, 2), torch.tensor([[True, False], [True, True]])), "at least two answers"),
        (lambda: pairwise_loss(torch.zeros(2, 2), margin=torch.zeros(1)), r"margin.*\(1,\).*\(2,\)"),
        (lambda: ranking_loss(torch.zeros(1, 2), kind="listwise"), "kind='listwise': one of"),
        (
            lambda: ranking_loss(torch.zeros(1, 2), margin=torch.zeros(1), kind="plackett_luce"),
            "margin: kind='plackett_luce' has none",
        ),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
