"""Policies side by side under the gold reward and its proxy: reward, KL to the reference, optimality."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from textgym.best_of_n import FEWEST, best_of_n
from textgym.bootstrap import Estimate
from textgym.evaluate import Evaluation, Optimum, evaluate, optimality_of, optimum_of
from textgym.lm.reference import Reference
from textgym.task import Task


@dataclass(frozen=True)
class Row:
    """One policy.

    Attributes:
        policy: what it is called.
        gold, proxy: expected rewards on held-out prompts, reward units.
        kl: nats per answer to the reference; of best-of-n from the levels of the proxy, see `textgym.best_of_n`.
        optimality: of J = gold reward - beta KL: 0 is the reference, 1 the best that any policy can do.
        answers: prompt -> its first sampled answer; empty for best-of-n.
    """

    policy: str
    gold: Estimate
    proxy: Estimate
    kl: Estimate
    optimality: Estimate | None
    answers: dict[str, str]

    def summary(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Contest:
    """What policies are compared under.

    Args:
        gold_task: its reward is the gold one.
        proxy_task: the same task with the proxy as reward, and gold as gold.
        reference: pi_ref, which KL is measured from.
        split: prompts to answer.
        per_prompt: answers to each.
        seed: of the sampling.
    """

    gold_task: Task
    proxy_task: Task
    reference: Reference
    split: str = "eval"
    per_prompt: int = 16
    seed: int = 0

    def optimum(self, proposals: Sequence[Any] = (), per_prompt: int = 128) -> Optimum:
        """J* under the gold reward, with trained policies as proposals."""
        return optimum_of(self.gold_task, proposals, self.reference, split=self.split, per_prompt=per_prompt)

    def row(self, name: str, policy: Any, optimum: Optimum | None, shown: int = 0) -> Row:
        """Measures one policy; `shown` of its answers are kept."""
        gold = self._evaluate(policy, self.gold_task, optimum, self.per_prompt)
        # The same seed, so that the very same answers are scored by the proxy.
        proxy = self._evaluate(policy, self.proxy_task, None, self.per_prompt)
        assert gold.kl is not None
        episodes = gold.episodes
        answers = {episodes.prompts[i]: str(episodes.completions[i, 0]) for i in range(len(episodes.prompts))}
        return Row(
            name, gold.reward, proxy.reward, gold.kl, gold.optimality, dict(list(answers.items())[:shown])
        )

    def best_of(self, n: int, optimum: Optimum | None, samples: int) -> Row:
        """Best-of-n of the reference by the proxy, from `samples` answers to each prompt: 4 n at least."""
        episodes = self._evaluate(self.reference, self.proxy_task, None, max(samples, FEWEST * n)).episodes
        best = best_of_n(episodes.returns, episodes.gold, episodes.weights, n, self.seed)
        assert best.kl is not None
        optimality = None
        if optimum is not None:
            objective = best.gold.mean - optimum.beta * best.kl.mean
            replicates = best.replicates[:, 1] - optimum.beta * best.replicates[:, 2]
            optimality = optimality_of(objective, replicates, optimum)
        return Row(f"best-of-{n}", best.gold, best.proxy, best.kl, optimality, {})

    def _evaluate(self, policy: Any, task: Task, optimum: Optimum | None, per_prompt: int) -> Evaluation:
        beta = 0.0 if optimum is None else optimum.beta
        return evaluate(
            policy,
            task,
            self.reference,
            optimum,
            beta=beta,
            split=self.split,
            per_prompt=per_prompt,
            seed=self.seed,
        )


def shifted(estimate: Estimate, by: float) -> Estimate:
    """An estimate with a constant added."""
    return Estimate(estimate.mean + by, estimate.low + by, estimate.high + by)
