"""What one rank does in the tests of several devices; alone, the same functions are what it is compared with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from golden.agent_records import TEXTS, stop_env
from lm.tiny_models import tiny_llama
from safetensors.torch import save_file
from textgym_agents import make_agent
from textgym_agents.algorithms import ppo
from textgym_agents.config import FitConfig
from textgym_agents.lm.agent import LMAgent
from textgym_agents.lm.checkpoint import optimizer_tensors
from textgym_agents.lm.devices import Devices, join, world_size
from textgym_agents.lm.lora import add_lora, merged, save_model
from textgym_agents.lm.parts import own_part, with_prefix
from textgym_agents.lm.sharding import release, whole, whole_tensors
from textgym_agents.lm.tiny import start_model
from textgym_agents.lm.trainer import SupervisedLoss, SupervisedTrainer
from textgym_agents.model_settings import LoRASettings
from textgym_agents.rlhf.reward_model import PreferenceLoss, RankedRow
from textgym_agents.rlhf.sft import CompletionLoss
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedModel

from textgym.lm.causal import load_causal_lm
from textgym.lm.scoring import Encoded
from textgym.vector import TokenVectorEnv

BATCH, EPISODES = 24, 48
_LOUD = {"batch": BATCH, "micro_batch": 5, "device": "cpu", "max_grad_norm": 1e9}
CASES: Mapping[str, tuple[str, dict[str, Any]]] = {
    "lm-ppo": ("lm-ppo", {}),
    "lm-ppo, grammar": ("lm-ppo", {"masked": True, "minibatches": 8}),  # of 3 rows: a rank may have none of them
    "lm-ppo, k1, adaptive beta": ("lm-ppo", {"kl": "k1", "kl_target": 0.02, "kl_horizon": 50}),
    "grpo": ("grpo", {"group": 4, "divide_by_std": True}),
    "rloo": ("rloo", {"group": 4}),
    "rloo, equal groups dropped": ("rloo", {"group": 4, "equal_groups": "drop"}),
    "rloo, equal groups resampled": ("rloo", {"group": 4, "equal_groups": "resample", "most_rounds": 4}),
    "lm-ppo, overlong masked": ("lm-ppo", {"overlong": "mask"}),
    "distill": ("distill", {"teacher": "base"}),
    "reinforce": ("reinforce", {"baseline": "batch"}),
    "soft-q": ("soft-q", {"replay_batch": 9}),
    "dpo": ("dpo", {}),
    "behaviour-cloning": ("behaviour-cloning", {"data": "texts.jsonl"}),
    "lora": ("lm-ppo", {"model": "base", "lora_rank": 2, "learning_rate": 0.01}),
    "lora, grpo": ("grpo", {"model": "base", "lora_rank": 2, "group": 4, "gradient_checkpointing": True}),
    "lora, bfloat16": ("lm-ppo", {"model": "base", "lora_rank": 2, "precision": "bfloat16"}),
    "stored in bfloat16": ("lm-ppo", {"model": "halves", "learning_rate": 0.01}),
    "adapter folder": ("lm-ppo", {"model": "adapter", "learning_rate": 0.01}),
}
ADAPTED = ("lora", "lora, grpo", "lora, bfloat16", "adapter folder")
SHARDED = (
    "rloo, equal groups resampled",
    "lm-ppo, overlong masked",
    "distill",
    "lm-ppo",
    "lm-ppo, grammar",
    "grpo",
    "dpo",
    "stored in bfloat16",
    *ADAPTED,
)
READ_AGAIN = ("lm-ppo", "stored in bfloat16", "adapter folder")
"""Of which start, reference and policy are found in three ways."""


def learn(folder: Path, parallel: str, *names: str) -> None:
    """Train agents; of each write metrics, completions, the gradient of every step, and what the parameters are."""
    torch.set_num_threads(1)
    for name in names:
        agent, options = CASES[name]
        options = {**_LOUD, **options, "parallel": parallel}
        env = stop_env(BATCH // world_size(), bool(options.pop("masked", False)))
        if "data" in options:
            options["data"] = str(folder / f"{join().rank}.jsonl")
            Path(options["data"]).write_text("".join(json.dumps(row) + "\n" for row in TEXTS))
        for key in {"model", "teacher"} & options.keys():
            options[key] = str(folder / options[key])
        found = make_agent(agent, env, **options)
        assert isinstance(found, LMAgent)
        tensors, rows = _recorded(found), []
        found.learn(env, EPISODES, lambda row, rows=rows: rows.append(dict(row)))
        found.save(folder / name)
        release(found.policy)
        sharded = all(isinstance(each, DTensor) for each in found.policy.parameters())
        about = {"metrics": list(rows), "sharded": sharded}
        if found.devices.leads:
            save_file(tensors, folder / f"{name}.safetensors")
        if sharded and name in READ_AGAIN:
            gathered = whole_tensors(held(found), found.devices.leads)
            if found.devices.leads:
                save_file(
                    {key: each.clone() for key, each in gathered.items()}, folder / f"{name}.gathered.safetensors"
                )
            about["unlike"] = _unlike_when_read(found, folder / name, env)
        if found.devices.leads:
            (folder / f"{name}.json").write_text(json.dumps(about))


def learn_both(root: Path, *names: str) -> None:
    """Train in the folder `ddp` with all weights on every rank, then in `fsdp` with parts of them."""
    learn(root / "ddp", "ddp", *names)
    learn(root / "fsdp", "fsdp", *(name for name in names if name in SHARDED))


def learn_both_and_fit(root: Path, *names: str) -> None:
    """Do in one start of the ranks what they do in `learn_both`, and in `fit` with parts of all weights."""
    learn_both(root, *names)
    fit(root / "fitted", "fsdp")


def held(agent: LMAgent) -> dict[str, Tensor]:
    """Return what a checkpoint has to bring back of an agent's policy, reference and optimiser."""
    found = with_prefix("policy.", agent.policy.state_dict())
    found |= with_prefix("reference.", agent.reference.state_dict())
    return found | with_prefix("optimizer.", optimizer_tensors(agent.optimizer))


def _unlike_when_read(agent: LMAgent, folder: Path, env: TokenVectorEnv) -> list[str]:
    """Return which of a rank's parts differ in the agent that all ranks read, as it is and after an iteration more."""
    again = type(agent).load(folder, env)
    found: set[str] = set()
    for episodes in (0, BATCH):
        for each in (agent, again):
            if episodes:
                each.learn(env, episodes)
            release(each.policy, each.reference)
        one, two = held(agent), held(again)
        assert one.keys() == two.keys()
        found |= {name for name in one if not torch.equal(own_part(one[name]), own_part(two[name]))}
    return sorted({name for part in agent.devices.gather_json({"unlike": sorted(found)}) for name in part["unlike"]})


def write_models(folder: Path, size: int = 6) -> None:
    """Write a random model, `base`, the same in bfloat16, `halves`, and an adapter that changes it, `adapter`."""
    tiny_llama(size).save_pretrained(folder / "base")
    tiny_llama(size).bfloat16().save_pretrained(folder / "halves")
    adapted = add_lora(load_causal_lm(folder / "base"), LoRASettings(lora_rank=3), seed=5)
    with torch.no_grad():
        for place, parameter in enumerate(each for each in adapted.parameters() if each.requires_grad):
            parameter.copy_(torch.linspace(-0.1, 0.1 + place / 100, parameter.numel()).view_as(parameter))
    save_model(cast("PreTrainedModel", adapted), folder / "adapter", str(folder / "base"))


def _recorded(agent: LMAgent) -> dict[str, Tensor]:
    """Return what is filled while an agent learns: its completions by iteration, and its gradients by step."""
    found: dict[str, Tensor] = {}

    def keep(name: str, tensor: Tensor) -> None:
        found[f"{name} {sum(key.startswith(name) for key in found)}"] = tensor.clone()

    def before_step(optimizer: torch.optim.Optimizer, *_: object) -> None:
        grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        keep("gradient", torch.cat([whole(each).reshape(-1) for each in grads]))

    gathered = ppo.gathered

    def watched(devices: Devices, *parts: Any) -> Any:
        result = gathered(devices, *parts)
        keep("completions", result[0].actions)
        return result

    agent.optimizer.register_step_pre_hook(before_step)
    agent._iterate.__globals__["gathered"] = watched  # of the module that it is written in
    return found


def fit(folder: Path, parallel: str) -> None:
    """Fine-tune a tiny model and train a tiny reward model; write their parameters, and whether they were sharded."""
    torch.set_num_threads(1)
    task = stop_env(1).unwrapped.task
    texts = [Encoded([2 + row % 3, *[0] * (1 + row % 4), 1], 1, 0) for row in range(19)]
    lengths = [len(text.ids) for text in texts]
    _fit(folder / "sft", parallel, CompletionLoss(start_model(task)), texts, lengths)
    model = tiny_llama(6)
    adapter = add_lora(model, LoRASettings(lora_rank=2), seed=0)
    _fit(folder / "lora", parallel, CompletionLoss(model), texts, lengths, adapter)
    config = LlamaConfig(
        vocab_size=6, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_labels=1
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        classifier = LlamaForSequenceClassification(config)
    rows = [RankedRow((texts[place], texts[place + 1])) for place in range(18)]
    loss = PreferenceLoss(classifier, "pairwise", 0.1, False)
    _fit(folder / "reward", parallel, loss, rows, [len(row.answers[0].ids) for row in rows])


def _fit(
    folder: Path,
    parallel: Any,
    loss: SupervisedLoss[Any],
    rows: list[Any],
    lengths: list[int],
    adapter: nn.Module | None = None,
) -> None:
    devices = join()
    # Adam makes steps of gradients that are rounding alone, unless they are small beside its epsilon.
    settings = FitConfig(
        batch=8, micro_batches=2, epochs=2, save_every=100, parallel=parallel, adam_epsilon=1e-3 if adapter else 1e-8
    )
    trainer = SupervisedTrainer(loss, rows, lengths, settings, 0.01, 0, folder / "checkpoint", devices)
    metrics: list[dict[str, float]] = []
    assert trainer.run(lambda _, row: metrics.append(dict(row)), lambda: False)
    release(loss)
    sharded = all(isinstance(each, DTensor) for each in loss.parameters())
    if adapter is not None:
        merged(adapter)
    tensors = whole_tensors(dict(loss.named_parameters()), devices.leads)
    if devices.leads:
        save_file({name: each.clone() for name, each in tensors.items()}, folder / "parameters.safetensors")
        (folder / "metrics.json").write_text(json.dumps({"metrics": metrics, "sharded": sharded}))
