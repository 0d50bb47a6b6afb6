"""The race: TextGym's agents beside TRL's trainers on one model and one reward, J against the clock.

    python -m textgym_benchmarks.race --model FOLDER --out runs/race
    python -m textgym_benchmarks.race --model FOLDER --out runs/race --table

The clock counts CPU seconds of one thread, those of evaluations left out, so that other work on the machine does not
move it. Every contestant learns at a constant rate from the prompts of the split "train"; at each mark J is measured on
those of "eval", by the same code for all. The first line runs what has no result yet; the second prints what is there.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import tyro
from rich.console import Console
from textgym_agents.registry import agent_class, make_agent, make_config, make_env

from textgym.checks import Floats, JsonObject
from textgym.commands.console import number, table
from textgym.evaluate import evaluate
from textgym.files import make_folder, read_json, write_json
from textgym.optimum import optimum_of
from textgym.rewards import make_reward
from textgym_benchmarks.engines.jobs import fresh_python
from textgym_benchmarks.sweep import STORY_REWARDS, stories_env

if TYPE_CHECKING:
    from torch import nn

MARKS: Final = (15, 30, 60, 120, 175)
"""CPU seconds at which J is measured."""
OTHERS: Final = ("trl-rloo", "trl-grpo")
TRIAL_MARKS: Final = MARKS[:3]
"""CPU seconds at which J is measured in a trial, whose score is the mean of the three."""
TRIAL_SEED: Final = 1000
_PER_PROMPT = 24
_EPISODES = 10**7  # more than fit into any race
_CHILD = "import json, sys; from textgym_benchmarks.race import run; print(json.dumps(run(json.loads(sys.argv[2]))))"


@dataclass(frozen=True)
class Entry:
    """One training against the clock.

    Args:
        who: a registered agent, "trl-rloo" or "trl-grpo". reward: a name of `STORY_REWARDS`.
        settings: an agent's own; of TRL's trainers learning_rate, batch, minibatches and group.
        seed: of prompts and sampling. marks: CPU seconds, rising. model: folder of the start.
    """

    who: str
    reward: str
    settings: JsonObject
    seed: int
    marks: tuple[int, ...]
    model: str

    @property
    def file(self) -> str:
        """Name of the file that holds its result."""
        words = json.dumps({name: value for name, value in asdict(self).items() if name != "model"}, sort_keys=True)
        digest = hashlib.sha256(words.encode()).hexdigest()[:12]
        return f"{self.who}.{self.reward.replace(' ', '-')}.s{self.seed}.{digest}.json"


def run(words: JsonObject) -> JsonObject:
    """Run an entry, given as JSON values. Returns: its `rows`, one for each mark, and J of the `reference`."""
    import torch

    torch.set_num_threads(1)
    entry = Entry(**words)
    task = make_env("textgym/Text-v0", 1, reward=STORY_REWARDS[entry.reward], **stories_env(entry.model)).unwrapped.task
    beta, seed = task.beta, 7_000
    optimum = optimum_of(task, per_prompt=0)

    def measure(policy: Any) -> JsonObject:
        found = evaluate(policy, task, optimum=optimum, per_prompt=_PER_PROMPT, seed=seed)
        assert found.objective is not None and found.kl is not None
        return {"J": found.objective.mean, "reward": found.reward.mean, "kl": found.kl.mean, "beta": beta}

    clock = Clock(entry.marks, measure)
    learn = _trl if entry.who in OTHERS else _own
    reference = learn(entry, clock)
    return {"rows": clock.rows, "reference": reference}


class Clock:
    """CPU seconds since the first call of `start`, without those of evaluations.

    Args:
        marks: seconds, rising. measure: returns what is written down at each.
    """

    def __init__(self, marks: Sequence[int], measure: Callable[[Any], JsonObject]) -> None:
        self.rows: list[JsonObject] = []
        self.measure = measure
        self._marks, self._started = list(marks), 0.0

    def start(self) -> None:
        """Begin."""
        self._started = time.process_time()

    def iteration(self, policy: Callable[[], Any], episodes: int) -> bool:
        """Measure the policy where a mark is passed. Returns: whether that was the last one."""
        now = time.process_time()
        passed = now - self._started
        while self._marks and passed >= self._marks[0]:
            self.rows.append(
                {"mark": self._marks.pop(0), "seconds": passed, "episodes": episodes, **self.measure(policy())}
            )
        self._started += time.process_time() - now
        return not self._marks


def _own(entry: Entry, clock: Clock) -> JsonObject:
    given = {"schedule": "constant", "device": "cpu", **entry.settings, "seed": entry.seed}
    options = stories_env(entry.model)
    batch = int(given.get("batch", 256))
    env = make_env("textgym/Text-v0", batch, reward=STORY_REWARDS[entry.reward], **options)
    agent = make_agent(entry.who, env, make_config(agent_class(entry.who), given))
    reference = clock.measure(agent)
    env.reset(seed=entry.seed)
    clock.start()
    agent.learn(env, _EPISODES, lambda row: clock.iteration(lambda: agent, int(row["episode"])))
    return reference


def _trl(entry: Entry, clock: Clock) -> JsonObject:
    import trl
    from datasets import Dataset
    from transformers import TrainerCallback, logging

    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    options = stories_env(entry.model)
    env = make_env("textgym/Text-v0", 4, reward=STORY_REWARDS[entry.reward], **options)
    judge: Any = make_agent("rloo", env, make_config(agent_class("rloo"), {"device": "cpu"}))
    task = env.unwrapped.task
    reference = clock.measure(judge)
    given: Any = entry.settings
    kind = entry.who.removeprefix("trl-").upper()
    with tempfile.TemporaryDirectory() as folder:
        config = getattr(trl, f"{kind}Config")(
            output_dir=folder,
            per_device_train_batch_size=given["batch"] // given["minibatches"],
            steps_per_generation=given["minibatches"],
            num_generations=given["group"],
            learning_rate=given["learning_rate"],
            lr_scheduler_type="constant",
            max_completion_length=task.max_new_tokens,
            beta=task.beta,
            max_steps=_EPISODES,
            seed=entry.seed,
            use_cpu=True,
            bf16=False,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        data = Dataset.from_dict({"prompt": list(task.prompts["train"].texts)})
        reward = make_reward(STORY_REWARDS[entry.reward])
        trainer = getattr(trl, f"{kind}Trainer")(entry.model, reward, config, data)

        def policy() -> Any:
            judge.policy.model.load_state_dict(trainer.model.state_dict())
            judge.policy.forget()
            return judge

        class Laps(TrainerCallback):
            def on_step_end(self, args: object, state: Any, control: Any, **others: object) -> None:
                if state.global_step % given["minibatches"] == 0:
                    control.should_training_stop = clock.iteration(
                        policy, state.global_step // given["minibatches"] * given["batch"]
                    )

        trainer.add_callback(Laps())
        clock.start()
        trainer.train()
    return reference
