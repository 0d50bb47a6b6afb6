"""Direct preference optimisation: learn a policy from pairs of completions, without a reward model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from textgym.preferences import Demonstration, annotate, pairs, read_rankings
from textgym.task import Task, refuse_chance
from textgym.vector import TokenVectorEnv
from textgym_agents.config import at_least_one, positive, require
from textgym_agents.datasets.reading import Recording
from textgym_agents.lm.gathered import whole_rollout
from textgym_agents.lm.maths import scores
from textgym_agents.lm.offline import OfflineAgent, OfflineConfig
from textgym_agents.lm.rollout import collect
from textgym_agents.lm.sequences import Sequences, of_rollout, sequence_log_probs
from textgym_agents.protocol import Metrics

Loss = Literal["sigmoid", "ipo"]
Sampler = Literal["reference", "policy"]


@dataclass(frozen=True)
class DPOConfig(OfflineConfig):
    """Settings of DPO. Raises: as `LMConfig` does."""

    data: str | None = None
    """File of preferences, in any format of textgym.preferences, or folder of a Minari dataset, whose episodes are
    paired by prompt. A Bradley-Terry annotator ranks the completions if they have returns. None: pairs of the policy's
    or the reference's completions, see sampler."""
    pairs: int | None = None
    """Number of pairs of the reference's completions to learn from, rounded up to whole iterations, with repeated
    passes over them; None: new pairs in every iteration."""
    sampler: Sampler = "reference"
    """Who writes the completions of the pairs. reference: as in the paper; pairs can be reused, but rarely compare two
    good answers. policy: the policy itself, as it improves; the minimum of the loss is at the same policy."""
    noise: float = 0.1
    """Temperature of the annotators, reward units: they prefer a to b with probability sigmoid((R_a - R_b) / noise).
    The loss has the strength beta / noise. For a file: the assumed temperature of its annotators; with 1, beta is the
    paper's."""
    loss: Loss = "sigmoid"
    """sigmoid: the loss of DPO. ipo: a squared error, which keeps log-ratios finite even if annotators never err."""
    label_smoothing: float = 0.0
    """Assumed share of reversed preferences, in [0, 0.5), for the sigmoid loss."""
    epochs: int = 2
    """Passes over the pairs of an iteration before the next pairs are drawn."""

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "noise")
        at_least_one(self, "pairs")
        require("pairs", self.pairs, self.pairs is None or self.data is None, "None where data is given")
        require("sampler", self.sampler, self.sampler in get_args(Sampler), str(get_args(Sampler)))
        old = self.data is not None or self.pairs is not None
        require("sampler", self.sampler, not old or self.sampler == "reference", "'reference' with data or pairs")
        require("loss", self.loss, self.loss in get_args(Loss), str(get_args(Loss)))
        smoothing = self.label_smoothing
        require("label_smoothing", smoothing, 0 <= smoothing < 0.5, "a number in [0, 0.5)")
        require("label_smoothing", smoothing, not smoothing or self.loss == "sigmoid", "0 where loss is 'ipo'")

    @property
    def prompts_from(self) -> str:
        """See `OfflineConfig.prompts_from`: the same pairs come again."""
        return super().prompts_from or ("pairs" if self.pairs is not None else "")


class DPO(OfflineAgent):
    """An LM policy trained on preferences. Args: see `LMAgent`.

    beta log(pi / ref) is a reward for which pi is optimal, so the policy is fitted like a reward model: with labels
    that a Bradley-Terry annotator of temperature T made from returns R, the minimum of the loss of strength beta / T is
    where beta log(pi / ref) is R up to a constant of each prompt. That policy is the optimum of J = E[R] - beta KL.

    Each pair counts as two episodes, whether its completions were played or read from a file.

    Raises: as `LMAgent` does; ValueError for a grammar mask, for a task with turns where
    chance has a say or a file is given, or beta = 0.
    Source: Rafailov et al. (2023), arXiv:2305.18290, eq. 7; Azar et al. (2023), arXiv:2310.12036, eq. 17 (IPO).
    """

    name = "dpo"
    config_type = DPOConfig
    config: DPOConfig
    unit = 2

    def __init__(self, task: Task, config: DPOConfig | None = None, model: nn.Module | None = None) -> None:
        super().__init__(task, config or DPOConfig(), model)
        self.offline = self.config.sampler == "reference"
        if not self.controller.beta > 0:
            raise ValueError(f"beta={self.controller.beta!r}: with 0 no pair counts, allowed is a number > 0")

    def _check_turns(self, task: Task, config: OfflineConfig) -> None:
        """Raise ValueError for texts of a file in a task with turns, and where its environment is random."""
        if config.data is not None:
            super()._check_turns(task, config)
        refuse_chance(task, self.name)

    def _has_data(self) -> bool:
        return self.config.data is not None

    def _read(self) -> list[Demonstration]:
        assert self.config.data is not None
        rankings = self._usable(read_rankings(self.config.data, self.config.on_broken))
        rows = [pair for ranking in rankings for pair in pairs(ranking)]
        return [
            Demonstration(row.prompt, completion, ended)
            for row in rows
            for completion, ended in zip(row.completions, row.ended or (True, True), strict=True)
        ]

    def _select(self, recording: Recording) -> Sequences:
        pairs = recording.pairs()
        best_first = self._annotate(recording.returns[pairs], self.config.seed)
        return recording.sequences.rows(np.take_along_axis(pairs, best_first, axis=1).ravel())

    def _annotate(self, returns: NDArray[np.float64], seed: int) -> NDArray[np.int64]:
        """Return the order of each pair, preferred first (n, 2), from its returns (n, 2)."""
        return annotate(returns, self.config.noise, np.random.default_rng([seed, 7]))

    def _batch(self, env: TokenVectorEnv) -> tuple[Sequences, Metrics]:
        if self._has_data():
            return super()._batch(env)
        # Round by round the same pairs come again: they depend on the round's seed and the frozen reference alone.
        rounds = (
            None if self.config.pairs is None else -(-self.config.pairs // (self.devices.world * env.num_envs // 2))
        )
        place = self.iteration if rounds is None else self.iteration % rounds
        seed = int(np.random.SeedSequence([self.config.seed, place, 0]).generate_state(1)[0])
        author = self.policy if self.config.sampler == "policy" else self.reference
        part = collect(env, author, seed, self.task.end_ids, group=2, devices=self.devices)
        rollout = whole_rollout(self.devices, part)
        returns = scores(rollout, self.task.gamma).reshape(-1, 2)
        best_first = self._annotate(returns, seed)
        order = (best_first + 2 * np.arange(len(best_first))[:, None]).ravel()
        wrong = returns[np.arange(len(returns)), best_first[:, 0]] < returns.max(1)
        return of_rollout(rollout).rows(order), {
            "data/scores": float(returns.mean()),
            "data/disagreement": float(wrong.mean()),
        }

    @torch.no_grad()
    def _score_reference(self, batch: Sequences) -> Tensor:
        size = self.config.micro_batch
        parts = [
            np.arange(start, min(start + size, len(batch.lengths))) for start in range(0, len(batch.lengths), size)
        ]
        return torch.cat([sequence_log_probs(self.reference, batch.rows(part)) for part in parts])

    def _losses(self, batch: Sequences, reference: Tensor) -> tuple[Tensor, Metrics]:
        own = sequence_log_probs(self.policy, batch)
        beta, config = self.controller.beta, self.config
        ratios = (own - reference).view(-1, 2)  # log(pi / ref) of chosen and rejected
        differences = ratios[:, 0] - ratios[:, 1]
        if config.loss == "ipo":
            losses = ipo_loss(differences, beta / (4 * config.noise))
        else:
            losses = dpo_loss(differences, beta / config.noise, config.label_smoothing)
        with torch.no_grad():
            chosen, rejected = (beta * ratios).sum(0).tolist()
            measures = {
                "loss/preference": float(losses.sum()),
                "rewards/chosen": chosen,
                "rewards/rejected": rejected,
                "rewards/margins": chosen - rejected,
                "rewards/accuracies": float((differences > 0).sum()),
            }
        return losses, measures


def dpo_loss(differences: Tensor, strength: float, label_smoothing: float = 0.0) -> Tensor:
    """Return -(1 - e) log sigmoid(s d) - e log sigmoid(-s d), of every pair (n,), nats.

    Args:
        differences: d (n,), log(pi / ref) of the chosen completion less that of the rejected one, nats.
        strength: s > 0, beta over the temperature of the annotators.
        label_smoothing: e, share of labels that are taken to be the wrong way round.
    Source: Rafailov et al. (2023), arXiv:2305.18290, eq. 7; Mitchell (2023), A note on DPO with noisy preferences and
        relationship to IPO, for label smoothing.
    """
    logits = strength * differences
    return -(1 - label_smoothing) * F.logsigmoid(logits) - label_smoothing * F.logsigmoid(-logits)


def ipo_loss(differences: Tensor, strength: float) -> Tensor:
    """Return (d - 1 / (2 s))^2 of every pair (n,), squared nats.

    Where a is preferred to b with probability p, it is least at d = (p - 1/2) / s. For rewards that differ by much less
    than the annotators' temperature T, p - 1/2 is their difference over 4 T: then s = beta / (4 T) gives DPO's policy.

    Args: see `dpo_loss`.
    Source: Azar et al. (2023), arXiv:2310.12036, eq. 17.
    """
    return (differences - 1 / (2 * strength)).square()
