"""The suites that come with the package, the rows that they are made of, and how long a cell takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Final

from textgym_agents.registry import make_env

from textgym.checks import JsonObject
from textgym.rewards.registry import spec_name
from textgym.task import has_language_model
from textgym_benchmarks.suite import Cell, Evaluation, RewardJson, Suite

EXPLORATION: Final = ("Bandit", "DeepSea", "Deceptive", "BigVocab")
CREDIT: Final = ("Delayed", "Stop", "Distractor")
MEMORY: Final = ("Copy", "Reverse", "Recall")
LONG: Final = (*MEMORY, "DeepSea")  # of the diagnostics; what is learned there takes more episodes
VALUES: Final = ("Scale", "Noisy", "BetaSweep", "TwoModes")
DIAGNOSTICS: Final = (*EXPLORATION, *CREDIT, *MEMORY, *VALUES)
ALIGNMENT: Final = ("Helpful", "Harmless", "Honest", "HHH")
VERIFIABLE: Final = ("Arithmetic", "Json", "Keywords", "Format", "Pattern")
STYLE: Final = ("Sentiment", "Brief", "NoRepeat")
TASKS: Final = (*DIAGNOSTICS, *ALIGNMENT, *VERIFIABLE, *STYLE)

FIXED: Final = ("random", "best-of-n")
ON_POLICY: Final = ("lm-ppo", "rloo", "grpo", "reinforce", "a2c")
FROM_LOGS: Final = ("ilql", "cql", "mc-values", "awr")
OTHER_LM: Final = ("rejection", "vine-ppo", "soft-q", "dpo", *FROM_LOGS, "behaviour-cloning")
TABULAR: Final = ("q-learning", "sarsa", "monte-carlo")
SEARCH: Final = ("mcts", "alphazero")
SB3_ON_POLICY: Final = ("sb3-ppo", "sb3-maskable-ppo", "sb3-recurrent-ppo", "sb3-a2c", "sb3-trpo")
SB3_VALUES: Final = ("sb3-dqn", "sb3-qrdqn")
SB3_POINTS: Final = ("sb3-ddpg", "sb3-td3", "sb3-sac")
SB3: Final = (*SB3_ON_POLICY, *SB3_VALUES, *SB3_POINTS)
AGENTS: Final = (*FIXED, *ON_POLICY, *OTHER_LM, *TABULAR, *SEARCH, *SB3)

# For networks that start from nothing on a real vocabulary: actions are ranks among the reference's likeliest tokens,
# and the features are the reference's (docs/sb3.md).
_NEAR_REFERENCE: Final = {"top_k": 4, "lm_features": True, "reference_reward": False, "learning_rate": 0.003}
_COOLING: Final = {"temperature": 1.0, "temperature_end": 0.1}

_PAPER: Final[Mapping[str, object]] = {"divide_by_std": True, "whiten": False}
_SPARING: Final = Evaluation(points=4, per_prompt=2, optimum_per_prompt=64)
OBJECTIVES: Final[Mapping[str, tuple[str, Mapping[str, object]]]] = {
    "GRPO of the paper": ("grpo", {**_PAPER, "kl": "k3", "aggregation": "sequence"}),
    "DAPO": ("grpo", {**_PAPER, "aggregation": "token", "clip_high": 0.28, "equal_groups": "drop"}),
    "CISPO": ("grpo", {**_PAPER, "aggregation": "token", "surrogate": "cispo"}),
    "GSPO": ("grpo", {**_PAPER, "aggregation": "sequence", "surrogate": "gspo"}),
    "MaxRL": ("grpo", {"divide_by_mean": True, "whiten": False}),
    "REINFORCE++": ("lm-ppo", {"kl": "k1", "lam": 1.0, "value_coefficient": 0.0}),
    "reinforce": ("reinforce", {}),
}
"""Objectives of papers, by name in tables: an agent and its settings. All pay the task's price of KL, as J has it."""
ALGORITHMS: Final = {**{name: (name, {}) for name in ("lm-ppo", "rloo", "grpo", "a2c", "vine-ppo")}, **OBJECTIVES}
"""The main agents with default settings, and those objectives."""

STORY_REWARDS: Final[Mapping[str, RewardJson]] = {
    "three words": {"name": "keywords", "words": ["friend", "happy", "garden"]},
    "sentiment": "sentiment",
    "20 words": {"name": "length", "target": 20, "unit": "words"},
    "speech": {"name": "contains_all", "words": ['"', "!"]},
}
"""What is asked of a language model of stories, by name in tables."""
_WHO: Final = ("a girl named Lily", "a boy named Tom", "a big bear", "a small bird", "an old man", "a cat", "a dog")
_WHERE: Final = (
    "in a small house",
    "near the sea",
    "in the forest",
    "on a farm",
    "by a river",
    "in a city",
    "on a hill",
)
STORY_PROMPTS: Final = tuple(f"Once upon a time, {who} lived {where}." for who in _WHO for where in _WHERE)


def ci() -> Suite:
    """Return the suite that shows that everything runs, not who is best: about a minute."""
    return Suite(
        "ci",
        (
            *rows(["Bandit", "Delayed"], ["random", "lm-ppo", "rloo", "q-learning", "sb3-ppo"], 1024),
            *rows(["Bandit"], ["best-of-n"], 1024),
            *rows(["Helpful"], ["lm-ppo"], 512),
        ),
        "A few cells of every kind; shows that everything runs.",
        Evaluation(points=2, per_prompt=1, final_per_prompt=2, optimum_per_prompt=8),
    )


def quick() -> Suite:
    """Return the suite that shows who learns what: under 10 minutes on two cores."""
    agents = ("random", "best-of-n", "lm-ppo", "rloo", "dpo")
    return Suite(
        "quick",
        (
            *rows(["Bandit", "Deceptive", "Delayed", "Stop"], [*agents, "q-learning", "mcts"], 4_096),
            *rows(["Bandit", "Delayed"], ["sb3-ppo"], 4_096),
            *rows(["Copy"], ["random", "lm-ppo", "rloo", "q-learning"], 16_384),
            *rows(["Helpful"], [*agents, "behaviour-cloning"], 4_096),
            *rows(["Keywords", "Sentiment"], ["lm-ppo", "rloo"], 2_048),
        ),
        "Every family of tasks, the main agents, one seed.",
        Evaluation(points=4, per_prompt=2, final_per_prompt=8, optimum_per_prompt=64),
    )


def helpful() -> Suite:
    """Return the suite behind the README's comparison of algorithms on one alignment task."""
    return Suite(
        "helpful",
        (
            *rows(["Helpful"], ["lm-ppo"], 20_480, 5, {"learning_rate": 5e-4}),
            *rows(["Helpful"], ["rloo", "grpo"], 20_480, 5, {"learning_rate": 5e-4, "kl": "exact"}),
            *rows(["Helpful"], ["best-of-n"], 20_480, 5),
        ),
        "The main algorithms on Helpful at a long budget, a learning rate of 5e-4 and the exact KL, five seeds.",
        Evaluation(optimum_per_prompt=256),
    )


def core() -> Suite:
    """Return the suite whose results are committed: about an hour on two cores."""
    short = [task for task in DIAGNOSTICS if task not in LONG]
    # One agent for each idea.
    everywhere = ("random", "best-of-n", "lm-ppo", "vine-ppo", "rloo", "grpo", "a2c", "soft-q", "q-learning")
    elsewhere = ("dpo", "rejection", "mcts", "sb3-ppo", "sb3-dqn")
    four = ("Bandit", "Delayed", "Stop", "Deceptive")
    of_helpful = ("reinforce", "rejection", "dpo", "behaviour-cloning", "sb3-ppo")
    return Suite(
        "core",
        (
            *rows(short, everywhere, 4_096, 3),
            *rows(LONG, everywhere, 16_384, 3),
            *rows(four, elsewhere, 4_096, 3),
            *rows([*four, "Helpful"], ["dpo"], 4_096, 3, {"sampler": "policy"}, "online DPO"),
            *rows(["Bandit"], ["sb3-sac"], 4_096, 3),
            *chain.from_iterable(
                (*rows(short, [agent], 4_096, 3, config, label), *rows(LONG, [agent], 16_384, 3, config, label))
                for label, (agent, config) in OBJECTIVES.items()
            ),
            *rows(["Copy"], ["dpo", "rejection", "sb3-ppo", "sb3-dqn"], 16_384, 3),
            *rows(["Helpful"], [*everywhere, *of_helpful], 4_096, 3),
            *rows([*ALIGNMENT[1:], *VERIFIABLE, *STYLE], ["lm-ppo"], 4_096, 3),
            *rows(["Honest", "Arithmetic", "Sentiment"], ["rloo", "dpo"], 4_096, 3),
            *rows(["Arithmetic", "Sentiment"], ["best-of-n"], 4_096, 3),
        ),
        "A cut across every family of tasks and of agents, three seeds.",
        Evaluation(points=5, per_prompt=2, final_per_prompt=8, optimum_per_prompt=256),
    )


def ppo() -> Suite:
    """Return the suite behind the table "How far PPO gets" in docs/exact.md."""
    long = {"Copy": 40_000, "Reverse": 40_000, "Recall": 60_000}
    measured = {"lam": 0.95, "value_rate": 1.0}  # the defaults when the table was made
    return Suite(
        "ppo",
        (
            *(cell for task in DIAGNOSTICS for cell in rows([task], ["lm-ppo"], long.get(task, 20_000), 5, measured)),
            *_levels("BigVocab", {"V=4096": 4, "V=50257": 6}, ["lm-ppo"], 20_000, 2, measured),
            *_levels("DeepSea", {"depth=12": 12, "depth=14": 14}, ["lm-ppo"], 20_000, 5, measured),
        ),
        "LM PPO on the diagnostics, to the end.",
    )


def sb3() -> Suite:
    """Return the suite behind the tables of docs/sb3.md."""
    starts: Mapping[str, Mapping[str, object]] = {
        "near the reference": {},
        "equal ranks": {"rank_prior": False},
        "from nothing": {"top_k": None, "lm_features": False},
    }
    started = [rows(["Helpful"], ["sb3-ppo"], 5_120, 3, config, label) for label, config in starts.items()]
    return Suite(
        "sb3",
        (
            *rows(["Bandit"], [*SB3, "random"], 4_096),
            *rows(["Copy"], [*SB3, "random"], 32_768, 3),
            *chain.from_iterable(started),
        ),
        "Stable-Baselines3 on Bandit and Copy, and its PPO on Helpful from three starts.",
    )


def guided() -> Suite:
    """Return the suite behind the table of value-guided decoding in docs/algorithms.md, which makes its runs."""
    reference = {"prior": "reference"}
    settings: Mapping[str, Mapping[str, object]] = {
        "default": {},
        "k=16": {"k": 16},
        "beta": {"temperature": 0.05},
        "reference, four times beta": {**reference, "temperature": 0.2},
        "reference, beta": reference,
    }
    cells = [rows(["Helpful"], ["value-guided"], 2_560, 3, config, label) for label, config in settings.items()]
    return Suite(
        "guided",
        tuple(
            replace(cell, config={**cell.config, "run": f"runs/ppo-{cell.seed}"}) for cell in chain.from_iterable(cells)
        ),
        "Value-guided decoding of the runs runs/ppo-0, -1 and -2: tokens, prior and temperature.",
        Evaluation(final_per_prompt=16),
    )


def nlpo() -> Suite:
    """Return the suite behind the table of learned masks in docs/algorithms.md, in batches of 256."""
    masks = {"0.9": {"mask_top_p": 0.9}, "0.9, mu=1": {"mask_top_p": 0.9, "mask_every": 1}, "0.5": {"mask_top_p": 0.5}}
    cells: list[Cell] = []
    for label, config in {"lm-ppo": {}, **{f"NLPO, p={name}": mask for name, mask in masks.items()}}.items():
        cells += _levels("BigVocab", {"V=256": 2, "V=4096": 4}, ["lm-ppo"], 8_192, 3, config, label)
        if label in ("lm-ppo", "NLPO, p=0.9"):
            cells += rows(["Helpful"], ["lm-ppo"], 2_560, 3, {**config, "batch": 256}, label)
    return Suite("nlpo", tuple(cells), "LM PPO and NLPO's learned mask on tasks of many actions.", _SPARING)


def curriculum() -> Suite:
    """Return the suite behind the table of curricula in docs/runs.md."""
    draws = {"uniform": {}, **{name: {"curriculum": name} for name in ("difficulty", "progress")}}
    budgets = {"Copy": 6_144, "Arithmetic": 1_536}
    settings = {name: {**draw, "batch": 256} for name, draw in draws.items()}
    cells = [rows([task], ["rloo"], budgets[task], 5, settings[name], name) for task in budgets for name in draws]
    return Suite("curriculum", tuple(chain(*cells)), "RLOO with prompts drawn in three ways.", _SPARING)


def diagnostics() -> Suite:
    """Return the suite of single capabilities; the tasks of memory have many prompts and take longer."""
    agents = (*FIXED, *ON_POLICY[:-1], "soft-q", *TABULAR, "sb3-ppo", "sb3-dqn")
    short = [task for task in DIAGNOSTICS if task not in MEMORY]
    cells = (*rows(short, agents, 16_384, 3), *rows(MEMORY, agents, 40_960, 3))
    return Suite("diagnostics", cells, "Fourteen capabilities, every optimum known exactly, three seeds.")


def rewards() -> Suite:
    """Return the suite of alignment tasks under other rewards; the rules stay the gold reward."""
    agents = ("lm-ppo", "rloo", "dpo", "best-of-n")
    return Suite(
        "rewards",
        tuple(chain.from_iterable(rows([task], agents, 6_144, 3, rewards=_rewards_of(task)) for task in ALIGNMENT)),
        "The alignment tasks under rules, a learned model, shaped and noisy rules.",
    )


def _rewards_of(task: str) -> Mapping[str, RewardJson]:
    rules = {"name": f"{task.lower()}_rules"}
    return {
        "rules": "rules",
        "model": "model",
        "shaped": {"name": "shaped", "reward": rules},
        # The deviation of the noise is about that of the reward itself.
        "noisy": {"name": "blurred", "reward": rules, "deviation": 0.5},
    }


def scaling() -> Suite:
    """Return the suite of one task after another at growing difficulty."""
    agents = ("lm-ppo", "rloo", "soft-q", "q-learning", "sb3-ppo", "sb3-dqn")
    sizes = {f"V={size}": level for level, size in enumerate((16, 64, 256, 1024, 4096))}
    return Suite(
        "scaling",
        (
            *_levels("BigVocab", sizes, agents, 16_384),
            *_levels("DeepSea", {f"depth={depth}": depth for depth in (2, 4, 6, 8, 10)}, agents, 16_384),
            *_levels("Delayed", {f"delay={delay}": delay for delay in (2, 4, 8, 12)}, agents, 16_384),
            *_levels("Copy", {f"words={length}": length for length in (1, 2, 3)}, agents, 20_480),
        ),
        "Vocabulary, horizon, delay and number of prompts, one after the other.",
    )


def _levels(
    task: str,
    levels: Mapping[str, int],
    agents: Sequence[str],
    episodes: int,
    seeds: int = 3,
    config: Mapping[str, object] | None = None,
    name: str = "",
) -> Iterable[Cell]:
    """Yield the rows of a task at several difficulties, by label: tables show it as the reward's name."""
    for label, level in levels.items():
        cells = rows([task], agents, episodes, seeds, config, name)
        yield from (replace(cell, env={"difficulty": level}, reward_name=label) for cell in cells)


def full() -> Suite:
    """Return the suite of most agents on every task of one turn that they can learn, for a cluster."""
    real = [task for task in TASKS if task not in DIAGNOSTICS]
    cells = (*rows(DIAGNOSTICS, AGENTS, 40_960, 5), *rows(real, AGENTS, 20_480, 5))
    return Suite("full", cells, "Most agents on the tasks of one turn that they can learn, five seeds; for a cluster.")


def rows(
    tasks: Iterable[str],
    agents: Sequence[str],
    episodes: int,
    seeds: int = 1,
    config: Mapping[str, object] | None = None,
    label: str = "",
    rewards: Mapping[str, RewardJson | None] | None = None,
) -> tuple[Cell, ...]:
    """Return the product of tasks, rewards, agents and seeds, without what does not fit (`misfit`).

    Args:
        tasks: names, as in textgym/NAME-v0, or whole ids. agents: registered names, or "module:Class".
        episodes: the budget of each cell. seeds: how many, from 0.
        config: settings of the agents, over those that are known to work. label: their name in tables.
        rewards: name in tables -> reward, see `Cell`; None: the task's own alone, named "default".
    """
    return tuple(
        Cell(task_id(task), agent, episodes, seed, reward, name, {}, {**settings(agent, task), **(config or {})}, label)
        for task in tasks
        for name, reward in ({"default": None} if rewards is None else rewards).items()
        for agent in agents
        if not misfit(agent, task, reward)
        for seed in range(seeds)
    )


def task_id(name: str) -> str:
    """Return the id of a task's first version; an id itself as it is."""
    return name if "/" in name else f"textgym/{name}-v0"


def _task_name(name: str) -> str:
    """Return the name of a shipped task from its name or id; of any other, what was given."""
    return next((known for known in TASKS if name in (known, task_id(known))), name)


def misfit(agent: str, task: str, reward: RewardJson | None = None) -> str:
    """Return why an agent cannot learn a task under a reward; "" where it can, as far as it is known beforehand."""
    task = _task_name(task)
    if agent in (*TABULAR, *SEARCH) and task in TASKS and task not in DIAGNOSTICS:
        return "it keeps its states one by one, and this task has too many"
    if agent == "behaviour-cloning" and task in TASKS and task not in ALIGNMENT:
        return "this task has no answers to imitate"
    if agent in ("dpo", *FROM_LOGS) and task == "Json":
        return "this task has a grammar mask"
    if agent in ("dpo", "best-of-n") and reward is not None and spec_name(reward) in ("shaped", "dense"):
        return "it ranks finished answers, and this reward pays on the way"
    return ""


def settings(agent: str, task: str) -> Mapping[str, object]:
    """Return the settings that are known to be better on a task than an agent's defaults."""
    task = _task_name(task)
    if agent in TABULAR:
        return _COOLING
    if agent in SEARCH:
        return {"simulations": 16} | ({"batch": 64} if agent == "alphazero" else {})
    if agent in SB3 and task in TASKS and task not in DIAGNOSTICS:
        # An action of these is a point, which stands for a token by itself.
        points = agent in SB3_POINTS
        return {name: value for name, value in _NEAR_REFERENCE.items() if not (points and name == "top_k")}
    return {}


def stories_env(model: str | Path) -> JsonObject:
    """Return the options of `textgym/Text-v0` that make it a task of stories, without a reward. Args: model: folder."""
    return {"prompts": list(STORY_PROMPTS), "reference": str(model), "max_new_tokens": 48, "beta": 0.05}


# CPU seconds on one core of a Xeon: of a cell's evaluations, and of 1,000 episodes.
_EVALUATIONS: Final = dict.fromkeys(map(task_id, MEMORY), 6.0)
_EVALUATIONS_SMALL, _EVALUATIONS_REAL = 2.0, 22.0
_BEST_OF: Final = 4.0
"""How much longer the evaluations of best-of-n are, which writes many completions for each that is evaluated."""
_EPISODES: Final = {
    **dict.fromkeys(TABULAR, 0.15),
    **{"mcts": 2.0, "alphazero": 8.0},
    **dict.fromkeys(SB3, 4.0),
}
_EPISODES_LM, _EPISODES_REAL = 0.9, 7.0


def cost(cell: Cell) -> float:
    """Return the CPU seconds that a cell takes, within a factor of about three."""
    real = _has_language_model(cell.id)
    evaluations = _EVALUATIONS_REAL if real else _EVALUATIONS.get(cell.id, _EVALUATIONS_SMALL)
    if cell.agent in (*FIXED, "reference"):
        return evaluations * (_BEST_OF if cell.agent == "best-of-n" else 1.0)
    per_thousand = _EPISODES_REAL if real else _EPISODES.get(cell.agent, _EPISODES_LM)
    return evaluations + per_thousand * cell.episodes / 1000


@cache
def _has_language_model(env_id: str) -> bool:
    try:
        return has_language_model(make_env(env_id, 1).unwrapped.task)
    except Exception:  # Its cells will say what is wrong with it.
        return True
