"""A researcher's walk: an own algorithm, a mistake in it that the check finds, a benchmark against RLOO, a report."""

import json
from pathlib import Path

from steps import begin, numbers, offline, run, sees, writes

ALGORITHM = '''
"""REINFORCE on a causal LM, with a running mean of the returns as baseline."""

from dataclasses import dataclass

import numpy as np
import torch
from textgym_agents.config import LMConfig
from textgym_agents.conformance.hooks import record_gradient
from textgym_agents.lm.agent import LMAgent
from textgym_agents.lm.rollout import collect, score_reference


@dataclass(frozen=True)
class Config(LMConfig):
    batch: int = 128
    device: str = "cpu"
    keep: float = 0.9
    """Share of the baseline that an iteration keeps."""


class Running(LMAgent):
    name = "running"
    config_type = Config

    def __init__(self, task, config=None, model=None):
        super().__init__(task, config or Config(), model)
        self.baseline = torch.zeros(1)

    def _iterate(self, env):
        batch = collect(env, self.policy, self._seed(0), self.task.vocabulary.stop_ids)
        log_ratio = batch.log_probs - score_reference(self.reference, batch, 64, False)  # (N,)
        scores = np.bincount(batch.rows, batch.rewards * self.task.gamma**batch.steps)  # (B,)
        kl = np.bincount(batch.rows, log_ratio.cpu().numpy())  # (B,)
        returns = scores - self.controller.beta * kl  # (B,)
        advantages = returns - self.baseline.item()
        keep = self.config.keep if self.iteration else 0.0
        self.baseline = keep * self.baseline + (1 - keep) * float(returns.mean())
        rows, columns = torch.tensor(batch.rows), torch.tensor(batch.columns)  # (N,)
        logits, _ = self.policy.states(batch.input_ids, rows, columns, batch.kept_of(slice(None)))  # (N, V)
        log_probs = logits.log_softmax(-1).gather(1, batch.actions[:, None]).squeeze(1)  # (N,)
        weighed = log_probs * log_probs.new_tensor(advantages)[rows]  # (N,)
        loss = -weighed.sum() / env.num_envs
        self.optimizer.zero_grad()
        loss.backward()
        self._finish_step()
        return {"objective/scores": scores.mean(), "objective/kl": kl.mean(), "baseline": float(self.baseline)}

    def memory(self):
        return {"baseline": self.baseline}

    def restore_memory(self, tensors):
        self.baseline = tensors["baseline"]

    def conformance_hooks(self):
        return {"gradient": lambda env, seed: record_gradient(self, env, seed)}
'''
SUM = "loss = -weighed.sum() / env.num_envs"
MEAN = "loss = -(weighed / torch.bincount(rows)[rows]).sum() / env.num_envs"

begin("A researcher: own algorithm, checked, benchmarked against RLOO, reported")

# A common mistake: each completion's loss is divided by its own length.
writes("running.py", ALGORITHM.replace(SUM, MEAN))
said = run("textgym check running:Running --only 17", code=2)
sees("the check finds the mistake", "0 holds, 3 FAILS" in said and "3 of 3 checks failed: gradient of J" in said)

writes("running.py", ALGORITHM)
findings = json.loads(run("textgym check running:Running --json"))["findings"]
sees("nothing fails now", not [finding for finding in findings if finding["status"] == "FAILS"])
holds = {finding["check"] for finding in findings if finding["status"] == "holds"}
wanted = {"gradient of J", "resumed", "logged KL", "learns Bandit", "learns Delayed", "learns Stop"}
sees(f"among what holds: {', '.join(sorted(wanted))}", wanted <= holds, f"{len(holds)} hold")


def results() -> dict[Path, bytes]:
    """The cells of the benchmark that have a result."""
    return {path: path.read_bytes() for path in Path("runs/against").glob("cells/*/result.json")}


bench = "textgym bench --tasks Stop Delayed --agents rloo running:Running --episodes 4096 --seeds 2 --out runs/against"
run(bench, code=130, stop=lambda: bool(results()))
early = results()
sees("Ctrl-C leaves what is finished", 0 < len(early) < 8, f"{len(early)} of 8 cells")
run(bench)
late = results()
sees("the same command does the others", len(late) == 8 and all(late[path] == early[path] for path in early))
for cell in (numbers(str(path)) for path in sorted(late)):
    before, after = (cell["measures"][when]["optimality"]["mean"] for when in ("before", "after"))
    name = f"{cell['cell']['id']} {cell['cell']['agent']} seed {cell['cell']['seed']}"
    sees(f"{name} goes from 0 towards 1", abs(before) < 1e-6 and 0.5 < after <= 1, f"{after:.3f}")

run("textgym report runs/against")
offline("runs/against/report/index.html", "running:Running", "rloo", "Delayed")
print("\nThe researcher is done.")
