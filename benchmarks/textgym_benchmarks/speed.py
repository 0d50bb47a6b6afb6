"""Speed of TextGym beside its peers and its goals: `python -m textgym_benchmarks.speed [SUBJECT ...]`.

Two things are timed in turn, so that a noisy machine slows both, and in CPU seconds, which other processes disturb
less: at one thread they are what a quiet machine's clock shows.
"""

from __future__ import annotations

import json
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

import gymnasium as gym
import numpy as np
import tyro
from gymnasium.spaces import Discrete
from gymnasium.vector import AutoresetMode, VectorEnv
from rich.table import Table
from tyro.conf import Positional

from textgym import make_task
from textgym.commands import console
from textgym.processes import children_seconds, peak_memory
from textgym.rewards import RewardSpec, Scorer, make_reward
from textgym.solver import prefix_tree, solve
from textgym.vector import TokenVectorEnv
from textgym_benchmarks.engines.jobs import fresh_python

if TYPE_CHECKING:
    from textgym_agents.algorithms.ppo import LMPPO
    from textgym_agents.config import KL

    OnModel = tuple[LMPPO, TokenVectorEnv, Callable[[], object], Callable[[], object]]

Subject = Literal["single", "vector", "import", "rollout", "ppo", "memory", "rewards", "solver"]
Function = Callable[[], object]

_IDS: Final = ("textgym/Text-v0", "textgym/Helpful-v0")
_NATIVE: Final = partial(gym.make_vec, vectorization_mode="vector_entry_point")
_KINDS: Final[Mapping[KL, float]] = {"exact": 2.0, "k1": 1.8}  # goals of `ppo`
_COMPLETIONS, _CHARACTERS = 1024, 40  # of a batch of `rewards`
_STORY: Final = "Once upon a time, there was a little girl named Lily. She"
_LETTERS, _LENGTH = 10, 6  # of `solver`: 1,222,222 states
_TEXT: Final = "the soup was good and hot in a town by lovely river awful bread I think it of people red 7 plus 12 is"
_TERMS: Final = ("length", "charset", "no_repeat")
# Specs of the rewards that are timed, and the data column that each reads.
_REWARDS: Final[Mapping[str, tuple[RewardSpec, str | None]]] = {
    "length": ({"name": "length", "target": 8}, None),
    "length, tokens": ({"name": "length", "target": 8, "unit": "tokens"}, None),
    "contains_all, 3 words": ({"name": "contains_all", "words": ["soup", "river", "red"]}, None),
    "keywords, 3 words": ({"name": "keywords", "words": ["soup", "river", "red"]}, None),
    "keywords, column": ({"name": "keywords", "column": "words"}, "words"),
    "pattern, full": ({"name": "pattern", "pattern": "[a-zA-Z ]*[0-9]+ .*"}, None),
    "pattern, search": ({"name": "pattern", "pattern": r"\b[0-9]+ (is|was)\b", "mode": "search"}, None),
    "format": ({"name": "format", "template": "the {what} was {how}"}, None),
    "arithmetic": ("arithmetic", "answer"),
    "json_schema": ({"name": "json_schema", "schema": {"type": "object"}}, None),
    "json_values": ("json_values", "value"),
    "length_penalty": ({"name": "length_penalty", "limit": 8}, None),
    "missing_stop": ({"name": "missing_stop", "stop_ids": [3]}, None),
    "no_repeat, 2 words": ("no_repeat", None),
    **{name: (name, None) for name in ("charset", "sentiment")},
    **{name: (name, "reference") for name in ("bleu", "chrf", "rouge")},
    "helpful_rules": ("helpful_rules", "item"),
    **{f"{name}, length": ({"name": name, "reward": "length"}, None) for name in ("clipped", "running_norm")},
    "weighted, 3 terms": ({"name": "weighted", "rewards": {name: name for name in _TERMS}}, None),
    "from_messages, length": ({"name": "from_messages", "reward": "length"}, None),
}


@dataclass(frozen=True)
class Speed:
    """Measure speed and memory."""

    subjects: Positional[tuple[Subject, ...]] = ()
    """Measurements to run; by default all."""
    model: Path = Path("stories260K")
    """Causal LM for `rollout` and `ppo`, as made by `python -m textgym_benchmarks.tinyllamas`."""
    threads: int = 1
    """Torch threads for these two; with more than one, wall time is measured."""
    rounds: int = 7
    """Number of pairs per measurement; medians are reported."""
    steps: int = 20_480
    """Steps of a run of `single`; one of `vector` makes ten times as many in all its environments together."""
    tokens: int = 48
    """New tokens of a sequence of `rollout` and `ppo`."""
    only: tuple[str, ...] = ()
    """Prefix of the names of the rewards to measure; by default all."""
    as_json: bool = False
    """Print JSON instead of a table."""


class Row(NamedTuple):
    """One measurement: ours, the peer's, their ratio, and the goal; missing entries are "" or None."""

    what: str
    ours: str
    peer: str
    ratio: float | None
    goal: str
    reached: bool | None


class Pair(NamedTuple):
    """Median seconds of two functions run in turn, and the median of their ratios first / second."""

    first: float
    second: float
    ratio: float


def time_pair(first: Function, second: Function, rounds: int, clock: Callable[[], float] = time.process_time) -> Pair:
    """Time two functions in turn, after a call of each that warms up. What is short is called repeatedly.

    Args: rounds: measurements of each. clock: seconds; `time.perf_counter` for functions that start processes.
    """
    functions = (first, second)
    repeats = [max(1, int(0.01 / max(_seconds(each, 1, clock), 1e-5))) for each in functions]
    samples = [
        tuple(_seconds(each, repeat, clock) for each, repeat in zip(functions, repeats, strict=True))
        for _ in range(rounds)
    ]
    return Pair(median(a for a, _ in samples), median(b for _, b in samples), median(a / b for a, b in samples))


def _seconds(function: Function, repeat: int, clock: Callable[[], float]) -> float:
    start = clock()
    for _ in range(repeat):
        function()
    return (clock() - start) / repeat


def single(settings: Speed) -> Iterator[Row]:
    """Time one environment through `gym.make`, random actions, the text scored by a rule at every end."""
    for name in _IDS:
        pair = time_pair(_walk(name, settings.steps), _walk("CartPole-v1", settings.steps), settings.rounds)
        yield _rate(f"{name}, steps/s (peer: CartPole-v1)", settings.steps, pair, 3.0)


def _walk(name: str, steps: int) -> Function:
    env = gym.make(name)
    assert isinstance(env.action_space, Discrete)
    actions = np.random.default_rng(0).integers(env.action_space.n, size=steps).tolist()

    def run() -> None:
        env.reset(seed=0)
        for action in actions:
            _, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                env.reset()

    return run


def vector(settings: Speed) -> Iterator[Row]:
    """Time the native vector environment beside CartPole's, random actions, texts decoded and scored at every end."""
    for number, goals in ((64, (0.8, 0.8)), (1024, (0.4, 0.3))):
        steps = 10 * settings.steps // number
        for (name, goal), copy in product(zip(_IDS, goals, strict=True), (True, False)):
            ours = _walk_vector(_NATIVE(name, number, copy=copy), steps)
            pair = time_pair(ours, _walk_vector(_NATIVE("CartPole-v1", number), steps), settings.rounds)
            what = f"{number} x {name}{'' if copy else ', copy=False'}, steps/s (peer: CartPole-v1's own)"
            yield _rate(what, steps * number, pair, goal)
    asked = _NATIVE(_IDS[0], 64, responder=lambda said: ["Why?"] * len(said), turns=2, turn_tokens=20)
    steps = settings.steps // 10
    two, one = (_walk_vector(env, steps) for env in (asked, _NATIVE(_IDS[0], 64, max_new_tokens=40)))
    pair = time_pair(two, one, settings.rounds)
    yield _rate(f"64 x {_IDS[0]}, two turns of 20, steps/s (peer: one turn of 40)", steps * 64, pair, 0.6)


def _walk_vector(env: VectorEnv, steps: int) -> Function:
    assert isinstance(env.single_action_space, Discrete)
    actions = np.random.default_rng(0).integers(env.single_action_space.n, size=(steps, env.num_envs))

    def run() -> None:
        env.reset(seed=0)
        for row in actions:
            env.step(row)

    return run


def import_time(settings: Speed) -> Iterator[Row]:
    """Time fresh interpreters: one that imports textgym, less one that imports nothing, and two whole commands."""
    run = "import sys; from textgym.cli import main; main(sys.argv[2:])"
    imported = "import textgym, sys; assert 'torch' not in sys.modules"
    for code, words, goal in ((imported, "", 0.3), (run, "list", 0.6), (run, "train --help", 0.8)):
        lines = [*fresh_python(code), *words.split()], fresh_python("pass")
        ours, peer = (partial(subprocess.run, line, check=True, stdout=subprocess.DEVNULL) for line in lines)
        pair = time_pair(ours, peer, settings.rounds, children_seconds)  # of those that have ended
        seconds = pair.first if words else pair.first - pair.second
        what = f"textgym {words}" if words else "import textgym, without torch"
        yield Row(f"{what}, CPU time", f"{seconds:.2f} s", "", None, f"<= {goal} s", seconds <= goal)


def rollout(settings: Speed) -> Iterator[Row]:
    """Time sampling through `env.step` beside `model.generate`, same model, batch and length."""
    from textgym_agents.lm.rollout import collect

    for batch, goal, prompts in ((16, 2.0, 1), (64, 2.5, 1), (256, 2.0, 1), (64, 2.5, 1024)):
        agent, env, generate, _ = _on_model(settings, "exact", batch, prompts)
        pair = time_pair(partial(collect, env, agent.policy, 0, ()), generate, settings.rounds, _clock(settings))
        what = f"tokens/s at batch {batch}{f', of {prompts:,} prompts' if prompts > 1 else ''} through env.step"
        yield _rate(f"{what} (peer: model.generate)", batch * settings.tokens, pair, goal)


def ppo(settings: Speed) -> Iterator[Row]:
    """Time a PPO iteration beside `model.generate` for its batch, with both KLs, and one plain pass over that batch."""
    for kl, goal in _KINDS.items():
        agent, env, generate, passes = _on_model(settings, kl)
        pair = time_pair(partial(agent.learn, env, env.num_envs), generate, settings.rounds, _clock(settings))
        what = f"PPO iteration, {env.num_envs} episodes, 4 epochs, kl={kl}, in units of model.generate"
        yield Row(what, f"{pair.first:.3f} s", f"{pair.second:.3f} s", pair.ratio, f"<= {goal}", pair.ratio <= goal)
    pair = time_pair(passes, generate, settings.rounds, _clock(settings))
    what = "forward and backward pass of the plain model over the same, in units of model.generate"
    yield Row(what, f"{pair.first:.3f} s", f"{pair.second:.3f} s", pair.ratio, "", None)


def _clock(settings: Speed) -> Callable[[], float]:
    return time.process_time if settings.threads == 1 else time.perf_counter


def _on_model(settings: Speed, kl: KL, batch: int = 64, prompts: int = 1) -> OnModel:
    """Return LM PPO with Text-v0 on prompts of 17 tokens, and `generate` and one plain pass over as many sequences."""
    import torch
    from textgym_agents.algorithms.ppo import LMPPO
    from textgym_agents.config import LMPPOConfig
    from transformers import AutoTokenizer

    from textgym.lm.causal import load_causal_lm

    torch.set_num_threads(settings.threads)
    others = (" ".join(np.random.default_rng(row).permutation(_STORY.split())) for row in range(1, prompts))
    task = make_task(
        "Text",
        tokenizer=AutoTokenizer.from_pretrained(settings.model),
        prompts=[_STORY, *others],
        stop=(),  # every episode has all its tokens, as `generate` below
        max_new_tokens=settings.tokens,
        reference=str(settings.model),
    )
    env = TokenVectorEnv(task, batch, autoreset_mode=AutoresetMode.DISABLED)
    lm = load_causal_lm(settings.model)
    config = LMPPOConfig(batch=batch, epochs=4, minibatches=1, device="cpu", kl=kl)
    ids = torch.tensor([task.encoded("train")[row % prompts].ids for row in range(batch)])
    asked = {"max_new_tokens": settings.tokens, "min_new_tokens": settings.tokens, "top_k": 0, "do_sample": True}
    method: Callable[..., object] = lm.generate  # type: ignore[assignment]
    generate = partial(method, ids, attention_mask=torch.ones_like(ids), pad_token_id=0, **asked)

    def passes() -> None:
        lm(torch.nn.functional.pad(ids, (0, settings.tokens))).logits.log_softmax(-1)[..., 0].mean().backward()

    return LMPPO(task, config, model=lm), env, generate, passes


def memory(settings: Speed) -> Iterator[Row]:
    """Measure the largest resident memory of a process that trains the built-in model with default settings."""
    (gigabytes,) = _in_fresh_process("train_helpful")
    yield Row("training Helpful, resident memory", f"{gigabytes:.2f} GB", "", None, "< 1.5 GB", gigabytes < 1.5)


def train_helpful() -> tuple[float]:
    """Train the built-in model; return the most memory that this process has held, GB."""
    from textgym_agents.registry import make_agent, make_env

    env = make_env(_IDS[1], 256)
    make_agent("lm-ppo", env, batch=256).learn(env, 1024)
    return (peak_memory() / 1e9,)


def solver(settings: Speed) -> Iterator[Row]:
    """Measure seconds and memory of the exact solver on every text of so many letters, with a stop token."""
    states, building, solving, gigabytes = _in_fresh_process("solve_letters")
    scale = 1_000_000 / states
    reached = (building + solving) * scale < 10 and gigabytes * min(scale, 1.0) < 2
    ours = f"{building:.1f} + {solving:.1f} s, {gigabytes:.2f} GB"
    what = f"a tree of {states:,.0f} states, built and scored, then solved"
    yield Row(what, ours, "", None, "< 10 s, < 2 GB a million", reached)


def solve_letters() -> tuple[float, float, float, float]:
    """Solve one tree; return its states, seconds to build and to solve it, and the most memory of this process, GB."""
    task = make_task(
        "Text",
        prompts=["a"],
        tokenizer=[*map(chr, range(ord("a"), ord("a") + _LETTERS)), "<end>"],
        stop="<end>",
        reward=lambda prompts, completions, **columns: [float(text.count("a")) for text in completions],
        max_new_tokens=_LENGTH,
        beta=0.3,
    )
    start = time.perf_counter()
    tree = prefix_tree(task, max_states=10**9)
    built = time.perf_counter()
    solution = solve(tree)
    solution.likeliest(0)
    assert solution.reference_objective < solution.objective
    return tree.states, built - start, time.perf_counter() - built, peak_memory() / 1e9


def _in_fresh_process(function: str) -> list[float]:
    """Return the numbers that a function of this module returns in a process of its own."""
    code = f"import json; from textgym_benchmarks import speed; print(json.dumps(speed.{function}()))"
    output = subprocess.run(fresh_python(code), check=True, capture_output=True, text=True).stdout
    return [float(each) for each in json.loads(output.splitlines()[-1])]


def rewards(settings: Speed) -> Iterator[Row]:
    """Time every reward through the `Scorer` beside the reward alone."""
    prompts, texts, columns = make_batch()
    for what, (spec, column) in _REWARDS.items():
        if settings.only and not what.startswith(settings.only):
            continue
        own = {name: columns[name] for name in ("completion_ids", column) if name is not None}
        alone = partial(make_reward(spec), prompts=prompts, completions=texts, **own)
        pair = time_pair(partial(Scorer(spec).score, prompts, texts, own), alone, settings.rounds)
        has_goal = what.startswith(("length", "contains_all", "keywords", "pattern")) and "penalty" not in what
        goal, reached = (">= 200,000/s", _COMPLETIONS / pair.first >= 200_000) if has_goal else ("", None)
        ours, peer = (f"{_COMPLETIONS / seconds:,.0f}" for seconds in (pair.first, pair.second))
        yield Row(f"reward {what}, completions/s (peer: without the Scorer)", ours, peer, 1 / pair.ratio, goal, reached)


def make_batch() -> tuple[list[str], list[str], dict[str, list[object]]]:
    """Return prompts, completions and columns for the rewards, always the same ones."""
    generator, vocabulary, texts = np.random.default_rng(0), _TEXT.split(), []
    for _ in range(_COMPLETIONS):
        words: list[str] = []
        while sum(map(len, words)) + len(words) < _CHARACTERS:
            words.append(vocabulary[generator.integers(len(vocabulary))])
        texts.append(" ".join(words))
    columns: dict[str, list[object]] = {
        "completion_ids": [[*generator.integers(4, 1024, size=12).tolist(), 3] for _ in texts],
        "answer": generator.integers(1, 20, size=_COMPLETIONS).tolist(),
        "reference": [*texts[1:], texts[0]],
        "value": [{"answer": 1}] * _COMPLETIONS,
        "words": [generator.choice(vocabulary[:12], 3, replace=False).tolist() for _ in texts],
        "item": ["sum:7+5"] * _COMPLETIONS,
    }
    return ["What is 7 plus 5?"] * _COMPLETIONS, texts, columns


def _rate(what: str, number: int, pair: Pair, goal: float) -> Row:
    """Return the row that compares two rates; the goal is the least allowed ratio."""
    ours, peer = (f"{number / seconds:,.0f}" for seconds in (pair.first, pair.second))
    return Row(what, ours, peer, 1.0 / pair.ratio, f">= {goal:.2f}", 1.0 / pair.ratio >= goal)


SUBJECTS: Final[Mapping[Subject, Callable[[Speed], Iterator[Row]]]] = {
    "single": single,
    "vector": vector,
    "import": import_time,
    "rollout": rollout,
    "ppo": ppo,
    "memory": memory,
    "rewards": rewards,
    "solver": solver,
}


def measure(settings: Speed) -> list[Row]:
    """Return the rows of the chosen subjects; those that need the model are left out, with a warning, without it."""
    rows: list[Row] = []
    for subject in settings.subjects or SUBJECTS:
        if subject in ("rollout", "ppo") and not settings.model.is_dir():
            warnings.warn(f"model={str(settings.model)!r}: no such folder; {subject} is left out", stacklevel=1)
        else:
            rows += SUBJECTS[subject](settings)
    return rows


def main() -> None:
    """Measure and print."""
    settings = tyro.cli(Speed, description=__doc__)
    rows = measure(settings)
    if settings.as_json:
        print(json.dumps([row._asdict() for row in rows], indent=1))
        return
    console.output().print(as_table(rows))


def as_table(rows: Sequence[Row]) -> Table:
    """Return a table of 80 columns; what a measurement is compared with stands below it."""
    made = console.table("what", *map(console.number, ("ours", "peer", "ratio", "goal")), "")
    for row in rows:
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        reached = {None: "", True: "yes", False: "no"}[row.reached]
        made.add_row(row.what.replace(" (peer:", "\n  (peer:"), row.ours, row.peer, ratio, row.goal, reached)
    return made


if __name__ == "__main__":
    console.script(main)
