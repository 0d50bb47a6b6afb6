"""Writes an agent's episodes as a Minari dataset, which `minari.load_dataset` and this package read."""

from __future__ import annotations

import copy
import hashlib
import importlib
import importlib.metadata
import itertools
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from textgym.episodes import action_space, observation_space
from textgym.files import plain, replace_folder
from textgym_agents.datasets.playing import RecordedEpisode, play_episodes
from textgym_agents.protocol import as_agent

FORMAT = 1
_WRITTEN_AT_ONCE = 256
_VECTOR_OPTIONS = ("num_envs", "autoreset_mode", "score_together", "vectorization_mode", "render_mode")


def record(
    agent: Any,
    env: Any,
    episodes: int,
    out: str | Path,
    *,
    per_prompt: int = 1,
    seed: int = 0,
    deterministic: bool = False,
    split: str | None = None,
) -> Any:
    """Plays an agent and writes its episodes into a new Minari dataset. Nothing is sent or fetched.

    An observation is what the environment gave, an action is a token, `infos` have T + 1 entries, those of the reset
    first: see docs/datasets.md. The prompts, the noise of rewards, and everything else come from `seed`.

    Args:
        agent: has `log_probs` and `act`. env: an environment of the task, single or vector; it is not stepped.
        episodes, per_prompt, seed, deterministic: see `play_episodes`.
        out: the dataset's folder. Its name is a Minari id such as helpful-ppo-v0; under MINARI_DATASETS_PATH the
            folders in between belong to the id.
        split: of the prompts; None: the environment's.
    Returns: the `minari.MinariDataset`.
    Raises: ValueError if there is something at `out`, or its name is no id; see also `play_episodes`.
    """
    folder = Path(out)
    identifier = dataset_id(folder)
    if folder.exists():
        raise ValueError(f"out={str(out)!r}: is there already and is not overwritten")
    task = env.unwrapped.task
    chosen = str(getattr(env.unwrapped, "split", "train") if split is None else split)
    played = play_episodes(
        agent,
        task,
        episodes,
        split=chosen,
        per_prompt=per_prompt,
        seed=seed,
        deterministic=deterministic,
    )
    settings = {"split": chosen, "seed": seed, "per_prompt": per_prompt, "deterministic": deterministic}
    metadata = _metadata(agent, task, identifier, settings)
    # Minari looks for the data of a relative folder in that folder.
    replace_folder(folder.absolute(), lambda new: _write(new / "data", task, env, played, metadata))
    return minari().MinariDataset(folder / "data")


def minari() -> Any:
    """The package, with what its format needs. Raises: ModuleNotFoundError that names what is missing."""
    importlib.import_module("h5py")  # Minari itself would say so later, and in other words
    return importlib.import_module("minari")


def dataset_id(folder: Path) -> str:
    """The Minari id of the dataset in a folder. Raises: ValueError if its name is none."""
    minari()
    root, absolute = os.environ.get("MINARI_DATASETS_PATH"), folder.resolve()
    found = absolute.name
    if root and absolute != Path(root).resolve() and absolute.is_relative_to(Path(root).resolve()):
        found = absolute.relative_to(Path(root).resolve()).as_posix()
    try:
        importlib.import_module("minari.dataset.minari_dataset").parse_dataset_id(found)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"out={str(folder)!r}: {found!r} is no Minari id; allowed are letters, digits, '-' and '_' with a version "
            "at the end, as in helpful-ppo-v0"
        ) from error
    return found


def vocabulary_digest(vocabulary: Any) -> str:
    """A hash of the tokens' texts by id and of what ends an episode: the same ids mean the same."""
    parts = [repr(vocabulary.stop_ids), repr(vocabulary.size)]
    parts += [vocabulary.token_text(token) for token in range(vocabulary.size)]
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()


def _metadata(agent: Any, task: Any, identifier: str, settings: dict[str, Any]) -> dict[str, Any]:
    name = as_agent(agent).name or type(agent).__name__
    return {
        "dataset_id": identifier,
        "minari_version": importlib.metadata.version("minari"),
        "algorithm_name": str(name),
        "description": f"Episodes of {name} on the TextGym task {task.name}.",
        "textgym": plain(
            {
                "format": FORMAT,
                "task": task.name,
                "vocabulary": vocabulary_digest(task.vocabulary),
                "reward": task.reward_name or type(task.reward).__name__,
                "reference": str(task.reference),
                "beta": task.beta,
                "gamma": task.gamma,
                **settings,
            }
        ),
    }


def _write(
    folder: Path, task: Any, env: Any, episodes: Iterable[RecordedEpisode], metadata: dict[str, Any]
) -> None:
    storage = importlib.import_module("minari.dataset.minari_storage").MinariStorage.new(
        folder,
        observation_space=observation_space(task),
        action_space=action_space(task),
        env_spec=_single_spec(getattr(env, "spec", None)),
        data_format="hdf5",
    )
    storage.update_metadata(metadata)
    make_buffer = importlib.import_module("minari.data_collector").EpisodeBuffer
    waiting = iter(episodes)
    while batch := list(itertools.islice(waiting, _WRITTEN_AT_ONCE)):
        storage.update_episodes([make_buffer(**_buffer(episode)) for episode in batch])


def _single_spec(spec: Any) -> Any:
    """The spec of the single environment, for `recover_environment`; None where JSON cannot hold it."""
    if spec is None:
        return None
    single = copy.copy(spec)
    single.kwargs = {name: value for name, value in spec.kwargs.items() if name not in _VECTOR_OPTIONS}
    try:
        gym.envs.registration.EnvSpec.from_json(single.to_json())
    except (TypeError, ValueError):
        return None
    return single


def _buffer(episode: RecordedEpisode) -> dict[str, Any]:
    """The fields of Minari's EpisodeBuffer."""
    length = len(episode.actions)
    ended = np.zeros(length, dtype=np.bool_)
    ended[-1] = True
    return {
        "observations": {"input_ids": episode.input_ids, "attention_mask": episode.attention_mask},
        "actions": episode.actions,
        "rewards": episode.rewards,
        "terminations": ended,
        "truncations": np.zeros(length, dtype=np.bool_),
        "infos": _infos(episode, length),
    }


def _infos(episode: RecordedEpisode, length: int) -> dict[str, Any]:
    """T + 1 entries a name: what the reset said and what every step said, empty or NaN where it said nothing."""

    def text(value: str, at: int) -> list[str]:
        filled = [""] * (length + 1)
        filled[at] = value.replace("\0", "\u2400")  # HDF5's strings end at U+0000
        return filled

    def number(value: float) -> Any:
        return np.append(np.full(length, np.nan), value)

    infos: dict[str, Any] = {
        "prompt": text(episode.prompt, 0),
        "prompt_index": np.append(episode.prompt_index, np.full(length, -1)),
        "completion": text(episode.completion, -1),
        "finish_reason": text(episode.finish_reason, -1),
        # A "/" would make groups of HDF5.
        "reward_terms": {
            name.replace("/", "."): number(value) for name, value in episode.reward_terms.items()
        },
        "log_prob": np.append(np.nan, episode.log_probs),
        "reference_log_prob": np.append(np.nan, episode.reference_log_probs),
    }
    if episode.gold is not None:
        infos["gold"] = number(episode.gold)
    if episode.episode_seed is not None:
        infos["episode_seed"] = np.append(episode.episode_seed, np.full(length, -1))
    return infos
