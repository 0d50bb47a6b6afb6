"""What a refactor must not change: plays, scores and public names, as numbers and texts in `data/`.

`python tests/golden/record.py rollouts|rewards|names` writes that part of `data/` anew, on purpose. What was asked
stays as it is recorded (actions, texts, specs, old names); what was answered is written anew.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypedDict

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from textgym import make_task, task_names
from textgym.rewards import make_reward
from textgym.task import task_entry

ROOT: Final = Path(__file__).parents[2]
PACKAGES: Final = {
    "textgym": ROOT,
    "textgym_agents": ROOT / "agents",
    "textgym_benchmarks": ROOT / "benchmarks",
}
DATA: Final = Path(__file__).parent / "data"
ROLLOUTS: Final = DATA / "rollouts"
REWARDS: Final = DATA / "rewards.json"
NAMES: Final = DATA / "names.json"
MODEL_TASKS: Final = ("HHH", "Harmless", "Helpful", "Honest")
"""The tasks that take the built-in reward model."""


class Step(TypedDict):
    """One step: the mask the action was taken under, the action, and what came of it. Arrays are digests."""

    action_mask: str
    action: int
    input_ids: str
    attention_mask: str
    reward: float
    terminated: bool
    truncated: bool


class Episode(TypedDict):
    """One episode. `end` is the last step's info, with None for a term that abstained."""

    split: str
    prompt_index: int
    seed: int
    prompt: str
    input_ids: str
    attention_mask: str
    steps: list[Step]
    end: dict[str, object]


class Rollouts(TypedDict):
    """What one id does: the indices of the prompts that eight resets after seed 0 draw, and some episodes."""

    drawn: list[int]
    episodes: list[Episode]


class Batch(TypedDict):
    """The arguments of a reward: B prompts, B completions, and columns of B values."""

    prompts: list[str]
    completions: list[str]
    columns: dict[str, list[Any]]


class Case(TypedDict):
    """A reward's spec, the name of its batch, and its scores; None abstains. `terms` is empty where it has none."""

    spec: Any
    batch: str
    total: list[float | None]
    terms: dict[str, list[float | None]]


class Paid(TypedDict):
    """Options of Text-v0, the actions of an episode, and the reward of every step."""

    options: dict[str, Any]
    actions: list[int]
    rewards: list[float]


class Rewards(TypedDict):
    """All that is recorded of rewards. `model` holds the scores of the batch "world" by task."""

    batches: dict[str, Batch]
    cases: dict[str, Case]
    model: dict[str, list[float]]
    paid: dict[str, Paid]


class Removed(TypedDict):
    """A name that was removed on purpose: `new` is None, `why` the reason."""

    new: None
    why: str


class Names(TypedDict):
    """Old "module:name" -> where it is today; and module -> its `__all__`, empty where it has none."""

    names: dict[str, str | Removed]
    exports: dict[str, list[str]]


def digest(array: npt.NDArray[np.generic]) -> str:
    """Return 16 hex digits of the SHA-256 of an array: dtype, shape and values."""
    head = f"{array.dtype.str} {array.shape}".encode()
    return hashlib.sha256(head + np.ascontiguousarray(array).tobytes()).hexdigest()[:16]


def play(
    name: str,
    split: str,
    prompt_index: int,
    seed: int,
    actions: Sequence[int] | None = None,
    **options: Any,
) -> Episode:
    """Play one episode.

    Args:
        name: a Gymnasium id.
        split, prompt_index: of the prompt.
        seed: of the environment, and of the actions where none are given.
        actions: what is played, to the end of the episode or of the list; None: allowed ids, drawn uniformly.
        options: of the environment.
    """
    env = gym.make(name, split=split, **options)
    uniforms = np.random.default_rng(seed)
    observation, info = env.reset(seed=seed, options={"prompt_index": prompt_index})
    start = {key: digest(array) for key, array in observation.items()}
    episode: Episode = {
        "split": split,
        "prompt_index": prompt_index,
        "seed": seed,
        "prompt": info["prompt"],
        "input_ids": start["input_ids"],
        "attention_mask": start["attention_mask"],
        "steps": [],
        "end": {},
    }
    ended = False
    while not ended and (actions is None or len(episode["steps"]) < len(actions)):
        mask = env.get_wrapper_attr("action_masks")()
        allowed = np.flatnonzero(mask)
        drawn = int(allowed[math.floor(uniforms.random() * len(allowed))])
        action = drawn if actions is None else actions[len(episode["steps"])]
        observation, reward, terminated, truncated, info = env.step(action)
        episode["steps"].append(
            {
                "action_mask": digest(mask),
                "action": action,
                "input_ids": digest(observation["input_ids"]),
                "attention_mask": digest(observation["attention_mask"]),
                "reward": float(reward),
                "terminated": terminated,
                "truncated": truncated,
            }
        )
        ended = terminated or truncated
    terms: Mapping[str, float] = info.get("reward_terms", {})
    paid = {key: None if math.isnan(value) else value for key, value in terms.items()}
    episode["end"] = {**info, "reward_terms": paid}
    return episode


def rollouts(name: str, recorded: Rollouts | None) -> Rollouts:
    """Play what is recorded of an id again, or, where nothing is, two train prompts and one eval prompt."""
    env = gym.make(name)
    drawn = [int(env.reset(seed=None if time else 0)[1]["prompt_index"]) for time in range(8)]
    if recorded is None:
        second = min(1, len(env.get_wrapper_attr("task").prompts["train"].texts) - 1)
        starts = (("train", 0), ("train", second), ("eval", 0))
        episodes = [play(name, split, index, seed) for seed, (split, index) in enumerate(starts)]
    else:
        episodes = [
            play(
                name,
                old["split"],
                old["prompt_index"],
                old["seed"],
                [step["action"] for step in old["steps"]],
            )
            for old in recorded["episodes"]
        ]
    return {"drawn": drawn, "episodes": episodes}


def rollout_file(name: str) -> Path:
    """The file of an id."""
    return ROLLOUTS / f"{name.removeprefix('textgym/')}.json"


def scores(spec: Any, batch: Batch, name: str = "") -> Case:
    """Score a batch with a reward made from its spec; `name` is that of the batch."""
    arguments = {"prompts": batch["prompts"], "completions": batch["completions"], **batch["columns"]}
    reward = make_reward(spec)
    total = reward(**arguments)
    terms = make_reward(spec).terms(**arguments) if hasattr(reward, "terms") else {}
    return {"spec": spec, "batch": name, "total": total, "terms": terms}


def model_scores(task: str, batch: Batch) -> list[float]:
    """Score a batch with the reward of a task that is asked for its reward model."""
    reward = make_task(task, reward="model").reward
    scored: list[float] = reward(batch["prompts"], batch["completions"], **batch["columns"])
    return scored


def paid(options: Mapping[str, Any], actions: Sequence[int]) -> list[float]:
    """Return the reward of every step of an episode of Text-v0."""
    episode = play("textgym/Text-v0", "train", 0, 0, actions, **options)
    return [step["reward"] for step in episode["steps"]]


def modules() -> Iterator[tuple[str, ast.Module]]:
    """Yield the name and the syntax tree of every public module, packages by their own name."""
    for package, root in PACKAGES.items():
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            if not name.rpartition(".")[2].startswith("_"):
                yield name, ast.parse(path.read_text(encoding="utf-8"))


def public_names() -> Iterator[str]:
    """Yield every public class, function and constant at the top of a public module, as "module:name"."""
    for module, tree in modules():
        for name in dict.fromkeys(_defined(tree)):
            if not name.startswith("_"):
                yield f"{module}:{name}"


def _defined(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name
        elif isinstance(node, ast.Assign):
            every = (each for target in node.targets for each in ast.walk(target))
            yield from (each.id for each in every if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store))
        elif isinstance(node, ast.AnnAssign) and node.value is not None and isinstance(node.target, ast.Name):
            yield node.target.id


def exports() -> dict[str, list[str]]:
    """Return the `__all__` of the three packages and of every module that has one."""
    found = {package: list[str]() for package in PACKAGES}
    for module, tree in modules():
        if "__all__" in _defined(tree):
            found[module] = list(importlib.import_module(module).__all__)
    return found


def differences(recorded: object, now: object, tolerance: float = 1e-6, place: str = "") -> Iterator[str]:
    """Yield a line for everything that is not as recorded; floats may differ by tolerance * (1 + size)."""
    if isinstance(recorded, dict) and isinstance(now, dict):
        for key in {**recorded, **now}:
            inner = f"{place}.{key}" if place else key
            if key in recorded and key in now:
                yield from differences(recorded[key], now[key], tolerance, inner)
            else:
                yield f"{inner}: is {'gone' if key in recorded else 'new'}"
    elif isinstance(recorded, list) and isinstance(now, list) and len(recorded) == len(now):
        for index, value in enumerate(recorded):
            yield from differences(value, now[index], tolerance, f"{place}[{index}]")
    elif type(recorded) is float and type(now) is float:
        if not abs(recorded - now) <= tolerance * (1 + abs(recorded)):
            yield f"{place}: recorded is {recorded}, now it is {now}"
    elif type(recorded) is not type(now) or recorded != now:
        yield f"{place}: recorded is {recorded!r:.200}, now it is {now!r:.200}"


def read(path: Path) -> Any:
    """Return what a file of `data/` holds."""
    return json.loads(path.read_text(encoding="utf-8"))


def write(path: Path, value: object, depth: int) -> None:
    """Write JSON; containers that lie deeper than `depth` take one line each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_lines(value, depth) + "\n", encoding="utf-8")


def _lines(value: object, depth: int, indent: str = "") -> str:
    if depth == 0 or not value or not isinstance(value, dict | list):
        return json.dumps(value, allow_nan=False)
    inner = indent + " "
    heads = [f"{json.dumps(key)}: " for key in value] if isinstance(value, dict) else [""] * len(value)
    parts = value.values() if isinstance(value, dict) else value
    rows = [inner + head + _lines(part, depth - 1, inner) for head, part in zip(heads, parts, strict=True)]
    begin, end = "{}" if isinstance(value, dict) else "[]"
    return f"{begin}\n" + ",\n".join(rows) + f"\n{indent}{end}"


def record_rollouts() -> None:
    """Write one file for every registered id, delete the others; a new version plays what the old one did."""
    written = set()
    for name in task_names():
        path = rollout_file(task_entry(name).id)
        recorded = sorted(ROLLOUTS.glob(f"{name}-v*.json"))
        old = path if path in recorded or not recorded else recorded[-1]
        write(path, rollouts(task_entry(name).id, read(old) if old.exists() else None), depth=4)
        written.add(path)
    for path in set(ROLLOUTS.iterdir()) - written:
        path.unlink()


def record_rewards() -> None:
    """Write the scores of the recorded specs and actions."""
    data: Rewards = read(REWARDS)
    for name, case in data["cases"].items():
        data["cases"][name] = scores(case["spec"], data["batches"][case["batch"]], case["batch"])
    data["model"] = {task: model_scores(task, data["batches"]["world"]) for task in MODEL_TASKS}
    for one in data["paid"].values():
        one["rewards"] = paid(one["options"], one["actions"])
    write(REWARDS, data, depth=4)


def record_names() -> None:
    """Add the public names that the table lacks, and write the exports; what is in the table stays."""
    table: dict[str, str | Removed] = read(NAMES)["names"] if NAMES.exists() else {}
    known = {*table, *(new for new in table.values() if isinstance(new, str))}
    table |= {name: name for name in public_names() if name not in known}
    write(NAMES, {"names": table, "exports": exports()}, depth=2)


def main() -> None:
    """Write the part of `data/` that the command line names."""
    parts: dict[str, Callable[[], None]] = {
        "rollouts": record_rollouts,
        "rewards": record_rewards,
        "names": record_names,
    }
    if len(sys.argv) != 2 or sys.argv[1] not in parts:
        sys.exit(f"arguments {sys.argv[1:]}: allowed is one of {', '.join(parts)}")
    parts[sys.argv[1]]()


if __name__ == "__main__":
    main()
