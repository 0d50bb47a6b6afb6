"""Which cells run: a suite by name, a product of tasks, rewards and agents from a file or flags, or parts of these.

An entry of the leaderboard is an agent that a file names.
"""

from __future__ import annotations

import json
import re
import sys
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from functools import cache, partial
from pathlib import Path
from typing import TypeGuard, TypeVar

import gymnasium as gym
from textgym_agents.registry import agent_class, agent_names, make_config, make_env

from textgym.checks import JsonObject, not_one_of, shown
from textgym.commands.console import one_line
from textgym.commands.flags import find_id
from textgym.files import json_value
from textgym.registry import SUITES, TASKS, import_user_module, load_target
from textgym_benchmarks.suite import (
    Cell,
    Evaluation,
    RewardJson,
    Suite,
    check_integer,
    from_fields,
    parted,
    reward_label,
)
from textgym_benchmarks.suites import misfit, rows

LARGEST_ENTRY = 100_000  # bytes of the file of an entry of the leaderboard
T = TypeVar("T")
Settings = Mapping[str, Mapping[str, object]]
"""Agent -> settings over its defaults, JSON values."""


@dataclass(frozen=True)
class Product:
    """Tasks times rewards times agents times seeds: what a suite file holds, and what flags of `textgym bench` say.

    Args:
        tasks: ids, of shipped tasks also names; "module:ID" for one of your own, or an ID that a module of `agents` or
            `rewards` registers.
        agents: registered names, or "module:Class".
        rewards: name in tables -> a registered name, "module:function", or {"name": ..., **parameters}; "default" is
            the task's own. In a list they keep their own names, or have one as in "NAME=REWARD".
        episodes: the budget of each cell. seeds: how many, from 0.
        settings: agent -> settings over its defaults.
        name: of the suite; "" for one made of the tasks'. description: one line for people.
        evaluation: how the cells are measured.
    Raises: ValueError or TypeError for a value that is not allowed; ImportError for an agent that cannot be imported.
    """

    tasks: Sequence[str] = ()
    agents: Sequence[str] = ("lm-ppo", "rloo")
    rewards: Mapping[str, RewardJson] | Sequence[RewardJson] = ("default",)
    episodes: int = 4096
    seeds: int = 3
    settings: Settings = field(default_factory=dict)
    name: str = ""
    description: str = ""
    evaluation: Evaluation = field(default_factory=Evaluation)

    def __post_init__(self) -> None:
        check_integer("episodes", self.episodes, 1)
        check_integer("seeds", self.seeds, 1)
        for name in ("tasks", "agents"):
            words = getattr(self, name)
            if not _is_list(words) or not words or not all(isinstance(word, str) and word for word in words):
                raise ValueError(f"{name}={words!r}: allowed is a list of at least one name, as in ['Helpful']")
        if not self.rewards:
            raise ValueError("rewards=(): allowed is at least one; 'default' is the task's own")
        _check_rewards(self.rewards)
        own = [*self.settings.values()] if isinstance(self.settings, Mapping) else [None]
        if not all(isinstance(each, Mapping) for each in own):
            raise ValueError(f"settings={self.settings!r}: allowed are settings by name, for each agent by its name")
        if not isinstance(self.evaluation, Evaluation):
            object.__setattr__(self, "evaluation", Evaluation.from_json(self.evaluation))

    def suite(self) -> tuple[Suite, dict[str, list[str]]]:
        """Return the suite of what can be made, and the rest: why -> which tasks, rewards and agents are left out.

        Every task is made once under every reward, here and before any work.

        Raises: ValueError where nothing is left, or two rewards have one name; ValueError or TypeError for an agent or
            a setting that does not exist.
        """
        rewards = named_rewards(self.rewards)
        modules = user_modules([*self.agents, *rewards.values()])
        for module in modules:
            _registered_by(module)  # first of all: agents are found in the current folder from then on
        check_agents(self.agents)
        check_settings(self.settings, self.agents)
        cells: list[Cell] = []
        left_out: dict[str, list[str]] = {}
        for task in dict.fromkeys(self.tasks):
            found = _tried(partial(full_id, task, modules), task, left_out)
            if found is None:
                continue
            for name, reward in rewards.items():
                options = {} if reward is None else {"reward": reward}
                if not _tried(partial(make_env, found, 1, **options), f"{task} under {name}", left_out):
                    continue
                for agent in self.agents:
                    if reason := misfit(agent, found, reward):
                        left_out.setdefault(reason, []).append(f"{agent} on {task} under {name}")
                cells += rows([found], self.agents, self.episodes, self.seeds, rewards={name: reward})
        if not cells:
            raise ValueError("; ".join(f"{', '.join(those)}: {why}" for why, those in left_out.items()))
        tasks = [cell.short_id.rpartition("/")[2].partition("-v")[0] for cell in cells]
        suite = Suite(self.name or _suite_name(tasks), tuple(cells), self.description, self.evaluation)
        return select(suite, settings=self.settings), left_out


def _is_list(value: object) -> TypeGuard[Sequence[object]]:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _check_rewards(rewards: object) -> None:
    """Raise ValueError unless rewards are a list of JSON values, or JSON values by name."""
    specs = [*rewards.values()] if isinstance(rewards, Mapping) else rewards
    if not _is_list(specs):
        raise ValueError(f"rewards={rewards!r}: allowed is a list, or a table of names; 'default' is the task's own")
    for spec in specs:
        try:
            json.dumps(spec)
        except TypeError as error:
            raise ValueError(f"rewards: {spec!r}: allowed is a name, or a table with one and JSON values") from error


def _suite_name(tasks: Iterable[str]) -> str:
    """Return a name for a suite of these tasks, of three at most: the same tasks have the same folder."""
    words = list(dict.fromkeys(tasks))
    more = [f"and-{len(words) - 3}-more"] if len(words) > 3 else []
    return re.sub(r"[^a-z0-9]+", "-", "-".join(words[:3] + more).lower()).strip("-") or "product"


def _tried(make: Callable[[], T], what: str, left_out: dict[str, list[str]]) -> T | None:
    """Return what is made; None where that fails, which is noted: other cells run all the same."""
    try:
        return make()
    except Exception as error:  # whatever a task or a reward of the user's raises
        left_out.setdefault(one_line(error), []).append(what)
        return None


def suite_file(path: str | Path) -> JsonObject:
    """Return what a TOML file holds of a `Product`; its name is that of the file where it does not say.

    Raises: ValueError naming the file and what is wrong with it; OSError.
    """
    try:
        data = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:  # also of UTF-8
        raise ValueError(f"{path}: it is no TOML ({error})") from error
    return {"name": re.sub(r"[^a-z0-9]+", "-", Path(path).stem.lower()).strip("-")} | data


def named_rewards(rewards: Mapping[str, RewardJson] | Sequence[RewardJson]) -> dict[str, RewardJson | None]:
    """Return rewards by the names that tables show, None for the task's own.

    Raises: ValueError for two of one name, or a word that is broken JSON.
    """
    found: dict[str, RewardJson | None] = {}
    for name, reward in rewards.items() if isinstance(rewards, Mapping) else map(_named, rewards):
        if name in found:
            raise ValueError(f"rewards: two are called {name!r}; allowed are names of their own, as in NAME=REWARD")
        found[name] = None if reward == "default" else reward
    return found


def _named(reward: RewardJson) -> tuple[str, RewardJson]:
    """Return the name and the reward of a word such as NAME=REWARD, or of a reward, after its own name."""
    name = ""
    if isinstance(reward, str) and (parts := re.fullmatch(r"(?:([\w .-]+)=)?(.*)", reward, re.DOTALL)):
        name, reward = parts[1] or "", parts[2]
        if reward.startswith(("{", "[")):
            try:
                reward = json_value(reward)
            except ValueError as error:
                raise ValueError(f"rewards: {reward}: {error}; allowed is JSON, quoted as one word") from error
    return name or reward_label(reward), reward


def user_modules(named: object) -> list[str]:
    """Return the modules of every "module:attribute" in JSON values, in their order."""
    return list(dict.fromkeys(re.findall(r'"([^\W\d][\w.]*):\w+"', json.dumps(named))))


def full_id(task: str, modules: Iterable[str] = ()) -> str:
    """Return the id by which every process finds an environment, with the module of the user's that registers it.

    Args:
        task: an id or a name, perhaps "module:ID".
        modules: that may register it.
    Raises: UsageError for an unknown one, with the nearest; whatever importing a module raises.
    """
    own, _, name = task.rpartition(":")
    registered = {module: _registered_by(module) for module in modules}
    if own:
        import_user_module(own)
    found = find_id(TASKS.entry(name).id if name in TASKS else name)
    owner = own or next((module for module, ids in registered.items() if found in ids), "")
    return f"{owner}:{found}" if owner else found


@cache
def _registered_by(module: str) -> frozenset[str]:
    """Return the ids that importing a module of the user's adds; none of one that fails: who needs it says why."""
    before = set(gym.registry)
    with suppress(Exception):
        import_user_module(module)
    return frozenset(set(gym.registry) - before)


def make_suite(name: str) -> Suite:
    """Return a suite.

    Args:
        name: one of `textgym.registry.SUITES`, which holds the shipped ones from the shortest to the longest, or the
            "module:function" that returns a suite, or a file of a `Product`, *.toml.
    Raises: ValueError for an unknown name, with the nearest, or a file that asks for what there is not; TypeError if
        the function returns no suite; whatever importing the module raises.
    """
    if name.endswith(".toml"):
        suite, left_out = from_fields(Product, suite_file(name)).suite()
        for reason, those in left_out.items():
            raise ValueError(f"{name}: {'; '.join(those)}: {reason}")
        return suite
    suite = (load_target(name, "suite") if ":" in name else SUITES.load(name))()
    if not isinstance(suite, Suite):
        raise TypeError(f"suite {name!r}: its function returned {shown(suite)}; allowed is a Suite")
    return suite


def select(
    suite: Suite,
    agents: Sequence[str] | None = None,
    seeds: int | None = None,
    episodes: int | None = None,
    settings: Settings | None = None,
) -> Suite:
    """Return a suite of the same name and settings with other rows.

    Args:
        suite: the suite that the rows are taken from.
        agents: registered names, labels of the suite, or "module:Class"; None for all of the suite. An agent that the
            suite has no rows for gets those of its main agent, without that agent's settings: the same tasks,
            budgets and seeds.
        seeds: how many, from 0; None for the suite's own.
        episodes: the budget of all cells; None for the suite's own.
        settings: agent -> settings over those that its cells have.
    Raises: ValueError for an unknown name, a class that is no agent, or a name given twice; TypeError for a setting
        that the agent does not have; ImportError if a class cannot be imported.
    """
    cells = suite.cells
    if agents is not None:
        check_agents(agents, [cell.name for cell in suite.cells])
        cells = tuple(dict.fromkeys(cell for agent in agents for cell in _cells_of(suite, agent)))
    if seeds is not None:
        check_integer("seeds", seeds, 1)
        first: dict[str, Cell] = {}
        for cell in cells:
            first.setdefault(replace(cell, seed=0).key, cell)
        cells = tuple(replace(cell, seed=seed) for cell in first.values() for seed in range(seeds))
    if episodes is not None:
        cells = tuple(dict.fromkeys(replace(cell, episodes=episodes) for cell in cells))
    if settings:
        check_settings(settings, [cell.agent for cell in cells])
        cells = tuple(replace(cell, config={**cell.config, **settings.get(cell.agent, {})}) for cell in cells)
    return replace(suite, cells=cells)


def _cells_of(suite: Suite, agent: str) -> list[Cell]:
    own = [cell for cell in suite.cells if agent in (cell.agent, cell.name)]
    if own:
        return own
    # The main agent has the most rows; of several, lm-ppo or the first one.
    counts = Counter(cell.agent for cell in suite.cells)
    main = max(counts, key=lambda each: (counts[each], each == "lm-ppo"))
    made = [replace(cell, agent=agent, label="", config={}) for cell in suite.cells if cell.agent == main]
    return list({cell.key: cell for cell in made}.values())  # variants of one agent differ in settings alone


def check_agents(agents: Sequence[str], labels: Sequence[str] = ()) -> None:
    """Raise ValueError for no agent, one given twice, or an unknown one that is no label either."""
    known = {*agent_names(), *labels}
    if not agents:
        raise ValueError("agents=(): allowed is at least one, or None for those of the suite")
    for agent in agents:
        if agents.count(agent) > 1:
            raise ValueError(f"agents: {agent!r} stands there twice")
        if ":" in agent:
            agent_class(agent)
        elif agent not in known:
            raise ValueError(f"{not_one_of('agent', agent, known)} A class of your own is module:Class")


def check_settings(settings: Settings, agents: Sequence[str]) -> None:
    """Raise ValueError for settings of an agent that is not there; TypeError or ValueError for one it does not have."""
    for agent, own in settings.items():
        if agent not in agents:
            raise ValueError(not_one_of("settings: agent", agent, dict.fromkeys(agents)))
        make_config(agent_class(agent), parted(own)[0])


def check_day(name: str, value: object) -> None:
    """Raise ValueError unless a value is a date as ISO 8601 writes it."""
    try:
        date.fromisoformat(str(value))
    except ValueError as error:
        raise ValueError(f"{name}={value!r}: allowed is a date such as 2026-11-27") from error


@dataclass(frozen=True)
class Entrant:
    """What the dictionary ENTRY of an entry's file says.

    Args:
        agent: a registered name, or a class of the same file.
        settings: of the agent, JSON values, without `seed`.
        author, description: one line. date: of the entry, as in 2026-11-27.
    Raises: ValueError for another value.
    """

    agent: str
    author: str
    date: str
    description: str
    settings: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("agent", "author", "date", "description"):
            value = getattr(self, name)
            if not isinstance(value, str) or len(value.splitlines()) != 1:
                raise ValueError(f"{name}={value!r}: allowed is a text of one line")
        if not isinstance(self.settings, Mapping) or "seed" in self.settings:
            raise ValueError(f"settings={self.settings!r}: allowed are JSON values by name, and no seed")
        check_day("date", self.date)


def read_entrant(path: Path) -> Entrant:
    """Return what an entry's file says; its agent is the name that workers find it by.

    Raises: ValueError that names the file and what is wrong with it.
    """
    if path.suffix != ".py" or not path.stem.isidentifier() or not path.is_file():
        raise ValueError(f"{path}: allowed is a file NAME.py that is there, its name a word of Python")
    if path.stat().st_size > LARGEST_ENTRY:
        raise ValueError(f"{path}: has {path.stat().st_size:,} bytes; allowed are {LARGEST_ENTRY:,}")
    if (folder := str(path.resolve().parent)) not in sys.path:
        sys.path.append(folder)
    try:
        module = import_user_module(path.stem)
        if Path(str(module.__file__)).resolve() != path.resolve():
            raise ValueError(f"there is another module {path.stem!r} ({module.__file__}); rename the file")
        found = from_fields(Entrant, getattr(module, "ENTRY", None))
        if ":" in found.agent:
            raise ValueError(f"agent={found.agent!r}: allowed is a registered name, or a class of this file")
        name = f"{path.stem}:{found.agent}" if isinstance(getattr(module, found.agent, None), type) else found.agent
        make_config(agent_class(name), found.settings)
    except Exception as error:  # the author's code
        raise ValueError(f"{path}: {type(error).__name__}: {error}") from error
    return Entrant(**{**asdict(found), "agent": name})
