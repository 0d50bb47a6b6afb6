"""The built-in world: a small language with known facts, its tokenizer, its language model and its rules."""

from pathlib import Path
from typing import Final

MODEL_PATH: Final = Path(__file__).parent / "assets" / "model"
"""Folder with config.json, model.safetensors, tokenizer.json and tokenizer_config.json."""

REWARD_MODEL_PATH: Final = Path(__file__).parent / "assets" / "reward_model"
"""Folder of the reward model that `reward="model"` names, in the layout of Hugging Face."""
