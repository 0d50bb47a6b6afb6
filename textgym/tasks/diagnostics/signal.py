"""Signal: rewards that are late, noisy, of another scale, or weighed against the KL."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from textgym.checks import check_count
from textgym.lm.reference import Reference
from textgym.rewards import RewardSpec
from textgym.rewards.compose import Blurred
from textgym.task import Task
from textgym.tasks.assemble import documented
from textgym.tasks.diagnostics.common import BETA, SHARED, TextReward, diagnostic, share_right, word_vocabulary

BETAS: Final = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
"""Difficulty of BetaSweep -> reward units per nat."""
SCALES: Final = (1.0, 10.0, 0.1, 100.0, 0.01)
"""Difficulty of Scale -> reward units for a word spelt right throughout."""
LETTERS: Final = ("a", "b", "c", "d")
TARGET: Final = ("d", "a", "b")
"""The word that BetaSweep, Noisy and Scale ask for."""


@dataclass(frozen=True)
class FirstWord(TextReward):
    """Pay 1 where the first word is `word`, else 0."""

    word: str
    name = "first_word"
    maximum = 1.0
    minimum = 0.0

    def _pay(self, text: str) -> float:
        return float(text.split()[:1] == [self.word])


@documented(SHARED, prompt="go", V="4", words="`a`, `b`, `c`", L="difficulty + 1", T="`difficulty` tokens")
def delayed_task(difficulty: int = 8, *, beta: float = BETA, reference: str | Reference = "uniform") -> Task:
    """Make the task Delayed.

    ### Description
    Credit assignment: the words after the first one change nothing, and the best policy leaves them to the
    reference. An agent that credits them wanders off and pays for it in KL.

    ### Rewards
    Paid at the end: 1 where the first word was `a`, else 0.

    ### Arguments
        difficulty: 1..12, tokens of an episode.
    """
    length = check_count("difficulty", difficulty, 1, 12, "words until it is paid")
    vocabulary = word_vocabulary(LETTERS[:3], asked=["go"])
    reward = FirstWord(LETTERS[0])
    return diagnostic("Delayed", vocabulary, "go", reward=reward, words=length, beta=beta, reference=reference)


@dataclass(frozen=True)
class Spelling(TextReward):
    """Pay the share of the letters of `TARGET` that stand at their place, times `scale`. Range [0, scale]."""

    scale: float = 1.0
    name = "spelling"
    minimum = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "maximum", self.scale)

    def _pay(self, text: str) -> float:
        return self.scale * share_right(text, " ".join(TARGET))


@documented(SHARED, prompt="spell", V="5", words="`a`, `b`, `c`, `d`", L="4", T="three tokens")
def beta_sweep_task(difficulty: int = 3, *, beta: float | None = None, reference: str | Reference = "uniform") -> Task:
    """Make the task BetaSweep.

    ### Description
    A word of three letters is spelt. With a small beta the best policy is all but certain, with a large one it
    stays beside the reference, and an agent has to find the point between.

    ### Rewards
    Paid at the end, in [0, 1]: the share of letters that are right.

    ### Arguments
        difficulty: 0..6, for beta 0.01, 0.03, 0.1, 0.3, 1, 3 and 10.
        beta: reward units per nat of KL to the reference; None: by difficulty.
    """
    chosen = BETAS[check_count("difficulty", difficulty, 0, len(BETAS) - 1, f"betas {BETAS}")]
    return _spelling("BetaSweep", Spelling(), chosen if beta is None else beta, reference)


@documented(SHARED, prompt="spell", V="5", words="`a`, `b`, `c`, `d`", L="4", T="three tokens")
def noisy_task(difficulty: int = 2, *, beta: float = BETA, reference: str | Reference = "uniform") -> Task:
    """Make the task Noisy.

    ### Description
    The task Scale with noise on its reward: each episode draws a seed from the environment's generator, and
    the noise from that seed. The optimum is that of the mean reward, which is the gold reward and the attribute
    `expected` of the reward.

    ### Rewards
    Paid at the end: the share of words that are right, in [0, 1], plus normal noise with standard deviation
    difficulty / 2, without bounds.

    ### Arguments
        difficulty: 0..20, for noise of standard deviation difficulty / 2.
    """
    deviation = 0.5 * check_count("difficulty", difficulty, 0, 20, "noise, in halves of the greatest reward")
    expected = Spelling()
    return _spelling("Noisy", Blurred(expected, deviation), beta, reference, gold=expected)


@documented(SHARED, prompt="spell", V="5", words="`a`, `b`, `c`, `d`", L="4", T="three tokens")
def scale_task(difficulty: int = 3, *, beta: float | None = None, reference: str | Reference = "uniform") -> Task:
    """Make the task Scale.

    ### Description
    A word of three letters is spelt. Rewards and beta are scaled together, so the best policy is the same at
    every difficulty, and an agent that needs another learning rate for other units fails.

    ### Rewards
    Paid at the end, in [0, scale]: the share of letters that are right, times the scale.

    ### Arguments
        difficulty: 0..4, for the scales 1, 10, 0.1, 100 and 0.01.
        beta: reward units per nat of KL to the reference; None: 0.1 times the scale.
    """
    scale = SCALES[check_count("difficulty", difficulty, 0, len(SCALES) - 1, f"scales {SCALES}")]
    return _spelling("Scale", Spelling(scale), BETA * scale if beta is None else beta, reference)


def _spelling(
    name: str, reward: RewardSpec, beta: float, reference: str | Reference, gold: RewardSpec | None = None
) -> Task:
    words = len(TARGET)
    vocabulary = word_vocabulary(LETTERS, asked=["spell"])
    return diagnostic(name, vocabulary, "spell", reward=reward, words=words, beta=beta, reference=reference, gold=gold)
