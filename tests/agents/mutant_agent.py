"""A softmax policy in a table, trained by policy gradient, with one switch for each bug that the kit must catch."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from agents.mutant_rollout import play
from textgym_agents.conformance import Estimator, LossGradient, TrainingBatch

from textgym.task import make_reference

BUGS = (
    "ratio of another policy", "unnormalised", "acts at another temperature", "takes the least likely",
    "old log-probs shifted", "starts elsewhere", "reads the width", "length from pad id", "no stop gradient",
    "score on the first action", "penalty with the wrong sign", "overwrites the last token", "peeks",
    "value peeks", "values shifted", "bootstraps at the end", "forgets to bootstrap", "leaks between rows",
    "whitens padding",
    "kl per token", "kl reversed", "scores per token", "adds the kl", "kl of the wrong action",
    "ignores the mask", "global generator", "ignores the seed", "rounds on save", "forgets the iteration", "ascends",
    "credits one step", "no score after a stop",
    "refuses turns in other words", "acts for the environment", "kl of the replies", "kl per turn",
    "credit over replies", "learns from the replies", "rows read alike", "forgets the iteration in turns",
)  # fmt: skip


@dataclass(frozen=True)
class MutantConfig:
    """Settings."""

    bug: str = ""
    """One of BUGS; empty for none."""
    step: float = 4.0
    """Step size of the policy."""
    value_step: float = 0.5
    """Step size of the values."""
    lam: float = 0.95
    """GAE's lambda."""
    whiten: bool = True
    """Standardise the advantages."""
    seed: int = 0
    """Seeds everything."""


class MutantAgent:
    """See the module."""

    def __init__(self, task: Any, config: MutantConfig | None = None) -> None:
        self.task, self.config = task, config or MutantConfig()
        assert self.config.bug in ("", *BUGS)
        if task.mask is not None:
            raise ValueError(f"task {task.name!r}: it has a grammar mask; allowed are tasks without one")
        if self._has("refuses turns in other words") and task.turns is not None:
            raise ValueError("no such task")
        self.reference = make_reference(task)
        self.logits: dict[tuple[int, ...], Any] = {}
        self.table: dict[tuple[int, ...], float] = {}
        self.iteration = 0
        self._acting = np.random.default_rng([self.config.seed, 9])

    def _has(self, *bugs: str) -> bool:
        return self.config.bug in bugs

    # The policy

    def _keys(self, observation: Any, peek: bool = False) -> list[tuple[int, ...]]:
        ids = observation["input_ids"]
        lengths = np.count_nonzero(observation["attention_mask"], axis=1)
        if self._has("length from pad id"):
            lengths = np.count_nonzero(ids != self.task.vocabulary.pad_id, axis=1)
        peek = peek or self._has("peeks")
        return [tuple(row[: n + peek].tolist()) for row, n in zip(ids, lengths, strict=True)]

    def _start(self, observation: Any) -> Any:
        with np.errstate(invalid="ignore"):
            logits = np.array(self.reference.log_probs(observation), dtype=np.float64)
        if self._has("starts elsewhere"):
            logits[:, 0] += 1.0
        if self._has("ignores the mask"):
            logits[:, ~self.task.vocabulary.allowed] = logits.max()
        return logits

    def log_probs(self, observation: Any) -> Any:
        start = self._start(observation)
        keys = self._keys(observation)
        if self._has("rows read alike") and self.task.turns is not None and len({len(key) for key in keys}) > 1:
            keys = [keys[0][: len(key)] for key in keys]
        logits = np.stack([self.logits.get(key, own) for key, own in zip(keys, start, strict=True)])
        if self._has("reads the width"):
            logits[:, 0] += 0.01 * observation["input_ids"].shape[1]
        top = logits - logits.max(1, keepdims=True)
        if self._has("unnormalised"):
            return top
        return top - np.log(np.exp(top).sum(1, keepdims=True))

    def values(self, observation: Any) -> Any:
        keys = self._keys(observation)
        result = np.array([self.table.get(key, 0.0) for key in keys])
        if self._has("value peeks"):
            result += 0.1 * np.array([key[-1] for key in self._keys(observation, peek=True)])
        return result

    def act(self, observation: Any, deterministic: bool = False) -> Any:
        logs = self.log_probs(observation)
        if deterministic:
            if self._has("takes the least likely"):
                return np.where(np.isneginf(logs), np.inf, logs).argmin(1)
            return logs.argmax(1)
        return self.draw(logs, self._acting)

    def draw(self, logs: Any, generator: Any) -> Any:
        if self._has("acts at another temperature"):
            logs = 2.0 * logs
        cumulative = np.exp(logs).cumsum(1)
        if self._has("global generator"):
            uniforms = np.random.random(len(logs))  # noqa: NPY002
        else:
            uniforms = (np.random.default_rng() if self._has("ignores the seed") else generator).random(len(logs))
        points = uniforms * cumulative[:, -1] * (1 - 1e-12)
        return (cumulative <= points[:, None]).sum(1)

    # Learning

    def _spoil(self, raw: dict[str, Any], last: Any) -> None:
        """Plants the bugs that put an entry of the batch in a wrong place."""
        if self._has("overwrites the last token"):
            raw["actions"] = np.where(last, self.task.vocabulary.stop_ids[0], raw["actions"])
        if self._has("old log-probs shifted"):
            raw["log_probs"] = np.roll(raw["log_probs"], 1)
        if self._has("values shifted"):
            raw["values"] = np.where(last, 0.0, np.roll(raw["values"], -1))
        if self._has("score on the first action"):
            moved = np.zeros(len(last))
            moved[np.roll(last, 1)] = raw["rewards"][last]
            raw["rewards"] = moved
        if self._has("no score after a stop"):
            raw["rewards"] = raw["rewards"] * ~np.isin(raw["actions"], self.task.vocabulary.stop_ids)

    def _batch(self, env: Any, seed: int = 0) -> TrainingBatch:
        seeds = [self.config.seed, self.iteration, seed]
        raw, bootstrap = play(self, env, np.random.default_rng(seeds))
        if self._has("acts for the environment"):
            raw = self._with_replies(raw)
        last = np.append(raw["rows"][1:] != raw["rows"][:-1], True)
        raw["rewards"] = raw["rewards"] * self.task.gamma ** _steps(raw)
        shown = {
            "input_ids": raw["input_ids"][raw["rows"]],
            "attention_mask": np.arange(raw["input_ids"].shape[1]) <= raw["columns"][:, None],
        }
        table = np.asarray(self.reference.log_probs(shown))
        base = table[np.arange(len(last)), raw["actions"]]
        if self._has("ignores the mask"):
            base = np.maximum(base, table.max(1))
        kl = raw["log_probs"] - base
        self._spoil(raw, last)
        if self._has("kl of the wrong action"):
            kl = np.roll(kl, 3)
        gaps = np.where(last, 1, np.append(raw["columns"][1:] - raw["columns"][:-1], 1))
        if self._has("kl of the replies"):
            kl = kl + 0.1 * (gaps - 1)
        sign = -1.0 if self._has("penalty with the wrong sign") else 1.0
        rewards = raw["rewards"] - sign * self.task.beta * kl
        advantages = self._advantages(rewards, raw["values"], last, bootstrap[raw["rows"]], gaps)
        batch = TrainingBatch(
            **raw, penalties=kl, token_rewards=rewards, beta=self.task.beta, gamma=1.0, lam=self.config.lam,
            advantages=advantages, weights=self._whiten(advantages),
        )  # fmt: skip
        return TrainingBatch(**{**batch.__dict__, "logit_gradient": self._gradient(batch)})

    def _with_replies(self, raw: dict[str, Any]) -> dict[str, Any]:
        """Takes the first token of every reply for an action of its own."""
        same = raw["rows"][1:] == raw["rows"][:-1]
        at = np.flatnonzero(same & (raw["columns"][1:] > raw["columns"][:-1] + 1))
        rows, columns = raw["rows"][at], raw["columns"][at] + 1
        tokens = raw["input_ids"][rows, columns + 1]
        added = {"rows": rows, "columns": columns, "actions": tokens}
        added |= dict.fromkeys(("log_probs", "values", "rewards"), np.zeros(len(at)))
        return {name: np.insert(array, at + 1, added[name]) if name in added else array for name, array in raw.items()}

    def _advantages(self, rewards: Any, values: Any, last: Any, bootstrap: Any, gaps: Any) -> Any:
        result, running = np.zeros(len(rewards)), 0.0
        lam = 0.0 if self._has("credits one step") else self.config.lam
        for n in range(len(rewards) - 1, -1, -1):
            following = 0.0 if n + 1 == len(rewards) else values[n + 1]
            if last[n]:
                running = running if self._has("leaks between rows") else 0.0
                following = values[n] if self._has("bootstraps at the end") else bootstrap[n]
                if self._has("forgets to bootstrap"):
                    following = 0.0
            if self._has("credits one step"):
                following = values[n]
            power = gaps[n] if self._has("credit over replies") else 1
            running = rewards[n] + following - values[n] + lam**power * running
            result[n] = running
        return result

    def _whiten(self, advantages: Any) -> Any:
        if not self.config.whiten:
            return advantages
        seen = np.append(advantages, np.zeros(len(advantages))) if self._has("whitens padding") else advantages
        return (advantages - seen.mean()) / max(seen.std(), 1e-8)

    def _gradient(self, batch: TrainingBatch) -> Any:
        gradient = np.exp(self.log_probs(batch.observation()))
        gradient[np.arange(len(batch.rows)), batch.actions] -= 1
        weights = batch.weights
        if self._has("no stop gradient"):
            weights = weights * ~np.isin(batch.actions, self.task.vocabulary.stop_ids)
        return gradient * weights[:, None]

    def learn(self, env: Any, episodes: int, callback: Any = None) -> None:
        done = 0
        while done < episodes:
            batch = self._batch(env)
            metrics = self._metrics(batch)
            # A smaller step with every iteration: resuming has to know which one it is.
            scale = self.config.step / (1 + 0.05 * self.iteration) / np.sqrt(env.num_envs)
            direction = 1.0 if self._has("ascends") else -1.0
            targets = batch.advantages + batch.values
            seen = batch.observation()
            for n, (key, start) in enumerate(zip(self._keys(seen), self._start(seen), strict=True)):
                change = direction * scale * batch.logit_gradient[n] / np.sqrt(env.num_envs)
                self.logits[key] = self.logits.get(key, start) + change
                value = self.table.get(key, 0.0)
                self.table[key] = value + self.config.value_step / 8 * (targets[n] - value)
            self.iteration += 1
            done += env.num_envs
            if callback is not None and callback(metrics):
                return

    def _metrics(self, batch: TrainingBatch) -> dict[str, float]:
        count = len(batch.rows) if self._has("kl per token") else batch.last.sum()
        if self._has("kl per turn"):
            count = count + ((batch.rows[1:] == batch.rows[:-1]) & (np.diff(batch.columns) > 1)).sum()
        kl = float(batch.penalties.sum() / count) * (-1.0 if self._has("kl reversed") else 1.0)
        score = float(batch.rewards.sum() / (len(batch.rows) if self._has("scores per token") else batch.last.sum()))
        temperature = 0.9 if self._has("ratio of another policy") else 1.0
        logs = self.log_probs(batch.observation()) * temperature
        again = logs[np.arange(len(batch.rows)), batch.actions]
        old = logs[np.arange(len(batch.rows)), batch.actions] / temperature
        sign = 1.0 if self._has("adds the kl") else -1.0
        return {
            "objective/kl": kl,
            "objective/scores": score,
            "objective/rlhf_reward": score + sign * self.task.beta * kl,
            "val/first_ratio": float(np.exp(again - old).mean()),
        }

    def conformance_hooks(self) -> dict[str, Any]:
        return {"batch": self._batch, "gradient": self._loss_gradient}

    def _loss_gradient(self, env: Any, seed: int) -> LossGradient:
        batch = self._batch(env, seed)
        columns = batch.columns
        if self._has("learns from the replies"):
            # The state before the next action's, in which the environment wrote where it has.
            columns = np.where(batch.last, columns, np.roll(columns, -1) - 1)
        return LossGradient(
            input_ids=batch.input_ids, rows=batch.rows, columns=columns, beta=batch.beta,
            logits=batch.logit_gradient / env.num_envs, values=-batch.advantages, estimator=Estimator("value"),
        )  # fmt: skip

    # Storage

    def save(self, path: str | Path) -> None:
        Path(path).mkdir(parents=True, exist_ok=True)
        rows = [
            [key, [None if np.isinf(x) else self._stored(x) for x in row.tolist()]] for key, row in self.logits.items()
        ]
        state = {"logits": rows, "values": list(self.table.items()), "config": asdict(self.config)}
        forgets = self._has(
            "forgets the iteration", *["forgets the iteration in turns"] * (self.task.turns is not None)
        )
        state["iteration"] = 0 if forgets else self.iteration
        (Path(path) / "agent.json").write_text(json.dumps(state))

    def _stored(self, number: float) -> float:
        return round(number, 2) if self._has("rounds on save") else number

    @classmethod
    def load(cls, path: str | Path, env: Any) -> MutantAgent:
        state = json.loads((Path(path) / "agent.json").read_text())
        agent = cls(env.unwrapped.task, MutantConfig(**state["config"]))
        agent.logits = {
            tuple(key): np.array([-np.inf if x is None else x for x in row]) for key, row in state["logits"]
        }
        agent.table = {tuple(key): value for key, value in state["values"]}
        agent.iteration = state["iteration"]
        return agent


def _steps(raw: dict[str, Any]) -> Any:
    """(N,) t of every state in its episode."""
    first = np.flatnonzero(np.append(True, raw["rows"][1:] != raw["rows"][:-1]))
    return np.arange(len(raw["rows"])) - np.repeat(first, np.diff(np.append(first, len(raw["rows"]))))
