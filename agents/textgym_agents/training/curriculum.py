"""Curricula: draw prompts of medium difficulty, or prompts whose returns change. Imports no torch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from textgym.checks import Bools, Floats, JsonObject, check_choice, check_number, shown
from textgym_agents.training.ranks import refuse_ranks

if TYPE_CHECKING:
    from textgym.vector import TokenVectorEnv

Draws = Literal["uniform", "difficulty", "progress"]


@dataclass(frozen=True, kw_only=True)
class CurriculumSettings:
    """How training prompts are drawn; evaluations are not affected."""

    curriculum: Draws = "uniform"
    """Distribution of training prompts. uniform: the split's weights. difficulty: prefer prompts whose mean return is
    near curriculum_target. progress: prefer prompts whose mean return changes fast."""
    curriculum_target: float = 0.5
    """Mean return of the prompts to draw most often, reward units, with curriculum=difficulty."""
    curriculum_width: float = 0.25
    """Distance from the target at which a prompt is drawn 1/e times as often, reward units, with
    curriculum=difficulty."""
    curriculum_share: float = 0.25
    """Share of draws that still follow the split's weights, with a curriculum."""
    curriculum_rate: float = 0.3
    """Step size in (0, 1] of a prompt's running mean towards the mean of a batch, with a curriculum."""

    def check_curriculum(self) -> None:
        """Raise ValueError for a setting out of range, or without use."""
        check_choice("curriculum", self.curriculum, get_args(Draws))
        check_number("curriculum_target", self.curriculum_target)
        check_number("curriculum_share", self.curriculum_share, 0, 1)
        for name in ("curriculum_width", "curriculum_rate"):
            value, most = getattr(self, name), 1.0 if name == "curriculum_rate" else np.inf
            if check_number(name, value, 0, most) == 0:
                raise ValueError(f"{name}={shown(value)}: allowed is a number above 0")
        difficulty = ("curriculum_target", "curriculum_width")
        for each in fields(CurriculumSettings)[1:]:
            value = getattr(self, each.name)
            used = self.curriculum == "difficulty" if each.name in difficulty else self.curriculum != "uniform"
            if not used and value != each.default:
                needs = "'difficulty'" if each.name in difficulty else "'difficulty' or 'progress'"
                raise ValueError(f"{each.name}={shown(value)}: allowed is {each.default} without curriculum={needs}")


class Curriculum:
    """The distribution from which an environment draws its prompts, based on their returns so far.

    The return of an episode is the sum of its rewards, undiscounted and without the KL; an episode stopped by an outer
    limit is ignored. A curriculum changes what is learned, not what is measured: J is the mean over the split's
    prompts.

    Args:
        settings: the settings of the run. weights: (n,), summing to 1: the split's distribution rho.

    Attributes:
        cumulative: the distribution function of the draws, for `Episodes.draw`.
        weights: (n,) float64, the distribution itself.
        means: (n,) float64, running mean of the returns, reward units; NaN for prompts that have not been answered.
        progress: (n,) float64, running mean of its changes; NaN for prompts that were answered in less than two
            batches.
    Source: progress: Matiisen et al. (2017), arXiv:1707.00183, algorithm 2, with draws in proportion to |progress|;
        difficulty: Shi et al. (2025), arXiv:2504.05520, section 3, whose target is a mean return too.
    """

    def __init__(self, settings: CurriculumSettings, weights: Floats) -> None:
        self._settings, self._rho = settings, weights
        self.means, self.progress = np.full(len(weights), np.nan), np.full(len(weights), np.nan)
        self._running: dict[int, float] = {}  # row -> what its episode has been paid so far
        self._returns: defaultdict[int, list[float]] = defaultdict(list)  # of the batch, by prompt
        self._begun = False
        self._weigh()

    def begin(self, row: int) -> None:
        """Take note that an episode begins in a row."""
        self._begun, self._running[row] = True, 0.0

    def see(self, rows: Sequence[int], prompts: Sequence[int | None], rewards: Floats, ended: Bools) -> None:
        """Take note of what the episodes of some rows are paid.

        Args: prompts: their places in the split; None is of another text. rewards, ended: (M,).
        """
        for row, prompt, reward, over in zip(rows, prompts, rewards.tolist(), ended.tolist(), strict=True):
            if row not in self._running:
                continue
            self._running[row] += reward
            if over:
                total = self._running.pop(row)
                if prompt is not None:
                    self._returns[prompt].append(total)

    def update(self, iteration: int) -> JsonObject:
        """Learn from the episodes that have ended since the last time, and draw by that from now on.

        Returns: `iteration`; `prompts`, their places in the split, in order; `episodes`, how many of each; `returns`,
            their means; `weights`, with which they were drawn.
        Raises: ValueError if no episode has begun since the start: then the agent does not draw its prompts here.
        """
        if not self._begun:
            raise ValueError(
                f"curriculum={self._settings.curriculum!r}: this agent draws no prompt from its environment; allowed "
                "is 'uniform'"
            )
        prompts = sorted(self._returns)
        row: JsonObject = {
            "prompts": prompts,
            "episodes": [len(self._returns[prompt]) for prompt in prompts],
            "returns": [float(np.mean(self._returns[prompt])) for prompt in prompts],
            "weights": self.weights[prompts].tolist(),
        }
        self._returns.clear()
        self._learn(row)
        return {"iteration": iteration, **row}

    def replay(self, row: Mapping[str, object], iteration: int) -> None:
        """Learn from what `update` has returned of an iteration.

        Raises: ValueError for a row of another iteration, or of a prompt that the split does not have.
        """
        if row["iteration"] != iteration:
            raise ValueError(f"iteration={row['iteration']!r}: allowed is {iteration}, the next one")
        places: list[int] = row["prompts"]  # type: ignore[assignment]
        if max(places, default=0) >= len(self.means):
            raise ValueError(f"prompt {max(places)}: the split has {len(self.means)}, so its prompts have changed")
        self._begun = True
        self._learn(row)

    def _learn(self, row: Mapping[str, object]) -> None:
        prompts = np.array(row["prompts"], dtype=np.int64)
        found, rate = np.array(row["returns"], dtype=np.float64), self._settings.curriculum_rate
        before, changes = self.means[prompts], self.progress[prompts]
        change = rate * (found - before)  # NaN where there is no mean yet
        self.means[prompts] = np.where(np.isnan(before), found, before + change)
        self.progress[prompts] = np.where(np.isnan(changes), change, changes + rate * (change - changes))
        self._weigh()

    def metrics(self) -> dict[str, float]:
        """Return `curriculum/prompts`, exp of the draws' entropy, and `curriculum/seen`, the share answered."""
        weights = self.weights[self.weights > 0]
        effective = float(np.exp(-(weights * np.log(weights)).sum()))
        return {"curriculum/prompts": effective, "curriculum/seen": float((~np.isnan(self.means)).mean())}

    def _weigh(self) -> None:
        settings, found = self._settings, np.abs(self.progress)
        if settings.curriculum == "difficulty":
            found = np.exp(-np.abs(self.means - settings.curriculum_target) / settings.curriculum_width)
        # What is not known yet comes first.
        known = found[~np.isnan(found)]
        first = 1.0 if settings.curriculum == "difficulty" or not known.size else float(known.max())
        own = self._rho * np.where(np.isnan(found), first, found)
        share, total = settings.curriculum_share, float(own.sum())
        self.weights = self._rho if total <= 0 else share * self._rho + (1 - share) * own / total
        cumulative = np.cumsum(self.weights)
        self.cumulative: list[float] = (cumulative / cumulative[-1]).tolist()


def refuse_own_prompts(settings: CurriculumSettings, config: object) -> None:
    """Raise ValueError for a curriculum where the config of an agent says that its prompts are those of its data."""
    source = getattr(config, "prompts_from", "")
    if settings.curriculum != "uniform" and source:
        raise ValueError(
            f"curriculum={settings.curriculum!r}: with {source}={shown(getattr(config, source))} the agent learns from "
            "the prompts of its data and draws none; allowed is 'uniform'"
        )


def set_curriculum(settings: CurriculumSettings, env: TokenVectorEnv) -> Curriculum | None:
    """Let an environment draw its prompts by a curriculum, and return it; None, and no change, where it is uniform.

    Raises: ValueError with several processes, each of which would have a curriculum of its own.
    """
    if settings.curriculum == "uniform":
        return None
    refuse_ranks(f"curriculum={settings.curriculum!r}")
    inner = env.unwrapped
    found = Curriculum(settings, inner.task.prompt_set(inner.split).weights)
    inner.episodes.draws = found
    return found
