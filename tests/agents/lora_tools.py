"""Settings, agents, an environment and a plain forward for the tests of LoRA, references and samplers."""

from __future__ import annotations

import torch
from agents.enumerated import tiny_task
from lm.tiny_models import tiny_llama
from textgym_agents import make_env
from textgym_agents.algorithms.grpo import GRPO, GRPOConfig
from textgym_agents.algorithms.ppo import LMPPO
from textgym_agents.config import LMPPOConfig

SIZE = 4
IDS = torch.tensor([[0, 1, 2, 3, 1, 0]])


def lora_config(**changes):
    settings = {"batch": 16, "device": "cpu", "minibatches": 1, "lora_rank": 2, "learning_rate": 0.01}
    return LMPPOConfig(**{**settings, **changes})


def helpful_env(count=8, **options):
    return make_env("textgym/Helpful-v0", count, max_new_tokens=8, **options)


def plain_logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def base():
    return tiny_llama(SIZE)


def adapted():
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return get_peft_model(base(), config)


def adapted_agent(task=None, kind=LMPPO, **config):
    """An agent whose adapter has moved away from its reference, so that every KL is positive."""
    settings = {"device": "cpu", "batch": 16, "minibatches": 2, "learning_rate": 0.02, **config}
    made = (GRPOConfig if kind is GRPO else LMPPOConfig)(**settings)
    agent = kind(task or tiny_task(), made, model=adapted())
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in agent.policy.model.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return agent
