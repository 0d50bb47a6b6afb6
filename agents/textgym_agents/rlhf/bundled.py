"""Build the reward model that is part of the package: `python -m textgym_agents.rlhf.bundled`."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import tyro
from numpy.typing import NDArray
from rich.console import Console
from safetensors.numpy import load_file, save_file

from textgym.checks import JsonObject
from textgym.files import plain, read_json, replace_folder, write_json
from textgym.lm.reward_model import RewardModel
from textgym.preferences import collect, write_rankings
from textgym.task import make_reference, make_task
from textgym.world import REWARD_MODEL_PATH
from textgym.world.prompts import TASK_SHARES
from textgym_agents.rlhf.inputs import noisy_pairs, resize_model
from textgym_agents.rlhf.ranking import score_answers
from textgym_agents.rlhf.reward_model import train_reward_model
from textgym_agents.rlhf.runs import digest
from textgym_agents.rlhf.settings import RewardModelSettings

PREFERENCES_OF = "HHH"
"""Task that supplies the prompts and the gold reward for rankings; it asks everything that the others ask."""
_DRAWN = 1.5  # prompts for each ranking wanted; some give none


@dataclass(frozen=True)
class BundledConfig:
    """Build the reward model of the built-in world from noisy preferences between answers of its base model."""

    out: Path = REWARD_MODEL_PATH
    """Folder to write to."""
    preferences: int = 4000
    """Number of rankings of two answers to train on."""
    noise: float = 0.1
    """Temperature of the Bradley-Terry annotator, reward units."""
    layers: int = 5
    """Number of layers: those of the base and new ones on top, which can compare an answer with what the base expects
    there."""
    epochs: int = 3
    """Passes over the preferences."""
    learning_rate: float = 1e-3
    """Peak learning rate."""
    held_out: int = 2000
    """Number of held-out prompts of every task for the measures on the card, without noise."""
    seed: int = 0
    """Seed of all random draws."""


def build(config: BundledConfig) -> JsonObject:
    """Write the model's folder and return its card."""
    task = make_task(PREFERENCES_OF)
    policy = make_reference(task, device="cpu")
    rankings = noisy_pairs(task, policy, config.preferences, config.noise, config.seed, _DRAWN, "preferences")
    with tempfile.TemporaryDirectory() as scratch:
        data, run = Path(scratch) / "preferences.jsonl", Path(scratch) / "run"
        write_rankings(data, rankings, "trl")
        fingerprint = digest(data)
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
        weights = run / "model" / "model.safetensors"
        save_file({name: shortened(array) for name, array in load_file(weights).items()}, weights, {"format": "pt"})
        card = {
            "preferences": len(rankings),
            "preferences_sha256": fingerprint,
            "task": PREFERENCES_OF,
            "noise": config.noise,
            "epochs": config.epochs,
            "held_out": {name: accuracy(run / "model", name, config) for name in TASK_SHARES},
        }

        def copy(folder: Path) -> None:
            shutil.copytree(run / "model", folder, dirs_exist_ok=True)

        replace_folder(config.out, copy)
    write_json(config.out / "reward.json", read_json(config.out / "reward.json") | {"source": PREFERENCES_OF})
    write_json(config.out / "card.json", plain(card))
    return card


def shortened(weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return weights with 16 of their 24 bits of precision: the last byte of each is 0, which a wheel does not hold."""
    bits = weights.view(np.uint32) + np.uint32(0x80)
    return (bits & np.uint32(0xFFFFFF00)).view(np.float32)


def accuracy(model: Path, name: str, config: BundledConfig) -> dict[str, float]:
    """Return how often the model has the gold order of two answers to held-out prompts of a task, without noise."""
    task = make_task(name)
    policy = make_reference(task, device="cpu")
    rankings = collect(task, policy, n=config.held_out, split="eval", seed=config.seed + 1).rankings
    stop_ids = list(task.vocabulary.stop_ids)
    reward = RewardModel(str(model), stop_ids=stop_ids, device="cpu")
    answers = [
        (ranking.prompt, text, ended)
        for ranking in rankings
        for text, ended in zip(ranking.completions, ranking.ended or (True, True), strict=True)
    ]
    scores = score_answers(reward, answers, stop_ids)
    margins = scores[0::2] - scores[1::2]
    return {"accuracy": float(np.mean((margins > 0) + 0.5 * (margins == 0))), "pairs": len(rankings)}


def main() -> None:
    """Run the command."""
    config = tyro.cli(BundledConfig, prog="python -m textgym_agents.rlhf.bundled")
    console = Console()
    console.print_json(data=plain(asdict(config) | build(config)))


if __name__ == "__main__":
    main()
