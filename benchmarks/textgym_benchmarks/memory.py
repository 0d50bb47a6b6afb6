"""Memory of LM PPO as estimated and as measured, and streamed against plain: `python -m textgym_benchmarks.memory`.

Each setting runs in a process of its own, from an agent made to the end of one iteration on random weights. On a CPU
the peak is that of the process's resident memory, on CUDA that of what torch has allocated. With `--against trl` LM PPO
and GRPO are compared with TRL's GRPO instead, in speed and memory.
"""

from __future__ import annotations

import gc
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Final, Literal, cast

import torch
import tyro
from gymnasium.vector import AutoresetMode
from rich.console import Console
from rich.table import Table
from textgym_agents.algorithms.ppo import LMPPO, OnPolicyAgent
from textgym_agents.lm.memory import GIB, Plan, estimate
from textgym_agents.lm.shapes import SHAPES
from textgym_agents.protocol import Callback
from textgym_agents.registry import agent_class

from textgym import make_task
from textgym.checks import check_choice, check_count
from textgym.commands.console import script
from textgym.lm import categorical
from textgym.sources import versions
from textgym.task import Task
from textgym.vector import TokenVectorEnv
from textgym_benchmarks.engines.jobs import fresh_python

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, TrainerState

_QWEN: Final = SHAPES["Qwen2.5-0.5B"]
_ISSUE: Final = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
_SMALL: Final = {"vocab_size": 16000, "hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6} | {
    "num_attention_heads": 6
}
_PLAN: Final = Plan(batch=16, prompt_tokens=64, new_tokens=64, micro_batch=16, device="cpu")
_RACE: Final = Plan(64, 59, 64, micro_batch=64, minibatches=1, device="cpu")
_LONG: Final = replace(_PLAN, prompt_tokens=112, new_tokens=16, minibatches=2, micro_batch=8)
SETTINGS: Final[Mapping[str, tuple[Mapping[str, Any], Plan]]] = {
    "V = 151,936, exact KL, 64 x 64": (_ISSUE, replace(_PLAN, batch=64, micro_batch=64)),
    "the same, k1, micro-batch 8": (_ISSUE, replace(_PLAN, batch=64, micro_batch=8, exact=False)),
    "V = 32,000, exact KL, 64 x 64": (_ISSUE | {"vocab_size": 32000}, replace(_PLAN, batch=64, micro_batch=64)),
    "20M, 16 x (112 + 16)": (_SMALL, _LONG),
    "20M, checkpointing": (_SMALL, replace(_LONG, gradient_checkpointing=True)),
    "20M, bfloat16": (_SMALL, replace(_LONG, precision="bfloat16")),
    "20M, LoRA 8": (_SMALL, replace(_LONG, lora_rank=8)),
    "20M, LoRA 8, bfloat16": (_SMALL, replace(_LONG, lora_rank=8, precision="bfloat16")),
    "20M, micro-batch 4": (_SMALL, replace(_LONG, micro_batch=4)),
    "20M, batch of 64": (_SMALL, replace(_LONG, batch=64)),
    "20M, prompts of 384": (_SMALL, replace(_LONG, prompt_tokens=384, new_tokens=16, micro_batch=4)),
    "V = 2,000, 512 prompts of 768": (
        _ISSUE | {"vocab_size": 2000},
        replace(_LONG, batch=512, prompt_tokens=768, new_tokens=4, micro_batch=16, minibatches=16),
    ),
    "0.5B, LoRA 8, bfloat16, 16 x 64": ({}, replace(_PLAN, lora_rank=8, precision="bfloat16", micro_batch=4)),
}
_MODELS: Final[Mapping[str, Mapping[str, Any]]] = {"two-layer": _ISSUE, "20M": _SMALL, **SHAPES}
_GROUP: Final = 8  # completions of a prompt, as GRPO has them


@dataclass(frozen=True)
class Flags:
    """Estimate and measure memory."""

    only: str = ""
    """Run only the settings whose names contain this text; by default all."""
    as_json: bool = False
    """Print JSON."""
    against: Literal["trl"] | None = None
    """Compare with GRPO of this library. The flags below, except --device, apply to this comparison only."""
    shape: str | None = None
    """two-layer (V = 151,936, hidden 64), 20M, or a shape that `textgym estimate-memory` has built in; None: two-layer
    on a CPU, Qwen2.5-0.5B on CUDA."""
    iterations: int = 3
    """Number of timed batches, after one warm-up."""
    plan: Plan = _RACE
    """What is done with a batch; reference_precision and token_sets change nothing here."""


def shape(changes: Mapping[str, Any]) -> PretrainedConfig:
    """Return the config of Qwen2.5-0.5B with changes."""
    from transformers import AutoConfig

    return AutoConfig.for_model(**{**_QWEN, **changes})


def pay_ids(prompts: object, completions: object, completion_ids: list[list[int]], **columns: object) -> list[float]:
    """Score completions by their ids, in [0, 1), so that few are worth the same: a reward for TRL's trainer, too."""
    return [sum(ids) % 97 / 97 for ids in completion_ids]


def _task(vocab_size: int, plan: Plan) -> Task:
    return make_task(
        "Text",
        vocab_size=vocab_size,
        prompts=[" the" * (plan.prompt_tokens - less) for less in (3, 4)],  # attention needs a mask, as it does in use
        max_prompt_tokens=plan.prompt_tokens,
        stop=(),
        max_new_tokens=plan.new_tokens,
        reference="uniform",
        reward=pay_ids,
    )


def make_agent(
    changes: Mapping[str, Any], plan: Plan, kind: type[OnPolicyAgent] = LMPPO
) -> tuple[OnPolicyAgent, TokenVectorEnv]:
    """Return an agent on random weights, and its environment, whose episodes fill the plan's tokens."""
    config = shape(changes)
    task = _task(config.vocab_size, plan)
    agent_config = kind.config_type(
        batch=plan.batch,
        micro_batch=plan.micro_batch,
        kl="exact" if plan.exact else "k1",
        device=plan.device,
        precision=plan.precision,
        gradient_checkpointing=plan.gradient_checkpointing,
        minibatches=plan.minibatches,
        epochs=1,
    )
    env = TokenVectorEnv(task, plan.batch, autoreset_mode=AutoresetMode.DISABLED)
    return kind(task, agent_config, model=_random_model(config, plan)), env


def _random_model(config: PretrainedConfig, plan: Plan) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    frozen = plan.lora_rank is not None and plan.precision == "bfloat16"
    with torch.random.fork_rng(), torch.device(plan.device):
        torch.manual_seed(0)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16 if frozen else None)
        if plan.lora_rank is not None:
            from peft import LoraConfig, get_peft_model

            adapter = LoraConfig(r=plan.lora_rank, target_modules="all-linear", task_type="CAUSAL_LM")
            model = get_peft_model(model, adapter)
    return model


def run(changes: Mapping[str, Any], plan: Mapping[str, Any]) -> dict[str, float]:
    """Return the peak of one iteration above what stands once the agent is made, and in all, GiB, and its seconds."""
    given = Plan(**plan)
    torch.set_num_threads(2)
    small = replace(given, batch=2, minibatches=1, prompt_tokens=8, new_tokens=2)
    agent, env = make_agent(_ISSUE | {"vocab_size": 2000}, small)
    agent.learn(env, 2)  # the libraries load what they need
    agent, env = make_agent(changes, given)
    gc.collect()
    before = _reset_peak(given.device)
    started = time.perf_counter()
    agent.learn(env, given.batch)
    seconds, peak = time.perf_counter() - started, _peak(given.device)
    return {"above": (peak - before) / GIB, "all": peak / GIB, "seconds": seconds}


def _reset_peak(device: str) -> int:
    """Begin to look for the peak; return the bytes that are held now."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM to VmRSS
    return _status("VmRSS")


def _peak(device: str) -> int:
    return torch.cuda.max_memory_allocated() if device == "cuda" else _status("VmHWM")


def _status(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def compare(pairs: int) -> dict[str, float]:
    """Return how streamed and plain (all logits at once) differ on 16 x 32 states of 151,936 tokens.

    Returns: the ratio of their CPU seconds, of iterations in turn; the norm of the difference of their gradients,
        relative to the gradient's, and the difference of their losses.
    """
    torch.set_num_threads(2)
    plan = replace(_PLAN, prompt_tokens=32, new_tokens=32, minibatches=1)
    seconds: dict[bool, list[float]] = {True: [], False: []}
    gradients: dict[bool, torch.Tensor] = {}
    losses: dict[bool, float] = {}
    streamed = categorical.ON_CPU
    for _ in range(pairs):
        for plain in (False, True):
            agent, env = make_agent(_ISSUE, plan)
            categorical.ON_CPU = 2**62 if plain else streamed
            started = time.process_time()
            said: list[Mapping[str, float]] = []
            agent.learn(env, plan.batch, said.append)
            seconds[plain].append(time.process_time() - started)
            losses[plain] = said[0]["loss/policy_avg"]
            parts = [each.grad.ravel() for each in agent.policy.parameters() if each.grad is not None]
            gradients[plain] = torch.cat(parts)
    off = (gradients[True] - gradients[False]).norm() / gradients[True].norm()
    return {
        "time ratio": median(seconds[False]) / median(seconds[True]),
        "gradient": float(off),
        "loss": abs(losses[True] - losses[False]),
    }


def race(name: str, changes: Mapping[str, object], plan: Mapping[str, Any], iterations: int) -> dict[str, float]:
    """Return how fast lm-ppo, grpo or trl is and what it holds, on random weights.

    Returns: completion tokens a second, "median", "least" and "most" of the iterations after the first; on a CPU a
        second is one of CPU time, on one thread. The peak in GiB, "above" what stands once it is made and in "all".
    """
    given, seconds = Plan(**plan), list[float]()
    torch.set_num_threads(1)
    small = replace(given, batch=8, minibatches=1, micro_batch=8, prompt_tokens=8, new_tokens=2)
    with tempfile.TemporaryDirectory() as folder:
        make = partial(_trl, folder) if name == "trl" else partial(_own, name)
        make(_ISSUE | {"vocab_size": 2000}, small)(8, lambda _: None)  # the libraries load what they need
        learn = make(changes, given)
        gc.collect()
        before = _reset_peak(given.device)
        learn(given.batch * (iterations + 1), lambda _: seconds.append(_clock(given.device)))
        peak = _peak(given.device)
    rates = [given.batch * given.new_tokens / (end - start) for start, end in pairwise(seconds)]
    speed = {"median": median(rates), "least": min(rates), "most": max(rates)}
    return speed | {"above": (peak - before) / GIB, "all": peak / GIB}


def _own(name: str, changes: Mapping[str, object], plan: Plan) -> Callable[[int, Callback], None]:
    agent, env = make_agent(changes, plan, cast("type[OnPolicyAgent]", agent_class(name)))
    return partial(agent.learn, env)


def _trl(folder: str, changes: Mapping[str, object], plan: Plan) -> Callable[[int, Callback], None]:
    """Return what learns by TRL's GRPO: weights, prompts, reward, steps and beta are those of `_own`, all else TRL's.

    Args: folder: takes the weights, which are loaded twice: policy and reference.
    """
    from datasets import Dataset
    from transformers import TrainerCallback, logging
    from trl import GRPOConfig as Config
    from trl import GRPOTrainer

    warnings.simplefilter("ignore", FutureWarning)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    place, task = Path(tempfile.mkdtemp(dir=folder)), _task(shape(changes).vocab_size, plan)
    model: Any = _random_model(shape(changes), plan)
    adapter = None if plan.lora_rank is None else model.peft_config["default"]
    (model if adapter is None else model.unload()).save_pretrained(place)
    task.vocabulary.save(place)
    arguments = Config(
        output_dir=str(place),
        model_init_kwargs={"dtype": "auto"},
        per_device_train_batch_size=plan.micro_batch,
        steps_per_generation=plan.batch // plan.micro_batch,
        gradient_accumulation_steps=plan.batch // plan.minibatches // plan.micro_batch,
        num_generations=_GROUP,
        max_completion_length=plan.new_tokens,
        generation_kwargs={"min_new_tokens": plan.new_tokens},
        beta=task.beta,
        bf16=plan.precision == "bfloat16",
        gradient_checkpointing=plan.gradient_checkpointing,
        use_cpu=plan.device == "cpu",
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    texts = task.prompts["train"].texts
    data = Dataset.from_dict({"prompt": [[{"role": "user", "content": text}] for text in texts] * plan.batch})
    trainer = GRPOTrainer(str(place), pay_ids, arguments, data, peft_config=adapter)
    for each in filter(None, (trainer.model, trainer.ref_model)):
        for parameter in each.parameters():
            parameter.data = parameter.data.clone()  # else weights are pages of the file, read when they are used

    def learn(episodes: int, callback: Callback) -> None:
        class Laps(TrainerCallback):
            def on_step_end(self, args: object, state: TrainerState, control: object, **others: object) -> None:
                if state.global_step % plan.minibatches == 0:
                    callback({})

        trainer.add_callback(Laps())
        trainer.args.max_steps = episodes // plan.batch * plan.minibatches
        trainer.train()

    return learn


def _clock(device: str) -> float:
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def call(function: str, *arguments: Any, tidy: bool = True) -> dict[str, float]:
    """Return what a function of this module gives in a process of its own.

    Args:
        tidy: give blocks of 64 KiB and more back to the system as soon as they are free. The C library keeps those
            below 32 MiB for later, which of small models is as much again as what they hold.
    """
    environment = os.environ | ({"MALLOC_MMAP_THRESHOLD_": "65536"} if tidy else {})
    code = f"from textgym_benchmarks import memory\nprint(json.dumps(memory.{function}(*json.loads(sys.argv[2]))))"
    done = subprocess.run(
        [*fresh_python(code), json.dumps(arguments)], stdout=subprocess.PIPE, text=True, check=True, env=environment
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(flags: Flags) -> list[dict[str, Any]]:
    """Return a row for each setting: predicted and measured GiB above the agent, their ratio, all GiB, seconds."""
    rows = []
    for name, (changes, given) in SETTINGS.items():
        if flags.only not in name:
            continue
        plan = replace(given, device=flags.plan.device)
        found = estimate(shape(changes), plan)
        predicted = (found.peak - found.weights) / GIB
        measured = call("run", changes, asdict(plan))
        ratio = predicted / measured["above"]
        rows.append({"setting": name, "predicted": predicted, "ratio": ratio, **measured})
        print(rows[-1], file=sys.stderr, flush=True)
    return rows


def compete(flags: Flags) -> list[dict[str, Any]]:
    """Return what `race` says of each, in a process of its own, and the versions of the libraries.

    Raises: ValueError for an unknown shape, or a batch that they cannot all run; ModuleNotFoundError without TRL.
    """
    plan, name = flags.plan, flags.shape or ("two-layer" if flags.plan.device == "cpu" else "Qwen2.5-0.5B")
    check_choice("shape", name, tuple(_MODELS))
    check_count("iterations", flags.iterations)
    if plan.batch % _GROUP or plan.batch % (plan.minibatches * plan.micro_batch):
        allowed = f"a multiple of {_GROUP}, and of minibatches * micro_batch"
        raise ValueError(f"batch={plan.batch}: allowed is {allowed}={plan.minibatches * plan.micro_batch}")
    try:
        known = versions() | {"trl": version("trl")}
    except PackageNotFoundError as error:
        raise ModuleNotFoundError('against="trl": it is not installed; pip install "trl>=1.0"') from error
    shown = {"versions": ", ".join(f"{each} {known[each]}" for each in ("torch", "transformers", "trl"))}
    return [
        {"name": each, **call("race", each, _MODELS[name], asdict(plan), flags.iterations, tidy=False), **shown}
        for each in ("lm-ppo", "grpo", "trl")
    ]


def main() -> None:
    """Measure and print."""
    flags = tyro.cli(Flags, description=__doc__, config=(tyro.conf.OmitArgPrefixes,))
    rows = compete(flags) if flags.against else measure(flags)
    if flags.as_json:
        print(json.dumps(rows, indent=1))
        return
    if flags.against:
        table = Table("", "tokens/s", "least to most", "GiB above the agent as made", "GiB in all")
        for row in rows:
            numbers = f"{row['median']:,.0f}", f"{row['least']:,.0f} to {row['most']:,.0f}", f"{row['above']:.2f}"
            table.add_row(row["name"], *numbers, f"{row['all']:.2f}")
        Console().print(table, rows[0]["versions"])
        return
    table = Table("setting", "predicted, GiB", "measured, GiB", "ratio", "whole process, GiB", "seconds")
    for row in rows:
        table.add_row(
            row["setting"], *(f"{row[name]:.2f}" for name in ("predicted", "above", "ratio", "all", "seconds"))
        )
    Console().print(table)
    if not flags.only and flags.plan.device == "cpu":
        changes, plan = next(iter(SETTINGS.values()))
        first = call("run", changes, asdict(plan), tidy=False)
        print(f"the first setting, as the C library allocates: {first['above']:.2f} GiB; allowed is 1.5")
        print("streamed against plain, as the C library allocates:", call("compare", 3, tidy=False))


if __name__ == "__main__":
    script(main)
