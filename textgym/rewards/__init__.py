"""Rewards: any callable that scores texts, and what is needed to name, compose and trust them."""

from textgym.rewards.base import Reward, RewardError, Scores, TermReward, TextGymWarning
from textgym.rewards.compose import Clipped, Weighted
from textgym.rewards.normalise import RunningNorm
from textgym.rewards.penalties import LengthPenalty, MissingStopPenalty
from textgym.rewards.registry import RewardSpec, make_reward, register_reward, reward_names
from textgym.rewards.rules import Charset, ContainsAll, Length
from textgym.rewards.scorer import Scorer
from textgym.rewards.shaping import Dense, Shaped, potential_difference

for _name, _factory in {
    "charset": Charset,
    "clipped": Clipped,
    "contains_all": ContainsAll,
    "dense": Dense,
    "length": Length,
    "length_penalty": LengthPenalty,
    "missing_stop": MissingStopPenalty,
    "running_norm": RunningNorm,
    "shaped": Shaped,
    "weighted": Weighted,
}.items():
    register_reward(_name, _factory)

__all__ = [
    "Charset",
    "Clipped",
    "ContainsAll",
    "Dense",
    "Length",
    "LengthPenalty",
    "MissingStopPenalty",
    "Reward",
    "RewardError",
    "RewardSpec",
    "RunningNorm",
    "Scorer",
    "Scores",
    "Shaped",
    "TermReward",
    "TextGymWarning",
    "Weighted",
    "make_reward",
    "potential_difference",
    "register_reward",
    "reward_names",
]
