"""Settings, a small environment and a plain forward for the tests of LoRA and of references."""

from __future__ import annotations

import torch
from textgym_agents import make_env
from textgym_agents.config import LMPPOConfig

IDS = torch.tensor([[0, 1, 2, 3, 1, 0]])


def lora_config(**changes):
    settings = {"batch": 16, "device": "cpu", "minibatches": 1, "lora_rank": 2, "learning_rate": 0.01}
    return LMPPOConfig(**{**settings, **changes})


def helpful_env(count=8, **options):
    return make_env("textgym/Helpful-v0", count, max_new_tokens=8, **options)


def plain_logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits
