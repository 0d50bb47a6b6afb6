"""The conformance kit: the clean agents pass, and every planted bug is caught by its own check."""

import json
import math
import random
import re
from pathlib import Path

import numpy as np
import pytest
from agents.counting_agent import CountingAgent
from agents.mutant_agent import BUGS, MutantAgent
from agents.mutant_lm import UPDATE_MUTANTS
from agents.mutant_logs import LOG_MUTANTS
from textgym_agents.algorithms.fixed import RandomAgent
from textgym_agents.algorithms.ppo import LMPPO
from textgym_agents.conformance import (
    FAILS,
    HOLDS,
    NOT_ASKED,
    LearningTask,
    TrainingBatch,
    check,
    check_names,
)
from textgym_agents.conformance.batch import gae_by_definition
from textgym_agents.conformance.run import CHECKS, REFERENCE
from textgym_agents.conformance.under_test import global_generators
from textgym_agents.lm import maths

from textgym.cli import main

# Small enough for a table of logits.
TASKS = {
    "Bandit": LearningTask("textgym/Bandit-v0", {"difficulty": 3}, 4096, 64),
    "Delayed": LearningTask("textgym/Delayed-v0", {"difficulty": 3}, 4096, 64),
    "Stop": LearningTask("textgym/Stop-v0", {"difficulty": 2}, 4096, 64),
}
CAUGHT_BY = {
    "ratio of another policy": "first ratio",
    "unnormalised": "log-probs sum to one",
    "acts at another temperature": "act draws from log-probs",
    "takes the least likely": "deterministic act takes the likeliest",
    "old log-probs shifted": "log-prob alignment",
    "starts elsewhere": "starts at the reference",
    "reads the width": "padding columns",
    "length from pad id": "padding ids",
    "no stop gradient": "gradient of the stop action",
    "score on the first action": "score on the last action",
    "penalty with the wrong sign": "token rewards add up",
    "overwrites the last token": "actions are the sampled ids",
    "peeks": "log-probs read nothing later",
    "value peeks": "values read nothing later",
    "values shifted": "value alignment",
    "bootstraps at the end": "GAE",
    "forgets to bootstrap": "truncation bootstraps",
    "leaks between rows": "GAE",
    "whitens padding": "whitening",
    "kl per token": "logged KL",
    "kl reversed": "logged KL",
    "scores per token": "logged scores",
    "adds the kl": "logged RLHF reward",
    "kl of the wrong action": "penalised KL",
    "ignores the mask": "mask obedience",
    "global generator": "global random numbers",
    "ignores the seed": "same seed, same policy",
    "rounds on save": "saved and loaded",
    "forgets the iteration": "resumed",
    "ascends": "learns Bandit",
    "credits one step": "learns Delayed",
    "no score after a stop": "learns Stop",
    "refuses turns in other words": "turns: taken or refused",
    "acts for the environment": "turns: actions",
    "kl of the replies": "turns: penalised KL",
    "kl per turn": "turns: logged KL",
    "credit over replies": "turns: credit",
    "learns from the replies": "turns: gradient",
    "rows read alike": "turns: rows apart",
    "forgets the iteration in turns": "turns: resumed",
}
LOGS = {name for name in check_names() if name.startswith("log: ")}
NEED_MORE_HOOKS = {"gradient under a grammar", "ratio under a grammar", "clipping", *LOGS}
UNTRAINED = check_names(slow=False)


def failures(findings):
    return [(f.check, f.found) for f in findings if f.status != HOLDS]


@pytest.mark.long
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.sweep) for seed in (1, 2))])
def test_the_clean_agent_passes_every_check(seed):
    findings = check(MutantAgent, settings={"seed": seed}, learning_tasks=TASKS)
    assert [f.check for f in findings] == list(check_names())
    assert {f.check for f in findings if f.status == NOT_ASKED} == NEED_MORE_HOOKS
    assert not [(f.check, f.found) for f in findings if f.status == FAILS]


@pytest.mark.parametrize("bug", BUGS)
def test_every_bug_is_caught_by_its_own_check(bug):
    (finding,) = check(MutantAgent, [CAUGHT_BY[bug]], settings={"bug": bug}, learning_tasks=TASKS)
    assert finding.status == FAILS
    assert "Error" not in finding.found  # caught by its number, not by falling over
    assert finding.expected != "no error"


@pytest.mark.slow
@pytest.mark.parametrize("bug", [bug for bug, name in CAUGHT_BY.items() if name.startswith("turns")])
def test_what_is_wrong_with_turns_alone_shows_there_alone(bug):
    findings = check(MutantAgent, UNTRAINED, settings={"bug": bug})
    assert {f.check for f in findings if f.status == FAILS} >= {CAUGHT_BY[bug]}
    assert all(f.check.startswith("turns") for f in findings if f.status == FAILS)


@pytest.mark.parametrize("agent", ["soft-q", "value-guided"])
def test_an_agent_that_refuses_turns_says_so_and_is_not_asked(agent):
    names = [name for name in check_names() if name.startswith("turns")]
    first, *others = check(agent, names)
    assert (first.status, "answers in turns" in first.found) == (HOLDS, True)
    assert {f.status for f in others} == {NOT_ASKED}


def test_every_check_has_a_bug_that_it_catches():
    assert set(CAUGHT_BY) == set(BUGS)
    of_updates = {name for _, names in UPDATE_MUTANTS.values() for name in names}
    of_logs = {name for _, name in LOG_MUTANTS.values()}
    assert set(CAUGHT_BY.values()) | of_updates | of_logs | {"value loss"} == set(check_names())


def test_the_page_lists_every_check_under_its_number():
    page = (Path(__file__).parents[2] / REFERENCE).read_text()
    listed = [
        (name, int(number))
        for number, line in re.findall(r"^(\d+)\. (.*)$", page, re.MULTILINE)
        for name in re.findall(r"`([^`]+)`", line.partition("Checks:")[2])
    ]
    assert sorted(listed) == sorted((entry.name, entry.statement) for entry in CHECKS)
    numbers = [number for _, number in listed]
    assert sorted(set(numbers)) == list(range(1, max(numbers) + 1))


@pytest.mark.slow
@pytest.mark.parametrize(
    "kl", ["exact", *(pytest.param(kl, marks=pytest.mark.long) for kl in ("k1", "k2", "k3", "k3-ratio"))]
)
def test_lm_ppo_passes_all_but_learning(kl):
    asked = [name for name in UNTRAINED if name not in LOGS]  # lm-ppo learns from none
    found = failures(check("lm-ppo", asked, settings={"device": "cpu", "kl": kl}, envs=32, iterations=4))
    # The gradient of these two is another's than J's: nobody asks for it.
    unasked = [("turns: gradient", "the agent offers no hook 'gradient'")]
    assert found == (unasked if kl.startswith("k3") else [])


@pytest.mark.slow
@pytest.mark.long
def test_lm_ppo_learns_and_nothing_is_left_unasked():
    names = [name for name in check_names() if name.startswith("learns")]
    assert failures(check("lm-ppo", names, settings={"device": "cpu"})) == []


@pytest.mark.slow
def test_an_agent_without_a_batch_of_its_own_is_asked_to_learn():
    short = {"Bandit": LearningTask("textgym/Bandit-v0", episodes=512)}
    (finding,) = check("rloo", ["learns Bandit"], settings={"device": "cpu"}, learning_tasks=short)
    assert re.fullmatch(r"optimality -?[0-9.]+ after (256|512) episodes", finding.found)


class NoStopGradient(LMPPO):
    """Leaves the last action of every row out of its loss where it is a stop token."""

    def _loss(self, features, chosen, rollout, *rest):
        loss = super()._loss(features, chosen, rollout, *rest)
        stop = self.task.vocabulary.stop_ids[0]
        return loss * (rollout.actions[chosen] != stop)


@pytest.mark.slow
def test_the_hooks_of_lm_ppo_see_the_loss_that_the_agent_computes():
    (finding,) = check(NoStopGradient, ["gradient of the stop action"], settings={"device": "cpu"}, envs=16)
    assert finding.status == FAILS


@pytest.mark.slow
def test_the_hooks_of_lm_ppo_see_the_targets_that_the_agent_makes(monkeypatch):
    honest = maths.make_targets

    def wrong(rollout, kl, kind, beta, gamma, lam, *rest):
        return honest(rollout, kl, kind, beta, gamma, 0.5 * lam, *rest)

    monkeypatch.setattr(maths, "make_targets", wrong)
    (finding,) = check("lm-ppo", ["GAE"], settings={"device": "cpu"}, envs=16)
    assert finding.status == FAILS


@pytest.mark.slow
def test_looking_into_an_agent_does_not_change_it():
    names = ["GAE", "gradient of the stop action"]
    made = []

    def factory(env):
        made.append(LMPPO(env.unwrapped.task))
        return made[-1]

    assert failures(check(factory, names, envs=16, iterations=2)) == []
    agent = made[-1]  # the first one told its groups
    assert (agent.iteration, agent.episodes) == (2, 32)


def test_what_an_agent_does_not_offer_is_not_asked():
    findings = {f.check: f for f in check(CountingAgent, UNTRAINED)}
    assert findings["GAE"].status == NOT_ASKED
    assert "no hook 'batch'" in findings["GAE"].found
    assert findings["logged KL"].found == "the agent does not log 'objective/kl'"
    assert findings["mask obedience"].status == HOLDS
    # It starts at the uniform reference plus 0 iterations, and always takes its favourite: no draw from its log_probs.
    assert findings["starts at the reference"].status == HOLDS
    assert findings["act draws from log-probs"].status == FAILS


class Mute(CountingAgent):
    """Has no log-probabilities, and breaks when it is saved."""

    def log_probs(self, observation):
        return None

    def act(self, observation, deterministic=False):
        return np.zeros(len(observation["input_ids"]), dtype=np.int64)

    def save(self, path):
        raise OSError("disk full")


def test_no_log_probs_and_an_error_are_both_findings():
    names = ["padding columns", "starts at the reference", "saved and loaded", "learns Bandit"]
    found = {f.check: (f.status, f.found) for f in check(Mute, names, learning_tasks=TASKS)}
    assert found["padding columns"] == (NOT_ASKED, "log_probs gives None")
    assert found["starts at the reference"] == (NOT_ASKED, "log_probs gives None")
    assert found["learns Bandit"] == (NOT_ASKED, "log_probs gives None")
    status, said = found["saved and loaded"]
    assert (status, said.partition(" (")[0]) == (FAILS, "OSError: disk full")
    assert "test_conformance.py, line " in said


def test_gae_by_definition_against_a_sum_by_hand():
    # Row 0: two steps, V = 1, 2, rewards 0, 3 of time 0. delta = 0 + 2 - 1 = 1 and 3 - 2 = 1; A_0 = 1 + 0.5 * 1.
    # Row 1: one step, V = 4, reward 1: A = 1 - 4.
    numbers = np.zeros(3)
    batch = TrainingBatch(
        input_ids=np.zeros((2, 3), dtype=np.int64),
        rows=np.array([0, 0, 1]),
        columns=np.array([0, 1, 0]),
        actions=np.zeros(3, dtype=np.int64),
        log_probs=numbers,
        rewards=numbers,
        penalties=numbers,
        token_rewards=np.array([0.0, 3.0, 1.0]),
        beta=0.1,
        gamma=0.5,
        lam=0.5,
    )
    np.testing.assert_allclose(gae_by_definition(batch, np.array([1.0, 2.0, 4.0])), [1.5, 1.0, -3.0])
    assert batch.first.tolist() == [True, False, True]
    assert batch.last.tolist() == [False, True, True]


def test_global_generators_are_watched_and_put_back():
    random.seed(7)
    want = random.random()
    random.seed(7)
    with global_generators(0) as drawn_from:
        assert drawn_from() == []
        random.random()
        assert drawn_from() == ["random"]
    assert random.random() == want


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"agent": MutantAgent, "checks": ["GEA"]}, "check 'GEA'.*Did you mean 'GAE'"),
        ({"agent": MutantAgent, "envs": 1}, "envs=1"),
        ({"agent": 3}, "agent=3"),
        ({"agent": "lm-ppx"}, "lm-ppx"),
        ({"agent": MutantAgent, "settings": {"bugs": ""}}, "Did you mean 'bug'"),
        ({"agent": lambda env: MutantAgent(env.task), "settings": {"bug": ""}}, "takes no settings"),
    ],
)
def test_what_cannot_be_checked_is_refused(arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        check(**arguments)


def test_the_command_prints_a_table_and_fails_where_a_check_does(capsys):
    code = main(["check", "agents.mutant_agent:MutantAgent", "--only", "11", "padding ids"])
    out = capsys.readouterr().out
    assert code == 0
    assert "GAE" in out
    assert "padding ids" in out
    assert "2 holds, 0 FAILS, 0 not asked" in out
    assert "docs/conformance.md" in out
    words = ["--only", "GAE", "--settings", "bug=bootstraps at the end"]
    code = main(["check", "agents.mutant_agent:MutantAgent", *words])
    shown = capsys.readouterr()
    assert code == 2
    assert "1 of 1 checks failed: GAE" in shown.err
    assert "V = 0 at the end" in shown.out


def test_the_command_prints_json(capsys):
    assert main(["check", "agents.mutant_agent:MutantAgent", "--only", "GAE", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["agent"] == "agents.mutant_agent:MutantAgent"
    (finding,) = report["findings"]
    assert (finding["check"], finding["statement"], finding["status"]) == ("GAE", 11, HOLDS)


@pytest.mark.parametrize(
    "words", [["no-such"], ["lm-ppo", "--episodes", "0"], ["random", "--only", "nothing"], ["nowhere:Agent"]]
)
def test_the_command_refuses_in_one_line(capsys, words):
    assert main(["check", *words]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


class Unsound(RandomAgent):
    """NaN where the token behind a state is the second, and as its ratio from the second iteration on."""

    name = "unsound"

    def learn(self, env, episodes, callback=None):
        for place in range(4):
            callback({"val/first_ratio": math.nan if place else 1.0, "episode": 64.0 * (place + 1)})

    def log_probs(self, observation):
        return np.where(self._knows(observation)[:, None], math.nan, super().log_probs(observation))

    def values(self, observation):
        return np.where(self._knows(observation), math.nan, 0.0)

    def _knows(self, observation):
        ids, lengths = observation["input_ids"], observation["attention_mask"].sum(1)
        behind = np.minimum(lengths, ids.shape[1] - 1)
        return (lengths < ids.shape[1]) & (ids[np.arange(len(ids)), behind] == 1)


def test_what_is_no_number_fails():
    names = ["first ratio", "log-probs read nothing later", "values read nothing later"]
    findings = check(lambda env: Unsound(env.unwrapped.task), names, envs=8, iterations=2)
    assert [each.status for each in findings] == [FAILS] * 3


def test_an_agent_is_checked_on_whole_groups():
    findings = check("rloo", ["first ratio", "logged scores"], settings={"group": 6, "batch": 12}, iterations=2)
    assert [each.status for each in findings] == [HOLDS] * 2
