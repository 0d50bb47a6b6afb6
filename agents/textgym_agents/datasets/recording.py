"""Play an agent and write its episodes as a Minari dataset, or as a log of JSON lines; this package reads both."""

from __future__ import annotations

import copy
import hashlib
import importlib
import importlib.metadata
import itertools
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from gymnasium.envs.registration import EnvSpec
from numpy.typing import NDArray

from textgym.checks import Bools, Floats, Ints, JsonObject, check_count
from textgym.episodes import action_space, observation_space
from textgym.files import json_line, make_folder, plain, replace_folder, replaced
from textgym.lm.reference import Reference, checked_actions
from textgym.play import PlayedBatch, Turn, draw, play_batch, reset_groups
from textgym.rewards.scorer import scorers_restored
from textgym.sampling import copied, legal_log_probs
from textgym.task import Task
from textgym.vector import batch_env
from textgym.vector_io import Infos
from textgym.vocab import Vocabulary
from textgym.wrappers.base import task_of
from textgym_agents.algorithms.fixed import reference_of
from textgym_agents.protocol import Agent, Observation, as_agent
from textgym_agents.registry import TextEnv

FORMAT = 1
_WRITTEN_AT_ONCE = 256
_VECTOR_OPTIONS = ("num_envs", "autoreset_mode", "score_together", "vectorization_mode", "render_mode")
_ROWS_AT_ONCE = 256
_BYTES_AT_ONCE = 2**28  # of observations that are held until their episodes have ended


@dataclass(frozen=True)
class RecordedEpisode:
    """One finished episode of T tokens of the policy; an observation may be longer by a reply, too.

    Attributes:
        input_ids: (T + 1, L) int64. attention_mask: (T + 1, L) int8. Of s_0 to s_T, as the environment gave them.
        segment_ids: (T + 1, L) int8, who wrote each token, in tasks with turns; None in others.
        actions: (T,) int64.
        rewards: (T,) float64.
        log_probs: (T,) float64, of each action under the policy that was played, nats; NaN where it has none.
        reference_log_probs: (T,) float64, the same of the reference.
        prompt, prompt_index: what reset said; -1 for a text that the split does not have.
        completion, finish_reason, reward_terms: what the last step said.
        gold: gold reward; None where the task has none.
        episode_seed: of the noise of the reward; None in tasks without.
    """

    input_ids: Ints
    attention_mask: NDArray[np.int8]
    segment_ids: NDArray[np.int8] | None
    actions: Ints
    rewards: Floats
    log_probs: Floats
    reference_log_probs: Floats
    prompt: str
    prompt_index: int
    completion: str
    finish_reason: str
    reward_terms: dict[str, float]
    gold: float | None
    episode_seed: int | None


def play_episodes(
    agent: Agent,
    task: Task,
    episodes: int,
    *,
    split: str = "train",
    per_prompt: int = 1,
    seed: int = 0,
    deterministic: bool = False,
) -> Iterator[RecordedEpisode]:
    """Play episodes of an agent. They are the same for the same seed, if its `log_probs` are not None.

    Tokens are drawn here, from the agent's log-probabilities over what the task's grammar allows; an agent without any
    is asked to act. A reward that learns, such as a running normalisation, is put back to where it was.

    Args:
        agent: has `log_probs` and `act`.
        episodes: how many. split: of the prompts, which are drawn by their weights.
        per_prompt: consecutive episodes that answer the same prompt; divides `episodes`.
        seed: of prompts and tokens.
        deterministic: take the likeliest token, whose log-probability then is 0.
    Returns: the finished episodes, in order.
    Raises: ValueError for an argument out of range.
    """
    for name, value, least in (("episodes", episodes, 1), ("per_prompt", per_prompt, 1), ("seed", seed, 0)):
        check_count(name, value, least)
    if episodes % per_prompt:
        raise ValueError(f"episodes={episodes}: allowed are multiples of per_prompt={per_prompt}")
    return _batches(agent, task, episodes, split, per_prompt, seed, deterministic)


def _batches(
    agent: Agent, task: Task, episodes: int, split: str, per_prompt: int, seed: int, deterministic: bool
) -> Iterator[RecordedEpisode]:
    generator, reference = np.random.default_rng([seed, 8]), reference_of(agent, task)
    budget = task.max_new_tokens
    episode_bytes = 9 * (task.max_prompt_tokens + budget) * (budget + 1)
    at_once = max(min(_ROWS_AT_ONCE, _BYTES_AT_ONCE // episode_bytes) // per_prompt, 1) * per_prompt
    for start in range(0, episodes, at_once):
        recorder = _Recorder(agent, reference, task.vocabulary.allowed, deterministic, generator)
        env = batch_env(task, min(at_once, episodes - start), split)
        with scorers_restored(task.scorer):
            observation, infos = reset_groups(env, int(generator.integers(2**31)), per_prompt)
            seeds = [state.episode_seed for state in env.get_states()]
            played = play_batch(env, observation, recorder.choose)
            final = {**played.observation, "segment_ids": env.segment_ids()}
        env.close()
        prompts = list(zip(infos["prompt"], infos["prompt_index"].tolist(), seeds, strict=True))
        yield from recorder.episodes(played, prompts, task.gold is not None, final if task.turns else None)


class _Recorder:
    """Choose the tokens of a batch, and keep what was seen and how likely they were, step by step."""

    def __init__(
        self, agent: Agent, reference: Reference, allowed: Bools, deterministic: bool, generator: np.random.Generator
    ) -> None:
        self._agent, self._reference, self._allowed = agent, reference, allowed
        self._deterministic, self._generator = deterministic, generator
        self._observations: list[Observation] = []
        self._log_probs: list[Floats] = []
        self._reference_log_probs: list[Floats] = []

    def choose(self, turn: Turn) -> Ints:
        """Return the next tokens of the running rows."""
        uniforms, each = self._generator.random(len(turn.running)), np.arange(len(turn.rows))
        legal = partial(legal_log_probs, turn.observation, turn.rows, turn.masks, self._allowed)
        log_probs = self._agent.log_probs(copied(turn.observation))
        own = np.full(len(turn.rows), np.nan)
        if log_probs is None:
            acted = self._agent.act(copied(turn.observation), deterministic=self._deterministic)
            tokens = checked_actions(acted, turn.observation)[turn.rows]
        elif self._deterministic:
            tokens = legal(log_probs).argmax(1)
            own[:] = 0.0
        else:
            logs = legal(log_probs)
            tokens = draw(np.exp(logs.astype(np.float64)), uniforms[turn.rows])
            own[:] = logs[each, tokens]
        base = legal(self._reference.log_probs(turn.observation), "reference")
        self._observations.append(turn.observation)
        self._log_probs.append(own)
        self._reference_log_probs.append(base[each, tokens].astype(np.float64))
        return tokens

    def episodes(
        self, played: PlayedBatch, prompts: list[tuple[str, int, int | None]], gold: bool, turns: Observation | None
    ) -> Iterator[RecordedEpisode]:
        """Yield the rows of a batch; `prompts` has text, index and seed of each, `gold` says whether there is any.

        turns: the last observation with `segment_ids`, in tasks with turns.
        """
        shown = [*self._observations, {} if turns is None else turns]
        seen, final = [*self._observations, played.observation], played.final
        log_probs, reference = np.concatenate(self._log_probs), np.concatenate(self._reference_log_probs)
        for row, (prompt, index, seed) in enumerate(prompts):
            own = np.flatnonzero(played.rows == row)
            yield RecordedEpisode(
                input_ids=np.stack([each["input_ids"][row] for each in seen[: len(own) + 1]]),
                attention_mask=np.stack([each["attention_mask"][row] for each in seen[: len(own) + 1]]),
                segment_ids=np.stack([each["segment_ids"][row] for each in shown[: len(own) + 1]]) if turns else None,
                actions=played.actions[own],
                rewards=played.rewards[own],
                log_probs=log_probs[own],
                reference_log_probs=reference[own],
                prompt=prompt,
                prompt_index=index,
                completion=str(final.completions[row]),
                finish_reason=str(final.finish_reasons[row]),
                reward_terms={name: float(values[row]) for name, values in final.terms.items()},
                gold=float(final.gold[row]) if gold else None,
                episode_seed=seed,
            )


def record(
    agent: object,
    env: TextEnv,
    episodes: int,
    out: str | Path,
    *,
    per_prompt: int = 1,
    seed: int = 0,
    deterministic: bool = False,
    split: str | None = None,
) -> Any:
    """Play an agent and write its episodes to a new Minari dataset. Nothing is uploaded or downloaded.

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
    player, task = as_agent(agent), task_of(env)
    chosen = str(getattr(env.unwrapped, "split", "train") if split is None else split)
    settings: JsonObject = {
        "split": chosen,
        "seed": seed,
        "per_prompt": per_prompt,
        "deterministic": deterministic,
    }
    played = play_episodes(player, task, episodes, **settings)
    metadata = _metadata(player, task, identifier, settings)
    # Minari looks for the data of a relative folder in that folder.
    replace_folder(folder.absolute(), lambda new: _write(new / "data", task, env, played, metadata))
    return minari().MinariDataset(folder / "data")


def write_log(path: str | Path, episodes: Iterable[RecordedEpisode]) -> int:
    """Write single-turn episodes as JSON lines atomically, replacing an existing file; reading returns the same.

    A row has prompt, completion, completion_ids, token_logprobs (nats, one a token; none where they are not known), and
    reward, or rewards where others than the last token were paid: see `textgym_agents.datasets.reading`.

    Args:
        path: its folder is made if there is none.
        episodes: as `play_episodes` gives them.
    Returns: the rows written.
    Raises: ValueError for an episode of several turns.
    """
    target, count = Path(path), 0
    make_folder(target.parent)
    with replaced(target) as partial, partial.open("w", encoding="utf-8", newline="\n") as file:
        for episode in episodes:
            if episode.segment_ids is not None:
                raise ValueError(f"path={str(path)!r}: a log has no turns; allowed is a Minari dataset")
            file.write(json_line(_log_row(episode)))
            count += 1
    return count


def _log_row(episode: RecordedEpisode) -> JsonObject:
    row: JsonObject = {
        "prompt": episode.prompt,
        "completion": episode.completion,
        "completion_ids": episode.actions,
    }
    if not np.isnan(episode.log_probs).any():
        row["token_logprobs"] = episode.log_probs
    return row | ({"rewards": episode.rewards} if episode.rewards[:-1].any() else {"reward": episode.rewards[-1]})


def minari() -> ModuleType:
    """Return the package, with what its format needs. Raises: ModuleNotFoundError that names what is missing."""
    importlib.import_module("h5py")  # Minari itself would say so later, and in other words
    return importlib.import_module("minari")


def dataset_id(folder: Path) -> str:
    """Return the Minari id of the dataset in a folder. Raises: ValueError if its name is none."""
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


def vocabulary_digest(vocabulary: Vocabulary) -> str:
    """Return a hash of the tokens' texts by id and of what ends an episode: the same ids mean the same."""
    parts = [repr(vocabulary.stop_ids), repr(vocabulary.size)]
    parts += [vocabulary.token_text(token) for token in range(vocabulary.size)]
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()


def _metadata(agent: Agent, task: Task, identifier: str, settings: JsonObject) -> JsonObject:
    name = agent.name or type(agent).__name__
    return {
        "dataset_id": identifier,
        "minari_version": importlib.metadata.version("minari"),
        "algorithm_name": name,
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


def _write(folder: Path, task: Task, env: TextEnv, episodes: Iterable[RecordedEpisode], metadata: JsonObject) -> None:
    storage = importlib.import_module("minari.dataset.minari_storage").MinariStorage.new(
        folder,
        observation_space=observation_space(task, segments=task.turns is not None),
        action_space=action_space(task),
        env_spec=_single_spec(getattr(env, "spec", None)),
        data_format="hdf5",
    )
    storage.update_metadata(metadata)
    make_buffer = importlib.import_module("minari.data_collector").EpisodeBuffer
    waiting = iter(episodes)
    while batch := list(itertools.islice(waiting, _WRITTEN_AT_ONCE)):
        storage.update_episodes([make_buffer(**_fields(episode)) for episode in batch])


def _single_spec(spec: EnvSpec | None) -> EnvSpec | None:
    """Return the spec of the single environment, for `recover_environment`; None where JSON cannot hold it."""
    if spec is None:
        return None
    single = copy.copy(spec)
    single.kwargs = {name: value for name, value in spec.kwargs.items() if name not in _VECTOR_OPTIONS}
    try:
        EnvSpec.from_json(single.to_json())
    except (TypeError, ValueError):
        return None
    return single


def _fields(episode: RecordedEpisode) -> Infos:
    """Return the fields of Minari's EpisodeBuffer."""
    steps = np.arange(len(episode.actions))
    observations = {"input_ids": episode.input_ids, "attention_mask": episode.attention_mask}
    if episode.segment_ids is not None:
        observations["segment_ids"] = episode.segment_ids
    return {
        "observations": observations,
        "actions": episode.actions,
        "rewards": episode.rewards,
        "terminations": steps == len(steps) - 1,
        "truncations": np.zeros(len(steps), dtype=np.bool_),
        "infos": _infos(episode, len(steps)),
    }


def _infos(episode: RecordedEpisode, length: int) -> Infos:
    """Return T + 1 entries a name: what the reset and every step said, empty or NaN where they said nothing."""

    def text(value: str, at: int) -> list[str]:
        filled = [""] * (length + 1)
        filled[at] = value.replace("\0", "\u2400")  # HDF5's strings end at U+0000
        return filled

    def number(value: float) -> Floats:
        return np.append(np.full(length, np.nan), value)

    infos: Infos = {
        "prompt": text(episode.prompt, 0),
        "prompt_index": np.append(episode.prompt_index, np.full(length, -1)),
        "completion": text(episode.completion, -1),
        "finish_reason": text(episode.finish_reason, -1),
        # A "/" would make groups of HDF5.
        "reward_terms": {name.replace("/", "."): number(value) for name, value in episode.reward_terms.items()},
        "log_prob": np.append(np.nan, episode.log_probs),
        "reference_log_prob": np.append(np.nan, episode.reference_log_probs),
    }
    if episode.gold is not None:
        infos["gold"] = number(episode.gold)
    if episode.episode_seed is not None:
        infos["episode_seed"] = np.append(episode.episode_seed, np.full(length, -1))
    return infos
