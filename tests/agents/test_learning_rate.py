"""The learning rate: given, of the start, or settled by how far and where the first batch has moved the policy."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from agents.enumerated import first_metrics, tiny_agent
from gymnasium.vector import AutoresetMode
from scipy.special import softmax
from scipy.stats import entropy
from textgym_agents.algorithms.ppo import LMPPO
from textgym_agents.algorithms.rloo import RLOO, RLOOConfig
from textgym_agents.config import LMPPOConfig
from textgym_agents.lm import rates
from textgym_agents.lm.devices import ALONE
from textgym_agents.lm.rates import nats_to_go, rate_at, settle, settled

from textgym import TokenVectorEnv, make_task


@pytest.mark.slow
def test_a_tiny_start_has_its_own_learning_rate_which_a_checkpoint_keeps(tmp_path):
    task = make_task("Bandit")
    env = TokenVectorEnv(task, 16, autoreset_mode=AutoresetMode.DISABLED)
    agent = LMPPO(task, LMPPOConfig(batch=16, device="cpu"))
    assert agent.learning_rate == 3e-3
    agent.save(tmp_path / "agent")
    assert LMPPO.load(tmp_path / "agent", env).learning_rate == 3e-3
    assert LMPPO(task, LMPPOConfig(batch=16, device="cpu", learning_rate=0.1)).learning_rate == 0.1
    assert tiny_agent().learning_rate == 5e-4


@pytest.mark.slow
@pytest.mark.parametrize("kl", [pytest.param("exact", marks=pytest.mark.long), "k1"])
def test_what_the_first_batch_has_moved_settles_the_learning_rate(kl, tmp_path):
    task = make_task("Helpful")
    config = RLOOConfig(batch=16, epochs=1, minibatches=2, kl=kl, schedule="constant", device="cpu", update_kl=0.32)

    def fresh():
        env = TokenVectorEnv(task, 16, autoreset_mode=AutoresetMode.DISABLED)
        env.reset(seed=0)
        return env

    rows, broken, env, again = [], RLOO(task, config), fresh(), fresh()
    whole, seen = RLOO(task, config), []

    def spy(agent, config, gamma, rollout, *rest):
        places = torch.tensor(rollout.rows), torch.tensor(rollout.columns)
        with torch.no_grad():
            logits = (each.model(rollout.input_ids).logits[places] for each in (whole.policy, whole.reference))
            own, base = (torch.log_softmax(each, -1).gather(1, rollout.actions[:, None])[:, 0] for each in logits)
        seen.append((np.bincount(rollout.rows, own - base), np.bincount(rollout.rows, rollout.rewards), gamma))
        return settled(agent, config, gamma, rollout, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rates, "settled", spy)
        whole.learn(env, 48, lambda row: rows.append(row))
    ((moves, found, gamma),) = seen
    moved, correlation = float(np.mean(moves**2) / 2), float(np.corrcoef(moves, found)[0, 1])
    assert (moved > 0, gamma) == (True, task.gamma)
    toward = (16 * correlation + 112 * 0.35) / 128  # 112 episodes are missing
    far = math.log(16) - entropy(softmax(found / task.beta))
    share = 16 / 256 * max(min(min(far, 4) * 1024 / 48, 16), 1)  # 48 episodes in all
    wanted = 0.32 * toward * share * 2 / 8  # two steps of eight
    rate = 1.25e-4 * min(max((wanted / moved) ** 0.5, 0.1), 30)
    assert [row["lr"] for row in rows[:2]] == pytest.approx([1.25e-4, rate], rel=1e-3)
    assert rows[2]["lr"] >= rows[1]["lr"]
    assert f"moved the policy by {moved:.3g} nats" in whole.chosen
    assert (
        f"scores correlate by {correlation:.3g} in 16 episodes, and 0.35 is taken for 112 more; times {share:.3g}: "
        f"16 episodes a batch for 256; {far:.3g} nats are to go in 48 episodes; and times 2/8, "
    ) in whole.chosen
    # A checkpoint before it is settled loses nothing.
    broken.learn(again, 48, lambda row: True)
    broken.save(tmp_path / "agent")
    other = RLOO.load(tmp_path / "agent", again)
    other.learn(again, 32)
    found = [(each.learning_rate, each.toward, each.correlation, each.chosen) for each in (other, whole)]
    assert found[0] == found[1]
    assert whole.toward >= toward * (1 - 1e-4)
    other.save(tmp_path / "settled")  # what is settled stays so
    later = RLOO.load(tmp_path / "settled", again)
    assert (later.learning_rate, later.toward, later.correlation, later.chosen) == found[0]
    assert torch.equal(other.policy.model.lm_head.weight, whole.policy.model.lm_head.weight)


def test_the_value_head_has_a_rate_of_its_own_and_what_is_trained_is_whole(env, task):
    settings = {"epochs": 1, "minibatches": 1, "learning_rate": 1e-3, "value_coefficient": 0.5, "value_rate": 7.0}
    agent = tiny_agent(task, batch=16, **settings)
    owned = [id(each) for group in agent.optimizer.param_groups for each in group["params"]]
    assert owned == [id(each) for each in agent.policy.parameters()]
    before = [each.detach().clone() for each in agent.policy.parameters()]
    first_metrics(agent, env)
    moved = [float((new - old).abs().max()) for new, old in zip(agent.policy.parameters(), before, strict=True)]
    assert moved[-2:] == pytest.approx([7e-3, 7e-3], rel=0.05)  # Adam's first step is the rate
    assert max(moved[:-2]) == pytest.approx(1e-3, rel=0.05)


@pytest.mark.slow
def test_a_learning_rate_that_is_given_stays(tmp_path):
    task = make_task("Helpful")
    agent = RLOO(task, RLOOConfig(batch=16, learning_rate=1e-4, schedule="constant", device="cpu"))
    env = TokenVectorEnv(task, 16, autoreset_mode=AutoresetMode.DISABLED)
    rows = []
    agent.learn(env, 32, lambda row: rows.append(row))
    assert [row["lr"] for row in rows] == [1e-4, 1e-4]
    assert agent.chosen == ""
    with pytest.raises(ValueError, match=r"update_kl=0.5: allowed is 1.5 with a learning_rate"):
        RLOOConfig(learning_rate=1e-4, update_kl=0.5)


@pytest.mark.parametrize(
    ("rewards", "move", "moved", "correlation", "factor"),
    [
        ([1.0, 0.0, 1.0, 0.0], 1.0, 0.75, 2 / 5**0.5, None),
        ([1e-9, 0.0, 1e-9, 0.0], 1.0, 0.75, 2 / 5**0.5, None),  # in any unit
        ([0.0, 1.0, 0.0, 1.0], 1.0, 0.75, -2 / 5**0.5, None),  # the move has made the reward worse
        ([1.0, 1.0, 1.0, 1.0], 1.0, 0.75, 0.0, None),
        ([1.0, 0.0, 1.0, 0.0], 0.01, 7.5e-5, 2 / 5**0.5, 30),
        ([1.0, 0.0, 1.0, 0.0], 100.0, 7500.0, 2 / 5**0.5, 0.1),
    ],
)
@pytest.mark.parametrize(("gamma", "rounds"), [(1.0, 1), (0.5, 2)])
def test_the_rate_follows_what_was_moved_and_where_within_bounds(
    rewards, move, moved, correlation, factor, gamma, rounds
):
    """By hand: log-ratios of 1, -1, 2 and 0 have the mean 1/2 and the variance 5/4, and the scores that of 1/4."""
    log_ratios = move * np.array([3.0, -2.0, -1.0, 2.0, 0.0])
    config, rollout = RLOOConfig(update_kl=64.0 * rounds), written(rewards, gamma, rounds)
    rate, followed, why = settled(learner(), config, gamma, rollout, log_ratios)
    toward = (4 * correlation + 124 * 0.35) / 128  # of 128 episodes 124 are missing
    assert (rate, followed) == pytest.approx((1e-5 * (factor or (toward / moved) ** 0.5), toward))
    assert f"moved the policy by {moved:.3g} nats a sequence, wanted are {toward:.3g} " in why
    said = f"times {toward:.3g}: log-ratios and scores correlate by {correlation:.3g} in 4 episodes, and 0.35 "
    assert said + "is taken for 124 more; " in why


def learner(**given):
    """What `settle` reads of an agent that has much time."""
    own = {
        "learning_rate": 1e-5, "first_rate": 1e-5, "toward": 0.0, "correlation": 0.0, "rounding": 0.0, "reach": 0.0,
        "chosen": "", "episodes": 64, "iteration": 1, "budget": 10**6, "devices": ALONE,
        "controller": SimpleNamespace(beta=0.05),
    }  # fmt: skip
    return SimpleNamespace(**own | given)


def written(rewards, gamma=1.0, rounds=1, times=1):
    """A rollout of four completions, so many times over; the first has two tokens and is paid for the second."""
    own = np.arange(times).repeat(5)
    return SimpleNamespace(
        rows=4 * own + np.tile([0, 0, 1, 2, 3], times),
        steps=np.tile([0, 1, 0, 0, 0], times),
        rewards=np.tile([0.0, rewards[0] / gamma, *rewards[1:]], times),
        lengths=np.tile([2, 1, 1, 1], times),
        rounds=rounds,
    )


@pytest.mark.parametrize(("reward", "toward"), [([1.0, 0.0, 1.0, 0.0], 2 / 5**0.5), ([0.0, 1.0, 0.0, 1.0], 0.1)])
def test_a_correlation_of_128_episodes_is_taken_as_it_is(reward, toward):
    log_ratios = np.tile([3.0, -2.0, -1.0, 2.0, 0.0], 32)
    rate, followed, why = settled(learner(), RLOOConfig(update_kl=2.0), 1.0, written(reward, times=32), log_ratios)
    assert (rate, followed) == pytest.approx((1e-5 * (toward / 0.75) ** 0.5, toward))
    assert "more" not in why


def test_the_first_update_that_moves_anything_had_the_share_of_the_iteration_before():
    agent = learner(iteration=4, episodes=256, budget=640)
    config, move = RLOOConfig(schedule="linear", update_kl=2.0), np.tile([3.0, -2.0, -1.0, 2.0, 0.0], 16)
    paid = written([1.0, 0.0, 1.0, 0.0], times=16)
    settle(agent, config, 1.0, paid, lambda: move)
    share = 1 - 0.9 * 192 / 640
    wanted = settled(learner(iteration=4, episodes=256, budget=640), config, 1.0, paid, move, share)
    assert (agent.learning_rate, agent.toward, agent.chosen) == wanted
    assert agent.correlation == agent.toward


def test_a_rate_that_was_not_settled_is_not_followed():
    agent = learner(learning_rate=2e-5)
    settle(agent, RLOOConfig(), 1.0, written([1.0, 0.0, 1.0, 0.0]), lambda: pytest.fail("asked"))
    assert (agent.learning_rate, agent.toward) == (2e-5, 0.0)


def test_several_rounds_of_small_batches_replace_the_correlation_once():
    agent = learner(toward=0.1, correlation=0.1)
    moves = np.tile([3.0, -2.0, -1.0, 2.0, 0.0], 64)
    settle(agent, RLOOConfig(batch=64), 1.0, written([1.0, 0.0, 1.0, 0.0], rounds=4, times=64), lambda: moves)
    assert agent.toward == agent.correlation == pytest.approx(2 / 5**0.5)


def test_a_move_that_is_the_same_for_all_says_nothing_of_scores():
    every = np.array([0.5, 0.5, 1.0, 1.0, 1.0])
    _, toward, why = settled(learner(), RLOOConfig(), 1.0, written([1.0, 0.0, 1.0, 0.0]), every)
    assert toward == pytest.approx(124 * 0.35 / 128)
    assert "correlate by 0 in 4" in why


@pytest.mark.parametrize(("epochs", "minibatches", "steps"), [(1, 2, 2), (2, 4, 8), (4, 4, 8)])
def test_each_step_of_a_batch_is_worth_an_eighth(epochs, minibatches, steps):
    config = RLOOConfig(update_kl=2.0, epochs=epochs, minibatches=minibatches)
    moves = np.tile([3.0, -2.0, -1.0, 2.0, 0.0], 64)
    rate, _, why = settled(learner(), config, None, written([1.0, 0.0, 1.0, 0.0], times=64), moves)
    assert rate == pytest.approx(1e-5 * (2.0 * steps / 8 / 0.75) ** 0.5)
    assert "times 1: no reward is learned from; times 1: 256 episodes" in why
    assert (f"times {steps}/8" in why) == (steps < 8)


@pytest.mark.parametrize(("rounding", "moved"), [(0.75 / 4, 0.5625), (0.75 / 3.9, None)])
def test_a_move_counts_from_four_times_the_rounding_on(rounding, moved):
    agent, paid = learner(rounding=rounding), written([1.0, 0.0, 1.0, 0.0])
    rate, toward, _ = settled(agent, RLOOConfig(update_kl=64.0), 1.0, paid, np.array([3.0, -2.0, -1.0, 2.0, 0.0]))
    assert rate == (1e-5 if moved is None else pytest.approx(1e-5 * (toward / moved) ** 0.5))


def test_what_the_other_devices_play_counts():
    both = SimpleNamespace(world=2, gather_array=lambda own: np.concatenate([own, own]))
    agent = learner(toward=0.1, correlation=0.1, devices=both)
    settle(agent, RLOOConfig(batch=128), 1.0, written([1.0] * 4, times=16), lambda: pytest.fail("asked"))
    assert (agent.toward, agent.correlation) == (0.1, 0.1)


def test_no_more_than_four_nats_are_believed():
    assert rates._share(64, 4.5, 2048) == rates._share(64, 4.0, 2048) == 0.5
    assert rates._share(64, 0.001, 0) == pytest.approx(0.25 * 1.024)


def test_in_small_batches_the_rate_rises_with_the_correlation_and_never_falls():
    agent = learner(learning_rate=1e-4, first_rate=1e-4)
    config = RLOOConfig(batch=64, schedule="constant", update_kl=3.0)
    worse, alike, better = ([0.0, 1.0, 0.0, 1.0], [1.0] * 4, [1.0, 0.0, 1.0, 0.0])

    def see(paid, gamma=1.0, times=16):
        moves = np.tile([3.0, -2.0, -1.0, 2.0, 0.0], 16)
        settle(agent, config, gamma, written(paid, times=times), lambda: moves if times == 16 else pytest.fail("asked"))

    see(worse)
    c = 2 / 5**0.5
    toward = max((64 * -c + 64 * 0.35) / 128, 0.1)
    assert (agent.toward, agent.correlation) == (toward, toward)
    rate = agent.learning_rate
    assert rate == pytest.approx(1e-4 * (3.0 * toward / 4 / 0.75) ** 0.5)
    see(alike)  # says nothing
    assert (agent.learning_rate, agent.correlation) == (rate, toward)
    see(better)  # half of it is new
    assert agent.toward == agent.correlation == pytest.approx((toward + c) / 2)
    assert agent.learning_rate == pytest.approx(rate * (agent.toward / toward) ** 0.5)
    before = agent.learning_rate, agent.toward
    see(worse)
    assert agent.correlation == pytest.approx(((toward + c) / 2 - c) / 2)
    assert (agent.learning_rate, agent.toward) == before
    # A batch of 128 says what it says at once; without rewards there is nothing to follow.
    see(better, times=32)
    see(better, gamma=None)
    assert (agent.learning_rate, agent.toward) == before


@pytest.mark.parametrize(
    ("budget", "times", "share"),
    [
        (1024, 16, math.log(4) / 4),  # a quarter of 256 episodes, log 4 nats to go in 1,024
        (512, 16, math.log(4) / 2),
        (64, 16, 1.0),  # never more than 256 episodes move it by
        (2048, 16, 0.25),  # time enough: in proportion
        (64, 64, 1.0),
        (64, 128, 2.0),
    ],
)
def test_in_a_short_budget_a_small_batch_moves_as_far_as_is_to_go(budget, times, share):
    log_ratios = np.tile([3.0, -2.0, -1.0, 2.0, 0.0], times)
    paid = [1.0, 0.0, 0.0, 0.0]  # the best are a quarter of all: log 4 nats, as beta is small
    agent = learner(budget=budget, controller=SimpleNamespace(beta=0.01))
    rate, toward, why = settled(agent, RLOOConfig(update_kl=0.5), 1.0, written(paid, times=times), log_ratios)
    assert rate == pytest.approx(1e-5 * (0.5 * toward * share / 0.75) ** 0.5)
    told = f"times {share:.3g}: {4 * times} episodes a batch for 256"
    assert told + (f"; 1.39 nats are to go in {budget} episodes" if share * 64 > times else ")") in why
    # What is learned without rewards has no such distance.
    rate, _, why = settled(agent, RLOOConfig(update_kl=0.5), None, written(paid, times=times), log_ratios)
    assert rate == pytest.approx(1e-5 * (0.5 * times / 64 / 0.75) ** 0.5)
    assert "to go" not in why


def test_nats_to_go_by_hand_and_at_its_ends():
    scores = np.array([0.3, -0.2, 0.9, 0.1])
    weights = np.exp(scores / 0.25) / np.exp(scores / 0.25).sum()
    assert nats_to_go(scores, 0.25) == pytest.approx((weights * np.log(4 * weights)).sum())
    assert nats_to_go(scores, 1e9) == pytest.approx(0)  # KL is all that counts
    for beta in (0.0, 1e-300, 1e-4):
        assert nats_to_go(scores, beta) == pytest.approx(math.log(4))
        assert nats_to_go(np.array([1.0, 0.0, 1.0, 0.0]), beta) == pytest.approx(math.log(2))
        assert nats_to_go(np.ones(4), beta) == 0


def test_the_rate_rises_to_thirty_times_the_first_at_most():
    agent = learner(first_rate=1e-4, learning_rate=2.9e-3, toward=0.1, correlation=0.1)
    moves = np.tile([3.0, -2.0, -1.0, 2.0, 0.0], 16)
    for _ in range(5):
        settle(agent, RLOOConfig(batch=64), 1.0, written([1.0, 0.0, 1.0, 0.0], times=16), lambda: moves)
    assert agent.learning_rate == pytest.approx(3e-3)


def test_rounding_in_bfloat16_is_no_move():
    agent = learner(first_rate=1e-4, learning_rate=1e-4, episodes=0, iteration=0, budget=640)
    config = RLOOConfig(batch=64, schedule="linear", warmup=0.5, update_kl=3.0, precision="bfloat16")
    noise = np.resize([0.01, -0.01], 80)  # of which a row of 1 to 2 tokens keeps some
    paid = [1.0, 0.0, 1.0, 0.0]

    def see(moves, paid=paid):
        settle(agent, config, 1.0, written(paid, times=16), lambda: moves)
        agent.iteration, agent.episodes = agent.iteration + 1, agent.episodes + 64

    see(noise)
    rounding = agent.rounding
    assert rounding > 0
    first = rate_at(config, 0, 640)
    assert agent.reach == first
    see(noise)  # the update before had next to no rate
    assert (agent.toward, agent.learning_rate, agent.rounding) == (0.0, 1e-4, rounding)
    see(noise, [1.0] * 4)  # nothing is learned from equal scores
    reach = first + rate_at(config, 64, 640)
    assert agent.reach == pytest.approx(reach)
    move = np.tile([3.0, -2.0, -1.0, 2.0, 0.0], 16)
    see(move)
    before = learner(first_rate=1e-4, learning_rate=1e-4, budget=640, rounding=rounding)
    alone = settled(before, config, 1.0, written(paid, times=16), move, reach)
    assert (agent.learning_rate, agent.toward, agent.chosen) == alone
    before.rounding = 0.0
    plain = settled(before, config, 1.0, written(paid, times=16), move, reach)
    assert plain[0] < alone[0] < 1.01 * plain[0]
    assert (agent.reach, agent.rounding) == (0.0, 0.0)


@pytest.mark.long
@pytest.mark.slow
def test_a_run_in_bfloat16_settles_about_where_one_in_float32_does(tmp_path):
    found = {}
    for precision in ("float32", "bfloat16"):
        env = TokenVectorEnv(make_task("Helpful"), 32, autoreset_mode=AutoresetMode.DISABLED)
        env.reset(seed=0)
        agent = RLOO(env.task, RLOOConfig(batch=32, warmup=0.2, device="cpu", precision=precision))
        agent.learn(env, 32 * 40, lambda row, agent=agent: bool(agent.chosen) or row["iteration"] > 9)
        found[precision] = agent.learning_rate / agent.first_rate
    assert 0.4 < found["bfloat16"] / found["float32"] < 2.5  # 0.1 at most if rounding counts


@pytest.mark.slow
def test_what_rounding_hides_outlives_a_checkpoint(tmp_path):
    task = make_task("Helpful")
    config = RLOOConfig(batch=8, warmup=0.5, epochs=1, minibatches=1, device="cpu", reference_precision="bfloat16")
    env, again = (TokenVectorEnv(task, 8, autoreset_mode=AutoresetMode.DISABLED) for _ in range(2))
    whole, broken = RLOO(task, config), RLOO(task, config)
    for each, place in ((whole, env), (broken, again)):
        place.reset(seed=0)
        each.learn(place, 8000, lambda row: row["iteration"] == 2)
    assert min(broken.rounding, broken.reach) > 0
    broken.save(tmp_path / "agent")
    other = RLOO.load(tmp_path / "agent", again)
    assert (other.rounding, other.reach) == (whole.rounding, whole.reach)
