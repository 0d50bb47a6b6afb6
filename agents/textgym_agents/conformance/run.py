"""All checks by name, and the function that runs them on an agent."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

from textgym.checks import check_count, docstring, not_one_of, users_line
from textgym_agents.conformance import batch, behaviour, objective
from textgym_agents.conformance.under_test import (
    FAILS,
    NOT_ASKED,
    AgentSource,
    AgentUnderTest,
    Finding,
    LearningTask,
    NotAsked,
    Outcome,
    factory_of,
    logged_factory_of,
    plain_factory_of,
)

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        name: how it is asked for. statement: number of the statement that it asks, in docs/conformance.md.
        run: asks it; its docstring's first line says what must hold.
        slow: whether it records updates or has the agent learn a task.
    """

    name: str
    statement: int
    run: Callable[[AgentUnderTest], Outcome]
    slow: bool = False

    @property
    def asks(self) -> str:
        """The statement that must hold, in a sentence."""
        asked = self.run.func if isinstance(self.run, partial) else self.run
        return docstring(asked).splitlines()[0]


REFERENCE = "docs/conformance.md"
"""Where the statements are listed that the checks' numbers refer to."""

CHECKS = (
    Check("first ratio", 1, behaviour.first_ratio),
    Check("log-probs sum to one", 2, behaviour.normalised),
    Check("act draws from log-probs", 2, behaviour.sampled),
    Check("deterministic act takes the likeliest", 2, behaviour.likeliest),
    Check("log-prob alignment", 2, batch.log_prob_alignment),
    Check("starts at the reference", 3, behaviour.starts_at_the_reference),
    Check("padding columns", 4, behaviour.pad_columns),
    Check("padding ids", 5, behaviour.pad_ids),
    Check("gradient of the stop action", 6, batch.stop_gradient),
    Check("score on the last action", 7, batch.reward_alignment),
    Check("token rewards add up", 7, batch.token_rewards),
    Check("truncation bootstraps", 8, batch.truncation),
    Check("actions are the sampled ids", 9, batch.actions),
    Check("log-probs read nothing later", 10, behaviour.later_tokens),
    Check("values read nothing later", 10, batch.values_read_nothing_later),
    Check("value alignment", 10, batch.value_alignment),
    Check("GAE", 11, batch.advantages),
    Check("whitening", 12, batch.whitening),
    Check("logged KL", 13, behaviour.logged_kl),
    Check("logged scores", 13, behaviour.logged_scores),
    Check("logged RLHF reward", 14, behaviour.rlhf_reward),
    Check("penalised KL", 14, batch.penalties),
    Check("mask obedience", 15, behaviour.masked),
    Check("same seed, same policy", 16, behaviour.same_seed),
    Check("global random numbers", 16, behaviour.global_random_numbers),
    Check("saved and loaded", 16, behaviour.round_trip),
    Check("resumed", 16, behaviour.resumed),
    Check("gradient of J", 17, partial(objective.gradient, name="plain"), slow=True),
    Check("gradient with a discount", 17, partial(objective.gradient, name="discounted"), slow=True),
    Check("gradient under a grammar", 17, partial(objective.gradient, name="masked"), slow=True),
    Check("ratio under a grammar", 1, objective.masked_ratio),
    Check("states used", 18, objective.states_used, slow=True),
    Check("variance", 19, objective.variance, slow=True),
    Check("value loss", 20, objective.value_loss, slow=True),
    Check("clipping", 21, objective.clipping),
    Check("turns: taken or refused", 23, batch.turns_taken_or_refused),
    Check("turns: actions", 23, batch.turn_actions),
    Check("turns: penalised KL", 23, partial(batch.on_turns, ask=batch.penalties)),
    Check("turns: logged KL", 23, partial(batch.on_turns, ask=behaviour.logged_kl)),
    Check("turns: credit", 23, batch.turn_credit),
    Check("turns: gradient", 23, batch.turn_gradient),
    Check("turns: rows apart", 23, batch.turn_rows),
    Check("turns: resumed", 23, partial(batch.on_turns, ask=behaviour.resumed)),
    Check("log: environment left alone", 24, batch.log_alone),
    Check("log: tokens of completions", 24, batch.log_tokens),
    Check("log: loss", 24, batch.log_loss),
    Check("learns Bandit", 22, partial(behaviour.learns, name="Bandit"), slow=True),
    Check("learns Delayed", 22, partial(behaviour.learns, name="Delayed"), slow=True),
    Check("learns Stop", 22, partial(behaviour.learns, name="Stop"), slow=True),
)


def check_names(slow: bool = True) -> tuple[str, ...]:
    """Return the names of all checks in running order; without `slow`, only those that take seconds."""
    return tuple(entry.name for entry in CHECKS if slow or not entry.slow)


def check(
    agent: AgentSource,
    checks: Iterable[str] | None = None,
    *,
    settings: Mapping[str, object] | None = None,
    learning_tasks: Mapping[str, LearningTask] | None = None,
    envs: int = 64,
    iterations: int = 8,
    progress: Callable[[Finding], None] | None = None,
) -> list[Finding]:
    """Check an agent against the exact solver and the statements that must hold.

    Args:
        agent: a registered name, "module:Class", a class, or a function that makes an untrained agent for a vector
            environment. Every agent it makes must have the same seed.
        checks: names of checks; None runs all.
        settings: fields of the agent's config; not for a function.
        learning_tasks: "Bandit", "Delayed" and "Stop" as they are to be learned; None takes their defaults.
        envs, iterations: size and number of the batches of the probe training, envs >= 2, iterations >= 2.
        progress: is called with every finding as soon as it is there.
    Returns: one finding for each check. An error inside the agent is a finding that fails, with its message.
    Raises: ValueError or TypeError for an unknown check, or what is no agent.
    """
    for name, value in (("envs", envs), ("iterations", iterations)):
        check_count(name, value, 2)
    names = check_names() if checks is None else tuple(checks)
    for name in names:
        if name not in check_names():
            raise ValueError(not_one_of("check", name, check_names()))
    tested = AgentUnderTest(
        factory_of(agent, settings or {}),
        behaviour.DEFAULT_TASKS if learning_tasks is None else learning_tasks,
        envs,
        iterations,
        plain_factory_of(agent, settings or {}),
        logged_factory_of(agent, settings or {}),
    )
    findings: list[Finding] = []
    for entry in CHECKS:
        if entry.name in names:
            _LOG.info("%s, %d of %d", entry.name, len(findings) + 1, len(names))
            findings.append(_ask(entry, tested))
            if progress is not None:
                progress(findings[-1])
    return findings


def _ask(entry: Check, tested: AgentUnderTest) -> Finding:
    try:
        outcome = entry.run(tested)
    except NotAsked as reason:
        outcome = Outcome(NOT_ASKED, str(reason), "")
    except Exception as error:  # whatever the agent raises is what was found
        outcome = Outcome(FAILS, f"{type(error).__name__}: {error}{users_line(error)}", "no error")
    return Finding(entry.name, entry.statement, outcome.status, outcome.found, outcome.expected, entry.asks)
