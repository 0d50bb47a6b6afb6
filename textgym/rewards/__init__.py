"""Rewards: any callable that scores texts, and what is needed to name, compose and trust them."""

from textgym.checks import TextGymWarning
from textgym.rewards.answers import Countdown, FinalAnswer, RightSteps
from textgym.rewards.base import Reward, RewardError, Scores, TermReward, as_text
from textgym.rewards.compose import (
    Blurred,
    Clipped,
    FromMessages,
    Grouped,
    RunningNorm,
    ToMessages,
    Weighted,
)
from textgym.rewards.dense import Dense, PerToken, Shaped, potential_difference
from textgym.rewards.json import JsonSchema, JsonValues
from textgym.rewards.metrics import Bleu, Chrf, Rouge, Sentiment
from textgym.rewards.numbers import Arithmetic
from textgym.rewards.patterns import Format, Pattern
from textgym.rewards.registry import RewardSpec, describe_reward, make_reward, register_reward, reward_names
from textgym.rewards.rules import Charset, ContainsAll, Keywords, Length, LengthPenalty, MissingStopPenalty, NoRepeat
from textgym.rewards.scorer import Scorer

__all__ = [
    "Arithmetic",
    "Bleu",
    "Blurred",
    "Charset",
    "Chrf",
    "Clipped",
    "ContainsAll",
    "Countdown",
    "Dense",
    "FinalAnswer",
    "Format",
    "FromMessages",
    "Grouped",
    "JsonSchema",
    "JsonValues",
    "Keywords",
    "Length",
    "LengthPenalty",
    "MissingStopPenalty",
    "NoRepeat",
    "Pattern",
    "PerToken",
    "Reward",
    "RewardError",
    "RewardSpec",
    "RightSteps",
    "Rouge",
    "RunningNorm",
    "Scorer",
    "Scores",
    "Sentiment",
    "Shaped",
    "TermReward",
    "TextGymWarning",
    "ToMessages",
    "Weighted",
    "as_text",
    "describe_reward",
    "make_reward",
    "potential_difference",
    "register_reward",
    "reward_names",
]
