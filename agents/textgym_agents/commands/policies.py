"""Load the policy that a flag names: evaluate it (`eval`) or record its episodes (`record`)."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from textgym import TokenVectorEnv
from textgym.checks import MOST_ROWS, Floats, JsonObject, check_count, check_number
from textgym.commands.console import UsageError, note, number, output, table, untrusted, use_all_cores
from textgym.commands.flags import EnvId, EnvOptions, env_options, find_id, parse
from textgym.estimates import Estimate
from textgym.evaluate import MOST_K, at_k, evaluate
from textgym.files import make_folder, plain
from textgym.interrupts import disk_full_at
from textgym.parts import kept_until_done
from textgym.prompts import Split
from textgym.rows import check_hub
from textgym.task import BETA
from textgym_agents.commands.running import how_measured, measures_table
from textgym_agents.config import MOST
from textgym_agents.protocol import Agent
from textgym_agents.registry import agent_names, load_agent, make_agent, make_env
from textgym_agents.training.folder import RunFolder, run_of
from textgym_agents.training.trust import check_trusted

if TYPE_CHECKING:
    from textgym_agents.datasets import RecordedEpisode

_LOG = logging.getLogger(__name__)


def open_policy(
    env_id: str,
    policy: str,
    options: Sequence[str] = (),
    agent_class: str | None = None,
    flag: str = "--agent",
    trust_pickle: bool = False,
    split: str = "train",
) -> tuple[TokenVectorEnv, Agent]:
    """Return an environment and an agent on it.

    Args:
        policy: a checkpoint or run folder, a .zip of Stable-Baselines3, a registered agent, module:Class, or
            hf:FOLDER_OR_ID.
        options: NAME=VALUE words; without any, those of the run, where `policy` is one.
        agent_class: module:Class of the agent in the folder, where it is no registered one, or the agent of a .zip.
        flag: what the policy was given as, for errors.
        trust_pickle: whether a .zip may be read, which runs the code in it.
        split: whose prompts it is asked for.
    Raises: UsageError if `policy` is none of these; ValueError, before anything is loaded, for a split that the task
        does not have.
    """
    folder = Path(policy)
    values = env_options(options) or run_options(folder) or {}
    if policy.startswith("hf:"):
        check_hub(flag.lstrip("-"), policy.removeprefix("hf:"), "model")
    if policy != "random":  # which needs no torch
        use_all_cores()
    saved = folder.is_dir() or folder.is_file()
    if not saved and policy not in agent_names() and ":" not in policy:
        names = ", ".join(agent_names())
        raise UsageError(f"{flag} {policy!r}: neither a folder nor one of {names} nor module:Class nor hf:MODEL")
    env = make_env(env_id, 1, **values)
    env.unwrapped.task.prompt_set(split)
    return env, load_agent(folder, env, agent_class, trust_pickle) if saved else make_agent(policy, env)


def run_options(folder: Path) -> JsonObject | None:
    """Return the options of the environment that a run with a checkpoint was trained in; None if there is no such run.

    Args: folder: of the run, or of one of its checkpoints.
    Raises: ValueError that names the file if it holds no options, or names code of a stranger, see `check_trusted`.
    """
    run = run_of(folder)
    if not ((run / "config.json").exists() and (run / "checkpoint").is_dir()):
        return None
    values = RunFolder(run).config().get("env", {})
    if not isinstance(values, dict):
        raise ValueError(f"{run / 'config.json'}: env={values!r}, allowed is a JSON object of options")
    check_trusted(run, values)
    return values


@dataclass(frozen=True)
class PolicyFlags:
    """The policy and how to sample from it."""

    id: EnvId
    """Id of the environment, as in `textgym list`."""
    agent: str = "reference"
    """A checkpoint or run folder, a Stable-Baselines3 .zip, or an agent that needs no learning: reference, random,
    module:Class, or hf:FOLDER_OR_ID, a causal LM or PEFT adapter with the task's tokenizer."""
    agent_class: str | None = None
    """module:Class of the agent in the folder, if it is not registered; for a .zip the agent's name, as in sb3-ppo."""
    trust_pickle: bool = False
    """Load a Stable-Baselines3 .zip, which runs any code in the file."""
    guide: int = 0
    """Let the agent's critic choose among this many of its most likely tokens (value-guided decoding); 0: off."""
    env: EnvOptions = ()
    """Options of the environment, as in max_new_tokens=20; by default those of the run, if --agent is one."""
    seed: int = 0
    """Seed of all random draws."""
    split: Split = "eval"
    """Prompts: eval (held-out), train, or tune (for choosing settings)."""
    per_prompt: int = 16
    """Completions per prompt."""
    deterministic: bool = False
    """Take the most likely token instead of sampling."""
    json: bool = False
    """Print JSON."""

    def __post_init__(self) -> None:
        for name, least in (("guide", 0), ("seed", 0), ("per_prompt", 1)):
            check_count(name, getattr(self, name), least, MOST if name == "seed" else MOST_ROWS)

    def open(self) -> tuple[str, TokenVectorEnv, Agent]:
        """Return the id, the environment and the agent, tilted by its own critic if `guide` is not 0.

        Raises: as `open_policy`; ValueError for an agent without a critic.
        """
        env_id = find_id(self.id)
        env, agent = open_policy(
            env_id, self.agent, self.env, self.agent_class, trust_pickle=self.trust_pickle, split=self.split
        )
        if self.guide:
            from textgym_agents.algorithms.value_guided import ValueGuided, ValueGuidedConfig

            agent = ValueGuided(env.unwrapped.task, ValueGuidedConfig(k=self.guide), guide=agent)
        return env_id, env, agent


@dataclass(frozen=True)
class EvalFlags(PolicyFlags):
    """Evaluate a policy on an environment: reward, gold, KL, objective J, optimality, length, diversity.

    Example: textgym eval Copy-v0 --agent random --per-prompt 4
    """

    optimum_per_prompt: int = 128
    """Completions per prompt for the estimate of the optimum, if it is neither solved nor committed. 0: no estimate, so
    J without optimality."""
    beta: float | None = None
    """Reward units per nat of KL; by default the task's."""
    k: tuple[int, ...] = ()
    """Show pass@k, majority@k and avg@k for these values of k, each at most --per-prompt, as in --k 1 4 16."""
    right: float | None = None
    """With --k: the lowest reward of a correct completion; by default the highest reward that can be paid."""
    keep: Path | None = None
    """A folder for what has been sampled. If this command is interrupted, the same command continues from there. At the
    end, the samples are removed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for each in self.k:
            check_count("k", each, 1, min(self.per_prompt, MOST_K), "of --per-prompt completions")
        if self.right is not None:
            check_number("right", self.right, unit="reward units")
        check_count("optimum_per_prompt", self.optimum_per_prompt, 0, MOST_ROWS)
        if self.beta is not None:
            check_number("beta", self.beta, 0, unit=BETA)

    def parts(self) -> Path | None:
        """Make and return the folder in `keep` for what this command samples: another command has another one."""
        if self.keep is None:
            return None
        words = json.dumps({**asdict(self), "keep": None}, default=str)
        folder = self.keep / hashlib.sha256(words.encode()).hexdigest()[:16]
        try:
            make_folder(folder)
        except OSError as error:
            raise UsageError(f"--keep {self.keep}: no folder can be made there ({error.strerror})") from error
        return folder


def eval_command(arguments: list[str]) -> None:
    """Run `textgym eval`."""
    flags = parse(EvalFlags, arguments, "eval")
    env_id, env, agent = flags.open()
    parts = flags.parts()
    from textgym_agents.algorithms.fixed import reference_of
    from textgym_agents.training.measures import evaluation_row, optimum_for, optimum_summary

    task = env.unwrapped.task
    if caveat := agent.caveat(task, flags.split):
        note(caveat)
    beta = task.beta if flags.beta is None else flags.beta
    with kept_until_done(parts) as keep:
        _LOG.info("computing J*")
        optimum = optimum_for(
            agent,
            task,
            agent.own_reference(),
            Path(flags.agent),
            beta=beta,
            split=flags.split,
            per_prompt=flags.optimum_per_prompt,
            seed=flags.seed,
            keep=keep,
        )
        _LOG.info("evaluating")
        evaluation = evaluate(
            agent,
            task,
            reference_of(agent, task),
            optimum,
            beta=beta,
            split=flags.split,
            per_prompt=flags.per_prompt,
            seed=flags.seed,
            deterministic=flags.deterministic,
            keep=keep,
        )
    several = at_k(task, evaluation.episodes, flags.k, flags.right) if flags.k else {}
    if flags.json:
        report = {"id": env_id, "agent": flags.agent, "split": flags.split, "seed": flags.seed}
        report |= evaluation.summary() | {"optimum": optimum_summary(optimum)}
        report |= {f"{name}@{k}": asdict(estimate) for name, found in several.items() for k, estimate in found.items()}
        print(json.dumps(plain(report), indent=2, allow_nan=False))
        return
    console = output()
    console.print(untrusted(f"{flags.agent} on {env_id}, {flags.split} prompts"))
    console.print(measures_table({"estimate [95% interval]": evaluation_row(evaluation)}))
    if several:
        shares = table("k", *map(number, (f"{name}@k" for name in several)))
        for k in flags.k:
            shares.add_row(str(k), *(str(found[k]) for found in several.values()))
        console.print(shares)
    console.print(how_measured(evaluation, optimum), markup=False)
    console.print(str(optimum), markup=False)
    if optimum.value is None and evaluation.objective is not None:
        console.print(_bound(evaluation.objective), markup=False)


def _bound(objective: Estimate) -> str:
    """Return what a policy's J says about J*."""
    if math.isfinite(objective.low):
        return f"J* is at least {objective.low:.3f} (with 95%), which this policy reaches"
    if math.isfinite(objective.mean):
        return "there is no lower bound of J* either: J has no interval (use --per-prompt 2 or more)"
    return "there is no lower bound of J* either: the KL of this policy is infinite, so J is, too"


@dataclass(frozen=True)
class RecordFlags(PolicyFlags):
    """Record an agent's episodes as a Minari dataset or JSON lines, for --data of behaviour-cloning and dpo.

    Example: textgym record Copy-v0 --agent reference --episodes 64 --out recordings/copy-v0
    """

    out: Path | None = None
    """The dataset's folder, named like a Minari id: helpful-ppo-v0; or a file ending in .jsonl, for a log with one row
    per episode. Existing files are never overwritten."""
    episodes: int = 1000
    """Number of episodes."""
    per_prompt: int = 1
    """Number of consecutive episodes with the same prompt; 2 or more for pairs."""
    split: Split = "train"
    """Prompts: train, eval (held-out), or tune (for choosing settings)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.out is None:
            raise UsageError("--out: the dataset's folder is missing, as in --out recordings/helpful-v0")
        check_count("episodes", self.episodes, most=MOST)
        if self.episodes % self.per_prompt:
            raise ValueError(f"episodes={self.episodes}: allowed are multiples of per_prompt={self.per_prompt}")


def record_command(arguments: list[str]) -> None:
    """Run `textgym record`."""
    flags = parse(RecordFlags, arguments, "record")
    from textgym_agents.datasets.recording import dataset_id

    assert flags.out is not None
    if flags.out.suffix != ".jsonl":
        dataset_id(flags.out)
    if flags.out.exists():
        raise UsageError(f"--out {str(flags.out)!r}: is there already and is not overwritten")
    env_id, env, agent = flags.open()
    with disk_full_at(flags.out):
        rewards = _record(flags, env, agent)
    files = [flags.out, *flags.out.rglob("*")]
    report: JsonObject = {
        "out": str(flags.out),
        "dataset": flags.out.name if flags.out.is_file() else dataset_id(flags.out),
        "episodes": len(rewards),
        "tokens": sum(map(len, rewards)),
        "return": sum(float(own.sum()) for own in rewards) / len(rewards),
        "megabytes": sum(path.stat().st_size for path in files if path.is_file()) / 1e6,
    }
    if flags.json:
        print(json.dumps({"id": env_id, "agent": flags.agent, "split": flags.split} | report, indent=2))
        return
    console = output()
    console.print(untrusted(f"{flags.agent} on {env_id}, {flags.split} prompts"))
    console.print(
        f"{report['episodes']} episodes, {report['tokens']} tokens, mean return {report['return']:.3f}, "
        f"{report['megabytes']:.1f} MB",
        markup=False,
    )
    console.print(untrusted(f"dataset {report['dataset']} in {flags.out}"))


def _record(flags: RecordFlags, env: TokenVectorEnv, agent: Agent) -> list[Floats]:
    """Record the episodes and return the rewards of each, (T,)."""
    from textgym_agents.datasets import play_episodes, record, write_log

    assert flags.out is not None
    settings = {name: getattr(flags, name) for name in ("per_prompt", "seed", "deterministic", "split")}
    if flags.out.suffix != ".jsonl":
        dataset = record(agent, env, flags.episodes, flags.out, **settings)
        return [episode.rewards for episode in dataset.iterate_episodes()]
    rewards = list[Floats]()

    def seen() -> Iterator[RecordedEpisode]:
        for episode in play_episodes(agent, env.unwrapped.task, flags.episodes, **settings):
            rewards.append(episode.rewards)
            yield episode

    write_log(flags.out, seen())
    return rewards
