"""Whatever is edited in a folder that was saved, every reader of it goes on or says what is wrong, in one line."""

from __future__ import annotations

import json
import random
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from agents.rlhf.fit_tools import Stops, pair_file
from benchmarks.fake_cells import tiny_suite
from edited_folders import command, edit, fresh, problem
from lm.tiny_models import tiny_gpt2
from lm.tiny_rewards import save_reward_model, save_tokenizer
from textgym_agents.config import TrainSettings
from textgym_agents.rlhf.reward_model import train_reward_model
from textgym_agents.rlhf.settings import RewardModelSettings, SFTSettings
from textgym_agents.rlhf.sft import train_sft
from textgym_agents.training.loop import SilentWatcher, Training
from textgym_benchmarks.results.store import export_results, load_results
from textgym_benchmarks.run.runner import run_suite

from textgym.estimates import draw_samples, read_samples, tilt, write_samples
from textgym.lm.reference import UniformReference
from textgym.lm.reward_model import RewardModel
from textgym.task import make_task
from textgym.vocab import load_vocabulary

TASK = "textgym/Bandit-v0"
FEW, MANY, PARTS = 28, 5000, 20  # one edit of each kind of folder; all others, in parts for several processes
QUICK = "benchmarks.fake_cells:quick"
TEMPLATE = "{% for m in messages %}[CLS] {{ m['content'] }} [SEP]{% endfor %}"
# Agents with every kind of file, and settings that keep them small.
AGENTS: dict[str, dict[str, Any]] = {
    "lm-ppo": {"batch": 16},
    "soft-q": {"batch": 16},
    "alphazero": {"batch": 16, "simulations": 4},
    "best-of-n": {},
    "value-guided": {"k": 2},
    "q-learning": {"batch": 16},
    "mcts": {"simulations": 4},
    "sb3-dqn": {"batch": 16},
    "sb3-recurrent-ppo": {"batch": 16},
    "sb3-a2c": {"batch": 16},
}
Read = Callable[[Path], object]


@dataclass(frozen=True)
class Kind:
    """A folder, and whatever reads such folders."""

    folder: Path
    readers: tuple[Read, ...]


def trained(agent: str, folder: Path, config: dict[str, Any]) -> Path:
    few = {"eval_per_prompt": 1, "final_per_prompt": 1, "optimum_per_prompt": 4}
    settings = TrainSettings(TASK, agent, 32, config, eval_every=1, **few)
    Training(settings, pictures=False).run(folder, SilentWatcher())
    return folder


def interrupted(run: Path, folder: Path) -> Path:
    """A run that has 32 of 48 episodes behind it."""
    fresh(run, folder)
    (folder / "result.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"episodes": 48}))
    return folder


def evaluate(folder: Path) -> None:
    command("eval", TASK, "--agent", str(folder), "--per-prompt", "1", "--optimum-per-prompt", "4", "--json")


def inspect(folder: Path) -> None:
    command("inspect", TASK, "--agent", str(folder), "--json")


def report(path: Path) -> None:
    command("report", str(path), "--out", str(path.parent / "report"))


def resume(agent: str, folder: Path) -> None:
    command("train", TASK, "--agent", agent, "--out", str(folder), "--resume")


def resume_fit(name: str, data: str, folder: Path) -> None:
    command(name, "--data", data, "--out", str(folder), "--resume")


def go_on(folder: Path) -> None:
    run_suite(tiny_suite(), folder, engine="serial", function=QUICK)


def score(folder: Path) -> None:
    RewardModel(folder)(["a b"], ["c"], completion_ids=[[7, 0]])


def read_tokens(folder: Path) -> None:
    load_vocabulary(folder).encode_prompt("a b")


def be_a_reference(folder: Path) -> None:
    options = (
        f"tokenizer={folder}",
        f"reference={folder}",
        "prompts=PROMPTS.txt",
        "reward=length",
        "max_new_tokens=3",
    )
    prompts = folder.parent / "prompts.txt"
    prompts.write_text("a b\nc\n")
    given = [option.replace("PROMPTS.txt", str(prompts)) for option in options]
    command("eval", "Text-v0", "--env", *given, "--per-prompt", "1", "--optimum-per-prompt", "4", "--json")


def tilt_samples(folder: Path) -> None:
    tilt(read_samples(folder / "optimum.safetensors")[0], 0.5)


def runs(root: Path) -> dict[str, Kind]:
    found = {}
    for agent, config in AGENTS.items():
        guided = {"run": str(root / "lm-ppo")} if agent == "value-guided" else {}
        run = trained(agent, root / agent, config | guided)
        found[agent] = Kind(run, (evaluate, report, inspect))
        found[f"{agent}-stopped"] = Kind(interrupted(run, root / f"{agent}-stopped"), (partial(resume, agent),))
    return found


def results(root: Path) -> dict[str, Kind]:
    run_suite(tiny_suite(), root / "suite", engine="serial", function=QUICK)
    (root / "export").mkdir()
    export_results(load_results(root / "suite"), root / "export" / "results.json", {"name": "tiny"})
    return {
        "suite": Kind(root / "suite", (report, go_on)),
        "export": Kind(root / "export", (lambda folder: report(folder / "results.json"),)),
    }


def models(root: Path) -> dict[str, Kind]:
    (root / "tokenizer").mkdir()
    save_tokenizer(root / "tokenizer")
    (root / "tokenizer" / "chat_template.jinja").write_text(TEMPLATE)
    (root / "policy").mkdir()
    tiny_gpt2(vocab=12).save_pretrained(root / "policy")
    save_tokenizer(root / "policy")
    task = make_task("TwoModes")
    (root / "samples").mkdir()
    samples = draw_samples(task, UniformReference(task.vocabulary.allowed), (), each=8)
    write_samples(samples, root / "samples" / "optimum.safetensors", {"name": "TwoModes"})
    return {
        "reward model": Kind(save_reward_model(root / "reward", offset=0.5), (score,)),
        "tokenizer": Kind(root / "tokenizer", (read_tokens,)),
        "policy": Kind(root / "policy", (be_a_reference,)),
        "samples": Kind(root / "samples", (tilt_samples,)),
    }


def fits(root: Path) -> dict[str, Kind]:
    """Fine-tuning and a reward model's training, stopped after a checkpoint."""
    data = pair_file(root / "pairs.jsonl")
    small = {"batch": 8, "micro_batches": 1, "device": "cpu", "save_every": 2}
    found = {}
    for name, train, kind in (
        ("sft", train_sft, SFTSettings),
        ("reward-model", train_reward_model, RewardModelSettings),
    ):
        with pytest.raises(KeyboardInterrupt):
            train(kind(data=data, **small), root / f"fit-{name}", Stops(4))
        found[f"{name} run"] = Kind(root / f"fit-{name}", (partial(resume_fit, name, data),))
    return found


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Kind]:
    root = tmp_path_factory.mktemp("saved")
    return runs(root) | results(root) | models(root) | fits(root)


def asks_for_more(done: str) -> bool:
    """Whether an edit is a greater budget or a greater number of what there was: honest work that takes its time."""
    return done.startswith("config.json") and ("'episodes'" in done or done.endswith(": scale"))


def problems(kinds: dict[str, Kind], folder: Path, count: int, first: int) -> list[str]:
    """What went wrong in `count` edits, one of a kind of folder after the other."""
    found = []
    names = list(kinds)
    folders = [kind.folder for kind in kinds.values()]
    for number in range(first, first + count):
        kind = kinds[names[number % len(names)]]
        rng = random.Random(number)
        place = fresh(kind.folder, folder / "edited")
        done = edit(place, [each for each in folders if each != kind.folder], rng)
        for read in kind.readers:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                wrong = problem(partial(read, place))
            if wrong is not None and not (wrong.startswith("took longer") and asks_for_more(done)):
                found.append(f"{number}, {names[number % len(names)]}, {done}: {wrong}")
    return found


@pytest.mark.long
def test_an_edited_folder_is_read_or_refused_in_one_line(kinds: dict[str, Kind], tmp_path: Path) -> None:
    found = problems(kinds, tmp_path, FEW, 0)
    assert not found, "\n".join(found)


@pytest.mark.sweep
@pytest.mark.parametrize("part", range(PARTS))
def test_five_thousand_edits(kinds: dict[str, Kind], tmp_path: Path, part: int) -> None:
    count = MANY // PARTS
    found = problems(kinds, tmp_path, count, FEW + part * count)
    assert not found, "\n".join(found)
