"""Agents across rewards: ranks, turned orders and disagreements, worked by hand; and the report's part of them."""

from __future__ import annotations

import copy
from itertools import product

import numpy as np
import pytest
from benchmarks.synthetic import make_results, write_suite_folder
from test_report import Page
from textgym_benchmarks.report import build_report
from textgym_benchmarks.results.store import Result
from textgym_benchmarks.summaries import summarise
from textgym_benchmarks.summaries.by_reward import across_rewards
from textgym_benchmarks.summaries.grid import make_grid

COPY = ("textgym/Copy-v0",)
SCORES = {
    ("a", "rules"): (3.0, 4.0),
    ("b", "rules"): (1.0, 2.0),
    ("a", "model"): (1.0, 2.0),
    ("b", "model"): (2.0, 3.0),
}
"""J of two seeds of each agent under each reward."""


def values(scores=SCORES, samples=()):
    """result.json of every run of `scores`, with these J and the same samples."""
    agents, rewards = (list(dict.fromkeys(pair[i] for pair in scores)) for i in (0, 1))
    found = make_results(agents, COPY, 2, rewards=rewards, failed=0, missing=0, samples=0)
    for value in found:
        cell = value["cell"]
        mean = scores[cell["agent"], cell["reward_name"]][cell["seed"]]
        value["measures"]["after"] = {
            **value["measures"]["after"],
            "objective": dict.fromkeys(("mean", "low", "high"), mean),
        }
        value["measures"]["samples"] = [
            {"prompt": prompt, "before": None, "after": {"completion": text, "reward": 0.0, "rewards": paid}}
            for prompt, text, paid in samples
        ]
    return found


def across(scores=SCORES, samples=()):
    (found,) = across_rewards(make_grid([Result.from_json(value) for value in values(scores, samples)]), 0)
    return found


def test_ranks_are_by_mean_j_within_a_reward_and_equal_means_share_one():
    assert across().ranks == ({"a": 1, "b": 2}, {"a": 2, "b": 1})
    level = across({**SCORES, ("b", "rules"): (3.0 + 1e-14, 4.0)})  # equal but for rounding
    assert level.ranks[0] == {"a": 1, "b": 1}
    assert level.turns[0].turned == 0
    assert level.turns[0].over == ((0.5, 0.125),)


def test_a_turn_by_hand():
    # Under the rules both runs of a beat both of b: p = 1. Under the model a has 1, 2 and b 2, 3: of four pairs one is
    # a tie and the rest lost, q = 0.5 / 4. p (1 - q) + q (1 - p) = 7 / 8.
    found = across()
    for turn in found.turns:  # of all pairs of agents, and of the only one
        assert (turn.agents, turn.over, turn.turned) == ((("a", "b"),), ((1.0, 0.125),), 1)
        assert turn.value == pytest.approx(7 / 8)


def test_agents_that_no_reward_tells_apart_turn_with_probability_a_half():
    turn, _ = across(dict.fromkeys(SCORES, (1.0, 2.0))).turns
    assert (turn.value, turn.turned) == (0.5, 0)


def exact_interval(scores):
    """The percentile interval of the turn over all 2^8 resamples of the four pairs of runs."""
    found = []
    for places in product(range(2), repeat=8):
        drawn = {pair: [scores[pair][places[2 * i + k]] for k in range(2)] for i, pair in enumerate(scores)}

        def over(reward, drawn=drawn):
            pairs = list(product(drawn["a", reward], drawn["b", reward]))
            return sum((x > y) + 0.5 * (x == y) for x, y in pairs) / len(pairs)

        p, q = over("rules"), over("model")
        found.append(p * (1 - q) + q * (1 - p))
    return np.quantile(found, [0.025, 0.975], method="inverted_cdf")


def test_the_interval_of_a_turn_is_that_of_all_resamples():
    scores = {**SCORES, ("a", "rules"): (1.5, 4.0)}
    turn, _ = across(scores).turns
    np.testing.assert_allclose([turn.low, turn.high], exact_interval(scores))
    assert turn.low < turn.value < turn.high


def test_single_runs_have_no_interval_and_agents_without_a_j_no_rank():
    results = [value for value in values() if value["cell"]["seed"] == 0]
    for value in results:
        if value["cell"]["agent"] == "b" and value["cell"]["reward_name"] == "model":
            value["measures"]["after"]["objective"] = None
    (found,) = across_rewards(make_grid([Result.from_json(value) for value in results]), 0)
    assert found.ranks == ({"a": 1, "b": 2}, {"a": 1})
    assert found.turns == ()
    turn, _ = across_rewards(make_grid([Result.from_json(v) for v in values() if v["cell"]["seed"] == 0]), 0)[0].turns
    assert (turn.value, turn.low, turn.high) == (1.0, None, None)


def test_one_reward_or_other_options_make_no_group():
    one = [Result.from_json(value) for value in values() if value["cell"]["reward_name"] == "rules"]
    assert across_rewards(make_grid(one), 0) == []
    assert summarise(one).across == ()


@pytest.mark.parametrize(("waiting", "found"), [({"late"}, [3]), ({"late", "model"}, [3])])
def test_rewards_without_a_result_stay_with_their_task(waiting, found):
    scores = {**SCORES, **{(agent, "late"): (0.0, 0.0) for agent in "ab"}}
    nothing = {"status": "missing", "error": None, "measures": None, "timing": None}
    results = [value | (nothing if value["cell"]["reward_name"] in waiting else {}) for value in values(scores)]
    grid = make_grid([Result.from_json(value) for value in results])
    assert [len(each.problems) for each in across_rewards(grid, 0)] == found


def test_disagreement_is_the_greatest_difference_of_shares_by_hand():
    paid = [(0.1, 30.0), (0.2, 20.0), (0.3, 10.0), (0.3, 40.0)]
    samples = [("p", f"text {i}", {"rules": one, "model": two}) for i, (one, two) in enumerate(paid)]
    found = across(samples=samples)
    assert found.pool == 4
    # rules: 0, 1, 2.5, 2.5 of the three others; model: 2, 1, 0, 3. The greatest gap is that of text 2, 2.5 / 3.
    (most,) = found.disagreements
    assert most.completion == "text 2"
    assert most.shares == pytest.approx({"rules": 2.5 / 3, "model": 0.0})
    assert most.scores == {"rules": 0.3, "model": 10.0}
    assert most.spread == pytest.approx(2.5 / 3)


def test_a_reward_that_always_fails_says_nothing_and_others_go_on():
    scores = {**SCORES, **{(agent, "broken"): (0.0, 0.0) for agent in "ab"}}
    samples = [("p", f"text {i}", {"rules": i, "model": -i, "broken": None}) for i in range(4)]
    found = across(scores, samples)
    assert found.pool == 4
    assert set(found.disagreements[0].scores) == {"rules", "model"}


@pytest.mark.slow
def test_the_report_has_a_part_by_reward_where_there_are_several(tmp_path):
    samples = [("say <b>x</b>", f"text {i}", {"rules": float(i), "model": float(-i)}) for i in range(4)]
    suite = write_suite_folder(tmp_path / "suite", values(samples=samples))
    build_report([suite], suite / "report")
    page = Page(suite / "report" / "index.html")
    assert 'href="#rewards"' in page.source
    rows = [cells for _, cells in page.rows if cells]
    texts = [[" ".join(cell.split()) for cell in row] for row in rows]
    assert ["rules / model", "1 of 1", "0.88 [0.50, 1.00]"] in texts
    assert ["rules / model", "a over b", "1.00", "0.12", "1 of 1", "0.88 [0.50, 1.00]"] in texts
    ranks = {(row[0], row[1]): row[2] for row in texts if len(row) == 9 and row[0] in ("rules", "model")}
    assert ranks == {
        ("rules", "a"): "1 of 2",
        ("rules", "b"): "2 of 2",
        ("model", "a"): "2 of 2",
        ("model", "b"): "1 of 2",
    }
    assert "say &lt;b&gt;x&lt;/b&gt;" in page.source
    assert "<b>0.000</b> rules (0.00)" in page.source
    one = [value for value in copy.deepcopy(values()) if value["cell"]["reward_name"] == "rules"]
    alone = write_suite_folder(tmp_path / "alone", one)
    build_report([alone], alone / "report")
    assert 'id="rewards"' not in (alone / "report" / "index.html").read_text()


def test_the_mean_over_pairs_of_agents_and_their_order():
    # Three agents whose order is turned as a whole: every pair turns for sure.
    means = {"a": 1.0, "b": 2.0, "c": 3.0}
    scores = {(agent, "rules"): (mean, mean + 0.1) for agent, mean in means.items()}
    scores |= {(agent, "model"): (-mean, 0.1 - mean) for agent, mean in means.items()}
    scores["c", "model"] = scores["c", "rules"]
    found = across(scores)
    whole, *single = found.turns
    assert whole.agents == (("a", "b"), ("a", "c"), ("b", "c"))
    # Under the model c stays ahead of a and b, which change places: 1, 0 and 0.
    assert [turn.value for turn in single] == [1.0, 0.0, 0.0]
    assert (whole.value, whole.turned) == (pytest.approx(1 / 3), 1)
