"""TextGym's rewards in TRL's GRPOTrainer, unchanged: what it logs is what they pay here."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trl_tools import STEPS, config, datasets, trl

from textgym.rewards import FromMessages, NoRepeat, Scorer, Sentiment, Weighted, as_text, make_reward
from textgym.world import MODEL_PATH
from textgym.world.prompts import prompts

pytestmark = pytest.mark.slow

GROUP, BATCH = 4, 16
# By the names that they are logged under.
SPECS: dict[str, Any] = {
    "length": {"name": "length", "target": 6},
    "weighted": {
        "name": "weighted",
        "rewards": {
            "style": "sentiment",
            "short": {"name": "length_penalty", "limit": 8},
            "new": "no_repeat",
        },
        "weights": {"style": 2.0},
    },
    "keywords": {"name": "keywords", "words": ["The", "is"]},
    "pattern": {"name": "pattern", "pattern": "^The .*", "mode": "search"},
    "rules": "helpful_rules",
    "bleu": {"name": "bleu", "column": "wanted"},
}


class Recorded:
    """A reward in TRL's manner that keeps what the trainer hands over; pays nothing."""

    __name__ = "recorded"

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def __call__(self, prompts: Any, completions: Any, completion_ids: Any, **kwargs: Any) -> list[Any]:
        assert {"trainer_state", "log_extra", "log_metric"} <= set(kwargs)  # what a reward has to swallow
        columns = {name: list(kwargs[name]) for name in ("item", "wanted")}
        self.calls.append({"prompts": prompts, "completions": completions, "completion_ids": completion_ids, **columns})
        return [0.0] * len(prompts)


def rows(conversational: bool) -> Any:
    asked = prompts(["fact", "sum"], "train")[:: 400 // 16][:16]
    texts = [prompt.text for prompt in asked]
    wanted = [" ".join(prompt.columns["answer"]) if i % 2 else None for i, prompt in enumerate(asked)]
    given = [[{"role": "user", "content": text}] for text in texts] if conversational else texts
    return datasets.Dataset.from_dict({"prompt": given, "item": [prompt.item for prompt in asked], "wanted": wanted})


def train(out: Path, rewards: list[Any], conversational: bool) -> list[dict[str, float]]:
    """Two steps of GRPO on the built-in model; returns what it logs of each."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = trl.GRPOTrainer(
            str(MODEL_PATH), rewards, args=config(out, BATCH, GROUP, 12), train_dataset=rows(conversational)
        )
        trainer.train()
    return [row for row in trainer.state.log_history if "reward" in row]


def expected(call: dict[str, Any], spec: Any) -> Any:
    """What TextGym's Scorer makes of the same completions, NaN where the reward abstains."""
    texts = [as_text(text, "assistant") for text in call["completions"]]
    asked = [as_text(text, "user") for text in call["prompts"]]
    scores = Scorer(spec).score(asked, texts, {n: call[n] for n in ("completion_ids", "item", "wanted")})
    abstains = np.all([np.isnan(values) for values in scores.terms.values()], axis=0)
    return np.where(abstains, np.nan, scores.total)


@pytest.mark.parametrize("conversational", [False, True], ids=["texts", "messages"])
def test_grpo_logs_the_rewards_that_textgym_computes(conversational: bool, tmp_path: Path) -> None:
    recorded = Recorded()
    rewards = [make_reward(spec) for spec in SPECS.values()]
    given = [FromMessages(reward) for reward in rewards] if conversational else rewards
    logged = train(tmp_path, [recorded, *given], conversational)
    assert len(logged) == len(recorded.calls) == STEPS
    for row, call in zip(logged, recorded.calls, strict=True):
        assert len(call["completions"]) == BATCH
        assert isinstance(call["completions"][0], list) == conversational
        columns = np.array([expected(call, spec) for spec in SPECS.values()])
        assert 0 < np.isnan(columns).sum() < BATCH  # of BLEU, for prompts without a reference
        for name, values in zip(SPECS, columns, strict=True):
            assert row[f"rewards/{name}/mean"] == pytest.approx(np.nanmean(values), abs=1e-5)
        assert row["reward"] == pytest.approx(np.nansum(columns, axis=0).mean(), abs=1e-5)


def test_the_length_reward_by_hand(tmp_path: Path) -> None:
    recorded = Recorded()
    logged = train(tmp_path, [recorded, make_reward(SPECS["length"])], False)
    for row, call in zip(logged, recorded.calls, strict=True):
        by_hand = [max(0.0, 1 - abs(len(text.split()) - 6) / 6) for text in call["completions"]]
        assert row["reward"] == pytest.approx(np.mean(by_hand), abs=1e-5)
        assert row["rewards/length/mean"] == pytest.approx(np.mean(by_hand), abs=1e-5)


def test_objects_may_be_given_as_they_are(tmp_path: Path) -> None:
    both = Weighted({"new": NoRepeat(1), "style": Sentiment("negative")})
    (first, _) = train(tmp_path, [both], False)
    assert 0 <= first["rewards/weighted/mean"] <= 2


def test_the_page_s_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs" / "rewards.md").read_text(encoding="utf-8")
    ((_, source),) = re.findall(r"<!-- needs: (trl) -->\n\n```python\n(.*?)```\n", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "page"}
    exec(compile(source, "docs/rewards.md", "exec"), names)
    logged = [row for row in names["trainer"].state.log_history if "reward" in row]
    assert len(logged) == STEPS
    assert {"rewards/length/mean", "rewards/chrf/mean"} <= set(logged[0])
