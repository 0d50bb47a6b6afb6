"""Episodes that a planner plays: states, the distributions that the search came to, and what came of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from textgym.vector import scoring_together, settle_rest
from textgym_agents.mcts.planner import Planner
from textgym_agents.tabular.policies import draw

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Games:
    """B finished episodes with N states, ordered by time.

    Attributes:
        input_ids: (B, L) right-padded prompts and completions.
        rows, columns: (N,) state n is input_ids[rows[n], : columns[n] + 1].
        targets: (N, V) float32, probabilities that the search came to. masks: (N, V) legal tokens, None for all.
        outcomes: (N,) rewards to come less beta times the log-ratios to come, reward units at time 0; behind a
            truncation, the V that the search came to.
        returns, log_ratios: (B,) discounted rewards and summed log(search policy / reference), nats.
        lengths: (B,) tokens.
    """

    input_ids: Ints
    rows: Ints
    columns: Ints
    targets: NDArray[np.float32]
    masks: NDArray[np.bool_] | None
    outcomes: Floats
    returns: Floats
    log_ratios: Floats
    lengths: Ints


def play_games(env: Any, seed: int, planner: Planner, beta: float, generator: np.random.Generator) -> Games:
    """Plays one episode in every sub-environment, drawing every token from the searched distribution.

    Args:
        env: vector environment in DISABLED mode. seed: of the prompts. planner: searches.
        beta: charged per nat; 0 for a search that counts the return alone.
    """
    with scoring_together(env):
        return _play(env, seed, planner, beta, generator)


def _play(env: Any, seed: int, planner: Planner, beta: float, generator: np.random.Generator) -> Games:
    task = env.unwrapped.task
    observation, _ = env.reset(seed=seed)
    active, actions = np.ones(env.num_envs, dtype=np.bool_), np.zeros(env.num_envs, dtype=np.int64)
    parts: list[tuple[NDArray[Any], ...]] = []
    masks: list[NDArray[np.bool_]] = []
    behind, late, time = np.zeros(env.num_envs), np.zeros(env.num_envs), 0
    while active.any():
        rows = np.flatnonzero(active)
        seen = {name: array[rows] for name, array in observation.items()}
        legal = env.unwrapped.action_masks()[rows] if task.mask is not None else None
        if legal is not None:
            masks.append(legal)
        log_policy, _ = planner.plan(seen, legal)
        tokens = draw(log_policy, generator)
        each = np.arange(len(rows))
        reference = planner.log_reference(seen, legal)[each, tokens]
        ratio = log_policy[each, tokens] - np.where(
            np.isneginf(reference), log_policy[each, tokens], reference
        )
        columns = np.count_nonzero(seen["attention_mask"], axis=1) - 1
        actions[rows] = tokens
        observation, rewards, terminated, truncated, _ = env.step(actions)
        paid = task.gamma**time * rewards[rows]
        late[~active] += rewards[~active]
        parts.append((rows, columns, np.exp(log_policy).astype(np.float32), paid, ratio))
        cut = active & truncated & ~terminated
        if cut.any():
            seen = {name: array[cut] for name, array in observation.items()}
            behind[cut] = planner.plan(
                seen, None if task.mask is None else env.unwrapped.action_masks()[cut]
            )[1]
        active &= ~(terminated | truncated)
        time += 1
    lengths = np.bincount(np.concatenate([rows for rows, *_ in parts]), minlength=env.num_envs)
    late = task.gamma ** (lengths - 1) * (late + settle_rest(env)[0])
    return _finished(observation["input_ids"], parts, masks, beta, behind, late)


def _finished(
    ids: Ints,
    parts: list[tuple[NDArray[Any], ...]],
    masks: list[NDArray[np.bool_]],
    beta: float,
    behind: Floats,
    late: Floats,
) -> Games:
    # What a row is paid after its end belongs to its last action.
    to_come = behind + late
    outcomes: list[Floats] = []
    for rows, _, _, paid, ratio in reversed(parts):
        to_come[rows] += paid - beta * ratio
        outcomes.insert(0, to_come[rows])
    rows, columns, targets, paid, ratio = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Games(
        input_ids=ids,
        rows=rows,
        columns=columns,
        targets=targets,
        masks=np.concatenate(masks) if masks else None,
        outcomes=np.concatenate(outcomes),
        returns=np.asarray(np.bincount(rows, paid, len(ids)) + late, dtype=np.float64),
        log_ratios=np.asarray(np.bincount(rows, ratio, len(ids)), dtype=np.float64),
        lengths=np.bincount(rows, minlength=len(ids)),
    )
