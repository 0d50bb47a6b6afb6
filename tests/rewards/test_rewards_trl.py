"""The same reward works in TRL's trainers and here, both ways; with texts and with messages."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import numpy as np
import pytest

from textgym.registry import REWARDS
from textgym.rewards import (
    FromMessages,
    Scorer,
    ToMessages,
    Weighted,
    as_text,
    make_reward,
    reward_names,
)

# A spec of every registered reward that needs no model; what a reward reads is in COLUMNS.
SPECS: dict[str, Any] = {
    "amount": {"name": "amount", "of": "words", "most": 2},
    "arithmetic": "arithmetic",
    "bleu": {"name": "bleu", "column": "answer"},
    "blurred": {"name": "blurred", "reward": "length", "deviation": 0.5},
    "charset": "charset",
    "chrf": {"name": "chrf", "column": "answer"},
    "clipped": {"name": "clipped", "reward": "length"},
    "contains_all": {"name": "contains_all", "words": ["red"]},
    "countdown": "countdown",
    "dense": {"name": "dense", "reward": "length"},
    "edges": {"name": "edges", "end": "hat"},
    "final_answer": "final_answer",
    "forbidden": {"name": "forbidden", "words": ["hat"]},
    "format": {"name": "format", "template": "a {colour} hat"},
    "from_messages": {"name": "from_messages", "reward": "length"},
    "grouped": {"name": "grouped", "reward": "length"},
    "harmless_rules": "harmless_rules",
    "helpful_rules": "helpful_rules",
    "hhh_rules": "hhh_rules",
    "honest_rules": "honest_rules",
    "instructions": {"name": "instructions", "instructions": [{"name": "edges", "start": "red"}]},
    "json_schema": {"name": "json_schema", "schema": {"type": "object"}},
    "json_values": "json_values",
    "keywords": {"name": "keywords", "words": ["red"]},
    "length": "length",
    "length_penalty": {"name": "length_penalty", "limit": 2},
    "letter_case": {"name": "letter_case", "case": "lower"},
    "missing_stop": {"name": "missing_stop", "stop_ids": [1]},
    "no_repeat": "no_repeat",
    "pattern": {"name": "pattern", "pattern": ".*red"},
    "rouge": {"name": "rouge", "column": "answer"},
    "running_norm": {"name": "running_norm", "reward": "length"},
    "sentiment": "sentiment",
    "shaped": {"name": "shaped", "reward": "length"},
    "steps": "steps",
    "weighted": {
        "name": "weighted",
        "rewards": {"a": "length", "b": {"name": "missing_stop", "stop_ids": [1]}},
    },
}
COLUMNS: dict[str, Any] = {
    "completion_ids": [[5, 6, 1], [5]],
    "episode_seeds": [7, 8],
    "answer": ["7", "12"],
    "value": [{"a": 1}, None],
    "numbers": [[1, 2], None],
    "target": [3, 4],
}
TRAINER = {"trainer_state": object(), "log_extra": print, "log_metric": print, "environments": None}


def test_every_reward_of_the_package_is_tried() -> None:
    factories = {name: REWARDS.entry(name).target for name in reward_names()}
    own = {n for n, f in factories.items() if (f if isinstance(f, str) else f.__module__).startswith("textgym.")}
    assert own - {"reward_model", "to_messages", "concurrent", "judge", "math_verify", "per_token"} == set(SPECS)


@pytest.mark.parametrize("name", SPECS)
def test_our_rewards_work_in_trl(name: str) -> None:
    reward = make_reward(SPECS[name])
    # GRPOTrainer logs under __name__ and passes everything by keyword, its own state and functions too.
    assert isinstance(reward.__name__, str)
    result = reward(prompts=["p", "q"], completions=["a red hat", "red"], **COLUMNS, **TRAINER)
    assert isinstance(result, list)
    assert len(result) == 2
    assert all(value is None or isinstance(value, float) for value in result)


# Dense and shaped rewards say when they are paid, so they have to be outermost.
@pytest.mark.parametrize("name", [name for name in SPECS if name not in ("dense", "shaped")])
def test_our_rewards_work_in_trl_with_messages(name: str) -> None:
    plain, chat = make_reward(SPECS[name]), FromMessages(SPECS[name])
    texts = ["a red hat", "red"]
    prompts = [[{"role": "system", "content": "Be brief."}, {"role": "user", "content": p}] for p in "pq"]
    completions = [[{"role": "assistant", "content": text}] for text in texts]
    assert chat.__name__ == plain.__name__
    given = chat(prompts=prompts, completions=completions, **COLUMNS, **TRAINER)
    assert given == plain(prompts=["p", "q"], completions=texts, **COLUMNS)


# Rewards in TRL's manner: they name the keywords they need, swallow the rest, and say None where they do not apply.
def by_ids(completion_ids: list[list[int]], **kwargs: Any) -> list[float]:
    return [float(len(ids)) for ids in completion_ids]


def by_form(completions: list[str], **kwargs: Any) -> list[float]:
    return [1.0 if re.match(r"^<a>.*</a>$", text) else 0.0 for text in completions]


def by_column(prompts: list[str], completions: list[str], answer: list[str], **kwargs: Any) -> list[Any]:
    rows = zip(prompts, completions, answer, strict=True)
    return [None if not right else float(right in text) + len(prompt) for prompt, text, right in rows]


def by_step(completions: list[str], trainer_state: Any = None, **kwargs: Any) -> list[float]:
    step = trainer_state.global_step if trainer_state is not None else 0
    if "log_metric" in kwargs:
        kwargs["log_metric"]("step", step)
    return [float(step)] * len(completions)


async def by_waiting(completions: list[str], **kwargs: Any) -> list[float]:
    await asyncio.sleep(0)
    return [float(len(text)) for text in completions]


def by_message(completions: list[list[dict[str, str]]], prompts: Any, **kwargs: Any) -> list[float]:
    assert all(prompt[-1]["role"] == "user" for prompt in prompts)
    return [float(len(completion[0]["content"])) for completion in completions]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("reward", "total"),
    [
        (by_ids, [2, 1, 3]),
        (by_form, [1, 0, 0]),
        (by_column, [2, 0, 1]),
        (by_step, [0, 0, 0]),
        (by_waiting, [10, 3, 4]),
        (ToMessages(by_message), [10, 3, 4]),
        (Weighted({"a": by_ids, "b": by_waiting}, {"a": 10.0}), [30, 13, 34]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
@pytest.mark.parametrize("timeout", [None, 20.0])
def test_trl_rewards_work_here(reward: Any, total: list[float], timeout: float | None) -> None:
    columns = {"completion_ids": [[1, 2], [3], [4, 5, 6]], "answer": ["red", "", "x"]}
    scorer = Scorer(reward, timeout=timeout)
    scores = scorer.score(["p"] * 3, ["<a>red</a>", "red", "blue"], columns)
    np.testing.assert_allclose(scores.total, total)
    scorer.close()
    if reward is by_column:
        np.testing.assert_allclose(scores.terms["by_column"], [2, np.nan, 1])


def test_a_reward_that_waits_works_where_a_loop_runs_already() -> None:
    async def in_a_notebook() -> Any:
        return Scorer(by_waiting).score(["p"], ["abc"]).total.tolist()

    assert asyncio.run(in_a_notebook()) == [3.0]


def test_messages_as_text() -> None:
    talk = [
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "one"},
        {"role": "tool", "content": "not said"},
        {"role": "assistant", "content": None},
        {"role": "assistant", "content": [{"type": "text", "text": "tw"}, {"type": "text", "text": "o"}]},
        {"role": "user", "content": "last"},
    ]
    assert as_text("plain", "user") == "plain"
    assert as_text(talk, "user") == "last"
    assert as_text(talk, "assistant") == "one\n\ntwo"
    assert as_text([], "user") == as_text([], "assistant") == ""


@pytest.mark.parametrize("wrong", [None, 3, ["text"], [{"content": "no role"}], [{"role": "user", "content": 3}]])
def test_what_is_neither_text_nor_messages_is_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"neither a text nor|content=3"):
        as_text(wrong, "user")


@pytest.mark.parametrize("adapter", [FromMessages, ToMessages])
def test_adapters_keep_the_state_of_what_they_adapt(adapter: Any) -> None:
    used, fresh = adapter(Counted()), adapter(Counted())
    used(prompts=["p"], completions=["a b"])
    assert (used.state_dict(), fresh.state_dict()) == (1, 0)
    fresh.load_state_dict(used.state_dict())
    assert fresh.inner.reward.calls == 1


class Counted:
    """Counts its calls."""

    calls = 0

    def __call__(self, prompts: Any, completions: Any, **columns: Any) -> list[float]:
        self.calls += 1
        return [float(len(text)) for text in completions]

    def state_dict(self) -> int:
        return self.calls

    def load_state_dict(self, state: int) -> None:
        self.calls = state
