"""The power fails after any call: every checkpoint and result that was reported as written is there, whole."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from agents.rlhf.fit_tools import pair_file
from benchmarks.fake_cells import tiny_suite
from power_cut import Disk
from textgym_agents.config import TrainSettings
from textgym_agents.lm.trainer import steps_done
from textgym_agents.registry import load_agent, make_agent, make_env
from textgym_agents.rlhf.settings import SFTSettings
from textgym_agents.rlhf.sft import train_sft
from textgym_agents.training.folder import RunFolder
from textgym_agents.training.loop import SilentWatcher, Training
from textgym_benchmarks.results.store import load_results
from textgym_benchmarks.run.runner import Progress, run_suite

from textgym.files import write_json

pytestmark = pytest.mark.slow

TASK = "textgym/Bandit-v0"
AGENTS: dict[str, dict[str, Any]] = {
    "lm-ppo": {"batch": 16},
    "q-learning": {},
    "mcts": {"simulations": 2},
    "sb3-a2c": {},
    "best-of-n": {},
}


class Cuts:
    """Looks at what would be left after every call, once without luck and once with some.

    Args:
        folder: of the test. check: looks at what is left.
    """

    def __init__(self, folder: Path, check: Any, every: int = 1) -> None:
        self.root = folder / "disk"
        self.root.mkdir()
        self.disk = Disk(self.root, self._cut)
        self._folder, self._check, self._every = folder, check, every
        self.calls = self.seen = 0

    def _cut(self) -> None:
        self.calls += 1
        if self.calls % self._every:
            return
        for luck in (None, random.Random(self.calls)):
            self.seen += 1
            self._check(self.disk.image(self._folder / f"cut-{self.seen}", luck))


@pytest.fixture
def patch() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as found:
        yield found


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.long] if name == "lm-ppo" else []) for name in AGENTS]
)
def test_a_saved_agent_is_there(name: str, tmp_path: Path, patch: pytest.MonkeyPatch) -> None:
    env = make_env(TASK, 4)
    agent: Any = make_agent(name, env, **AGENTS[name])
    counts = agent.iteration is not None
    reported = 0

    def check(image: Path) -> None:
        if not reported:
            return
        found: Any = load_agent(image / "deep" / "run", env)
        assert not counts or found.iteration in (reported, reported + 1)

    cuts = Cuts(tmp_path, check, every=4 if name == "lm-ppo" else 1)
    cuts.disk.install(patch)
    for number in (1, 2, 3):
        agent.iteration = number
        agent.save(cuts.root / "deep" / "run" / "checkpoint")
        reported = number
    patch.undo()
    cuts.disk.close()
    assert cuts.calls > 30


def test_a_run_goes_on_from_the_checkpoint_that_was_marked(tmp_path: Path, patch: pytest.MonkeyPatch) -> None:
    plan = TrainSettings(TASK, "q-learning", 48, {"batch": 16}, eval_every=1, save_every=1, final_per_prompt=1)
    marked: list[int] = []
    mark = RunFolder.mark

    def marking(folder: RunFolder, iteration: int) -> None:
        mark(folder, iteration)
        marked.append(iteration)

    def check(image: Path) -> None:
        if not marked:
            return
        path = image / "runs" / "one"
        if finished:
            assert RunFolder(path).state() == "finished"
            return
        run = RunFolder(path)
        assert run.state() in ("interrupted", "finished")
        agent: Any = load_agent(path, make_env(TASK, 16))
        assert agent.iteration >= marked[-1]
        assert run.metrics()[agent.iteration]["iteration"] == agent.iteration  # logged up to there, at least

    finished = False
    cuts = Cuts(tmp_path, check, every=3)
    patch.setattr(RunFolder, "mark", marking)
    cuts.disk.install(patch)
    result = Training(plan, pictures=False).run(cuts.root / "runs" / "one", SilentWatcher())
    finished = True
    check(cuts.disk.image(tmp_path / "last"))
    patch.undo()
    cuts.disk.close()
    assert marked == [1, 2, 3] == [*range(1, result.iterations + 1)]


def test_cells_that_were_reported_are_done(tmp_path: Path, patch: pytest.MonkeyPatch) -> None:
    done: set[str] = set()

    class Following(Progress):
        def finish(self, key: str, result: Any, now: float | None = None) -> None:
            super().finish(key, result, now)
            done.add(key)

    def check(image: Path) -> None:
        if done:
            assert done <= {r.cell.key for r in load_results(image / "bench") if r.status == "done"}

    cuts = Cuts(tmp_path, check)
    cuts.disk.install(patch)
    patch.setattr("textgym_benchmarks.run.runner.Progress", Following)
    run_suite(tiny_suite(), cuts.root / "bench", engine="serial", function="benchmarks.fake_cells:quick")
    patch.undo()
    cuts.disk.close()


def test_a_fit_goes_on_from_its_last_checkpoint(tmp_path: Path, patch: pytest.MonkeyPatch) -> None:
    data = pair_file(tmp_path / "pairs.jsonl")
    written: dict[int, dict[str, bytes]] = {}
    reported = 0

    class Watcher(SilentWatcher):
        def iteration(self, row: Any) -> None:
            nonlocal reported
            last = cuts.root / "run" / "checkpoints" / "model"
            done = steps_done(last)
            if done is not None:
                reported = done
                written[reported] = {path.name: path.read_bytes() for path in last.iterdir()}

    def check(image: Path) -> None:
        if not reported:
            return
        if RunFolder(image / "run").state() == "finished":
            assert (image / "run" / "model" / "model.safetensors").stat().st_size
            return
        folder = image / "run" / "checkpoints" / "model"
        steps = steps_done(folder)
        assert steps is not None
        assert steps >= reported
        if steps in written:
            assert {path.name: path.read_bytes() for path in folder.iterdir()} == written[steps]

    cuts = Cuts(tmp_path, check, every=5)
    cuts.disk.install(patch)
    train_sft(
        SFTSettings(data=data, batch=8, micro_batches=1, device="cpu", save_every=1, epochs=1),
        cuts.root / "run",
        Watcher(),
    )
    patch.undo()
    cuts.disk.close()
    assert len(written) > 2


def test_the_disk_forgets_what_was_not_synced(tmp_path: Path, patch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "disk"
    root.mkdir()
    disk = Disk(root, lambda: None)
    disk.install(patch)
    (root / "lost").write_text("x")
    write_json(root / "kept.json", {"a": 1})
    (root / "kept.json").unlink()
    (root / "late").write_text("x")
    image = disk.image(tmp_path / "image")
    patch.undo()
    disk.close()
    # Syncing the folder for one file keeps the names of others, but not what is in them.
    assert {path.name: path.read_text() for path in image.iterdir()} == {
        "lost": "",
        "kept.json": '{\n "a": 1\n}\n',
    }
