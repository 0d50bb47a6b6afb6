"""Builds the reward model that the package ships: `python -m textgym_agents.rlhf.bundled`."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from rich.console import Console

from textgym.files import plain, read_json, replace_folder, write_json
from textgym.lm.reward_model import RewardModel
from textgym.preferences import Ranking, collect, write_rankings
from textgym.task import Task, make_reference, make_task
from textgym.world import REWARD_MODEL_PATH
from textgym.world.prompts import TASK_SHARES
from textgym_agents.rlhf.models import resize_model
from textgym_agents.rlhf.reward_model import train_reward_model
from textgym_agents.rlhf.settings import RewardModelSettings

PREFERENCES_OF = "HHH"
"""The task whose prompts are answered and whose gold reward ranks: it asks everything that the others ask."""
_DRAWN = 1.5  # prompts for each ranking wanted; some give none


@dataclass(frozen=True)
class BundledConfig:
    """Builds the reward model of the built-in world from noisy preferences between answers of its base model."""

    out: Path = REWARD_MODEL_PATH
    """Folder to write to."""
    preferences: int = 4000
    """Rankings of two answers that it learns from."""
    noise: float = 0.1
    """Temperature of the Bradley-Terry annotator, reward units."""
    layers: int = 5
    """Layers of the model: those of the base and new ones on top, which can compare what an answer says with what the
    base expects there."""
    epochs: int = 3
    """Passes over the preferences."""
    learning_rate: float = 1e-3
    """Its peak."""
    held_out: int = 2000
    """Held-out prompts of every task that the card is measured on, without noise."""
    seed: int = 0
    """Of everything drawn."""


def build(config: BundledConfig) -> dict[str, Any]:
    """Writes the model's folder and returns its card."""
    task = make_task(PREFERENCES_OF)
    rankings = noisy_preferences(task, config)
    with tempfile.TemporaryDirectory() as scratch:
        data, run = Path(scratch) / "preferences.jsonl", Path(scratch) / "run"
        write_rankings(data, rankings, "trl")
        fingerprint = hashlib.sha256(data.read_bytes()).hexdigest()
        base = Path(scratch) / "base"
        resize_model("builtin", config.layers, base, config.seed)
        settings = RewardModelSettings(
            data=str(data),
            base=str(base),
            epochs=config.epochs,
            learning_rate=config.learning_rate,
            held_out=0.0,
            seed=config.seed,
            device="cpu",
        )
        train_reward_model(settings, run)
        card = {
            "preferences": len(rankings),
            "preferences_sha256": fingerprint,
            "task": PREFERENCES_OF,
            "noise": config.noise,
            "epochs": config.epochs,
            "held_out": {name: accuracy(run / "model", name, config) for name in TASK_SHARES},
        }
        replace_folder(config.out, partial(_copy, run / "model"))
    # The file of preferences is gone; its digest is in the card.
    write_json(config.out / "reward.json", read_json(config.out / "reward.json") | {"source": PREFERENCES_OF})
    write_json(config.out / "card.json", plain(card))
    return card


def _copy(source: Path, folder: Path) -> None:
    shutil.copytree(source, folder, dirs_exist_ok=True)


def noisy_preferences(task: Task, config: BundledConfig) -> list[Ranking]:
    """Rankings of two answers of the base model to training prompts.

    Raises: ValueError if the prompts drawn give too few.
    """
    drawn = round(config.preferences * _DRAWN)
    policy = make_reference(task, device="cpu")
    found = collect(task, policy, n=drawn, noise=config.noise, seed=config.seed).rankings
    if len(found) < config.preferences:
        raise ValueError(f"preferences={config.preferences}: {drawn} prompts gave only {len(found)} rankings")
    return found[: config.preferences]


def accuracy(model: Path, name: str, config: BundledConfig) -> dict[str, float]:
    """How often the model agrees with the gold order of two answers to held-out prompts of a task, without noise."""
    task = make_task(name)
    policy = make_reference(task, device="cpu")
    rankings = collect(task, policy, n=config.held_out, split="eval", seed=config.seed + 1).rankings
    stop = list(task.vocabulary.stop_ids)
    reward = RewardModel(str(model), stop_ids=stop, device="cpu")
    flat = [
        (ranking.prompt, text, ended)
        for ranking in rankings
        for text, ended in zip(ranking.completions, ranking.ended or (True, True), strict=True)
    ]
    ids = [stop if ended else [] for _, _, ended in flat]
    scores = np.array(reward([row[0] for row in flat], [row[1] for row in flat], completion_ids=ids))
    margins = scores[0::2] - scores[1::2]
    return {"accuracy": float(np.mean((margins > 0) + 0.5 * (margins == 0))), "pairs": len(rankings)}


def main() -> None:
    """Runs the command."""
    config = tyro.cli(BundledConfig, prog="python -m textgym_agents.rlhf.bundled")
    console = Console()
    console.print_json(data=plain(asdict(config) | build(config)))


if __name__ == "__main__":
    main()
